# SPDX-License-Identifier: Apache-2.0
"""The files of a bundle that follow from its train.json, its data set and the templates."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..runs.configuration import references
from ..runs.package import PACKAGE
from .bundles import REPOSITORY, read_json
from .json_text import dumps

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
COPIED = {"LICENSE": REPOSITORY / "LICENSE", "configs/logging.conf": TEMPLATES / "logging.conf"}


def template(name: str, values: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A template's JSON.

    Args:
        name: "inference.json".
        values: text by the word in capitals that it stands for: NAME, DATASET, BATCH_SIZE.

    Returns:
        Parsed JSON.
    """
    return json.loads(template_text(name, values or {}))


def template_text(name: str, values: Mapping[str, str]) -> str:
    """A template's text.

    Args:
        name: "README.md".
        values: as ``template``.

    Returns:
        The text, its words replaced.
    """
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    for word, value in values.items():
        text = text.replace(word, value)
    return text


def dataset_module(bundle: Path | str) -> ModuleType:
    """The data-set module of a bundle, by the second part of its name: "acdc" of "adacs_acdc".

    Args:
        bundle: its folder or name.

    Returns:
        The module.

    Raises:
        ValueError: for a name without a method and a data set, or a data set that has no module.
    """
    method, _, dataset = Path(bundle).name.rpartition("_")
    if not method or not dataset.isidentifier():
        raise ValueError(f"name: expected METHOD_DATASET like baseline_acdc, got '{Path(bundle).name}'.")
    try:
        return importlib.import_module(f"{PACKAGE}.data.{dataset}")
    except ModuleNotFoundError as error:
        if error.name != f"{PACKAGE}.data.{dataset}":
            raise
        raise ValueError(
            f"name: the data set '{dataset}' of '{Path(bundle).name}' has no module common/data/{dataset}.py. Write it "
            "first; docs/adding_a_dataset.md says how."
        ) from error


def rendered(bundle: Path) -> dict[str, str]:
    """Text of every file of a bundle that is not written by hand, by its path in the bundle.

    Args:
        bundle: its folder; train.json and metadata.json are read there.

    Returns:
        Text by path.

    Raises:
        ValueError: for a bundle without train.json, or whose data set has no module.
    """
    train = read_json(bundle / "configs" / "train.json")
    files = {name: path.read_text(encoding="utf-8") for name, path in COPIED.items()}
    batch = {"NAME": bundle.name, "BATCH_SIZE": str(train["batch_size"])}
    files["configs/evaluate.json"] = dumps(template("evaluate.json"))
    files["configs/multi_gpu_train.json"] = dumps(template("multi_gpu_train.json", batch))
    files |= {f"configs/{name}.json": text for name, text in _overlays(bundle.name, train).items()}
    files["configs/inference.json"] = dumps(inference(bundle.name, train, dataset_module(bundle)))
    files["configs/train.json"] = dumps(train)
    files["configs/metadata.json"] = metadata_text(read_json(bundle / "configs" / "metadata.json"), train)
    return files


def _overlays(name: str, train: Mapping[str, Any]) -> dict[str, str]:
    """The published training of each architecture that the bundle lists, where the bundle has all of its keys.

    What was published of a network that takes VoxelMorph's place is no training of a bundle made for another network.
    """
    overlays = {}
    for path in sorted((TEMPLATES / "architectures").glob("*.json")):
        overlay = template(f"architectures/{path.name}", {"NAME": name})
        published = train["architecture"] in ("voxelmorph", path.stem) and path.stem in train["architectures"]
        if published and overlay.keys() - {"_doc_"} <= train.keys():
            overlays[path.stem] = dumps(overlay)
    return overlays


def inference(name: str, train: Mapping[str, Any], dataset: ModuleType) -> dict[str, Any]:
    """inference.json: the template with the method of train.json and all that this refers to.

    Args:
        name: of the bundle.
        train: its train.json.
        dataset: its data-set module, whose ``INFERENCE`` says how a pair of images is read.

    Returns:
        Parsed JSON.
    """
    filled = template("inference.json", {"NAME": name, "DATASET": dataset.__name__.rpartition(".")[2]})
    values = {**dataset.INFERENCE, **{key: train[key] for key in filled if key in train and filled[key] is None}}
    values |= {key: train[key] for key in train if key.startswith("instance_")}
    filled |= {key: value for key, value in values.items() if key in filled}
    filled["crop_center"] = dataset.INFERENCE["crop_center"]  # that of the training may need labels
    if "intensities" in dataset.INFERENCE:
        filled["intensities"] = dataset.INFERENCE["intensities"]
        (crop,) = (part for part in filled["preprocessing"]["transforms"] if part["_target_"].endswith(".CropPaird"))
        crop["intensities"] = "@intensities"
    reached = {key for start in ("method", "condition") for key in _closure(start, train)}
    needed = [key for key in train if key in reached and key not in filled]
    result: dict[str, Any] = {}
    for key, value in filled.items():
        if key == "network_def":  # what the method refers to stands before it
            result |= {other: train[other] for other in needed}
        result[key] = value
    return result


def _closure(key: str, config: Mapping[str, Any]) -> Iterator[str]:
    """A top-level key and all that it refers to, directly or not."""
    found, waiting = {key}, [key]
    while waiting:
        for reference in references(config[waiting.pop()]):
            top = reference.split("::")[0]
            if top in config and top not in found:
                found.add(top)
                waiting.append(top)
    yield from found


def metadata_text(own: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """metadata.json: what a bundle says of itself, in the template's order, with what all bundles have in common.

    Args:
        own: the bundle's entries; those that the template fixes are replaced.
        train: its train.json.

    Returns:
        The text.
    """
    result = {}
    for key, value in template("metadata.json").items():
        result[key] = own.get(key) if value is None else value
    result["network_data_format"] = data_format(len(train["spatial_size"]))
    result |= {key: value for key, value in own.items() if key not in result}
    return dumps(result)


def data_format(dims: int) -> dict[str, Any]:
    """``network_data_format``: a pair as two channels in, a displacement out.

    Args:
        dims: d, the image's axes.

    Returns:
        Parsed JSON.
    """
    common = {"spatial_shape": ["16*n"] * dims, "dtype": "float32"}
    image = {"type": "image", "format": "magnitude", "num_channels": 2, **common, "value_range": [0, 1]}
    ddf = {"type": "array", "format": "raw", "num_channels": dims, **common, "value_range": []}
    channels = {str(axis): f"ddf along array axis {axis}" for axis in range(dims)}
    return {
        "inputs": {"image": image | {"is_patch_data": False, "channel_def": {"0": "moving", "1": "fixed"}}},
        "outputs": {"pred": ddf | {"is_patch_data": False, "channel_def": channels}},
    }
