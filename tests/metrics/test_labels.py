# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from common.metrics import labels as module
from common.metrics.cases import Cases
from common.metrics.labels import LabelMeasures, label_masks, warped_labels
from common.metrics.surface import Surface
from common.spatial.warp import sample, warp
from tests.handlers.synthetic import LABELS, registered_pairs

SCORED = ["myocardium", "lv"]


def cases_of(dims, thorough=True):
    batch, output = registered_pairs(dims)
    return Cases(batch, output["ddf"], output["warped_image"], thorough=thorough)


def test_masks_are_of_one_label_and_count_from_one_half_and_from_above_zero():
    moving = torch.zeros(1, 1, 5, 6, dtype=torch.uint8)
    moving[..., 2, 2:4], moving[..., 4, :] = 3, 1
    ddf = torch.zeros(1, 2, 5, 6)
    ddf[:, 1] = 0.75
    masks = label_masks(moving, moving, ddf, 3)
    assert masks.moving[0, 0].nonzero().tolist() == masks.fixed[0, 0].nonzero().tolist() == [[2, 2], [2, 3]]
    assert masks.touched[0, 0].nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]
    assert masks.warped[0, 0].nonzero().tolist() == [[2, 1], [2, 2]]  # three quarters, one, one quarter


@pytest.mark.parametrize("shape", [(17, 23), (12, 15, 9), (9, 1, 8)])
@pytest.mark.parametrize("shift", [0.0, 2.3, -40.0])
def test_masks_in_a_box_are_those_of_the_whole_image(shape, shift):
    """For blobs anywhere, at the border too, one voxel, absent ones, and displacements that leave the image."""
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.zeros(2, 1, *shape, dtype=torch.uint8) for _ in range(2))
    for label in (moving, fixed):
        label[:, :, : shape[0] // 3, ..., -3:], label[:, :, -2:] = 1, 2
        label[(0, 0, 4, *([0] * (len(shape) - 2)), 5)] = 3
    fixed[fixed == 2] = 4
    ddf = shift + torch.randn(2, len(shape), *shape, generator=generator)
    for field in (ddf, torch.where(ddf > 2.5, torch.nan, ddf)):
        for value in range(1, 6):
            whole = label_masks(moving, fixed, field, value)
            box = module._masks_in_box(moving, fixed, field, value, module._reach(field))
            assert box.moving.numel() <= whole.moving.numel()
            for part, every in zip(box, whole, strict=True):
                assert part.flatten(1).sum(1).tolist() == every.flatten(1).sum(1).tolist()
            assert (box.warped & box.fixed).sum() == (whole.warped & whole.fixed).sum()
            assert (box.moving & box.fixed).sum() == (whole.moving & whole.fixed).sum()


def test_the_box_of_a_small_label_is_small():
    label = torch.zeros(1, 1, 64, 64, 64)
    label[..., 30:34, 40:42, 8:10] = 1
    ddf = torch.full((1, 3, 64, 64, 64), 1.5)
    assert module._masks_in_box(label, label, ddf, 1, module._reach(ddf)).moving.shape[2:] == (7, 5, 5)


@pytest.mark.parametrize("dims", ["2d", "3d"])
def test_distances_of_a_label_agree_with_monai(dims):
    cases = cases_of(dims)
    columns = LabelMeasures(LABELS)(cases)
    moving, fixed = (cases.batch[f"{role}_label"] == 3 for role in ("moving", "fixed"))
    warped = warp(moving.float(), cases.ddf) >= 0.5
    for case, mask in ((0, warped), (1, warped), (1, moving)):
        pair = mask[case : case + 1], fixed[case : case + 1]
        suffix = "_before" if mask is moving else ""
        for unit, spacing in (("", None), ("_mm", cases.spacing[case].tolist())):
            options = {"include_background": True, "spacing": spacing}
            expected = {
                "hd": compute_hausdorff_distance(*pair, **options),
                "hd95": compute_hausdorff_distance(*pair, percentile=95, **options),
                "asd": compute_average_surface_distance(*pair, symmetric=True, **options),
            }
            for name, value in expected.items():
                assert columns[f"{name}_lv{unit}{suffix}"][case].item() == pytest.approx(value.item(), rel=1e-5)


def test_each_surface_is_found_once(monkeypatch):
    """Four masks a label and case; where the spacing is anisotropic too."""
    found = []

    def counted(mask):
        found.append(mask.shape)
        return Surface(torch.from_numpy(mask).nonzero().double().numpy())

    monkeypatch.setattr(module.Surface, "of", counted)
    LabelMeasures(LABELS, SCORED)(cases_of("2d"))
    assert len(found) == 4 * (2 + 3)  # myocardium is in both images of two cases, lv of three


def test_labels_are_scored_one_at_a_time(monkeypatch):
    shapes = []

    def recorded(image, points, padding):
        shapes.append(tuple(image.shape[:2]))
        return sample(image, points, padding)

    monkeypatch.setattr(module, "sample", recorded)
    LabelMeasures(LABELS)(cases_of("3d"))
    assert shapes == [(3, 1)] * 3


def test_quick_variant_is_dice_alone():
    columns = LabelMeasures(LABELS, SCORED)(cases_of("3d", thorough=False))
    dice = {f"dice{name}{when}" for name in ("", "_myocardium", "_lv", "_rv") for when in ("", "_before")}
    assert set(columns) == dice | {"scorable"}
    thorough = LabelMeasures(LABELS, SCORED)(cases_of("3d"))
    for name in dice:
        torch.testing.assert_close(columns[name], thorough[name], rtol=0, atol=0, equal_nan=True)


def test_means_are_of_the_scored_labels_and_never_of_some():
    columns = LabelMeasures(LABELS, SCORED)(cases_of("2d"))
    for name in ("dice", "jaccard", "hd", "hd95_mm", "asd_before"):
        measure, suffix = name.partition("_")[0], name.partition("_")[1] + name.partition("_")[2]
        mean = sum(columns[f"{measure}_{label}{suffix}"] for label in SCORED) / 2
        torch.testing.assert_close(columns[name], mean, rtol=1e-6, atol=0, equal_nan=True)
    assert columns["scorable"].tolist() == [1, 1, 0]
    assert math.isnan(columns["dice"][2]) and columns["dice_rv"].isfinite().all()
    assert "hd_rv" not in columns and "dice_official_lv" not in columns


def test_jaccard_follows_from_dice():
    columns = LabelMeasures(LABELS)(cases_of("3d"))
    for end in ("_lv", "_rv", "_lv_before"):
        dice = columns[f"dice{end}"]
        torch.testing.assert_close(columns[f"jaccard{end}"], dice / (2 - dice), rtol=1e-5, atol=1e-6)


def test_volume_dice_is_that_of_all_voxels_together():
    cases = cases_of("2d")
    measure = LabelMeasures({"lv": 3})
    measure(cases)
    row = measure.of_subject({"labels": cases.sums["labels"].sum(0)})
    fixed = cases.batch["fixed_label"] == 3
    for name, mask in (
        ("", warp((cases.batch["moving_label"] == 3).float(), cases.ddf) >= 0.5),
        ("before_", cases.batch["moving_label"] == 3),
    ):
        expected = 2 * int((mask & fixed).sum()) / int(mask.sum() + fixed.sum())
        assert row[f"dice_3d_{name}lv"] == pytest.approx(expected)
    assert list(row) == ["dice_3d", "dice_3d_before", "dice_3d_lv", "dice_3d_before_lv"]


@pytest.mark.parametrize(
    ("labels", "scored", "message"),
    [({}, None, "labels: expected at least one name and value"),
     (LABELS, [], r"scored: expected at least one of \['myocardium', 'lv', 'rv'\], got none"),
     (LABELS, ["lw"], "scored: expected one of myocardium, lv, rv, got 'lw'. Did you mean 'lv'")],
)  # fmt: skip
def test_labels_are_named(labels, scored, message):
    with pytest.raises(ValueError, match=message):
        LabelMeasures(labels, scored)


def test_spacing_of_zero_is_refused():
    cases = cases_of("2d")
    cases.batch["spacing"][0] = 0.0
    with pytest.raises(ValueError, match="spacing: expected 2 positive numbers in mm"):
        LabelMeasures(LABELS)(cases)


def test_one_hot_takes_the_largest_share_and_nearest_the_next_voxel():
    moving = torch.zeros(1, 1, 5, 6, dtype=torch.uint8)
    moving[..., 2, 2], moving[..., 2, 3] = 7, 3
    ddf = torch.zeros(1, 2, 5, 6)
    ddf[:, 1] = 0.4  # the voxel sees 0.6 of itself and 0.4 of the next one
    for interpolation in ("one_hot", "nearest"):
        assert torch.equal(warped_labels(moving, ddf, interpolation), moving)
    ddf[:, 0] = 0.4  # now 0.36, 0.24 of the next, and 0.4 of the background below
    assert not (warped_labels(moving, ddf, "one_hot") == 7).any()
    assert torch.equal(warped_labels(moving, ddf, "nearest"), moving)
    ddf = torch.full((1, 2, 5, 6), 0.0)
    ddf[:, 1] = 0.5  # as much of 7 as of 3, and of each as of the background: the lowest holds
    assert warped_labels(moving, ddf, "one_hot")[0, 0, 2].tolist() == [0, 0, 3, 0, 0, 0]
    ddf[:, 1] = -40.0
    assert not warped_labels(moving, ddf, "one_hot").any()


@pytest.mark.parametrize("shape", [(17, 23), (12, 15, 9)])
@pytest.mark.parametrize("shift", [0.0, 3.7])
def test_one_hot_is_the_argmax_of_all_classes_at_once(shape, shift):
    generator = torch.Generator().manual_seed(0)
    moving = torch.randint(0, 6, (2, 1, *[n // 3 + 1 for n in shape]), generator=generator).float()
    moving = torch.nn.functional.interpolate(moving, size=shape, mode="nearest").byte()
    ddf = shift + torch.randn(2, len(shape), *shape, generator=generator)
    classes = torch.nn.functional.one_hot(moving[:, 0].long(), 6).movedim(-1, 1).float()
    expected = warp(classes, ddf).argmax(1, keepdim=True)
    found = warped_labels(moving, ddf, "one_hot")
    assert found.dtype == torch.uint8 and (found != moving).float().mean() > 0.1
    # the sums of a sampler's weights differ by rounding where two classes share a voxel
    assert (found != expected).float().mean() < 2e-3


@pytest.mark.parametrize("interpolation", ["nearest", "one_hot"])
def test_dice_is_that_of_the_warped_label_map(interpolation):
    cases = cases_of("3d")
    columns = LabelMeasures(LABELS, SCORED, interpolation=interpolation)(cases)
    warped = warped_labels(cases.batch["moving_label"], cases.ddf, interpolation)
    linear = LabelMeasures(LABELS, SCORED)(cases)
    for case in range(2):
        mask, fixed = warped[case] == 3, cases.batch["fixed_label"][case] == 3
        assert columns["dice_lv"][case] == pytest.approx(float(2 * (mask & fixed).sum() / (mask.sum() + fixed.sum())))
    assert any(not torch.equal(columns[f"dice_{name}"], linear[f"dice_{name}"]) for name in LABELS)
    for name in ("dice_before", "hd_lv_before", "dice_official"):
        torch.testing.assert_close(columns[name], linear[name], rtol=0, atol=0, equal_nan=True)


def test_groups_are_means_of_their_labels_and_dice_groups_that_of_the_groups():
    groups = {"walls": ["myocardium", "rv"], "lv": ["lv"]}
    for thorough in (True, False):
        columns = LabelMeasures(LABELS, SCORED, groups)(cases_of("3d", thorough))
        for end in ("", "_before"):
            walls = (columns[f"dice_myocardium{end}"] + columns[f"dice_rv{end}"]) / 2
            torch.testing.assert_close(columns[f"dice_group_walls{end}"], walls, equal_nan=True)
            mean = (walls + columns[f"dice_lv{end}"]) / 2
            torch.testing.assert_close(columns[f"dice_groups{end}"], mean, equal_nan=True)
        assert columns["dice_groups"].isnan().tolist() == [False, False, True]  # the last lacks a label of a group
        assert not columns["dice_group_lv"].isnan().any()
    assert not any("group" in name for name in LabelMeasures(LABELS, SCORED)(cases_of("2d")))


def test_groups_and_interpolations_are_known():
    with pytest.raises(ValueError, match=r"groups\['walls'\]: expected one of myocardium, lv, rv, got 'rw'"):
        LabelMeasures(LABELS, groups={"walls": ["rw"]})
    with pytest.raises(ValueError, match=r"groups\['walls'\]: expected at least one of"):
        LabelMeasures(LABELS, groups={"walls": []})
    with pytest.raises(ValueError, match="interpolation: expected one of linear, nearest, one_hot, got 'onehot'"):
        LabelMeasures(LABELS, interpolation="onehot")
