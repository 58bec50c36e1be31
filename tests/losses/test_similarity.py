# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from monai.losses import GlobalMutualInformationLoss, LocalNormalizedCrossCorrelationLoss
from torch.nn import functional

from common.losses.lncc import LNCC, box_sum, local_squared_ncc
from common.losses.mi import MI
from common.losses.similarity import SIMILARITIES, AbsoluteError, GlobalNCC, SquaredError, Tukey, build_similarity

SHAPES = [(13, 18), (11, 9, 14)]
NAMES = sorted(SIMILARITIES)
OFFICIAL_MI = {"mi": {"bins": 32, "sigma": 1.0, "eps": 1e-6}}  # of the code published with AdaCS
PAIR_VALUED = {"global_ncc_adaptive", "global_ncc_multiscale"}  # one value a pair, see test_adaptive.py


def image_pair(shape, batch=2, channels=1, dtype=torch.float32, seed=0):
    """Two correlated random images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.rand(batch, channels, *shape, generator=generator, dtype=torch.float64)
    other = torch.rand(batch, channels, *shape, generator=generator, dtype=torch.float64)
    return (0.7 * fixed + 0.3 * other).to(dtype), fixed.to(dtype)


def mean_and_gradient(loss, warped, fixed):
    warped = warped.clone().requires_grad_()
    value = loss(warped, fixed).mean()
    (gradient,) = torch.autograd.grad(value, warped)
    return value.detach(), gradient


def saved_elements(loss, warped, fixed):
    """Elements that autograd keeps for the backward pass, each storage once."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(warped.clone().requires_grad_(), fixed)
    assert value.requires_grad
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in PAIR_VALUED])
def test_map_has_one_channel_on_the_images_grid(name, channels, shape):
    warped, fixed = image_pair(shape, channels=channels)
    residual = build_similarity(name)(warped, fixed)
    assert residual.shape == (2, 1, *shape)
    assert residual.dtype == torch.float32


@pytest.mark.parametrize("name", ["mse", "mae", "lncc", "global_ncc", "mind", "lncc_gaussian", "global_ncc_multiscale"])
def test_channels_are_averaged(name):
    warped, fixed = image_pair((9, 12), channels=3)
    similarity = build_similarity(name)
    by_channel = [similarity(warped[:, i : i + 1], fixed[:, i : i + 1]) for i in range(3)]
    torch.testing.assert_close(similarity(warped, fixed), sum(by_channel) / 3, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(7, 6), (4, 3, 5)])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("tukey", "global_ncc_adaptive")])
def test_gradient_of_every_voxel_of_the_map(name, shape):
    options = {"lncc": {"window": 3}, "mi": {"bins": 5}}.get(name, {})
    warped, fixed = image_pair(shape, dtype=torch.float64, seed=3)
    similarity = build_similarity(name, **options)
    assert torch.autograd.gradcheck(similarity, (warped.requires_grad_(), fixed.requires_grad_()))


def test_gradient_of_tukey_at_a_fixed_scale():
    # The floor above the MAD holds the scale: it is detached, so finite differences must not move it.
    warped, fixed = image_pair((4, 3, 5), dtype=torch.float64)
    similarity = Tukey(c=0.7, scale_floor=0.2)
    inside = (warped - fixed).abs() < 0.14
    assert inside.any() and not inside.all()
    assert torch.autograd.gradcheck(similarity, (warped.requires_grad_(), fixed.requires_grad_()))


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("size", [(14, 11), (11, 12, 13)])
@pytest.mark.parametrize("name", [*NAMES, OFFICIAL_MI], ids=str)
def test_constant_images_give_finite_values_and_gradients(name, size, value):
    constant, other = torch.full((1, 1, *size), value), image_pair(size, batch=1)[1]
    for warped, fixed in ((constant, constant), (constant, other), (other, constant)):
        mean, gradient = mean_and_gradient(build_similarity(name), warped, fixed)
        assert mean.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_identical_images_are_best_and_stationary(name):
    warped, fixed = image_pair((12, 10, 11))
    similarity = build_similarity(name)
    mean, gradient = mean_and_gradient(similarity, fixed, fixed)
    assert mean < similarity(warped, fixed).mean() - 1e-3
    assert gradient.isfinite().all()
    if name != "mi":  # Parzen windows blur the histogram, so that MI is not stationary at equal images
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_and_autocast_are_computed_in_float32(name):
    warped, fixed = image_pair((12, 14))
    similarity = build_similarity(name)
    expected = similarity(warped.bfloat16().float(), fixed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        residual = similarity(warped.bfloat16(), fixed)
    assert residual.dtype == torch.float32
    torch.testing.assert_close(residual, expected, atol=1e-6, rtol=1e-6)


def test_squared_and_absolute_error_are_those_of_torch():
    warped, fixed = image_pair((11, 9, 14))
    torch.testing.assert_close(SquaredError()(warped, fixed).mean(), functional.mse_loss(warped, fixed))
    torch.testing.assert_close(AbsoluteError()(warped, fixed).mean(), functional.l1_loss(warped, fixed))


def test_tukey_scale_is_the_deviation_of_gaussian_residuals():
    residual = torch.randn(2, 1, 200, 150, generator=torch.Generator().manual_seed(0))
    residual *= torch.tensor([0.05, 0.2]).view(2, 1, 1, 1)
    scale = Tukey().scale(residual)
    assert scale.shape == (2, 1, 1, 1)
    torch.testing.assert_close(scale.flatten(), torch.tensor([0.05, 0.2]), rtol=0.02, atol=0)


def test_tukey_is_quadratic_inside_and_constant_beyond_the_cutoff():
    fixed = torch.zeros(1, 1, 5, 4)
    warped = torch.zeros(1, 1, 5, 4)
    warped[0, 0, 0] = torch.tensor([1e-3, 0.5, 0.9, -0.9])
    residual = Tukey(c=4.0, scale_floor=0.05)(warped, fixed)[0, 0, 0]  # MAD 0: the floor holds, cut-off 0.2
    assert residual[0].item() == pytest.approx(1e-6, rel=1e-3)
    assert residual[1:].tolist() == pytest.approx([0.2**2 / 3] * 3, rel=1e-6)
    _, gradient = mean_and_gradient(Tukey(c=4.0, scale_floor=0.05), warped, fixed)
    assert gradient[0, 0, 0, 0] > 0
    assert (gradient[0, 0, 0, 1:] == 0).all()


@pytest.mark.parametrize("window", [3, 5, 7, 9, 13])
@pytest.mark.parametrize("shape", SHAPES)
def test_box_sum_agrees_with_average_pooling(shape, window):
    image = image_pair(shape, dtype=torch.float64)[0]
    pool = functional.avg_pool2d if len(shape) == 2 else functional.avg_pool3d
    padded = functional.pad(image, [window // 2] * (2 * len(shape)))
    expected = pool(padded, window, stride=1) * window ** len(shape)
    torch.testing.assert_close(box_sum(image, window), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("window", [3, 9])
@pytest.mark.parametrize("shape", [(21, 34), (17, 20, 23)])
def test_lncc_agrees_with_monai_in_value_and_gradient(shape, window):
    warped, fixed = image_pair(shape)
    library = LocalNormalizedCrossCorrelationLoss(spatial_dims=len(shape), kernel_size=window, reduction="none")
    expected, expected_gradient = mean_and_gradient(library, warped, fixed)
    value, gradient = mean_and_gradient(LNCC(window), warped, fixed)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-4 * expected_gradient.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("shape", [(21, 34), (17, 20, 23)])
def test_lncc_of_identical_images_is_minus_one(shape):
    fixed = image_pair(shape)[1]
    torch.testing.assert_close(LNCC()(fixed, fixed), -torch.ones_like(fixed), atol=1e-6, rtol=0)


def test_lncc_ignores_a_linear_change_of_intensity_away_from_the_border():
    warped, fixed = image_pair((19, 22), dtype=torch.float64)
    residual = LNCC(window=5)
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(
        residual(-0.4 * warped + 0.9, fixed)[inner], residual(warped, fixed)[inner], atol=1e-6, rtol=1e-6
    )


def test_lncc_of_flat_regions_is_zero_in_float32():
    # 0.7 is not a binary fraction: sums in float32 leave noise above the variance floor here.
    fixed = image_pair((30, 25, 26), batch=1)[1]
    warped = fixed.clone()
    fixed[:, :, 10:], warped[:, :, 10:] = 0.7, 0.3
    flat = LNCC()(warped, fixed)[:, :, 14:-4, 4:-4, 4:-4]
    assert flat.numel() > 0
    assert flat.abs().max() < 1e-10


def test_lncc_keeps_five_maps_for_the_backward_pass():
    warped, fixed = image_pair((16, 18, 20), batch=1)
    ours = saved_elements(lambda a, b: local_squared_ncc(a, b, 9), warped, fixed)
    library = saved_elements(LocalNormalizedCrossCorrelationLoss(kernel_size=9), warped, fixed)
    assert ours == 5 * fixed.numel()
    assert ours < library / 3


def test_lncc_gives_the_fixed_image_its_gradient_alone():
    warped, fixed = image_pair((9, 8, 7), dtype=torch.float64)
    both = [image.clone().requires_grad_() for image in (warped, fixed)]
    expected = torch.autograd.grad(LNCC(5)(*both).mean(), both)[1]
    alone = fixed.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(LNCC(5)(warped, alone).mean(), alone)
    torch.testing.assert_close(gradient, expected, atol=0, rtol=0)


def test_lncc_compiles_to_the_same_value_and_gradient():
    warped, fixed = image_pair((12, 13))
    value, gradient = mean_and_gradient(LNCC(5), warped, fixed)
    compiled = torch.compile(LNCC(5), backend="aot_eager")
    compiled_value, compiled_gradient = mean_and_gradient(compiled, warped, fixed)
    torch.testing.assert_close(compiled_value, value, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(compiled_gradient, gradient, atol=1e-8, rtol=1e-5)


def test_global_ncc_is_one_minus_the_correlation_coefficient():
    warped, fixed = image_pair((11, 9, 14), dtype=torch.float64)
    coefficients = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(warped, fixed, strict=True)
    ]
    means = GlobalNCC()(warped, fixed).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(means, 1 - torch.stack(coefficients), atol=1e-6, rtol=0)
    assert GlobalNCC()(1 - 2 * fixed, fixed).mean().item() == pytest.approx(2, abs=1e-6)


def test_global_ncc_of_a_constant_image_is_one_everywhere():
    fixed = image_pair((12, 15))[1]
    torch.testing.assert_close(
        GlobalNCC()(torch.full_like(fixed, 0.7), fixed), torch.ones_like(fixed), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("bins", [8, 23])
@pytest.mark.parametrize("shape", SHAPES)
def test_mi_agrees_with_monai_in_value_and_gradient(shape, bins):
    warped, fixed = image_pair(shape)
    value, gradient = mean_and_gradient(MI(bins), warped, fixed)
    expected, expected_gradient = mean_and_gradient(GlobalMutualInformationLoss(num_bins=bins), warped, fixed)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-3)


def plain_mi(warped, fixed, bins, sigma, eps):
    """The sum over the bins, in float64, as the code published with AdaCS has it."""
    centres = torch.linspace(0, 1, bins, dtype=torch.float64)

    def windows(image):
        weights = torch.exp(-0.5 * ((image.double().flatten()[:, None] - centres) * (bins - 1) / sigma).square())
        return weights / weights.sum(1, keepdim=True)

    a, b = windows(warped), windows(fixed)
    joint, margins = a.T @ b / len(a), a.mean(0)[:, None] * b.mean(0)
    return float((joint * torch.log(joint / (margins + eps) + eps)).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_published_mi_has_32_bins_windows_of_one_bin_and_the_plain_sum_over_them(shape):
    warped, fixed = image_pair(shape, batch=1)
    similarity = build_similarity(OFFICIAL_MI)
    assert (similarity.bins, similarity.sigma, similarity.eps) == (32, 1.0, 1e-6)
    expected = plain_mi(warped, fixed, 32, 1.0, 1e-6)
    assert similarity(warped, fixed).mean().item() == pytest.approx(-expected, rel=1e-3)
    assert MI()(warped, fixed).mean().item() == pytest.approx(-plain_mi(warped, fixed, 23, 0.5, 1e-7), rel=1e-3)
    assert MI()(warped, fixed).mean().item() != pytest.approx(-expected, rel=0.05)


def test_mi_of_two_equal_classes_at_bin_centres_is_log_two():
    fixed = torch.zeros(1, 1, 8, 10)
    fixed[..., 5:] = 1
    assert MI()(1 - fixed, fixed).mean().item() == pytest.approx(-math.log(2), abs=1e-4)
    assert MI()(torch.full_like(fixed, 0.5), fixed).mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_two_shapes_are_refused(name):
    with pytest.raises(ValueError, match=r"expected one shape .*\(1, 1, 8, 9\) and \(1, 1, 9, 8\)"):
        build_similarity(name)(torch.rand(1, 1, 8, 9), torch.rand(1, 1, 9, 8))


def test_images_without_batch_and_channel_are_refused():
    with pytest.raises(ValueError, match="add batch and channel"):
        SquaredError()(torch.rand(8, 9), torch.rand(8, 9))


@pytest.mark.parametrize(
    ("name", "nearest"), [("lnc", "lncc"), ("MSE", "mse"), ("tuckey", "tukey"), ("ncc_adaptive", "global_ncc_adaptive")]
)
def test_unknown_name_lists_the_choices_and_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"mse, mae, tukey, lncc, global_ncc, mi, mind.*Did you mean '{nearest}'"):
        build_similarity(name)


def test_builder_passes_its_options_on():
    assert build_similarity("lncc", window=5).window == 5
    assert build_similarity("mi", bins=12).bins == 12


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lncc", {"window": 4}, "window: expected an odd"),
        ("lncc", {"variance_floor": 0}, "variance_floor: expected a number above 0"),
        ("tukey", {"c": -1}, "c: expected"),
        ("tukey", {"scale_floor": 0}, "scale_floor: expected"),
        ("global_ncc", {"eps": 0}, "eps: expected"),
        ("mi", {"bins": 1}, "bins: expected at least 2"),
        ("mi", {"sigma": 0}, "sigma: expected a number above 0"),
        ("lncc", {"windw": 5}, "option of the similarity lncc: expected one of window, .*Did you mean 'window'"),
        ("mse", {"window": 5}, "mse takes no options, got 'window'; leave it out"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_similarity(name, **options)


def test_a_bare_ncc_names_both_that_it_could_be():
    with pytest.raises(ValueError, match=r"'ncc' names two things. Take lncc, .* window 9\), or global_ncc, .*whole"):
        build_similarity("ncc")
    with pytest.raises(ValueError, match="'ncc' names two things"):
        build_similarity({"mse": 1.0, "ncc": 0.1})
