# SPDX-License-Identifier: Apache-2.0
"""Agreement of the images themselves, for which no label is needed."""

from __future__ import annotations

from torch import Tensor

from .cases import Cases


class ImageMeasures:
    """Mean squared difference of the images: ``mse`` and ``mse_before``, of images as the network saw them."""

    headlines = ("mse",)

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Return the columns, each (B,)."""
        moving, fixed = cases.of("image", "moving_image", "fixed_image")
        pairs = {"mse": cases.warped_image, "mse_before": moving}
        return {name: (image - fixed).square().flatten(1).mean(1) for name, image in pairs.items()}
