# SPDX-License-Identifier: Apache-2.0
"""One MONAI Label server with every packed bundle, 2D and 3D, that answers as ``inferring`` does."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import pytest

from tests.integration.conftest import ENVIRONMENT, NAMES, Register, largest_difference
from tests.integration.pairs import Pair
from tests.integration.server import Server, label_server

pytestmark = pytest.mark.integration
FLOAT = {"result_dtype": "float32"}
LABEL = "MONAI Label"


@pytest.fixture(scope="module")
def server(
    label_python: Path, packs: dict[str, Path], pairs: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server, for this module's tests."""
    studies, folder = pairs["stack"].fixed.parent, tmp_path_factory.mktemp("label")
    with label_server(label_python, packs, studies, folder, ENVIRONMENT) as started:
        yield started


def study(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def read(content: bytes, folder: Path) -> nib.Nifti1Image:
    path = folder / "answer.nii.gz"
    path.write_bytes(content)
    image = nib.load(path)
    image.get_fdata()
    return image


def check(server: Server, name: str, pair: Pair, expected: dict[str, nib.Nifti1Image], folder: Path) -> None:
    """A request with ``fixed``, as a script sends it; and what a panel sends: every option, "" where left empty."""
    answer = server.infer(name, study(pair.moving), {"fixed": str(pair.fixed), **FLOAT})
    assert largest_difference(read(answer, folder), expected["warped"]) == 0.0
    options = {"fixed": "", "moving": str(pair.moving), "moving_label": str(pair.moving_label)}
    image = server.infer(name, study(pair.fixed), {**options, "answer": "image", **FLOAT})
    assert largest_difference(read(image, folder), expected["warped"]) == 0.0
    label = server.infer(name, study(pair.fixed), {**options, "answer": "label", "result_dtype": "uint8"})
    assert largest_difference(read(label, folder), expected["warped_label"]) == 0.0
    assert read(label, folder).get_data_dtype() == "uint8"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_answers_as_inferring_does_and_carries_labels_to_the_displayed_image(
    name: str, tried: Callable[[str], str], server: Server, packs: dict[str, Path], pairs: dict[str, Pair],
    register: Register, label_python: Path, tmp_path: Path,
) -> None:  # fmt: skip
    pair = pairs[tried(LABEL)]
    check(server, name, pair, register(packs[name], pair, label_python), tmp_path)


@pytest.mark.timeout(900)
def test_bundles_answer_in_turn_and_on_oblique_images(
    server: Server, packs: dict[str, Path], pairs: dict[str, Pair], register: Register, label_python: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    for name, kind in (
        ("baseline_hippocampus", "volume"),
        ("adacs_acdc", "oblique"),
        ("baseline_hippocampus", "volume"),
    ):
        check(server, name, pairs[kind], register(packs[name], pairs[kind], label_python), tmp_path)


def test_the_server_offers_the_options_of_a_registration(server: Server) -> None:
    models = server.info()["models"]
    assert set(models) >= set(NAMES)
    for name in NAMES:
        assert {"fixed", "moving", "moving_label", "answer"} <= models[name]["config"].keys()
        assert models[name]["config"]["model_filename"][0] == "model.pt"


def test_what_is_wrong_with_a_request_is_told_to_the_client(server: Server, pairs: dict[str, Pair]) -> None:
    for params, message in (
        ({}, "image, moving, fixed: expected the paths of two images"),
        ({"fixed": "/nowhere.nii.gz"}, "/nowhere.nii.gz"),
        ({"fixed": str(pairs["stack"].fixed), "answer": "label"}, "pass its path as moving_label"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            server.infer("adacs_acdc", study(pairs["stack"].moving), {**FLOAT, **params})
        assert message in json.loads(refused.value.read())["detail"]
