# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.metrics import cases as module
from common.metrics.cases import SubjectMeasure
from common.metrics.image import ImageMeasures
from common.metrics.labels import LabelMeasures
from common.spatial.jacobian import jacobian_determinant
from tests.metrics.synthetic import SHAPES, shifted


def test_the_determinant_is_computed_once_and_only_if_asked(monkeypatch):
    calls = []

    def counted(ddf):
        calls.append(len(ddf))
        return jacobian_determinant(ddf)

    monkeypatch.setattr(module, "jacobian_determinant", counted)
    cases = shifted(SHAPES[0], (1.0, 0.5))
    ImageMeasures()(cases)
    assert calls == []
    assert cases.determinant is cases.determinant and calls == [2]
    torch.testing.assert_close(cases.determinant, torch.ones(2, *SHAPES[0]))


def test_spacing_is_unknown_where_the_data_hold_none():
    assert shifted(SHAPES[1], (0.0, 0.0, 0.0)).spacing.isnan().all()
    spacing = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert shifted(SHAPES[0], (0.0, 0.0), spacing=spacing).spacing is spacing


def test_absent_data_are_named_with_those_that_are_there():
    cases = shifted(SHAPES[0], (0.0, 0.0), subject=["a", "b"])
    with pytest.raises(
        ValueError,
        match="vessels: the data hold no x and no y, but fixed_image, moving_image, subject; leave the measure out",
    ):
        cases.of("vessels", "x", "moving_image", "y")


def test_measures_of_subjects_are_told_apart():
    assert isinstance(LabelMeasures({"lv": 3}), SubjectMeasure) and not isinstance(ImageMeasures(), SubjectMeasure)
