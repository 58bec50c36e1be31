# SPDX-License-Identifier: Apache-2.0
"""The error that the readers of all data sets raise."""


class DatasetLayoutError(ValueError):
    """Files of a data set are missing or not as its owners publish them."""
