# SPDX-License-Identifier: Apache-2.0
import sys
import types

import nibabel as nib
import numpy as np
import pytest
import torch

from common.transforms.answer import Answerd
from common.transforms.loading import LoadPaird
from common.transforms.registration import CropPaird, RegistrationResultd
from tests.transforms.synthetic import write


def registered(files, **more):
    item = CropPaird([16, 12], "middle")(LoadPaird(2)(files | more))
    pred = torch.zeros(2, *item["image"].shape[1:])
    pred[0] = 1.5
    return RegistrationResultd()(item | {"pred": pred})


@pytest.fixture
def label(files, tmp_path):
    values = (nib.load(files["image"]).get_fdata() > 500) * 300
    return write(tmp_path / "label.nii.gz", values, dtype=np.uint16)


def test_pred_is_the_displacement_until_the_answer(files):
    item = registered(files)
    assert item["pred"].shape == (2, 16, 12, 5) and (item["pred"][0] == 1.5).all()
    answer = Answerd()(item)
    assert torch.equal(answer["pred"].as_subclass(torch.Tensor), item["warped_image"])
    np.testing.assert_allclose(answer["pred"].affine, item["pair"].fixed.affine)
    assert all(answer[key] is item[key] for key in item if key != "pred")


def test_what_is_wrong_reaches_the_client_where_a_web_framework_runs_the_transforms(files, monkeypatch):
    class HTTPException(Exception):
        def __init__(self, status_code, detail):
            self.status_code, self.detail = status_code, detail

    requests = (
        (ValueError, {"image": files["image"]}, "expected the paths of two images"),
        (FileNotFoundError, files | {"fixed": "nowhere.nii.gz"}, "nowhere.nii.gz"),
    )
    web = types.SimpleNamespace(HTTPException=HTTPException)
    for kind, request, message in requests:
        with pytest.raises(kind, match=message) as plain:
            LoadPaird(2)(request)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "starlette.exceptions", web)
            with pytest.raises(kind, match=message) as told:
                LoadPaird(2)(request)
        assert not isinstance(plain.value, HTTPException) and isinstance(told.value, HTTPException)
        assert told.value.status_code == 400 and told.value.detail == str(told.value) == str(plain.value)
    monkeypatch.setitem(sys.modules, "starlette.exceptions", web)
    with pytest.raises(HTTPException, match="answer: expected one of"):
        Answerd()(registered(files, answer="labels"))


def test_a_label_keeps_its_numbers_and_type(files, label):
    item = registered(files, moving_label=label, answer="label")
    answer = Answerd()(item)["pred"]
    assert answer.array.dtype == np.uint16 and set(np.unique(answer.array)) == {0, 300}
    assert np.array_equal(answer.array, item["warped_label"].numpy())
    for empty in ("", None, "image"):
        assert Answerd()(item | {"answer": empty})["pred"].dtype == torch.float32


def test_labels_that_the_asked_type_cannot_hold_are_refused(files, label):
    item = registered(files, moving_label=label, answer="label")
    Answerd()(item | {"result_dtype": "int32"})
    with pytest.raises(
        ValueError, match="result_dtype: expected a type that holds the label's values, 0 to 300, got u"
    ):
        Answerd()(item | {"result_dtype": "uint8"})
    Answerd()(item | {"result_dtype": "uint8", "answer": "image"})


def test_2d_answers_have_a_last_axis_of_one(tmp_path, files):
    paths = {key: write(tmp_path / f"{key}.nii.gz", nib.load(path).get_fdata()[..., 2]) for key, path in files.items()}
    item = registered(paths)
    assert Answerd()(item)["pred"].shape == (1, 37, 30, 1)
    assert list(item["image"].meta["spatial_shape"]) == [37, 30, 1]


def test_unknown_answers_are_refused(files):
    item = registered(files)
    with pytest.raises(ValueError, match=r"answer: expected one of \['image', 'label'\], got 'field'"):
        Answerd()(item | {"answer": "field"})
    with pytest.raises(
        ValueError, match="answer: 'label' is the label map of moving, .* pass its path as moving_label"
    ):
        Answerd()(item | {"answer": "label"})
