# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.transforms.synthetic import blobs, write


@pytest.fixture
def files(tmp_path):
    shape = (37, 30, 5)
    return {
        "image": write(tmp_path / "moving.nii.gz", blobs(shape, 1)),
        "fixed": write(tmp_path / "fixed.nii.gz", blobs(shape, 2)),
    }
