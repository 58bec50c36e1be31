# SPDX-License-Identifier: Apache-2.0
"""Register any two images: ``register(moving, fixed)``, by a bundle's network or without any training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .bundle import select_device
from .checks import known_name
from .engines.alignment import KINDS, align, aligned_if_better, better_start, between_centres
from .engines.presets import build_pairwise, plan
from .engines.provenance import provenance
from .engines.result import Result
from .inference import BundleRegistration
from .io.composite import load_transform
from .io.fields import check_grid
from .io.images import Image, check_plane
from .io.memory import as_image, as_label
from .io.orientation import reoriented, stored_axes
from .io.resampling import grid_only, resample_like, sampled_onto, share_within
from .io.transforms import Transform
from .transforms.intensity import clip_percentiles
from .transforms.loading import LoadPaird
from .transforms.registration import CropPaird, RegistrationResultd

logger = logging.getLogger(__name__)
PERCENTILES = (1.0, 99.0)


def register(
    moving: Any,
    fixed: Any,
    bundle: str | Path | None = None,
    *,
    moving_label: Any = None,
    fixed_mask: Any = None,
    affine: str | Path = "auto",
    initial_transform: str | Path | Transform | None = None,
    preset: str | None = None,
    similarity: str | None = None,
    smoothness_weight: float | None = None,
    levels_mm: Sequence[float] | None = None,
    steps: Sequence[int] | int | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Result:
    """Register two images of any size, spacing and orientation, in 2D or 3D.

    Without a bundle a velocity field is optimised for the pair (``engines.pairwise``), which needs no training.

    Args:
        moving: a path (NIfTI, NRRD, MetaImage, a folder of one DICOM series), an array or tensor with its affine, a
            nibabel, ITK or SimpleITK image, see ``io.memory.as_image``.
        fixed: likewise; the result lies on its grid.
        bundle: name or folder of one whose network registers, on the grid and crop of its training.
        moving_label: label map of moving.
        fixed_mask: label map of fixed; without a bundle, only its voxels above 0 count; None counts all.
        affine: "none"; "rigid", "affine": align before; "auto": without a bundle an affine alignment, which is kept
            where it makes the images more alike, from the headers' placement or from the centres; with a bundle the
            alignment of its training. Or the file of a linear transform, from points of fixed to points of moving.
            Where the fields of view do not overlap, their centres are aligned first, and a warning says so.
        initial_transform: file of a transform, or one, to start from, in place of an alignment.
        preset: "accurate" (None) or "fast", see ``engines.presets``.
        similarity: "lncc" (None), "mse", "mi", "mind" …, or a sum like "lncc+mind". With a bundle one of its options.
        smoothness_weight: of the solver against the similarity; None is the similarity's own.
        levels_mm: voxel sizes of the solver's levels in mm, coarse to fine, as [4, 2, 1]; one that is not finer
            than the one before begins a further velocity, as in [4, 2, 2, 1]. None is the preset's.
        steps: of each level.
        device: where to compute.
        options: of a bundle's inference.json: ``architecture``, ``instance_iterations``, ``ckpt_path``, ``maps`` …

    Returns:
        The registration, see ``engines.result.Result``.

    Raises:
        FileNotFoundError: for a file or bundle that does not exist.
        ValueError: for images, options or transforms that are refused; each message says what to do.
    """
    sources = {"moving": moving, "fixed": fixed, "moving_label": moving_label, "fixed_mask": fixed_mask,
               "affine": affine, "initial_transform": initial_transform}  # fmt: skip
    solver = {"preset": preset, "similarity": similarity, "smoothness_weight": smoothness_weight,
              "levels_mm": levels_mm, "steps": steps}  # fmt: skip
    given = {key: value for key, value in solver.items() if value is not None}
    if bundle is None and options:
        known_name("option", next(iter(options)), [*sources, *solver, "bundle", "device"])
    if fixed_mask is not None and bundle is not None:
        raise ValueError("fixed_mask: a bundle's network takes none; leave it out, or register without a bundle.")
    return _registered(sources, bundle, {**given, **options}, select_device(device))


def _registered(
    sources: dict[str, Any], bundle: str | Path | None, options: dict[str, Any], device: torch.device
) -> Result:
    moving, fixed = (as_image(sources[name], name) for name in ("moving", "fixed"))
    label, mask = (None if sources[name] is None else as_label(sources[name], image, name)
                   for name, image in (("moving_label", moving), ("fixed_mask", fixed)))  # fmt: skip
    mask = None if mask is None else _on_grid(mask, fixed)
    _check_pair(moving, fixed)
    trained = None if bundle is None else BundleRegistration(bundle, {**options, "device": str(device)})
    first = _given(sources["affine"], sources["initial_transform"], fixed)
    if first is None:
        first = _aligned(moving, fixed, str(sources["affine"]), mask, trained is not None)
    item = _item((moving, fixed), label, first)
    if trained is None:
        done = _solved(item, mask, device, **options)
        settings, weights = {"architecture": "pairwise", **options, **done.pop("settings")}, []
    else:
        done = trained.register(item)
        settings, weights = trained.settings, trained.weights
    return _result(done, (moving, fixed), label, first, provenance(sources, settings, weights))


def _result(done: dict[Any, Any], images: Sequence[Image], label: Image | None, first: Transform | None,
            record: dict[str, Any]) -> Result:  # fmt: skip
    transform, composed = done["transform"], first is not None and first.ddf is not None
    if composed:
        assert first is not None
        transform = first.after(transform)
    moving, fixed = images
    return Result(
        transform, moving, fixed, moving_label=label, maps=done.get("maps", {}), provenance=record,
        item=None if composed else done, stack=len(done["pair"].start) < fixed.array.dim(),
    )  # fmt: skip


def _check_pair(moving: Image, fixed: Image) -> None:
    check_grid(fixed, "fixed")
    check_grid(moving, "moving")  # on which the inverse lies
    if moving.array.dim() != fixed.array.dim():
        raise ValueError(
            f"moving and fixed: expected two 2D images or two volumes, got the shapes {tuple(moving.array.shape)} and "
            f"{tuple(fixed.array.shape)}; choose a slice."
        )
    if fixed.array.dim() == 2:
        check_plane(moving, fixed, "moving and fixed", "moving", "fixed")


def _on_grid(mask: Image, fixed: Image) -> Image:
    values = resample_like(mask, fixed, "nearest")
    if not (values.array > 0).any():
        raise ValueError(
            "fixed_mask: expected voxels above 0 inside of fixed, found none; pass the mask of this image."
        )
    return values


def _given(affine: str | Path, initial: str | Path | Transform | None, fixed: Image) -> Transform | None:
    """The transform that was given to start from, on the grid of fixed; None where there is none."""
    kind = str(affine)
    if initial is not None:
        if kind not in ("auto", "none"):
            raise ValueError(
                f"affine: expected 'none' or 'auto' beside an initial_transform, got {kind!r}; choose one."
            )
        found = initial if isinstance(initial, Transform) else load_transform(initial, fixed, "initial_transform")
        return found.on(fixed) if found.ddf is not None else Transform(found.placement, None, fixed)
    if kind in ("auto", "none", *KINDS):
        return None
    if not Path(affine).is_file():
        known_name("affine", kind, ("auto", "none", *KINDS, "or a file"))
    linear = load_transform(affine, fixed, "affine")
    if linear.ddf is not None:
        raise ValueError(f"affine: expected a linear transform, {affine} holds a field; pass it as initial_transform.")
    return linear


def _aligned(moving: Image, fixed: Image, kind: str, mask: Image | None, trained: bool) -> Transform | None:
    """Placement of moving as ``affine`` says; None where a bundle is to place moving itself."""
    start = np.eye(4)
    if max(share_within(moving, fixed), share_within(fixed, moving)) == 0:
        start = between_centres(moving, fixed)
        logger.warning(
            "moving and fixed: their fields of view do not overlap in space. Moving is translated by %s mm (RAS), so "
            "that the centres coincide; the transform will be for the file where it lies.",
            np.round(-start[:3, 3], 2).tolist(),
        )  # fmt: skip
    elif kind == "auto":
        if trained:
            return None
        start = better_start(moving, fixed)
    placed = Transform(start, None, fixed).placed(moving)
    if kind in KINDS:
        start = start @ align(placed, fixed, kind, mask)
    elif kind == "auto" and not trained:
        start = start @ aligned_if_better(placed, fixed, mask)
    return Transform(start, None, fixed)


def _item(images: Sequence[Image], label: Image | None, first: Transform | None) -> dict[Any, Any]:
    """What is left to register: moving as it is after what acts first, or placed by it."""
    moving, fixed = images
    item: dict[Any, Any] = {"moving": moving, "fixed": fixed}
    if first is not None and first.ddf is not None:
        item["moving"] = first.apply(moving, "bilinear")
        item["placement"] = np.eye(4)
    else:
        item |= {} if label is None else {"moving_label": label}
        item |= {} if first is None else {"placement": first.placement}
    return item


def _solved(item: dict[Any, Any], mask: Image | None, device: torch.device, **given: Any) -> dict[Any, Any]:
    """Register by the solver, on a grid of its finest level."""
    fixed = item["fixed"]
    dims = fixed.array.dim()
    turned = reoriented(grid_only(fixed), stored_axes(fixed, "RAS", dims))
    wanted = {key: given.pop(key) for key in ("preset", "levels_mm", "steps") if key in given}
    chosen = plan(turned.array.shape, turned.spacing, **wanted)
    finest = [max(chosen.levels_mm[-1], mm) for mm in turned.spacing]
    loaded = LoadPaird(dims, orientation="RAS", spacing=finest, spacing_range=None)(item)
    working = loaded["pair"].working
    cropped = _cropped(loaded, mask)
    solver = build_pairwise(chosen, working.spacing, **given)
    image = cropped["image"].as_subclass(torch.Tensor)[None].to(device)
    inside = None
    if mask is not None:
        inside = sampled_onto(mask._replace(array=(mask.array > 0).float()), working)[0][None, None].to(device)
    logger.info(
        "Registering %s voxels of %s mm on %s: levels %s mm, steps %s.", tuple(working.array.shape),
        " x ".join(f"{mm:.3g}" for mm in working.spacing), device, list(chosen.levels_mm), list(chosen.steps),
    )  # fmt: skip
    pred = solver.register(image, mask=inside)[0]
    settings = {"levels_mm": list(chosen.levels_mm), "steps": list(chosen.steps),
                "smoothness_weight": solver.smoothness_weight}  # fmt: skip
    return {**RegistrationResultd()({**cropped, "pred": pred.cpu()}), "settings": settings}


def _cropped(loaded: dict[Any, Any], mask: Image | None) -> dict[Any, Any]:
    """The pair in [0, 1] on the working grid; with a mask, between the percentiles of what lies in it."""
    if mask is None:
        return CropPaird(None, "middle", PERCENTILES)(loaded)
    pair, placed = loaded["pair"], loaded["transform"].placed(loaded["pair"].moving)
    own = resample_like(mask, placed, "nearest")  # where moving is placed before the field is known
    moving, fixed = (
        image._replace(array=clip_percentiles(image.array, *PERCENTILES, inside=inside.array > 0))
        for image, inside in ((pair.moving, own), (pair.fixed, mask))
    )
    cropped = CropPaird(None, "middle")({**loaded, "pair": pair._replace(moving=moving, fixed=fixed)})
    return {**cropped, "pair": cropped["pair"]._replace(moving=pair.moving, fixed=pair.fixed)}
