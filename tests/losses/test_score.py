# SPDX-License-Identifier: Apache-2.0
"""AdaCS's score: what stands in its place as a control, and α. The terms' closed forms: test_terms.py."""

from types import SimpleNamespace

import pytest
import torch

from common.losses.controls import CONTROLS, masked_mean, shuffled
from common.losses.score import ScoreAlpha, ScoreWeight

SHAPES = [(8, 12), (4, 8, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES)
masked = pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "foreground"])


def step_of(shape, masked=False, pairs=3, bidirectional=False, active=("displacement", "score")):
    generator = torch.Generator().manual_seed(0)
    size = (2 * pairs if bidirectional else pairs, 1, *shape)
    score = torch.rand(size, generator=generator, dtype=torch.float64).requires_grad_()
    mask = (torch.rand(size, generator=generator) > 0.4).double() if masked else None
    return SimpleNamespace(estimated=score, mask=mask, bidirectional=bidirectional, active=frozenset(active))


def weight_of(step, control, seed=0):
    torch.manual_seed(seed)
    return ScoreWeight(control=control)(step)


@masked
@each_shape
@pytest.mark.parametrize("control", CONTROLS)
def test_every_control_is_a_detached_map_that_is_0_outside_and_waits_for_the_score(control, shape, masked):
    step = step_of(shape, masked)
    weight = weight_of(step, control)
    assert weight.shape == step.estimated.shape and not weight.requires_grad
    assert step.mask is None or not weight[step.mask == 0].any()
    assert weight_of(step_of(shape, masked, active=("displacement",)), control) is None


@masked
@each_shape
@pytest.mark.parametrize("control", ["mean", "shuffled"])
def test_mean_and_shuffled_keep_each_images_sum(control, shape, masked):
    step = step_of(shape, masked)
    score, weight = weight_of(step, "none"), weight_of(step, control)
    torch.testing.assert_close(weight.flatten(1).sum(1), score.flatten(1).sum(1))
    assert not torch.allclose(weight, score)


@masked
@each_shape
def test_mean_is_one_value_an_image(shape, masked):
    step = step_of(shape, masked)
    weight, score = weight_of(step, "mean"), weight_of(step, "none")
    for number, image in enumerate(weight):
        inside = slice(None) if step.mask is None else step.mask[number] == 1
        torch.testing.assert_close(image[inside], score[number][inside].mean().expand_as(image[inside]))


@masked
@each_shape
def test_shuffled_is_a_permutation_within_each_image_and_the_mask_drawn_from_torchs_state(shape, masked):
    step = step_of(shape, masked)
    weight, score = weight_of(step, "shuffled"), weight_of(step, "none")
    for number, image in enumerate(weight):
        assert torch.equal(image.flatten().sort().values, score[number].flatten().sort().values)
    assert torch.equal(weight, weight_of(step, "shuffled")) and not torch.equal(weight, weight_of(step, "shuffled", 1))
    moved = (weight != score).flatten(1).double().mean(1)
    assert (moved > 0.4).all()  # about the share of the mask


def test_shuffled_places_are_uniform():
    image = torch.zeros(4000, 1, 2, 2)
    image[:, 0, 0, 0] = 1
    torch.manual_seed(0)
    share = shuffled(image, None).mean(0).flatten()
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.03, rtol=0)


@each_shape
def test_other_is_the_score_of_the_next_pair_in_the_same_direction(shape):
    step = step_of(shape)
    score = step.estimated.detach()
    torch.testing.assert_close(weight_of(step, "other"), score[[2, 0, 1]])
    step = step_of(shape, bidirectional=True)
    torch.testing.assert_close(weight_of(step, "other"), step.estimated.detach()[[2, 0, 1, 5, 3, 4]])


@masked
def test_other_keeps_to_the_mask_of_its_own_pair(masked):
    step = step_of((8, 12), masked)
    mask = torch.ones_like(step.estimated) if step.mask is None else step.mask
    torch.testing.assert_close(weight_of(step, "other"), step.estimated.detach()[[2, 0, 1]] * mask)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_other_needs_another_pair(bidirectional):
    with pytest.raises(ValueError, match="score_control: 'other' .* Raise batch_size to 2"):
        weight_of(step_of((8, 12), pairs=1, bidirectional=bidirectional), "other")


def test_unknown_control_is_refused():
    with pytest.raises(ValueError, match="score_control: expected one of none, mean, .*got 'shufled'. Did you mean"):
        ScoreWeight(control="shufled")


def test_mean_of_an_image_without_foreground_is_0():
    image, mask = torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)
    mask[0, 0, 0, :2] = 1
    assert masked_mean(image, mask).flatten().tolist() == [1.0, 0.0]
    assert masked_mean(image, None).shape == (2, 1, 1, 1)


def test_alpha_is_its_number_in_a_buffer_that_a_resumed_training_restores():
    alpha, step = ScoreAlpha(0.04), SimpleNamespace(fixed=torch.zeros(1))
    value = alpha(step)
    assert not alpha.auto and float(value) == pytest.approx(0.04) and not value.requires_grad
    other = ScoreAlpha("auto")
    assert other.auto and float(other(step)) == 0.0
    other.load_state_dict({"value": torch.tensor(0.007)})
    assert float(other(step)) == pytest.approx(0.007)
    before = other(step)
    other.value.fill_(1.0)
    assert float(before) == pytest.approx(0.007)  # a snapshot


@pytest.mark.parametrize("value", [0, -0.02, float("nan"), "aut", True])
def test_alpha_is_above_0_or_auto(value):
    with pytest.raises(ValueError, match="score_alpha: expected a number above 0 or 'auto', got"):
        ScoreAlpha(value)


def test_scale_leaves_a_score_to_learn():
    with pytest.raises(ValueError, match="scale: expected a number above 0.5, got 0.5; 2 gives a mean score of 0.75"):
        ScoreAlpha("auto", scale=0.5)
