# SPDX-License-Identifier: Apache-2.0
"""Overlap of labels: closed forms, an independent plain form of the published loss, memory, bad input."""

from types import SimpleNamespace

import pytest
import torch
from monai.losses import DiceLoss as MonaiDice
from torch import nn

from common.engines.step import RegistrationStep
from common.losses import overlap
from common.losses.overlap import DiceLoss, LabelOverlap
from common.networks.contract import Estimate
from common.spatial.warp import warp
from tests.engines.synthetic import method_of

SHAPES = [(8, 12), (4, 8, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES)


def blocks(shape, shift, label=1):
    """Label maps with a block; the fixed one lies ``shift`` voxels back along the first axis."""
    moving, fixed = torch.zeros(1, 1, *shape, dtype=torch.uint8), torch.zeros(1, 1, *shape, dtype=torch.uint8)
    moving[:, :, 2:4], fixed[:, :, 2 - shift : 4 - shift] = label, label
    return moving, fixed


def label_step(moving, fixed, ddf):
    return SimpleNamespace(moving_label=moving, fixed_label=fixed, estimate=Estimate(ddf, ddf))


def shift_of(moving, shift):
    ddf = torch.zeros(len(moving), moving.dim() - 2, *moving.shape[2:], dtype=torch.float64)
    ddf[:, 0] = shift
    return ddf


@each_shape
def test_labels_that_agree_cost_nothing_and_disjoint_ones_cost_one(shape):
    moving, fixed = blocks(shape, 2)
    for shift, expected in ((2, 0.0), (0, 1.0)):
        value = LabelOverlap([1])(label_step(moving, fixed, shift_of(moving, shift)))
        assert float(value) == pytest.approx(expected, abs=1e-6)
    absent = LabelOverlap([1, 7])(label_step(moving, fixed, shift_of(moving, 0)))
    assert float(absent) == pytest.approx(0.5, abs=1e-6)  # the label that neither image holds counts as found


@each_shape
def test_label_overlap_is_the_dice_of_the_warped_masks(shape):
    """Half a voxel: edges of 1/2, hence 2 Σ m f = 2 (1 + 1/2), Σ m² = 1 + 2/4, Σ f² = 2, in rows of voxels."""
    moving, fixed = blocks(shape, 0)
    value = LabelOverlap([1])(label_step(moving, fixed, shift_of(moving, 0.5)))
    assert float(value) == pytest.approx(1 - 3 / 3.5, abs=1e-6)


@each_shape
def test_label_overlap_is_the_mean_over_labels_and_pairs(shape):
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.randint(0, 4, (2, 1, *shape), generator=generator) for _ in range(2))
    step = label_step(moving, fixed, torch.randn(2, len(shape), *shape, generator=generator, dtype=torch.float64))
    singles = []
    for label in (1, 3):
        for pair in range(2):
            m, f = ((image[pair : pair + 1] == label).double() for image in (step.moving_label, step.fixed_label))
            w = warp(m, step.estimate.ddf[pair : pair + 1])
            singles.append(1 - 2 * float((w * f).sum().detach()) / float((w.square() + f.square()).sum().detach()))
    assert float(LabelOverlap([1, 3])(step).detach()) == pytest.approx(sum(singles) / 4, abs=1e-5)


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 4)])
def test_gradient_of_the_label_overlap_is_exact(shape):
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.randint(0, 3, (1, 1, *shape), generator=generator) for _ in range(2))
    # Between 0.2 and 0.8 voxels from the nodes, where linear interpolation has kinks.
    ddf = (0.2 + 0.6 * torch.rand(1, len(shape), *shape, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: LabelOverlap([1, 2])(label_step(moving, fixed, u)), (ddf,))


def test_label_overlap_needs_labels():
    with pytest.raises(ValueError, match="labels: expected at least one value, got none"):
        LabelOverlap([])
    images = {key: torch.zeros(1, 1, 8, 12) for key in ("moving_image", "fixed_image")}
    step = RegistrationStep(
        images, None, method_of(nn.Identity()), lambda *_: Estimate(*[torch.zeros(1, 2, 8, 12)] * 2)
    )
    with pytest.raises(ValueError, match="moving_label: an objective compares labels, but the batch has none"):
        LabelOverlap([1])(step)


def random_step(shape, classes=5, dtype=torch.float64, label_type=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.randint(0, classes, (2, 1, *shape), generator=generator) for _ in range(2))
    ddf = torch.randn(2, len(shape), *shape, generator=generator, dtype=dtype).requires_grad_()
    return label_step(moving.to(label_type), fixed.to(label_type), ddf)


@each_shape
@pytest.mark.parametrize("label_type", [torch.uint8, torch.int64, torch.float32])
def test_dice_loss_agrees_with_monai_on_one_hot_maps_background_included(shape, label_type):
    step = random_step(shape, label_type=label_type)
    one_hot = [nn.functional.one_hot(label[:, 0].long(), 5).movedim(-1, 1).double()
               for label in (step.moving_label, step.fixed_label)]  # fmt: skip
    plain = MonaiDice(squared_pred=True, smooth_nr=1e-5, smooth_dr=1e-5)
    expected = plain(warp(one_hot[0], step.estimate.ddf), one_hot[1])
    value = DiceLoss(5)(step)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    (ours,), (theirs,) = (torch.autograd.grad(loss, step.estimate.ddf) for loss in (value, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


@each_shape
def test_pair_of_the_same_labels_costs_nothing_and_a_class_of_one_image_alone_costs_its_share(shape):
    label = torch.randint(0, 4, (1, 1, *shape), generator=torch.Generator().manual_seed(0))
    still = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    assert float(DiceLoss(6)(label_step(label, label, still))) == pytest.approx(0, abs=1e-7)
    only = torch.where(label == 3, 4, label)  # class 3 in one image, class 4 in the other: two of six are not found
    assert float(DiceLoss(6)(label_step(label, only, still))) == pytest.approx(2 / 6, abs=1e-5)


@each_shape
def test_masks_warped_together_or_apart_are_the_same(shape, monkeypatch):
    values = []
    for together in (1, 3, 99):
        monkeypatch.setattr(overlap, "TOGETHER", together)
        values.append(DiceLoss(5)(random_step(shape)))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_the_graph_keeps_no_masks():
    """What autograd saves does not grow with the number of classes."""

    def saved(classes):
        sizes = []
        step = random_step((16, 16, 16), 3)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            loss = DiceLoss(classes)(step)
        loss.backward()
        return sum(size for size in sizes if size >= 16**3 and size != step.estimate.ddf.numel())

    assert saved(8) == saved(40) == 0


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 4)])
def test_gradient_of_the_dice_loss_is_exact(shape):
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.randint(0, 3, (1, 1, *shape), generator=generator) for _ in range(2))
    ddf = (0.2 + 0.6 * torch.rand(1, len(shape), *shape, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: DiceLoss(3)(label_step(moving, fixed, u)), (ddf,))


@pytest.mark.parametrize("classes", [1, 2.5, True])
def test_classes_that_are_none_are_refused(classes):
    with pytest.raises(ValueError, match="classes: expected a whole number of at least 2"):
        DiceLoss(classes)


def test_labels_that_differ_between_the_pair_are_named():
    moving, fixed = torch.zeros(1, 1, 8, 6, dtype=torch.uint8), torch.zeros(1, 1, 8, 6, dtype=torch.uint8)
    still = torch.zeros(1, 2, 8, 6)
    fixed[..., 0] = 7
    with pytest.raises(
        ValueError, match=r"fixed_label: expected the values 0 to 3 of 4 classes, got \[7\].*number the"
    ):
        DiceLoss(4)(label_step(moving, fixed, still))
    with pytest.raises(ValueError, match=r"moving_label: expected the values 0 to 3 of 4 classes, got \[0.5\]"):
        DiceLoss(4)(label_step(moving + 0.5, moving, still))
    with pytest.raises(ValueError, match=r"moving_label, fixed_label: expected one grid for both"):
        DiceLoss(4)(label_step(moving, moving[..., :4], still))
