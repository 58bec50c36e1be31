# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label and MONAI Deploy need of a bundle, checked offline; ``verify`` calls it.

The bundle's transforms, inferer and network are run here as those programs run them (MONAI Label 0.8, App SDK 4.0):
pre-processing takes one dictionary, every tensor in it goes to the network, post-processing leaves ``pred``.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
import zipfile
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
from torch import Tensor, nn

from ..engines.inferers import StackInferer
from .bundles import PACKAGE, read_json
from .pack import torchscript_of
from .smoke import write_pair
from .torchscript import build_network

OPTIONS = {"fixed": "", "moving": "", "moving_label": "", "answer": "image"}
WINDOW = (48, 40, 32)  # voxels that the networks are tried on, whatever the bundle's own window
ODD = 15  # less than WINDOW on every axis: a size that networks have to pad
LABEL = 3  # value of the synthetic label map
SCRIPT_TOLERANCE = 1e-5  # voxels, of a scripted network's ddf


def _dims(bundle: Path) -> int:
    """Axes that the network registers, from the metadata's input."""
    inputs = read_json(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]
    return len(inputs["image"]["spatial_shape"])


def small_copy(bundle: Path, folder: Path) -> Path:
    """The bundle with a window of few voxels: networks for large volumes are tried in a moment.

    Args:
        bundle: its folder.
        folder: receives NAME with the configurations; the weights are linked.
    """
    copy = folder / bundle.name
    shutil.copytree(bundle / "configs", copy / "configs")
    (copy / "models").symlink_to((bundle / "models").resolve(), target_is_directory=True)
    config = read_json(bundle / "configs" / "inference.json")
    if "spatial_size" in config:
        config["spatial_size"] = list(WINDOW[: _dims(bundle)])
    (copy / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


@contextmanager
def inference(bundle: Path) -> Iterator[ConfigParser]:
    """The parsed inference.json of ``small_copy``."""
    with tempfile.TemporaryDirectory() as folder:
        copy = small_copy(bundle, Path(folder))
        parser = ConfigParser()
        parser.read_config(str(copy / "configs" / "inference.json"))
        parser["bundle_root"] = str(copy)
        yield parser


def _compose(parser: ConfigParser, key: str) -> Compose:
    """Pre- or post-processing: a Compose, as Deploy requires."""
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
    ball = (np.asarray(moving.dataobj) > 0.5).astype(np.uint8) * LABEL
    nib.save(nib.Nifti1Image(ball, moving.affine), folder / "moving_label.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in ("moving", "fixed", "moving_label")}


def _in_memory(files: dict[str, str]) -> MetaTensor:
    """Moving and fixed as two channels of one tensor."""
    images = [_load(files[name]) for name in ("moving", "fixed")]
    stacked = np.stack([np.asarray(image.dataobj, dtype=np.float32) for image in images])
    return MetaTensor(torch.from_numpy(stacked), affine=torch.from_numpy(images[1].affine))


def _prepared(preprocessing: Compose, item: dict[str, Any], form: str) -> dict[str, Any]:
    """The item after pre-processing, whose only tensor is the network's input."""
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
    """Every transform is a dictionary transform: Deploy applies others to each tensor by itself."""
    with inference(bundle) as parser:
        for key in ("preprocessing", "postprocessing"):
            steps = _compose(parser, key).transforms
            others = [type(step).__name__ for step in steps if not isinstance(step, MapTransform)]
            if others:
                raise ValueError(f"{key}: {', '.join(others)} is no MapTransform. Derive it from that.")


def check_pair(bundle: Path) -> None:
    """The pair comes as image with fixed, image with moving, or two channels in memory; never ambiguously."""
    with inference(bundle) as parser, tempfile.TemporaryDirectory() as folder:
        preprocessing, files = _compose(parser, "preprocessing"), synthetic_files(Path(folder), _dims(bundle))
        moving, fixed = files["moving"], files["fixed"]
        named = _prepared(preprocessing, OPTIONS | {"image": moving, "fixed": fixed}, "image with fixed")
        swapped = _prepared(preprocessing, OPTIONS | {"image": fixed, "moving": moving}, "image with moving")
        if not np.array_equal(named["image"], swapped["image"]):
            raise ValueError("preprocessing: image with fixed and image with moving differ. One of them is swapped.")
        _prepared(preprocessing, {"image": _in_memory(files)}, "two channels in memory")
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
    """The panels of 3D Slicer and OHIF offer the second image, the label map and the choice of the answer."""
    shown = read_json(bundle / "configs" / "inference.json").get("displayable_configs")
    if shown != OPTIONS:
        raise ValueError(f"inference.json: displayable_configs: expected {OPTIONS}, got {shown}. Copy the former.")


def check_answer(bundle: Path) -> None:
    """``pred`` has three axes on the grid of fixed, 2D too; with answer=label it holds the label map's own values."""
    with inference(bundle) as parser, tempfile.TemporaryDirectory() as folder:
        files = synthetic_files(Path(folder), _dims(bundle))
        shape = (*_load(files["fixed"]).shape, 1)[:3]
        item = OPTIONS | {"image": files["fixed"], "moving": files["moving"], "moving_label": files["moving_label"]}
        prepared = _prepared(_compose(parser, "preprocessing"), item, "image with moving and moving_label")
        stated = tuple(int(n) for n in getattr(prepared["image"], "meta", {}).get("spatial_shape", ()))
        if stated != shape:
            raise ValueError(f"image: expected three entries in spatial_shape, {shape}, got {stated}. See CropPaird.")
        with torch.no_grad():
            inferer = parser.get_parsed_content("inferer")
            pred = inferer(inputs=prepared["image"][None], network=build_network(bundle))[0]
        for answer, values in (("image", None), ("label", {0, LABEL})):
            returned = _compose(parser, "postprocessing")({**prepared, "pred": pred, "answer": answer})["pred"]
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
    """model.pt has the shortest name of the weight files: MONAI Label loads the first by the length of the name."""
    others = [path.name for path in (bundle / "models").glob("*.pt") if path.name != "model.pt"]
    short = sorted(name for name in others if len(name) <= len("model.pt"))
    if short:
        raise ValueError(
            f"models/{short[0]}: MONAI Label loads the weight file with the shortest name, which must be model.pt. "
            f"Rename it model_{short[0]}."
        )


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        yield from (str(value) for key, value in config.items() if key == "_target_")
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _targets(value)


def lone_configuration(content: bytes) -> ConfigParser:
    """The configuration inside model.ts, as MONAI Deploy reads it where it is given this file alone.

    Args:
        content: of model.ts.

    Raises:
        ValueError: where it needs code that the file does not carry.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        metadata, config = (json.loads(archive.read(f"model/extra/{name}.json")) for name in ("metadata", "inference"))
    foreign = [target for target in _targets(config) if not target.startswith("monai.")]
    foreign += re.findall(rf"\b(?:{re.escape(PACKAGE)}|scripts)\.[\w.]+", json.dumps(config))
    if foreign:
        raise ValueError(
            f"the inference.json inside model.ts names {', '.join(sorted(set(foreign)))}: a lone model.ts carries no "
            "Python, so that MONAI's own parts alone run. Embed what export_inference returns."
        )
    parser = ConfigParser()
    parser.read_meta(metadata)
    parser.read_config(config)
    return parser


def check_torchscript(bundle: Path) -> None:
    """model.ts gives the network's ddf, on a size that has to be padded, and where MONAI Deploy has this file alone."""
    with tempfile.TemporaryDirectory() as folder:
        copy = small_copy(bundle, Path(folder))
        network, content = build_network(copy), torchscript_of(copy)
    scripted = torch.jit.load(io.BytesIO(content)).eval()
    size = WINDOW[: _dims(bundle)]
    image = torch.rand((1, 2, *(n - ODD for n in size)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.jit.optimized_execution(False):  # optimising takes longer than the few runs
        difference = (scripted(image) - network(image)).abs().max().item()
    if not difference < SCRIPT_TOLERANCE:
        raise ValueError(f"TorchScript's ddf differs by {difference:.2g} voxels, allowed {SCRIPT_TOLERANCE:g}.")
    stack = (*size, 2) if len(size) == 2 else size
    image = torch.rand((2, *stack), generator=torch.Generator().manual_seed(1))
    check_lone(lone_configuration(content), scripted, image, len(size))


def check_lone(parser: ConfigParser, scripted: nn.Module, image: Tensor, dims: int) -> None:
    """What Deploy does with a lone model.ts returns what the network returns of the same input.

    Args:
        parser: of the inference.json inside.
        scripted: the network inside.
        image: (2, *S), for 2D networks (2, *S, Z).
        dims: axes that the network registers.

    Raises:
        ValueError: where the displacement differs at all, or does not come back on the image's grid.
    """
    item: dict[str, Any] = {"image": MetaTensor(image, affine=torch.eye(4))}
    if "preprocessing" in parser:
        item = _prepared(_compose(parser, "preprocessing"), item, "two channels in memory")
    inputs = item["image"][None]
    with torch.no_grad(), torch.jit.optimized_execution(False):
        expected = StackInferer(spatial_dims=dims)(inputs, scripted)
        pred = parser.get_parsed_content("inferer")(inputs=inputs, network=scripted)
    difference = float((pred - expected).abs().max()) if pred.shape == expected.shape else np.inf
    if difference != 0:
        raise ValueError(
            f"the inference.json inside model.ts gives another ddf than the network, shape {tuple(pred.shape)} for "
            f"{tuple(expected.shape)}, largest difference {difference:.2g} voxels. Correct its inferer."
        )
    if "postprocessing" in parser:
        returned = _compose(parser, "postprocessing")({**item, "pred": pred[0]})["pred"]
        if returned.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"the inference.json inside model.ts returns pred of shape {tuple(returned.shape)} for an image of "
                f"{tuple(image.shape)}. Undo its preprocessing with Invertd."
            )
