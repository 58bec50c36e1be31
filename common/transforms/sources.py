# SPDX-License-Identifier: Apache-2.0
"""Where a pair comes from: files that the command line, MONAI Label or an example name, or one tensor in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from torch import Tensor

from ..io.affine import is_orthonormal
from ..io.images import Image, load_image, load_label, same_grid
from ..io.resampling import excess_voxels

logger = logging.getLogger(__name__)

FORMS = (
    "'moving' and 'fixed'; or 'image' with 'fixed', where image is the moving one; or 'image' with 'moving', where "
    "image is the fixed one"
)
IN_MEMORY = "memory"


class Source(NamedTuple):
    """Two images on their own grids, intensities and axes as stored, and what messages call them."""

    moving: Image
    fixed: Image
    moving_name: str
    fixed_name: str


def input_files(
    moving: str | Path | None,
    fixed: str | Path | None,
    moving_label: str | Path | None,
    dataset_dir: str | Path,
    example: Callable[[str | Path], tuple[Path, Path]],
) -> dict[str, str]:
    """The item to register: the user's files, or an example where she names none.

    Args:
        moving: image file; both or neither.
        fixed: image file.
        moving_label: label map of the moving image, optional.
        dataset_dir: what ``example`` is given.
        example: returns moving and fixed of a data set; called only when it is needed.

    Returns:
        Paths under ``moving``, ``fixed`` and, where there is one, ``moving_label``.

    Raises:
        ValueError: for one image without the other, or a label without the images.
    """
    files = {"moving": moving, "fixed": fixed, "moving_label": moving_label}
    given = {key: path for key in files if (path := entry(files, key)) is not None}
    if not given:
        logger.warning("No moving and fixed image given: registering an example of dataset_dir=%s.", dataset_dir)
        given["moving"], given["fixed"] = example(dataset_dir)
    if "moving" not in given or "fixed" not in given:
        raise ValueError(
            f"moving and fixed: expected two image files, got moving={moving}, fixed={fixed}, "
            f"moving_label={moving_label}; pass --moving FILE --fixed FILE, or none of them for an example."
        )
    return {key: str(path) for key, path in given.items()}


def entry(item: Mapping[str, Any], key: str) -> Any:
    """An entry of an item, None where it is absent: MONAI Label's panel sends "" for an option that is left empty.

    Args:
        item: of inference.
        key: of the entry.

    Returns:
        A path, an image, a tensor or None.

    Raises:
        ValueError: for anything but a path or an ``io.images.Image``, or under ``image`` a tensor.
    """
    value = item.get(key)
    if isinstance(value, Image):
        return value
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, (str, Path, Tensor) if key == "image" else (str, Path)):
        raise ValueError(f"{key}: expected the path of an image, got {type(value).__name__}; pass its path.")
    return value


def read_pair(item: Mapping[str, Any]) -> Source:
    """Read moving and fixed, whichever of the forms the item has.

    Args:
        item: paths or images under two of ``image``, ``moving`` and ``fixed``; or under ``image`` alone a tensor
            (2, *S[, Z]) of moving and fixed on one grid, the one of its affine (a MetaTensor; otherwise voxels of 1
            mm).

    Returns:
        Both images and their names.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: where the item has another form, or an image is refused.
    """
    given = {key: value for key in ("image", "moving", "fixed") if (value := entry(item, key)) is not None}
    if isinstance(given.get("image"), Tensor):
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(key for key in given if key != 'image')}: expected none beside an image in memory, "
                "whose two channels are moving and fixed; leave it out."
            )
        return _in_memory(given["image"])
    if len(given) != 2:
        shown = ", ".join(f"{key}={item.get(key)!r}" for key in ("image", "moving", "fixed"))
        raise ValueError(
            f"image, moving, fixed: expected the paths of two images, got {shown}. Name {FORMS} (MONAI Label: "
            'params={"fixed": "/folder/fixed.nii.gz"}).'
        )
    moving = given["image"] if "moving" not in given else given["moving"]
    fixed = given["image"] if "fixed" not in given else given["fixed"]
    names = [IN_MEMORY if isinstance(image, Image) else str(image) for image in (moving, fixed)]
    if names != [IN_MEMORY, IN_MEMORY]:
        logger.info("Reading moving %s and fixed %s.", *names)
    images = [image if isinstance(image, Image) else load_image(image, name)
              for image, name in ((moving, "moving"), (fixed, "fixed"))]  # fmt: skip
    return Source(images[0], images[1], names[0], names[1])


def read_label(path: str | Path | Image, source: Source) -> Image:
    """Read the label map of moving.

    Args:
        path: of the label map, or the map itself.
        source: what ``read_pair`` returned.

    Returns:
        The label map, on its own grid.

    Raises:
        ValueError: for one that does not cover moving.
    """
    label, moving = path if isinstance(path, Image) else load_label(path, "moving_label"), source.moving
    name = IN_MEMORY if isinstance(path, Image) else path
    shapes = f"{name} of shape {tuple(label.array.shape)} and {source.moving_name} of shape {tuple(moving.array.shape)}"
    if label.array.dim() != moving.array.dim():
        raise ValueError(f"moving_label: expected as many axes as moving, got {shapes}; pass moving's own label map.")
    if not same_grid(label, moving):
        beyond = excess_voxels(moving, label)
        across = 0.0 if moving.array.dim() == 3 else abs(np.linalg.inv(label.affine) @ moving.affine)[2, 3]
        if beyond > 1 or across > 0.5:
            raise ValueError(
                f"moving_label: expected a label map that covers the moving image, got {shapes}, of which moving "
                f"reaches {beyond:.3g} voxels beyond the label; pass the label of this image."
            )
        logger.info("moving_label lies on another grid than moving, and is read where the two headers place it.")
    return label


def _in_memory(image: Tensor) -> Source:
    affine = np.eye(4)
    if isinstance(image, MetaTensor):
        affine = np.asarray(to_affine_nd(3, image.affine.detach().cpu().numpy()), dtype=np.float64)
    shape = tuple(image.shape)
    if len(shape) not in (3, 4) or shape[0] != 2 or 0 in shape:
        raise ValueError(
            f"image: expected two channels in memory, moving and fixed, (2, X, Y) or (2, X, Y, Z), got the shape "
            f"{shape}; stack the two images, resampled to the grid of fixed."
        )
    if not np.isfinite(affine).all() or not np.linalg.det(affine) or not is_orthonormal(affine):
        raise ValueError(f"image: expected an affine with orthogonal axes, got {affine.tolist()}; correct the header.")
    slice_axis = len(shape) == 4 and shape[3] == 1
    channels = []
    for name, values in zip(("moving", "fixed"), image.as_subclass(Tensor).detach().cpu().float(), strict=True):
        if not torch.isfinite(values).all() or values.min() == values.max():
            raise ValueError(f"image: expected finite values with contrast, the channel of {name} has none; check it.")
        array = (values[..., 0] if slice_axis else values).contiguous()
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[: array.dim()]
        channels.append(Image(array, affine, tuple(float(mm) for mm in spacing), slice_axis=slice_axis))
    return Source(channels[0], channels[1], IN_MEMORY, IN_MEMORY)
