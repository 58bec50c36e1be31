# SPDX-License-Identifier: Apache-2.0
"""Synthetic data that several suites share; nothing here is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

# Of several test processes each takes one thread, and so do the commands that they start: more would wait for a core.
THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import pytest  # noqa: E402
import torch  # noqa: E402

from common.data.acdc_phantom import make_acdc_phantom  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
torch.set_num_threads(int(THREADS))


@pytest.fixture(scope="session")
def acdc_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in the ACDC layout: three training patients, one for validation, one for testing."""
    return make_acdc_phantom(tmp_path_factory.mktemp("acdc"), n_train=3, n_test=1, shape=(96, 88), n_slices=3)
