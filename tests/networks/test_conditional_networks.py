# SPDX-License-Identifier: Apache-2.0
"""TM-SPR's condition and weight volume in VoxelMorph and TransMorph."""

import pytest
import torch
from torch import nn

from common.networks.transmorph import TransMorph
from common.networks.unet import UNet
from common.networks.voxelmorph import COMPARED, VoxelMorph

NETWORKS = {
    "voxelmorph": (VoxelMorph, {"encoder": (4, 6, 8), "decoder": (8, 6, 6, 4, 4)}),
    "transmorph": (TransMorph, {"channels": 8, "depths": (2, 2), "heads": (2, 4), "head_channels": 4}),
}
SPR = {"conditional": True, "weight_volume": True}
SIZES = [(37, 50), (17, 24, 30)]
each_network = pytest.mark.parametrize("name", NETWORKS)
each_size = pytest.mark.parametrize("size", SIZES)


def pair(size, batch=1):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


def network_of(name, size, seed=0, **options):
    torch.manual_seed(seed)
    kind, own = NETWORKS[name]
    network = kind(len(size), **(own | options)).eval()
    torch.manual_seed(seed)
    nn.init.normal_(network.flow.weight, std=0.1)
    return network


def styled(network):
    """As after training: what depends on the condition is no longer 0."""
    layers = [m.style for m in network.modules() if hasattr(m, "style")]
    for layer in layers + list(getattr(getattr(network, "styles", None), "layers", [])):
        nn.init.normal_(layer.weight, std=0.5)
    return network


@each_network
@each_size
def test_starts_as_the_plain_network_whatever_the_condition(name, size):
    network, plain = network_of(name, size, **SPR), network_of(name, size, seed=1)
    own = network.state_dict()
    plain.load_state_dict({key: own[key] for key in plain.state_dict()})
    with torch.no_grad():
        one, other = (network.estimate(pair(size), torch.full((1, 1), value)) for value in (0.0, 1.0))
        expected = plain(pair(size))
    assert torch.equal(one.ddf, other.ddf) and torch.equal(one.weight_volume, other.weight_volume)
    torch.testing.assert_close(one.ddf, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@each_size
def test_voxelmorph_of_a_seed_starts_as_it_does_without(size):
    with torch.no_grad():
        ddf, plain = (network_of("voxelmorph", size, **options)(pair(size)) for options in (SPR, {}))
    assert torch.equal(ddf, plain)


@each_network
@each_size
def test_condition_changes_displacement_and_weights_of_its_own_image(name, size):
    network, images = styled(network_of(name, size, **SPR)), pair(size, 2)
    with torch.no_grad():
        low, high = (network.estimate(images, torch.full((2, 1), value)) for value in (0.0, 1.0))
        mixed, default = network.estimate(images, torch.tensor([[0.0], [1.0]])), network.estimate(images)
        expected = network.estimate(images, torch.full((2, 1), 0.55))
    for key in ("ddf", "weight_volume"):
        first, second, both = (getattr(estimate, key) for estimate in (low, high, mixed))
        scale = float(first.abs().max())
        assert (first - second).abs().max() > 1e-3 * scale
        torch.testing.assert_close(both, torch.cat([first[:1], second[1:]]), atol=1e-3 * scale, rtol=0)
        assert torch.equal(getattr(default, key), getattr(expected, key))


@each_network
@each_size
def test_weight_volume_is_a_share_on_the_grid_of_the_field_that_is_smoothed(name, size):
    network = network_of(name, size, **SPR)
    with torch.no_grad():
        estimate, both = network.estimate(pair(size)), network.estimate_and_inverse(pair(size))
    weight = estimate.weight_volume
    assert weight.shape == (1, 1, *estimate.velocity.shape[2:]) and weight.dtype == torch.float32
    assert 0 < weight.min() < weight.max() < 1
    assert torch.equal(both.weight_volume, weight) and torch.equal(both.ddf[:1], estimate.ddf)


@each_network
@each_size
def test_gradient_reaches_every_parameter(name, size):
    network = styled(network_of(name, size, **SPR))  # not in training, where whole blocks are dropped
    estimate = network.estimate(pair(size), torch.full((1, 1), 0.3))
    (estimate.ddf.square().sum() + estimate.weight_volume.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@each_network
@each_size
def test_scripted_equals_eager(name, size):
    network = styled(network_of(name, size, **SPR))
    with torch.no_grad():
        scripted = torch.jit.script(network)(pair(size))
        torch.testing.assert_close(scripted, network(pair(size)), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("levels", "factor"), [(1, 2), (2, 4), (3, 4), (4, 4)])
@pytest.mark.parametrize("half_resolution", [False, True])
def test_branch_of_the_u_net_is_at_a_quarter_of_the_size_or_the_bottom(levels, factor, half_resolution):
    unet = UNet(2, 2, (3, 4, 5, 6)[:levels], (12, 11, 10, 9, 8, 7)[: levels + 2], half_resolution)
    features, quarter = unet.branches(pair((32, 48)), [])
    assert quarter.shape == (1, unet.quarter_channels, 32 // factor, 48 // factor) and unet.quarter_factor == factor
    assert torch.equal(features, unet(pair((32, 48))))


def test_voxelmorph_of_the_comparison_has_no_integration_and_its_published_widths():
    small, large = (VoxelMorph(3, **COMPARED[name]) for name in ("voxelmorph_1", "voxelmorph_2"))
    assert sum(p.numel() for p in large.parameters()) == 327_331
    assert (small.unet.out_channels, large.unet.out_channels) == (8, 16)
    assert (small.unet.down[0].conv.out_channels, large.unet.down[0].conv.out_channels) == (8, 16)
    nn.init.normal_(large.flow.weight, std=0.1)
    with torch.no_grad():
        estimate = large.estimate(pair((16, 24, 16)))
    assert estimate.ddf.std() > 0 and torch.equal(estimate.ddf, estimate.velocity)


@each_network
@pytest.mark.parametrize("condition", [torch.ones(1), torch.ones(2, 1), torch.ones(1, 2)], ids=str)
def test_conditions_of_another_shape_are_refused(name, condition):
    with pytest.raises(ValueError, match=r"condition: expected one code for each image, \(B, 1\) = \[1, 1\]"):
        network_of(name, (32, 32), conditional=True)(pair((32, 32)), condition=condition)


@each_network
def test_a_condition_is_refused_where_none_is_taken(name):
    with pytest.raises(ValueError, match="condition: .*takes none.*choose a conditional architecture"):
        network_of(name, (32, 32), weight_volume=True)(pair((32, 32)), condition=torch.ones(1, 1))


@each_network
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conditional": "official"}, "conditional: expected true or false, got 'official'"),
        ({"weight_volume": 2}, "weight_volume: expected true or false, got 2"),
        ({"conditional": True, "default_condition": -1}, "default_condition: expected a number from 0 to 1, got -1"),
    ],
)
def test_wrong_arguments_are_refused(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        network_of(name, (32, 32), **wrong)


def test_a_weight_volume_of_several_passes_is_refused():
    with pytest.raises(ValueError, match="weight_volume: expected a network of one pass, got passes 2"):
        network_of("voxelmorph", (32, 32), weight_volume=True, passes=2)
