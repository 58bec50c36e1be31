# SPDX-License-Identifier: Apache-2.0
import csv
import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.engines.evaluator import RegistrationEvaluator
from common.engines.maps import PixelMaps
from common.handlers.measures import CaseMeasures
from common.metrics.folding import FieldMeasures
from common.metrics.inverse_consistency import InverseConsistencyMeasures
from common.metrics.labels import LabelMeasures
from common.networks.contract import condition_tensor
from common.networks.voxelmorph import VoxelMorph
from common.spatial.warp import warp
from tests.engines.synthetic import Conditional, estimating_method

LABELS = LabelMeasures({"myocardium": 2})
SIZES = [(16, 20), (8, 10, 12)]


class Shift(nn.Module):
    """A network that knows one displacement."""

    def __init__(self, shift):
        super().__init__()
        self.shift = torch.tensor(shift)
        self.modes = []

    def forward(self, image, fixed=None, condition=None):
        assert image.shape[1] == 2 and fixed is None and condition is None
        self.modes.append(self.training)
        dims = image.dim() - 2
        return self.shift.view([1, -1] + [1] * dims).expand(len(image), dims, *image.shape[2:])


def square_pair(size, shift, subject):
    """A block whose fixed copy lies ``-shift`` voxels from the moving one: fixed(x) = moving(x + shift)."""
    moving = torch.zeros(1, *size, dtype=torch.uint8)
    fixed = moving.clone()
    start, stop = [3] * len(size), [7] * len(size)
    moving[(0, *(slice(a, b) for a, b in zip(start, stop, strict=True)))] = 2
    fixed[(0, *(slice(a - s, b - s) for a, b, s in zip(start, stop, shift, strict=True)))] = 2
    return {
        "moving_image": moving.float() / 2,
        "fixed_image": fixed.float() / 2,
        "moving_label": moving,
        "fixed_label": fixed,
        "subject": subject,
        "spacing": torch.full((len(size),), float("nan")),
    }


def loader_of(size, shift, count=3):
    return DataLoader([square_pair(size, shift, f"subject{number}") for number in range(count)], batch_size=2)


@pytest.mark.parametrize("size", SIZES)
def test_output_holds_field_warped_image_and_seconds(size):
    shift = (1, -2, 1)[: len(size)]
    network = Shift([float(s) for s in shift]).train()
    evaluator = RegistrationEvaluator("cpu", loader_of(size, shift), network)
    evaluator.run()
    output, batch = evaluator.state.output, evaluator.state.batch
    assert set(output) == {"ddf", "warped_image", "seconds", "estimate"} and output["estimate"]() == {}
    assert output["ddf"].shape == (1, len(size), *size)
    torch.testing.assert_close(output["warped_image"], warp(batch["moving_image"], output["ddf"]))
    torch.testing.assert_close(output["warped_image"], batch["fixed_image"], atol=1e-5, rtol=0)
    assert 0 <= output["seconds"] < 60
    assert network.modes == [False, False]


@pytest.mark.parametrize("size", SIZES)
def test_known_shift_scores_one_from_the_pair_to_the_files(size, tmp_path):
    shift = (1, -2, 1)[: len(size)]
    network = Shift([float(s) for s in shift])
    metrics = CaseMeasures([LABELS, FieldMeasures()], tmp_path, settings={"seed": 3})
    evaluator = RegistrationEvaluator("cpu", loader_of(size, shift), network, val_handlers=[metrics])
    evaluator.run()
    overlap = math.prod(4 - abs(s) for s in shift)
    before = 2 * overlap / (2 * 4 ** len(size))
    assert evaluator.state.metrics["dice"] == pytest.approx(1.0)
    assert evaluator.state.metrics["dice_before"] == pytest.approx(before)
    assert evaluator.state.metrics["foldings_percent"] == 0
    with open(tmp_path / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["subject0", "subject1", "subject2"]
    assert all(float(row["hd"]) == 0 and float(row["dice"]) == pytest.approx(1.0) for row in rows)
    # Every corner of the block moves by the whole shift.
    assert float(rows[0]["hd_before"]) == pytest.approx(math.sqrt(sum(s**2 for s in shift)), abs=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["dice"]["n"] == 3 and summary["settings"] == {"seed": 3}
    cost = summary["cost"]
    assert cost["parameters"] == 0 and cost["memory_of"] == "process" and cost["device"]
    assert 2**26 < cost["peak_memory_bytes"] < 2**36  # torch alone needs more than 64 MiB


@pytest.mark.parametrize("amp", [False, True])
def test_network_runs_without_gradients_and_fields_are_float32(amp):
    torch.manual_seed(0)
    network = VoxelMorph(2, encoder=(4,), decoder=(4, 4))
    evaluator = RegistrationEvaluator("cpu", loader_of((16, 20), (1, 0)), network, amp=amp)
    evaluator.run()
    assert evaluator.state.output["ddf"].dtype == evaluator.state.output["warped_image"].dtype == torch.float32
    assert not evaluator.state.output["ddf"].requires_grad


def test_every_pair_is_seen_once_and_running_again_gives_the_same():
    metrics = CaseMeasures([LABELS], thorough=False)
    network = Shift([0.5, -1.5])
    evaluator = RegistrationEvaluator("cpu", loader_of((16, 20), (1, -2), count=5), network, val_handlers=[metrics])
    evaluator.run()
    first = [{k: v for k, v in row.items() if k != "seconds"} for row in metrics.rows]
    evaluator.run()
    assert [row["case"] for row in metrics.rows] == [f"subject{n}" for n in range(5)]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in metrics.rows] == first


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_registers_the_swapped_images_too(size):
    torch.manual_seed(0)
    network = VoxelMorph(len(size), encoder=(4,), decoder=(4, 4))
    nn.init.normal_(network.flow.weight, std=0.3)
    shift = (1, -2, 1)[: len(size)]
    evaluator = RegistrationEvaluator("cpu", loader_of(size, shift), network, both_ways=True)
    evaluator.run()
    output, batch = evaluator.state.output, evaluator.state.batch
    moving, fixed = batch["moving_image"], batch["fixed_image"]
    with torch.no_grad():
        torch.testing.assert_close(output["ddf"], network(moving, fixed), atol=0, rtol=0)
        torch.testing.assert_close(output["reverse_ddf"], network(fixed, moving), atol=0, rtol=0)
    torch.testing.assert_close(output["warped_image"], warp(moving, output["ddf"]))
    assert (output["ddf"] - output["reverse_ddf"]).abs().max() > 0.1
    assert not output["reverse_ddf"].requires_grad and output["reverse_ddf"].dtype == torch.float32


def test_inverse_consistency_goes_from_the_pair_to_the_files(tmp_path):
    """A network that moves by (1, 0) both ways comes back 2 voxels from where it started."""
    metrics = CaseMeasures([LABELS, InverseConsistencyMeasures()], tmp_path)
    evaluator = RegistrationEvaluator(
        "cpu", loader_of((16, 20), (1, 0)), Shift([1.0, 0.0]), both_ways=True, val_handlers=[metrics]
    )
    evaluator.run()
    assert evaluator.state.metrics["inverse_consistency_error"] == pytest.approx(2.0, abs=1e-5)
    with open(tmp_path / "metrics.csv", newline="") as stream:
        errors = [float(row["inverse_consistency_error"]) for row in csv.DictReader(stream)]
    assert errors == pytest.approx([2.0] * 3, abs=1e-5)


@pytest.mark.parametrize(
    ("condition", "expected"), [(None, None), (0.5, [[0.5], [0.5]]), (2, [[2.0], [2.0]]), ([1, 2.5], [[1.0, 2.5]] * 2)]
)
def test_condition_is_repeated_for_every_image(condition, expected):
    tensor = condition_tensor(condition, torch.zeros(2, 2, 4, 4))
    assert tensor is None if expected is None else (tensor.tolist() == expected and tensor.dtype == torch.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("condition", [None, 1.5, [1.0, 2.0]])
def test_condition_reaches_the_network_both_ways(size, condition):
    network = Conditional(len(size))
    evaluator = RegistrationEvaluator(
        "cpu", loader_of(size, (0,) * len(size)), network, both_ways=True, condition=condition
    )
    evaluator.run()
    value = 0.0 if condition is None else 1.5
    for key in ("ddf", "reverse_ddf"):
        assert (evaluator.state.output[key] == value).all()
    assert len(network.seen) == 4  # two batches, two directions
    assert (evaluator.register(torch.rand(1, 2, *size)) == value).all()


def test_condition_for_a_network_that_takes_none_is_refused():
    network = VoxelMorph(2, encoder=(4,), decoder=(4, 4))
    evaluator = RegistrationEvaluator("cpu", loader_of((16, 20), (1, 0)), network, condition=0.5)
    with pytest.raises(ValueError, match="condition: VoxelMorph takes none"):
        evaluator.run()


class PlusOne(nn.Module):
    """An estimator that adds up what it sees, and 1."""

    def __init__(self, sigmoid):
        super().__init__()
        self.sigmoid = sigmoid

    def forward(self, image):
        assert not self.training
        return image.sum(1, keepdim=True) + 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("seen", ["fixed", "fixed_warped"])
def test_the_estimator_sees_what_it_saw_in_training(size, sigmoid, seen):
    """Its output is a score, or log σ², of which σ is given."""
    estimator = PlusOne(sigmoid).train()
    shift = [1.0] * len(size)
    network = Shift(shift)
    maps = PixelMaps(estimating_method(network, estimator, seen))
    evaluator = RegistrationEvaluator("cpu", loader_of(size, (0,) * len(size)), network, maps=maps)
    evaluator.run()
    output, batch = evaluator.state.output, evaluator.state.batch
    expected = 1 + batch["fixed_image"] + (output["warped_image"] if seen == "fixed_warped" else 0)
    maps = output["estimate"]()
    assert maps.keys() == ({"score"} if sigmoid else {"noise_deviation"})
    (found,) = maps.values()
    torch.testing.assert_close(found, expected if sigmoid else (expected / 2).exp())
