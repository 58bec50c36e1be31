# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.data import camus
from common.data.camus_phantom import make_camus_phantom
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return make_camus_phantom(tmp_path_factory.mktemp("camus"), n_train=4, shape=(96, 104))


def test_bytes_depend_on_seed_and_number_alone(phantom, tmp_path):
    again = make_camus_phantom(tmp_path / "same", n_train=1, shape=(96, 104))
    other = make_camus_phantom(tmp_path / "other", n_train=1, shape=(96, 104), seed=1)
    files = sorted(path.relative_to(again) for path in (again / "database_nifti").rglob("*.nii.gz"))
    assert len(files) == 2 * 2 * 6
    for file in files:
        assert (again / file).read_bytes() == (phantom / file).read_bytes()
    assert any((again / file).read_bytes() != (other / file).read_bytes() for file in files)


def test_the_true_displacement_brings_every_label_together_without_folding(phantom):
    for pair in camus.load_pairs(phantom, "all", (96, 104)):
        ddf = pair["true_ddf"][None]
        assert jacobian_determinant(ddf).min() > 0.2
        for value in camus.LABELS.values():
            moving, fixed = ((pair[key] == value).float()[None] for key in ("moving_label", "fixed_label"))
            overlap = [
                float(2 * (m * fixed).sum() / (m.sum() + fixed.sum()))
                for m in (moving, (warp(moving, ddf) > 0.5).float())
            ]
            assert overlap[1] > 0.9 and overlap[1] > overlap[0]


def test_speckle_moves_with_the_tissue_and_decorrelates(phantom):
    """The true displacement makes the frames alike, more so in good images, and never the same."""
    likeness = {"Good": [], "Medium": [], "Poor": []}
    for pair in camus.load_pairs(phantom, "all", (96, 104)):
        warped = warp(pair["moving_image"][None], pair["true_ddf"][None])[0]
        inside = (pair["fixed_label"] > 0) & (pair["moving_label"] > 0)
        before, after = (
            float(torch.corrcoef(torch.stack([image[inside], pair["fixed_image"][inside]]))[0, 1])
            for image in (pair["moving_image"], warped)
        )
        assert 0.2 < after < 0.95 and after > before
        likeness[pair["group"]].append(after)
    assert np.mean(likeness["Good"]) > np.mean(likeness["Poor"])


def test_the_sector_is_dark_outside_and_darker_with_depth(phantom):
    for path in (phantom / "database_nifti").rglob("*_ED.nii.gz"):
        image = np.asarray(nibabel.load(path).dataobj)
        assert image.dtype == np.uint8
        assert image[:10, :10].max() == 0 and image[-10:, :10].max() == 0
        shallow, deep = (image[:, rows][image[:, rows] > 0].mean() for rows in (slice(8, 25), slice(70, 90)))
        assert shallow > deep


@pytest.mark.parametrize("arguments", [{"n_train": 0}, {"shape": (96, 8)}, {"seed": -1}])
def test_numbers_out_of_range(tmp_path, arguments):
    with pytest.raises(ValueError, match="n_train of 1 to 400, shape of two numbers from 32"):
        make_camus_phantom(tmp_path, **arguments)


def test_a_folder_in_use_is_left_alone(phantom):
    with pytest.raises(FileExistsError, match="database_nifti exists already"):
        make_camus_phantom(Path(phantom))
