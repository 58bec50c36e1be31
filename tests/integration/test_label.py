# SPDX-License-Identifier: Apache-2.0
"""One MONAI Label server with three packed bundles, 2D and 3D, that answers as ``inferring`` does."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest

from tests.integration.conftest import ENVIRONMENT, Register, largest_difference
from tests.integration.pairs import Pair
from tests.integration.server import Server, label_server

pytestmark = pytest.mark.integration
# A 2D network with a second weight file on stacks, a 3D one, and a 2D one on images of two axes.
CASES = {"adacs_acdc": "stack", "baseline_hippocampus": "volume", "gradicon_triangles": "plane"}
FLOAT = {"result_dtype": "float32"}


@pytest.fixture(scope="module")
def server(
    label_python: Path, packs: dict[str, Path], pairs: dict[str, Pair], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server, for this module's tests."""
    studies, folder = pairs["stack"].fixed.parent, tmp_path_factory.mktemp("label")
    with label_server(label_python, {name: packs[name] for name in CASES}, studies, folder, ENVIRONMENT) as started:
        yield started


def study(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def read(content: bytes, folder: Path) -> nib.Nifti1Image:
    path = folder / "answer.nii.gz"
    path.write_bytes(content)
    image = nib.load(path)
    image.get_fdata()
    return image


@pytest.mark.timeout(1500)
def test_bundles_answer_in_turn_as_inferring_does(
    server: Server, packs: dict[str, Path], pairs: dict[str, Pair], register: Register, label_python: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    for _ in range(2):
        for name, kind in CASES.items():
            pair = pairs[kind]
            expected = register(packs[name], pair, label_python)["warped"]
            answer = server.infer(name, study(pair.moving), {"fixed": str(pair.fixed), **FLOAT})
            assert largest_difference(read(answer, tmp_path), expected) == 0.0, name


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "kind"), [*CASES.items(), ("adacs_acdc", "oblique")])
def test_a_panel_carries_the_label_map_of_moving_to_the_displayed_image(
    name: str, kind: str, server: Server, packs: dict[str, Path], pairs: dict[str, Pair], register: Register,
    label_python: Path, tmp_path: Path,
) -> None:  # fmt: skip
    pair = pairs[kind]
    expected = register(packs[name], pair, label_python)
    # What the panel sends: every option, "" where it is left empty.
    options = {"fixed": "", "moving": str(pair.moving), "moving_label": str(pair.moving_label)}
    image = server.infer(name, study(pair.fixed), {**options, "answer": "image", **FLOAT})
    assert largest_difference(read(image, tmp_path), expected["warped"]) == 0.0
    label = server.infer(name, study(pair.fixed), {**options, "answer": "label", "result_dtype": "uint8"})
    assert largest_difference(read(label, tmp_path), expected["warped_label"]) == 0.0
    assert read(label, tmp_path).get_data_dtype() == "uint8"


def test_the_server_offers_the_options_of_a_registration(server: Server) -> None:
    models = server.info()["models"]
    assert set(models) >= set(CASES)
    for name in CASES:
        assert {"fixed", "moving", "moving_label", "answer"} <= models[name]["config"].keys()
        assert models[name]["config"]["model_filename"][0] == "model.pt"


def test_a_missing_image_is_named_in_the_servers_log(server: Server, pairs: dict[str, Pair]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="500"):
        server.infer("adacs_acdc", study(pairs["stack"].moving), FLOAT)
    assert server.has_logged("image, moving, fixed: expected the paths of two images")
