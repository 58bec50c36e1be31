# SPDX-License-Identifier: Apache-2.0
"""``python -m common verify [bundle ...]``: is a bundle complete, consistent and usable by MONAI? Offline."""

from __future__ import annotations

import configparser
import difflib
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..runs.package import PACKAGE, rename_package
from . import lone, platforms, zoo
from .archive import verify_archive
from .bundles import REPOSITORY, configurations, find_bundles, read_json
from .metadata_schema import SCHEMA
from .render import rendered

REQUIRED_FILES = (
    "LICENSE", "configs/metadata.json", "configs/train.json", "configs/evaluate.json", "configs/inference.json",
    "configs/multi_gpu_train.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt",
)  # fmt: skip
SECTIONS = ("Overview", "Data", "Training configuration", "Performance", "Commands", "References", "License")
LONGEST_TRAIN_JSON, WIDEST_TRAIN_JSON = 100, 160


def check_files(bundle: Path) -> None:
    """All required files are there.

    Args:
        bundle: its folder.
    """
    missing = [name for name in REQUIRED_FILES if not (bundle / name).is_file()]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}. Add them; another bundle shows their form.")


def check_readme(bundle: Path) -> None:
    """The README has the model zoo's sections and says so where there are no weights.

    Args:
        bundle: its folder.
    """
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ +(.+?) *#*$", text, flags=re.MULTILINE)
    missing = [section for section in SECTIONS if section not in headings]
    if missing:
        raise ValueError(f"docs/README.md lacks the sections {', '.join(missing)}. Add them as '## {missing[0]}'.")
    if not read_json(bundle / "configs" / "metadata.json").get("weights") and "no weights" not in text.lower():
        raise ValueError("docs/README.md does not say that there are no weights. Write 'No weights are shipped'.")


def check_weights(bundle: Path) -> None:
    """The weight files are those that the metadata names.

    Args:
        bundle: its folder.
    """
    named = set(read_json(bundle / "configs" / "metadata.json").get("weights", []))
    present = {path.name for path in (bundle / "models").glob("*.pt")}
    if named - present:
        absent = ", ".join(sorted(named - present))
        raise ValueError(f"models/ lacks {absent} of metadata's weights. Copy the trained file there, or unlist it.")
    if present - named:
        raise ValueError(f"models/ holds {', '.join(sorted(present - named))}, not listed in metadata's weights. List.")


def check_metadata(bundle: Path) -> None:
    """The metadata satisfy the schema and the version has its entry in the changelog.

    Args:
        bundle: its folder.
    """
    metadata = read_json(bundle / "configs" / "metadata.json")
    errors = sorted(jsonschema.Draft202012Validator(SCHEMA).iter_errors(metadata), key=lambda error: error.json_path)
    if errors:
        reasons = "; ".join(f"{error.json_path}: {error.message}" for error in errors)
        raise ValueError(f"metadata.json: {reasons}. Correct these entries.")
    if metadata["version"] not in metadata["changelog"]:
        raise ValueError(f"metadata.json: changelog has no entry for version {metadata['version']}. Add it.")


def requirements(setup: Path) -> dict[str, Requirement]:
    """``install_requires`` of a setup.cfg, by normalised name.

    Args:
        setup: path of the file.

    Returns:
        Requirement by name.
    """
    parser = configparser.ConfigParser()
    if not parser.read(setup):
        raise FileNotFoundError(f"setup.cfg: expected at {setup}, there is none. Run from a clone of the repository.")
    parsed = [Requirement(line) for line in parser["options"]["install_requires"].splitlines() if line.strip()]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def check_versions(bundle: Path) -> None:
    """The metadata name every package that setup.cfg requires, with a version within its bounds.

    Args:
        bundle: its folder.
    """
    metadata = read_json(bundle / "configs" / "metadata.json")
    stated = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    stated |= {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}
    bounds = requirements(REPOSITORY / "setup.cfg")
    if absent := sorted(bounds.keys() - {canonicalize_name(package) for package in stated}):
        raise ValueError(f"metadata.json: required_packages_version lacks {absent} of setup.cfg. Add them.")
    for package, version in stated.items():
        requirement = bounds.get(canonicalize_name(package))
        if requirement is None:
            raise ValueError(f"metadata.json requires {package} {version}, setup.cfg does not. Add or drop it.")
        if not requirement.specifier.contains(version, prereleases=True):
            raise ValueError(f"metadata.json: {package} {version} is outside '{requirement}' of setup.cfg. Change one.")


def check_names(bundle: Path) -> None:
    """The package's name stands only where packing can rewrite it.

    Args:
        bundle: its folder.
    """
    for name, config in configurations(bundle).items():
        rest = json.dumps(rename_package(config, "renamed"))
        found = re.findall(rf"[^\"]*\b{re.escape(PACKAGE)}\b[^\"]*", rest)
        if found:
            raise ValueError(
                f"{name}: '{PACKAGE}' in '{found[0]}'. It may stand only at the start of a _target_ or in an import "
                f"entry '$import {PACKAGE}.x as y', '$from {PACKAGE}.x import y'."
            )


def check_length(bundle: Path) -> None:
    """train.json can be read at a glance.

    Args:
        bundle: its folder.
    """
    lines = (bundle / "configs" / "train.json").read_text(encoding="utf-8").splitlines()
    if len(lines) > LONGEST_TRAIN_JSON:
        raise ValueError(f"train.json has {len(lines)} lines, at most {LONGEST_TRAIN_JSON}. Move parts to a builder.")
    widest = max(map(len, lines))
    if widest > WIDEST_TRAIN_JSON:
        raise ValueError(f"train.json has a line of {widest} characters, at most {WIDEST_TRAIN_JSON}. Break it.")


def check_rendered(bundle: Path) -> None:
    """What the templates give has not been changed by hand.

    Args:
        bundle: its folder.
    """
    texts = rendered(bundle)
    changed = [name for name, text in texts.items() if (bundle / name).read_text(encoding="utf-8") != text]
    if changed:
        raise ValueError(
            f"{', '.join(changed)}: not what the templates give. Run 'python -m common render {bundle.name}'; what is "
            "this bundle's own stands in train.json and metadata.json."
        )


def check_copies(bundle: Path) -> None:
    """What is written twice agrees: network_def, and the keys of the overlays on train.json.

    Args:
        bundle: its folder.
    """
    configs = configurations(bundle)
    train = configs["train.json"]
    if train.get("network_def") is None or train["network_def"] != configs["inference.json"].get("network_def"):
        raise ValueError("network_def differs between train.json and inference.json. Copy it from train.json.")
    parser = ConfigParser(train)
    for name in configs.keys() - {"train.json", "evaluate.json", "inference.json"}:
        for key in configs[name]:
            if key != "_doc_" and key.lstrip("+") not in parser:
                near = difflib.get_close_matches(key.lstrip("+"), train, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else " Add it to train.json or drop it."
                raise ValueError(f"{name} overrides '{key}', which train.json does not have.{hint}")


def check_properties(bundle: Path) -> None:
    """MONAI finds every property that it requires of a training and of an inference.

    Args:
        bundle: its folder.
    """
    for workflow, name in (("train", "train.json"), ("inference", "inference.json")):
        with tempfile.TemporaryDirectory() as folder:
            config = ConfigWorkflow(
                config_file=str(bundle / "configs" / name), workflow_type=workflow, logging_file=False,
                bundle_root=str(bundle), device="cpu", output_dir=folder,
            )  # fmt: skip
            config.initialize()
            wrong = config.check_properties()
        if wrong:
            raise ValueError(f"{name}: MONAI's check_properties misses {', '.join(wrong)}. Add these keys.")


def check_network(bundle: Path) -> None:
    """The network takes and returns what the metadata say (MONAI's verify_net_in_out).

    Args:
        bundle: its folder.
    """
    metadata, config = (str(bundle / "configs" / name) for name in ("metadata.json", "inference.json"))
    verify_net_in_out("network_def", meta_file=metadata, config_file=config, device="cpu")


CHECKS: dict[str, Callable[[Path], None]] = {
    "files": check_files,
    "large files": zoo.check_large_files,
    "readme": check_readme,
    "packed readme": zoo.check_packed_readme,
    "weights": check_weights,
    "weight names": platforms.check_weight_names,
    "metadata": check_metadata,
    "zoo metadata": zoo.check_zoo_metadata,
    "versions": check_versions,
    "names": check_names,
    "length": check_length,
    "rendered": check_rendered,
    "copies": check_copies,
    "properties": check_properties,
    "network": check_network,
    "options": platforms.check_options,
    "transforms": platforms.check_transforms,
    "pair": platforms.check_pair,
    "answer": platforms.check_answer,
    "torchscript": lone.check_torchscript,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep other libraries' log out of the list of checks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def verify_bundle(bundle: Path) -> dict[str, str]:
    """Run every check; each one's failure in one line, "" where it passed.

    Args:
        bundle: its folder.

    Returns:
        Failure by name of the check.
    """
    failures = {}
    for name, check in CHECKS.items():
        try:
            with _quiet():
                check(bundle)
            failures[name] = ""
        except Exception as error:  # whatever a library raises is that check's failure, and the others still run
            cause = f" Cause: {error.__cause__!r}" if error.__cause__ else ""
            failures[name] = " ".join(f"{type(error).__name__}: {error}{cause}".split()).removeprefix("ValueError: ")
    return failures


def verify(*bundles: str) -> None:
    """Check bundles, offline: one line a check; the exit status is 1 where any fails.

    Args:
        bundles: paths or names; none: all under bundles/. Of a packed bundle, ``FILE.zip``, its files are compared with
            their SHA-256 sums, see ``archive.verify_archive``, and nothing else.
    """
    archives = [str(name) for name in bundles if str(name).endswith(".zip")]
    others = tuple(str(name) for name in bundles if str(name) not in archives)
    for archive in archives:
        print(verify_archive(archive))
    failed = 0
    for bundle in find_bundles(others, own_code=True) if others or not archives else []:
        print(bundle.name)
        for name, failure in verify_bundle(bundle).items():
            print(f"  {'ok' if not failure else 'FAILED'}: {name}{' - ' + failure if failure else ''}")
            failed += bool(failure)
    if failed:
        print(f"{failed} check{'s' if failed > 1 else ''} failed.")
        raise SystemExit(1)
