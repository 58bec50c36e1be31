# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.metrics.vessels import VesselMeasures
from tests.metrics.synthetic import shifted

SHAPE = (12, 20)


def vessel(column: int, value: float = 1.0) -> torch.Tensor:
    """A vessel of two columns."""
    image = torch.zeros(1, 1, *SHAPE)
    image[..., column : column + 2] = value
    return image


def measured(moving, fixed, shift, measure=None, **more):
    cases = shifted(SHAPE, (0.0, shift), count=1, moving_vessels=moving, fixed_vessels=fixed, **more)
    return {name: value.item() for name, value in (measure or VesselMeasures())(cases).items()}


def test_a_shifted_vessel_is_found():
    columns = measured(vessel(7), vessel(6), shift=1.0)
    assert columns == {"dice_vessels": pytest.approx(1.0), "dice_vessels_before": pytest.approx(0.5)}


def test_a_share_below_the_threshold_is_no_vessel():
    columns = measured(vessel(6) + vessel(10, 0.4), vessel(6), shift=0.0)
    assert columns["dice_vessels"] == columns["dice_vessels_before"] == 1.0
    lower = measured(vessel(6) + vessel(10, 0.4), vessel(6), 0.0, VesselMeasures(threshold=0.3))
    assert lower["dice_vessels"] == pytest.approx(2 / 3)


def test_only_what_the_mask_covers_counts():
    view = torch.zeros(1, 1, *SHAPE)
    view[..., :10] = 1
    moving = vessel(6) + vessel(15)
    assert measured(moving, vessel(6), 0.0)["dice_vessels"] == pytest.approx(2 / 3)
    inside = measured(moving, vessel(6), 0.0, VesselMeasures(mask="fixed_mask"), fixed_mask=view)
    assert inside["dice_vessels"] == inside["dice_vessels_before"] == 1.0


def test_maps_under_another_key_and_no_vessel():
    cases = shifted(SHAPE, (0.0, 0.0), moving_tree=vessel(3).expand(2, 1, *SHAPE), fixed_tree=torch.zeros(2, 1, *SHAPE))
    assert VesselMeasures("tree")(cases)["dice_vessels"].isnan().all()


def test_absent_maps_are_named():
    with pytest.raises(ValueError, match="vessels: the data hold no moving_vessels and no fixed_vessels"):
        VesselMeasures()(shifted(SHAPE, (0.0, 0.0)))
    with pytest.raises(ValueError, match="vessels: the data hold no fixed_mask"):
        measured(vessel(1), vessel(1), 0.0, VesselMeasures(mask="fixed_mask"))
