# SPDX-License-Identifier: Apache-2.0
"""``python -m common scaffold METHOD_DATASET``: a new bundle from the templates."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..runs.package import PACKAGE
from .bundles import REPOSITORY, find_bundles
from .json_text import dumps
from .render import TEMPLATES, data_format, dataset_module, rendered, template, template_text

FIRST_VERSION = "0.1.0"
README, DATA_LICENSE = "docs/README.md", "docs/data_license.txt"
# What a builder of ``common/methods`` is given; its other arguments become options.
NO_OPTIONS = ("cache", "cache_dir", "with_labels")  # of ``load_pairs``
SHARED = {"network": "@network_def", "similarity": "@similarity_def", "optimizer": "@optimizer"}


def scaffold(name: str) -> str:
    """Write the files of a new bundle into ``bundles/NAME``.

    The data set needs a module ``common/data/DATASET.py`` (docs/adding_a_dataset.md). The method is one of the
    templates' (adacs, baseline, gradicon, hetero, tmspr), or a module ``common/methods/METHOD.py`` with
    ``build(network, similarity, optimizer, …) -> Method``: its other arguments become options of train.json, with their
    defaults.

    Args:
        name: METHOD_DATASET, "baseline_acdc".

    Returns:
        What to do next.

    Raises:
        ValueError: for a name of another form, a data set or a method that does not exist.
        FileExistsError: where the bundle exists.
    """
    bundle = REPOSITORY / "bundles" / name
    dataset, train = dataset_module(name), new_train(name)
    if bundle.exists():
        raise FileExistsError(f"name: bundles/{name} exists. Remove it first, or choose another name.")
    metadata = new_metadata(name, dataset)
    for folder in ("configs", "docs", "models"):
        (bundle / folder).mkdir(parents=True)
    (bundle / "configs" / "train.json").write_text(dumps(train), encoding="utf-8")
    (bundle / "configs" / "metadata.json").write_text(dumps(metadata), encoding="utf-8")
    words = {"NAME": name, "TITLE": metadata["name"], "DATASET": dataset.__name__.rpartition(".")[2]}
    files = {path: template_text(Path(path).name, words) for path in (README, DATA_LICENSE)} | rendered(bundle)
    for path, text in files.items():
        (bundle / path).write_text(text, encoding="utf-8")
    return (
        f"Wrote bundles/{name}. Next: set the options in configs/train.json, describe the bundle in "
        f"configs/metadata.json and docs/, then `python -m common render {name}` and `python -m common verify {name}`."
    )


def new_train(name: str) -> dict[str, Any]:
    """train.json of a new bundle: the template, the method's fragment or builder, the data set's options.

    Args:
        name: of the bundle.

    Returns:
        Parsed JSON.
    """
    dataset = dataset_module(name)
    train = template("train.json", {"NAME": name, "DATASET": dataset.__name__.rpartition(".")[2]})
    options, call = _dataset_options(dataset)
    train |= {key: value for key, value in options.items() if key in train}
    for part, split in (("train", "'train'"), ("validate", "@split")):
        train[part]["dataset"]["data"] = f"${train['imports'][-1].split()[-1]}.load_pairs(@data_root, {split}{call})"
    fragment = _method(name.rpartition("_")[0])
    own = {key: value for key, value in {**options, **fragment}.items() if key not in train}
    result: dict[str, Any] = {}
    for key, value in train.items():
        if key == "similarity_def":  # what the fragment has of its own parts stands before the shared ones
            result |= {k: v for k, v in own.items() if not _is_option(v)}
        result[key] = _merged(value, fragment[key]) if key in fragment else value
        if key == "split":
            result |= {k: v for k, v in own.items() if _is_option(v) or k == "chosen"}
    return result


def _is_option(value: Any) -> bool:
    return not (isinstance(value, dict) and "_target_" in value)


def _merged(value: Any, other: Any) -> Any:
    if isinstance(value, dict) and isinstance(other, dict) and "_target_" not in other:
        return {key: _merged(value.get(key), item) if key in value else item for key, item in (value | other).items()}
    return value if other is None else other


def _dataset_options(dataset: ModuleType) -> tuple[dict[str, Any], str]:
    """Options of a data set, and how ``load_pairs`` is called with those that are its arguments."""
    options = {
        "spatial_size": list(dataset.SPATIAL_SIZE),
        "labels": dict(dataset.LABELS),
        "scored": list(dataset.LABELS),
    }
    arguments = list(inspect.signature(dataset.load_pairs).parameters.values())[2:]  # without folder and split
    own = [argument for argument in arguments if argument.default is not argument.empty]
    defaults = {argument.name: _plain(argument.default) for argument in own if argument.name not in NO_OPTIONS}
    needed = [
        argument.name for argument in arguments if argument.default is argument.empty or argument.name in defaults
    ]
    in_order = [argument.name for argument in arguments][: len(needed)] == needed
    return options | {key: value for key, value in defaults.items() if key not in options}, "".join(
        f", @{name}" if in_order else f", {name}=@{name}" for name in needed
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def _method(name: str) -> dict[str, Any]:
    """The method's part of train.json.

    Raises:
        ValueError: for a method that has neither a fragment nor a builder.
    """
    if (TEMPLATES / f"method_{name}.json").is_file():
        return template(f"method_{name}.json")
    known = sorted(path.stem.removeprefix("method_") for path in TEMPLATES.glob("method_*.json"))
    try:
        builder = importlib.import_module(f"{PACKAGE}.methods.{name}").build
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"name: the method '{name}' is none of {', '.join(known)} and has no common/methods/{name}.py with "
            "`build(network, similarity, optimizer, …)`. Write it first; docs/adding_a_bundle.md says how."
        ) from error
    arguments = [a for a in inspect.signature(builder).parameters.values() if a.kind is a.POSITIONAL_OR_KEYWORD]
    own = {a.name: _plain(a.default) for a in arguments if a.name not in SHARED and a.default is not a.empty}
    given = {a.name: SHARED.get(a.name, f"@{a.name}") for a in arguments}
    fragment = {"similarity": "mse", "field_weight": 0.025} | own
    return fragment | {
        "method": {"_target_": f"{PACKAGE}.methods.{name}.build", **given, "field_weight": "@field_weight"}
    }


def new_metadata(name: str, dataset: ModuleType) -> dict[str, Any]:
    """metadata.json of a new bundle, with what its author has to say left to be said.

    Args:
        name: of the bundle.
        dataset: its data-set module.

    Returns:
        Parsed JSON.
    """
    title = " on ".join(part.replace("_", " ").capitalize() for part in name.rpartition("_")[::2])
    to_say = f"TO DO: say it in bundles/{name}/configs/metadata.json"
    own = {
        "version": FIRST_VERSION,
        "changelog": {FIRST_VERSION: "first version"},
        "name": title,
        "task": f"Deformable registration; {to_say}",
        "description": to_say,
        "weights": [],
        "data_source": to_say,
        "data_type": "nifti",
        "image_classes": to_say,
        "label_classes": ", ".join(f"{value} {label}" for label, value in dataset.LABELS.items()),
        "intended_use": "research; not for diagnosis or any other clinical use",
        "references": [to_say],
        "network_data_format": data_format(len(dataset.SPATIAL_SIZE)),
    }
    filled = template("metadata.json")
    return {key: own.get(key, value) for key, value in filled.items()}


def render(*names: str) -> str:
    """Write the rendered files of bundles anew: all that is not train.json, metadata.json's own entries, or docs.

    Args:
        names: of bundles; by default all.

    Returns:
        The files that changed.

    Raises:
        FileNotFoundError: for an unknown bundle.
    """
    changed = []
    for bundle in find_bundles(names, own_code=True):
        for path, text in rendered(bundle).items():
            if not (bundle / path).is_file() or (bundle / path).read_text(encoding="utf-8") != text:
                (bundle / path).write_text(text, encoding="utf-8")
                changed.append(f"{bundle.name}/{path}")
    return "\n".join(changed) or "All files are as rendered."
