# SPDX-License-Identifier: Apache-2.0
"""The inference.json inside model.ts: MONAI Deploy reads it from the lone file, which carries none of our code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .bundles import read_json

# Stacks go through a 2D network slice by slice, single images as they are.
SLICES = (
    "$lambda inputs, network, *args, **kwargs: (monai.inferers.SimpleInferer() if inputs.ndim == 4 else "
    "monai.inferers.SliceInferer(roi_size=inputs.shape[2:4], sw_batch_size={batch_size}, spatial_dim=2))"
    "(inputs, network, *args, **kwargs)"
)


def export_inference(bundle: Path) -> dict[str, Any]:
    """What of a bundle's inference MONAI's own parts can do.

    The input is ``image``, (2, *S[, Z]), moving and fixed on one grid of the bundle's spacing. Volumes that the
    network sees whole (``whole_volumes``) are clipped, scaled, and padded or cropped to its grid here, and the
    displacement is brought back. Else the input is the window itself, each image of it scaled to [0, 1]: finding the
    window, resizing a displacement and finding lungs take code that is in the bundle's folder alone. The output is the
    displacement, in voxels of the input's grid.

    Departure: percentiles are MONAI's, of all voxels; images of which more than half is one background value differ
    from ``inferring`` (``common.transforms.intensity.clip_percentiles``), as do those of which the grid cuts an odd
    number of voxels off.

    Args:
        bundle: its folder.

    Returns:
        JSON with ``device``, ``inferer`` and, for whole volumes, ``preprocessing`` and ``postprocessing``.
    """
    config = read_json(bundle / "configs" / "inference.json")
    size = config["spatial_size"]
    result = {"device": config["device"]}
    if len(size) == 2:
        return result | {"inferer": SLICES.format(batch_size=config.get("batch_size", 16))}
    result |= {"inferer": {"_target_": "monai.inferers.SimpleInferer"}}
    return result | _whole_volumes(config) if whole_volumes(config) else result


def whole_volumes(config: dict[str, Any]) -> bool:
    """Whether a lone model.ts takes volumes as they are, and not the window itself.

    Args:
        config: inference.json.

    Returns:
        Whether MONAI's own transforms do what the bundle's do: 3D, no resizing, intensities scaled by percentiles.
    """
    middle = len(config["spatial_size"]) == 3 and config.get("crop_center") == "middle"
    return middle and not config.get("resize") and "intensities" not in config


def _whole_volumes(config: dict[str, Any]) -> dict[str, Any]:
    lower, upper = config.get("percentiles") or (0, 100)
    scale = {"lower": lower, "upper": upper, "b_min": 0.0, "b_max": 1.0, "clip": True, "channel_wise": True}
    steps = [
        {"_target_": "monai.transforms.ScaleIntensityRangePercentilesd", "keys": "image", **scale},
        {"_target_": "monai.transforms.ResizeWithPadOrCropd", "keys": "image", "spatial_size": config["spatial_size"]},
    ]
    back = {"keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False}
    return {
        "preprocessing": {"_target_": "monai.transforms.Compose", "transforms": steps},
        "postprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [{"_target_": "monai.transforms.Invertd", **back}],
        },
    }
