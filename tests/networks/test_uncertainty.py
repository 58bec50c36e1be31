# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import nn

from common.networks.contract import Estimate, chunk, join
from common.networks.registry import build
from common.networks.uncertainty import LogVarianceHead, displacement_deviation, sampled
from common.networks.voxelmorph import VoxelMorphDiff

TINY = {"encoder": (4, 4), "decoder": (4, 4, 4)}
BASES = {"voxelmorph": TINY, "transmorph": {"size": "tiny", "channels": 8, "head_channels": 8, "drop_path": 0.0}}
SIZES = [(19, 26), (12, 9, 10)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)
each_base = pytest.mark.parametrize("name", BASES)


def pair(size, batch=2):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


def network_of(name, size, head_std=None, **options):
    """A network whose displacement is far from 0; with ``head_std`` its σ differs between voxels."""
    own = TINY if name == "voxelmorph_diff" else BASES[name]
    network = build(name, len(size), seed=0, **own, **options)
    torch.manual_seed(1)
    nn.init.normal_(network.flow.weight, std=0.3)
    if head_std is not None:
        nn.init.normal_(network.deviation.conv.weight, std=head_std)
    return network


def uncertain(name, size, head_std=None, **options):
    flag = {} if name == "voxelmorph_diff" else {"displacement_uncertainty": True}
    return network_of(name, size, head_std, **flag, **options)


@pytest.mark.parametrize(("dims", "count"), [(2, 109_460), (3, 328_630)])
def test_voxelmorph_diff_has_the_published_number_of_parameters(dims, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build("voxelmorph_diff", dims).parameters()) == count


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["voxelmorph", "transmorph"])
def test_a_deviation_is_one_layer_of_one_channel_more(name, dims):
    with torch.device("meta"):
        base, network = (build(name, dims, displacement_uncertainty=flag) for flag in (False, True))
    counts = [sum(parameter.numel() for parameter in n.parameters()) for n in (base, network)]
    assert counts[1] - counts[0] == 16 * 3**dims + 1
    assert list(network.state_dict())[: len(base.state_dict())] == list(base.state_dict())


@each_base
@each_size
def test_in_eval_mode_it_is_the_base_network_of_the_same_seed(name, size):
    base, network = network_of(name, size).eval(), uncertain(name, size, 1.0).eval()
    with torch.no_grad():
        expected, estimate = base.estimate(pair(size)), network.estimate(pair(size))
        assert torch.equal(estimate.ddf, expected.ddf) and torch.equal(estimate.velocity, expected.velocity)
        assert torch.equal(network(pair(size)), expected.ddf) and expected.ddf.abs().max() > 0.05
    assert expected.log_variance is None and expected.mean is None
    grid = size if name == "transmorph" else [(n + 1) // 2 for n in size]
    assert estimate.log_variance.shape == (2, 1, *grid) and torch.equal(estimate.mean, estimate.velocity)


@each_size
def test_voxelmorph_diff_registers_by_the_mean_of_voxelmorph(size):
    base, network = network_of("voxelmorph", size).eval(), uncertain("voxelmorph_diff", size).eval()
    with torch.no_grad():
        assert torch.equal(network(pair(size)), base(pair(size)))
        estimate = network.estimate(pair(size))
    torch.testing.assert_close(estimate.log_variance, torch.full((2, len(size), *size), -10.0), atol=1e-4, rtol=0)
    assert network.deviation.conv.weight.abs().max() < 1e-8


@pytest.mark.parametrize("name", [*BASES, "voxelmorph_diff"])
@each_size
def test_scripted_networks_register_by_the_mean_in_either_mode(name, size):
    network = uncertain(name, size).eval()
    with torch.no_grad():
        expected = network(pair(size))
        for mode in (network, network.train()):
            torch.testing.assert_close(torch.jit.script(mode)(pair(size)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [*BASES, "voxelmorph_diff"])
@each_size
def test_draws_in_training_have_the_mean_and_the_variance_that_are_estimated(name, size):
    """Without down-sampling and integration the displacement is the draw itself."""
    bare = {} if name == "transmorph" else {"integration_steps": 0, "velocity_downsample": 1}
    network, number = uncertain(name, size, 0.5, **bare).train(), 200
    with torch.no_grad():
        draws = torch.stack([network(pair(size, 1)) for _ in range(number)])
        estimate = network.estimate(pair(size, 1))
    normed = (draws - estimate.mean) / torch.exp(0.5 * estimate.log_variance)
    assert abs(float(normed.mean())) < 5 / math.sqrt(normed.numel())
    variance = normed.square().mean(0)  # at each voxel and axis: 1 ± √(2/number)
    assert variance.mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / normed.numel()))
    assert variance.std().item() == pytest.approx(math.sqrt(2 / number), rel=0.15)
    correlation = (normed[:, 0, 0] * normed[:, 0, 1]).mean()  # axes are drawn apart
    assert abs(float(correlation)) < 5 / math.sqrt(number * math.prod(size))


@each_size
@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph_diff"])
def test_the_displacement_is_integrated_from_the_draw(name, size):
    network = uncertain(name, size, 0.5).train()
    with torch.no_grad():
        one, other = network.estimate(pair(size)), network.estimate(pair(size))
    assert torch.equal(one.mean, other.mean) and not torch.equal(one.velocity, other.velocity)
    torch.testing.assert_close(one.ddf, network.displacement(one.velocity, list(size)), atol=0, rtol=0)


@pytest.mark.parametrize("name", [*BASES, "voxelmorph_diff"])
@each_size
def test_gradient_of_a_draw_reaches_the_head_and_in_eval_mode_none_does(name, size):
    network = uncertain(name, size, 0.1)
    network.train()(pair(size)).square().sum().backward()
    assert network.deviation.conv.weight.grad.any() and network.deviation.conv.bias.grad.any()
    assert not network.eval().estimate(pair(size)).log_variance.requires_grad


@pytest.mark.parametrize("raw", [-1e4, -30.0, 30.0, 1e4])
@each_size
def test_bounds_keep_variance_draw_and_gradient_finite(raw, size):
    head = LogVarianceHead(len(size), 2, 1, raw).train()
    log_variance = head(torch.rand(1, 2, *size))
    assert ((log_variance >= -20) & (log_variance <= 10)).all()
    draw = sampled(torch.zeros(1, len(size), *size), log_variance, True)
    (draw.square().mean() + (log_variance.exp() - log_variance).mean()).backward()
    assert draw.isfinite().all() and head.conv.weight.grad.isfinite().all() and head.conv.bias.grad.isfinite().all()


def test_bounds_leave_the_usual_range_as_it_is():
    for value in (-15.0, -10.0, -4.6, 0.0, 5.0):
        log_variance = LogVarianceHead(2, 1, 1, value)(torch.zeros(1, 1, 4, 4))
        torch.testing.assert_close(log_variance, torch.full_like(log_variance, value), atol=0.01, rtol=0)


@pytest.mark.parametrize("options", [{}, {"half_resolution": True}, {"velocity_downsample": 1}], ids=str)
@each_size
def test_deviation_starts_at_a_tenth_of_a_voxel_of_the_velocity_in_voxels_of_the_image(size, options):
    deviation = displacement_deviation(uncertain("voxelmorph", size, **options).eval(), pair(size))
    grid = size if "velocity_downsample" in options else [(n + 1) // 2 for n in size]
    squares = [((n - 1) / (m - 1)) ** 2 for n, m in zip(size, grid, strict=True)]
    expected = torch.full((2, 1, *size), 0.1 * math.sqrt(sum(squares) / len(size)))
    assert not deviation.requires_grad
    torch.testing.assert_close(deviation, expected, atol=1e-4, rtol=0)


@each_size
def test_deviation_of_transmorph_is_in_voxels_of_the_image(size):
    network = uncertain("transmorph", size, 0.5).eval()
    with torch.no_grad():
        expected = torch.exp(0.5 * network.estimate(pair(size)).log_variance)
    assert expected.std() > 0.01
    torch.testing.assert_close(displacement_deviation(network, pair(size)), expected)


@each_size
def test_deviation_is_the_root_of_the_mean_variance_of_the_axes(size):
    """And ranks voxels as the published uncertainty, log Σ_axes σ², does."""
    network = uncertain("voxelmorph_diff", size, 0.5).eval()
    with torch.no_grad():
        variance = network.estimate(pair(size)).log_variance.exp()
    deviation = displacement_deviation(network, pair(size))
    torch.testing.assert_close(deviation, variance.mean(1, keepdim=True).sqrt())
    published = variance.sum(1, keepdim=True).log()
    torch.testing.assert_close(2 * deviation.log() + math.log(len(size)), published)


def test_networks_without_a_variance_have_no_deviation():
    assert displacement_deviation(network_of("voxelmorph", (16, 16)), pair((16, 16))) is None
    assert displacement_deviation(nn.Identity(), pair((16, 16))) is None


def test_estimates_are_joined_and_chunked_with_their_gaussian():
    network = uncertain("voxelmorph", (16, 18), 0.5).eval()
    with torch.no_grad():
        estimate = network.estimate(pair((16, 18)))
    again = join(chunk(estimate, 2))
    assert isinstance(again, Estimate)
    assert torch.equal(again.log_variance, estimate.log_variance) and torch.equal(again.mean, estimate.mean)


@each_base
def test_the_way_back_is_that_of_the_same_draw(name):
    network = uncertain(name, (16, 18), 0.5).train()
    with torch.no_grad():
        estimate = network.estimate_and_inverse(pair((16, 18)))
    assert estimate.ddf.shape[0] == 4 and len(estimate.log_variance) == len(estimate.mean) == 2
    if name == "transmorph":
        assert torch.equal(estimate.ddf[:2], -estimate.ddf[2:])
    assert not torch.equal(estimate.velocity, estimate.mean)


@pytest.mark.parametrize("name", ["icon", "lapirn", "clapirn", "diffusemorph", "voxelmorph_diff", "tmspr"])
def test_other_networks_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"architectures#{name}: .*expected voxelmorph or .*transmorph: icon, lapirn"):
        build(name, 2, displacement_uncertainty=True)


def test_an_uncertainty_of_several_passes_is_refused():
    with pytest.raises(ValueError, match="displacement_uncertainty: .*one pass, got passes 2"):
        build("voxelmorph", 2, displacement_uncertainty=True, passes=2)


@each_base
def test_values_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match="uncertainty_weight: expected a number above 0, got 0"):
        network_of(name, (16, 16), uncertainty_weight=0.0)
    with pytest.raises(ValueError, match="displacement_uncertainty: expected true or false, got 0.1"):
        network_of(name, (16, 16), displacement_uncertainty=0.1)


@pytest.mark.parametrize("key", ["image_sigma", "prior_weight", "divergence_weight"])
def test_constants_of_voxelmorph_diff_are_above_zero(key):
    with pytest.raises(ValueError, match=f"{key}: expected a number above 0, got -1"):
        VoxelMorphDiff(2, **TINY, **{key: -1})
