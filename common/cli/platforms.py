# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label and MONAI Deploy need of a bundle, checked offline; ``verify`` calls it.

The bundle's transforms, inferer and network are run here as those programs run them (MONAI Label 0.8, App SDK 4.0):
pre-processing takes one dictionary, every tensor in it goes to the network, post-processing leaves ``pred``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from torch import Tensor

from ..runs.configuration import FILES
from ..runs.options import INFERENCE
from ..runs.package import read_bundle
from .bundles import read_json
from .smoke import write_pair
from .torchscript import build_network

OPTIONS = {"fixed": "", "moving": "", "moving_label": "", "answer": "image"}
WINDOW = (48, 40, 32)  # voxels that the networks are tried on, whatever the bundle's own window
LABEL = 3  # value of the synthetic label map


def dims_of(bundle: Path) -> int:
    """Axes that the network registers, from the metadata's input.

    Args:
        bundle: its folder.

    Returns:
        2 or 3.
    """
    inputs = read_json(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]
    return len(inputs["image"]["spatial_shape"])


def small_copy(bundle: Path, folder: Path) -> Path:
    """The bundle with a window of few voxels: networks for large volumes are tried in a moment.

    Args:
        bundle: its folder.
        folder: receives NAME with the configurations; the weights are linked.

    Returns:
        Folder of the copy.
    """
    copy = folder / bundle.name
    shutil.copytree(bundle / "configs", copy / "configs")
    (copy / "models").symlink_to((bundle / "models").resolve(), target_is_directory=True)
    config = read_json(bundle / "configs" / "inference.json")
    if "spatial_size" in config:
        config["spatial_size"] = list(WINDOW[: dims_of(bundle)])
    (copy / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


@contextmanager
def inference(bundle: Path) -> Iterator[ConfigParser]:
    """The parsed inference.json of ``small_copy``.

    Args:
        bundle: its folder.

    Yields:
        The parsed configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = small_copy(bundle, Path(folder))
        yield read_bundle(copy, FILES[INFERENCE])


def compose_of(parser: ConfigParser, key: str) -> Compose:
    """Pre- or post-processing: a Compose, as Deploy requires.

    Args:
        parser: of inference.json.
        key: "preprocessing" or "postprocessing".

    Returns:
        The transforms.

    Raises:
        ValueError: where it is none.
    """
    compose = parser.get_parsed_content(key) if key in parser else None
    if not isinstance(compose, Compose):
        raise ValueError(f"{key}: expected a monai.transforms.Compose, got {type(compose).__name__}. Write one.")
    return compose


def _load(path: str | Path) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def synthetic_files(folder: Path, dims: int) -> dict[str, str]:
    """Write a synthetic pair and the label map of moving.

    Args:
        folder: to write to.
        dims: axes of the images.

    Returns:
        Paths by the option that names them.
    """
    write_pair(folder, dims)
    moving = _load(folder / "moving.nii.gz")
    ball = (np.asarray(moving.dataobj) < -400).astype(np.uint8) * LABEL
    nib.save(nib.Nifti1Image(ball, moving.affine), folder / "moving_label.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in ("moving", "fixed", "moving_label")}


def _in_memory(files: dict[str, str]) -> MetaTensor:
    """Moving and fixed as two channels of one tensor."""
    images = [_load(files[name]) for name in ("moving", "fixed")]
    stacked = np.stack([np.asarray(image.dataobj, dtype=np.float32) for image in images])
    return MetaTensor(torch.from_numpy(stacked), affine=torch.from_numpy(images[1].affine))


def prepared_item(preprocessing: Compose, item: dict[str, Any], form: str) -> dict[str, Any]:
    """The item after pre-processing, whose only tensor is the network's input.

    Args:
        preprocessing: of the bundle.
        item: what goes in.
        form: what the error calls the item.

    Returns:
        What comes out.

    Raises:
        ValueError: where preprocessing fails, or leaves something else than the network's input.
    """
    try:
        prepared: dict[str, Any] = preprocessing(item)
    except Exception as error:
        reason = error.__cause__ or error  # Compose wraps what a transform raises
        raise ValueError(f"preprocessing does not take {form}: {reason}. Begin it with LoadPaird.") from error
    stray = sorted(key for key, value in prepared.items() if isinstance(value, Tensor) and key != "image")
    if stray:
        raise ValueError(
            f"preprocessing leaves the tensors {', '.join(stray)} beside image, and MONAI Deploy hands every tensor to "
            "the network. Keep them inside another object."
        )
    image = prepared.get("image")
    if not isinstance(image, Tensor) or len(image) != 2:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(
            f"preprocessing of {form}: expected the network's input, a tensor of two channels, under image, got {got}. "
            "End it with CropPaird."
        )
    return prepared


def check_transforms(bundle: Path) -> None:
    """Every transform is a dictionary transform: Deploy applies others to each tensor by itself.

    Args:
        bundle: its folder.
    """
    with inference(bundle) as parser:
        for key in ("preprocessing", "postprocessing"):
            steps = compose_of(parser, key).transforms
            others = [type(step).__name__ for step in steps if not isinstance(step, MapTransform)]
            if others:
                raise ValueError(f"{key}: {', '.join(others)} is no MapTransform. Derive it from that.")


def check_pair(bundle: Path) -> None:
    """The pair comes as image with fixed, image with moving, or two channels in memory; never ambiguously.

    Args:
        bundle: its folder.
    """
    with inference(bundle) as parser, tempfile.TemporaryDirectory() as folder:
        preprocessing, files = compose_of(parser, "preprocessing"), synthetic_files(Path(folder), dims_of(bundle))
        moving, fixed = files["moving"], files["fixed"]
        named = prepared_item(preprocessing, OPTIONS | {"image": moving, "fixed": fixed}, "image with fixed")
        swapped = prepared_item(preprocessing, OPTIONS | {"image": fixed, "moving": moving}, "image with moving")
        if not np.array_equal(named["image"], swapped["image"]):
            raise ValueError("preprocessing: image with fixed and image with moving differ. One of them is swapped.")
        prepared_item(preprocessing, {"image": _in_memory(files)}, "two channels in memory")
        refused = {
            "image alone": {"image": moving},
            "image with both": {"image": moving, "moving": moving, "fixed": fixed},
        }
        for form, item in refused.items():
            try:
                preprocessing(OPTIONS | item)
            except Exception:  # Compose turns the message's ValueError into a RuntimeError
                continue
            raise ValueError(f"preprocessing takes {form}, which does not name a pair. Refuse it with a message.")


def check_options(bundle: Path) -> None:
    """The panels of 3D Slicer and OHIF offer the second image, the label map and the choice of the answer.

    Args:
        bundle: its folder.
    """
    shown = read_json(bundle / "configs" / "inference.json").get("displayable_configs")
    if shown != OPTIONS:
        raise ValueError(f"inference.json: displayable_configs: expected {OPTIONS}, got {shown}. Copy the former.")


def check_answer(bundle: Path) -> None:
    """``pred`` has three axes on the grid of fixed, 2D too; with answer=label it holds the label map's own values.

    Args:
        bundle: its folder.
    """
    with inference(bundle) as parser, tempfile.TemporaryDirectory() as folder:
        files = synthetic_files(Path(folder), dims_of(bundle))
        shape = (*_load(files["fixed"]).shape, 1)[:3]
        item = OPTIONS | {"image": files["fixed"], "moving": files["moving"], "moving_label": files["moving_label"]}
        prepared = prepared_item(compose_of(parser, "preprocessing"), item, "image with moving and moving_label")
        stated = tuple(int(n) for n in getattr(prepared["image"], "meta", {}).get("spatial_shape", ()))
        if stated != shape:
            raise ValueError(f"image: expected three entries in spatial_shape, {shape}, got {stated}. See CropPaird.")
        with torch.no_grad():
            inferer = parser.get_parsed_content("inferer")
            pred = inferer(inputs=prepared["image"][None], network=build_network(bundle))[0]
        for answer, values in (("image", None), ("label", {0, LABEL})):
            returned = compose_of(parser, "postprocessing")({**prepared, "pred": pred, "answer": answer})["pred"]
            if tuple(returned.shape) != (1, *shape):
                raise ValueError(
                    f"pred: expected {(1, *shape)} with answer={answer}, got {tuple(returned.shape)}; MONAI Label "
                    "drops the channel of more than three axes alone. End postprocessing with Answerd."
                )
            if values and set(torch.unique(returned).tolist()) != values:
                raise ValueError(
                    "pred: with answer=label expected the label map's values. Carry it by nearest neighbour."
                )


def check_weight_names(bundle: Path) -> None:
    """model.pt has the shortest name of the weight files: MONAI Label loads the first by the length of the name.

    Args:
        bundle: its folder.
    """
    others = [path.name for path in (bundle / "models").glob("*.pt") if path.name != "model.pt"]
    short = sorted(name for name in others if len(name) <= len("model.pt"))
    if short:
        raise ValueError(
            f"models/{short[0]}: MONAI Label loads the weight file with the shortest name, which must be model.pt. "
            f"Rename it model_{short[0]}."
        )
