# SPDX-License-Identifier: Apache-2.0
"""A bundle for a data set and a method that did not exist: what a contributor writes, and what the commands do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.cli.bundles import REPOSITORY
from common.cli.json_text import dumps
from common.cli.scaffold import new_train, render, scaffold
from tests.bundles.suite import NAMES

DATASET = '''# SPDX-License-Identifier: Apache-2.0
"""Blobs: pairs of volumes, each with one bright ball."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import known_name
from ..io.images import load_image, load_label
from .layout import DatasetLayoutError, dataset_root
from .phantom_cache import Phantom, write_reproducible_nifti

SPLITS = ("train", "validation", "all")
LABELS = {"ball": 1}
ORIENTATION, SPACING, SPACING_RANGE = "RAS", None, None
SPATIAL_SIZE = (16, 20, 18)
INFERENCE = {
    "align": "physical", "orientation": ORIENTATION, "spacing": SPACING, "spacing_range": SPACING_RANGE,
    "crop_center": "middle", "percentiles": [0, 100],
}
LAYOUT = "expected DIR/blob_1_image.nii.gz and DIR/blob_1_label.nii.gz, ..."


def make(folder: str | Path, count: int = 6) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SPATIAL_SIZE), indexing="ij"))
    for number in range(1, count + 1):
        centre = np.array([8 + number % 3 - 1, 10 + number % 2, 9]).reshape(3, 1, 1, 1)
        distance = np.sqrt(((grid - centre) ** 2).sum(0))
        affine = np.diag([2.0, 1.0, 1.0, 1.0])
        write_reproducible_nifti(folder / f"blob_{number}_image.nii.gz", np.exp(-distance / 4).astype("f4"), affine)
        write_reproducible_nifti(folder / f"blob_{number}_label.nii.gz", (distance < 4).astype("u1"), affine)
    return folder


PHANTOM = Phantom("blobs_phantom", make, {"count": 6}, 1, "stands in for nothing.")


def root(dataset_dir: str | Path) -> Path:
    return dataset_root(dataset_dir, PHANTOM.folder, LAYOUT)


def split_of(subject: str) -> str:
    return "validation" if int(subject.rpartition("_")[2]) > 4 else "train"


def subjects(dataset_dir: str | Path, split: str = "all") -> list[str]:
    known_name("split", split, SPLITS)
    names = sorted(path.name.removesuffix("_image.nii.gz") for path in root(dataset_dir).glob("*_image.nii.gz"))
    found = [name for name in names if split in ("all", split_of(name))]
    if not found:
        raise DatasetLayoutError(f"split: {split!r} is empty in {dataset_dir}; {LAYOUT}.")
    return found


def datalist(dataset_dir: str | Path, split: str = "train") -> list[dict[str, Any]]:
    names, folder = subjects(dataset_dir, split), root(dataset_dir)
    pairs = zip(names, names[1:] + names[:1])
    return [
        {f"{role}_{kind}": str(folder / f"{name}_{kind}.nii.gz") for role, name in (("moving", m), ("fixed", f))
         for kind in ("image", "label")} | {"subject": f, "case": f"{m}_to_{f}"} for m, f in pairs
    ]


def load_pairs(dataset_dir: str | Path, split: str = "train", brightness: float = 1.0) -> list[dict[str, Any]]:
    pairs = []
    for entry in datalist(dataset_dir, split):
        pair: dict[str, Any] = {key: entry[key] for key in ("subject", "case")}
        for role in ("moving", "fixed"):
            image = load_image(entry[f"{role}_image"])
            pair[f"{role}_image"] = brightness * image.array[None]
            pair[f"{role}_label"] = load_label(entry[f"{role}_label"]).array[None].byte()
        shape = torch.tensor(image.array.shape)
        pairs.append(pair | {"centre": (shape - 1) / 2, "spacing": torch.tensor(image.spacing)})
    return pairs


def example_pair(dataset_dir: str | Path) -> tuple[Path, Path]:
    folder, (moving, fixed) = root(dataset_dir), subjects(dataset_dir, "validation")[:2]
    return folder / f"{moving}_image.nii.gz", folder / f"{fixed}_image.nii.gz"
'''
METHOD = '''# SPDX-License-Identifier: Apache-2.0
"""Elasticity that is made up: a similarity and a smoothness."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..engines.method import MODEL, Method, Update
from ..losses.objective import Objective
from ..losses.terms import Similarity, Smoothness


def build(
    network: nn.Module, similarity: nn.Module, optimizer: Any, stiffness: float = 0.5, **form: Any
) -> Method:
    """A smoothness of its own weight."""
    terms = {"similarity": (1.0, Similarity()), "smoothness": (stiffness, Smoothness())}
    return Method({MODEL: network}, similarity, [Update("displacement", [MODEL], Objective(terms), optimizer)], **form)
'''
DRIVER = """
import json, shutil, sys
from pathlib import Path
from monai.bundle import ConfigWorkflow
from common.cli.pack import pack
from common.cli.scaffold import render, scaffold
from common.runs.options import OPTIONS, Option

print(scaffold("invented_blobs"))
# What a contributor adds to the table of options.
OPTIONS["brightness"] = Option("factor on the intensities", fixed=True)
OPTIONS["stiffness"] = Option("weight of the smoothness", least=0, fixed=True)
bundle, out = Path("bundles/invented_blobs"), Path(sys.argv[1])


def run(run_id, *files, **overrides):
    workflow = ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in files], logging_file=False, run_id=run_id,
        meta_file=str(bundle / "configs" / "metadata.json"), device="cpu",
        workflow_type="infer" if files[0] == "inference.json" else "train", **overrides,
    )
    workflow.initialize()
    if run_id != "inferring":
        assert workflow.check_properties() == []
    workflow.run()


run("training", "train.json", epochs=1, batch_size=2, stiffness=0.1, output_dir=str(out / "training"))
weights = str(out / "training" / "model.pt")
run("evaluating", "train.json", "evaluate.json", ckpt_path=weights, output_dir=str(out / "evaluation"))
run("inferring", "inference.json", ckpt_path=weights, output_dir=str(out / "inference"))
assert render("invented_blobs") == "All files are as rendered."
pack(str(bundle), output=str(out / "dist"), smoke=False)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git knows of this repository, as a repository of its own."""
    folder = tmp_path_factory.mktemp("clone") / "repository"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, tracked):
        if (REPOSITORY / name).is_file() and not name.startswith(("bundles/", "tests/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_an_invented_method_and_data_set_become_a_bundle(clone: Path, tmp_path: Path) -> None:
    (clone / "common" / "data" / "blobs.py").write_text(DATASET)
    (clone / "common" / "methods" / "invented.py").write_text(METHOD)
    done = subprocess.run(
        [sys.executable, "-B", "-c", DRIVER, str(tmp_path)], cwd=clone, capture_output=True, text=True,
        env={**os.environ, "REGISTRATION_BUNDLES_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["dice"]["n"] == 2 and summary["inverse_consistency_error"]["mean"] >= 0
    trained = json.loads((tmp_path / "training" / "summary.json").read_text())["settings"]
    assert trained["stiffness"] == 0.1 and trained["brightness"] == 1.0
    assert (tmp_path / "inference" / "ddf.nii.gz").is_file()
    assert list((tmp_path / "dist").glob("invented_blobs_v0.1.0.zip"))
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    changed = {line[3:] for line in status.stdout.splitlines()}
    assert changed == {"bundles/", "common/data/blobs.py", "common/methods/invented.py"}
    assert [path.name for path in (clone / "bundles").iterdir()] == ["invented_blobs"]
    train = (clone / "bundles" / "invented_blobs" / "configs" / "train.json").read_text().splitlines()
    assert len(train) <= 100 and max(map(len, train)) <= 160


@pytest.mark.parametrize(
    "name, message",
    [
        ("baseline", "expected METHOD_DATASET"),
        ("baseline_acdcc", "the data set 'acdcc'.*common/data/acdcc.py.*adding_a_dataset"),
        ("nosuch_acdc", "the method 'nosuch' is none of adacs, baseline, gradicon.*common/methods/nosuch.py"),
    ],
)
def test_what_does_not_exist_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaffold(name)


def test_rendering_a_bundle_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match="got 'baseline_acdcc'.* Did you mean 'baseline_acdc'"):
        render("baseline_acdcc")


def test_a_bundle_is_not_overwritten() -> None:
    with pytest.raises(FileExistsError, match="bundles/baseline_acdc exists"):
        scaffold("baseline_acdc")


@pytest.mark.parametrize("name", NAMES)
def test_a_new_bundle_has_the_method_of_the_one_that_exists(name: str) -> None:
    """The fragments of the templates and the bundles cannot drift apart."""
    existing = json.loads((REPOSITORY / "bundles" / name / "configs" / "train.json").read_text())
    fresh = new_train(name)
    for key in ("method", "network_def", "similarity_def", "optimizer", "options", "training", "run", "evaluate"):
        assert fresh[key] == existing[key], key
    for part in ("trainer", "handlers", "inferer"):
        assert fresh["train"][part] == existing["train"][part]
    assert fresh["validate"]["evaluator"] == existing["validate"]["evaluator"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("gradicon_")])
def test_a_new_gradicon_bundle_has_stages_a_schedule_and_augmentation(name: str) -> None:
    existing = json.loads((REPOSITORY / "bundles" / name / "configs" / "train.json").read_text())
    fresh = new_train(name)
    for train in (fresh, existing):
        assert train["stages"] is None and train["augment"] is False and train["objectives"]["icon"]["schedule"] is None
        assert train["train"]["dataset"]["augmentation"] == "$augmentation.augmentation(@augment, len(@spatial_size))"
        assert "$import common.transforms.augment as augmentation" in train["imports"]


def test_rendering_writes_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundles" / "gradicon_triangles"
    shutil.copytree(REPOSITORY / "bundles" / "gradicon_triangles" / "configs", bundle / "configs")
    shutil.copyfile(REPOSITORY / "LICENSE", bundle / "LICENSE")
    monkeypatch.setattr("common.cli.bundles.REPOSITORY", tmp_path)
    assert render("gradicon_triangles") == "All files are as rendered."
    changed = bundle / "configs" / "inference.json"
    changed.write_text("{}")
    assert render() == "gradicon_triangles/configs/inference.json"
    assert json.loads(changed.read_text())["run"] == "@inferring"


def test_json_is_packed_into_lines() -> None:
    value = {
        "short": [1, 2],
        "long": {"a": ["x" * 60, "y" * 60, "z" * 60], "b": {"_target_": "m.n", "c": None}},
        "e": {},
    }
    text = dumps(value)
    assert json.loads(text) == value and text == dumps(json.loads(text))
    assert text.splitlines()[1] == '    "short": [1, 2],' and max(map(len, text.splitlines())) <= 160
