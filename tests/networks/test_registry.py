# SPDX-License-Identifier: Apache-2.0
"""The contract of displacement networks, asserted for every published architecture."""

import functools

import pytest
import torch
from torch import nn

from common.networks.contract import Estimate
from common.networks.field_unet import FieldUNet
from common.networks.icon import TallUNet2
from common.networks.registry import ARCHITECTURES, build, build_estimator
from common.networks.transmorph import TransMorph
from common.networks.tvf import TimeStep
from common.networks.voxelmorph import VoxelMorph, VoxelMorphDiff

TVF = {"channels": 8, "depths": (2, 2, 2), "heads": (2, 2, 4), "head_channels": 8, "time_steps": 3}
# As deep as published and with every step of the chain, but narrow: weights by the million take minutes to try.
SMALL = {
    "transmorph_tvf": TVF,
    "tmspr": TVF,
    "affine_voxelmorph": {"widths": (2, 4, 8), "hidden": 8},
    "icon": {"down": (2, 4, 8, 8, 12, 16), "up": (4, 4, 8, 8, 12)},
    "transmorph": {"size": "tiny", "channels": 8, "head_channels": 8},
    "lapirn": {"start_channels": 3, "blocks": 2},
    **{key: {"start_channels": 3, "blocks": 2} for key in ("clapirn", "lapirn_lung", "lapirn_lung_svf")},
    "diffusemorph": {
        "channels": 4, "groups": 2, "multipliers": (1, 2, 2),
        "field_encoder": (4, 8, 8, 8), "field_decoder": (8, 8, 8, 4),
    },
}  # fmt: skip
# Those whose published weights start away from the identity: their first displacement as a share of the image's extent.
FIRST_SHARE = dict.fromkeys(("lapirn", "clapirn", "lapirn_lung", "lapirn_lung_svf"), 0.05)
# Two that the conditional ones take, their default last, in 2D and 3D.
CONDITIONS = {"diffusemorph": {2: (0.5, 1.0), 3: (0.5, 1.0)}, "clapirn": {2: (0.9, 0.1), 3: (0.9, 0.4)}}
CONDITIONS["tmspr"] = dict.fromkeys((2, 3), (0.0, 0.55))
# The convolutions that end in a displacement, by the class that has them; none where weights start far from 0.
HEADS = {VoxelMorph: "flow", VoxelMorphDiff: "flow", TallUNet2: "last", FieldUNet: "last", TransMorph: "flow"}
HEADS[TimeStep] = "flow"
SIZES = [(32, 48), (27, 30), (16, 32, 19)]
each_network = pytest.mark.parametrize("name", sorted(ARCHITECTURES))
each_size = pytest.mark.parametrize("size", SIZES)


def pair(size, batch=2):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


def network_of(name, size):
    torch.manual_seed(0)
    return build(name, spatial_dims=len(size), **SMALL.get(name, {})).eval()


def awakened(name, size):
    """As after training: far from the identity."""
    network = network_of(name, size)
    heads = [getattr(module, HEADS[type(module)]) for module in network.modules() if type(module) in HEADS]
    for head in heads:
        nn.init.normal_(head.weight, std=0.1)
    for module in network.modules():  # conditions that change nothing at first
        if hasattr(module, "style") and not module.style.weight.any():
            nn.init.normal_(module.style.weight, std=0.5)
    with torch.no_grad():
        factor = 0.5 / network(pair(size)).abs().mean()
        for head in heads:
            head.weight.mul_(factor)
    return network


def test_the_collection_is_not_empty():
    assert {"voxelmorph", "voxelmorph_diff", "icon", "transmorph", "diffusemorph", "lapirn", "clapirn"} <= set(
        ARCHITECTURES
    )
    assert {"voxelmorph_2", "transmorph_tvf", "tmspr"} <= set(ARCHITECTURES)


@each_network
@each_size
def test_returns_one_finite_float32_displacement_of_the_image_size(name, size):
    with torch.no_grad():
        ddf = network_of(name, size)(pair(size))
    assert isinstance(ddf, torch.Tensor)
    assert ddf.shape == (2, len(size), *size) and ddf.dtype == torch.float32 and ddf.isfinite().all()


@each_network
@each_size
def test_moving_and_fixed_apart_are_the_two_concatenated(name, size):
    network, image = network_of(name, size), pair(size)
    with torch.no_grad():
        assert torch.equal(network(image[:, :1], image[:, 1:]), network(image))


@each_network
@each_size
def test_starts_near_the_identity(name, size):
    with torch.no_grad():
        bound = FIRST_SHARE[name] * max(size) if name in FIRST_SHARE else 0.1
        assert network_of(name, size)(pair(size)).abs().max() < bound


@each_network
@each_size
def test_estimate_holds_the_displacement_of_forward_and_a_velocity(name, size):
    network = network_of(name, size)
    with torch.no_grad():
        estimate = network.estimate(pair(size))
        torch.testing.assert_close(estimate.ddf, network(pair(size)), atol=0, rtol=0)
    assert set(Estimate._fields) <= set(estimate._fields)
    assert estimate.velocity.shape[:2] == (2, len(size)) and estimate.velocity.dtype == torch.float32


@each_network
@each_size
def test_a_case_does_not_depend_on_the_rest_of_its_batch(name, size):
    network, image = network_of(name, size), pair(size)
    with torch.no_grad():
        both = network(image)
        tolerance = max(1e-7, 1e-5 * float(both.abs().max()))
        torch.testing.assert_close(both[1:], network(image[1:]), atol=tolerance, rtol=1e-3)


@each_network
@each_size
def test_gradient_reaches_every_parameter(name, size):
    network = network_of(name, size).train()
    estimate = network.estimate(pair(size))
    weight = 0.0 if estimate.weight_volume is None else estimate.weight_volume.mean()
    (estimate.ddf.square().sum() + weight).backward()
    without = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert not without


@each_network
@each_size
def test_scripted_equals_eager(name, size):
    network = network_of(name, size)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(pair(size)), network(pair(size)), atol=1e-6, rtol=0)


@each_network
@pytest.mark.parametrize("dims", [2, 3])
def test_state_dict_fits_a_fresh_network(name, dims):
    first, second = (build(name, spatial_dims=dims, **SMALL.get(name, {})) for _ in range(2))
    second.load_state_dict(first.state_dict())
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@each_network
@pytest.mark.parametrize("channels", [1, 3])
def test_other_numbers_of_channels_are_refused(name, channels):
    with pytest.raises(ValueError, match="moving and fixed"):
        network_of(name, (32, 32))(torch.zeros(1, channels, 32, 32))


@each_network
def test_other_numbers_of_axes_are_refused(name):
    with pytest.raises(ValueError, match="with 2 spatial axes"):
        network_of(name, (32, 32))(torch.zeros(1, 2, 32, 32, 32))


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(CONDITIONS)))
@pytest.mark.parametrize("method", ["forward", "estimate"])
def test_condition_is_refused_by_those_that_take_none(name, method):
    with pytest.raises(ValueError, match="condition: .* takes none.*choose a conditional architecture"):
        getattr(network_of(name, (32, 32)), method)(torch.zeros(1, 2, 32, 32), condition=torch.ones(1))


@pytest.mark.parametrize("name", sorted(CONDITIONS))
@each_size
def test_condition_changes_the_displacement_and_none_is_its_default(name, size):
    network, image = awakened(name, size), pair(size)
    with torch.no_grad():
        values = CONDITIONS[name][len(size)]
        other, default = (network(image, condition=torch.full((2, 1), value)) for value in values)
        mixed = network(image, condition=torch.tensor(values)[:, None])
        torch.testing.assert_close(network(image), default, atol=0, rtol=0)
    assert (other - default).abs().mean() > 1e-3
    torch.testing.assert_close(mixed, torch.cat([other[:1], default[1:]]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(CONDITIONS))
@pytest.mark.parametrize("condition", [torch.ones(2), torch.ones(1, 1), torch.ones(2, 2)], ids=str)
def test_conditions_of_another_shape_are_refused(name, condition):
    with pytest.raises(ValueError, match=r"condition: expected .*\(B, 1\)"):
        network_of(name, (32, 32))(pair((32, 32)), condition=condition)


@each_network
@each_size
def test_fields_stay_float32_under_autocast_and_close_to_those_of_float32(name, size):
    network, image = awakened(name, size), pair(size)
    with torch.no_grad():
        expected = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            estimate = network.estimate(image)
    assert estimate.ddf.dtype == estimate.velocity.dtype == torch.float32
    assert expected.abs().mean() > 0.01  # Chains warp noise by noise: single voxels are far off.
    bound = 0.1 if name in FIRST_SHARE else 0.05  # Instance norms of a few voxels magnify what was rounded.
    assert 0 < (estimate.ddf - expected).abs().mean() < bound * expected.abs().mean()


BUILDERS = {name: functools.partial(build, name, **SMALL.get(name, {})) for name in ARCHITECTURES}
BUILDERS["estimator"] = functools.partial(build_estimator, encoder=(4, 4), decoder=(4, 4, 4))
each_builder = pytest.mark.parametrize("builder", BUILDERS.values(), ids=BUILDERS)


@each_builder
@pytest.mark.parametrize("dims", [2, 3])
def test_seeded_weights_do_not_depend_on_what_was_drawn_before(builder, dims):
    first = builder(spatial_dims=dims, seed=7).state_dict()
    torch.rand(5)
    second = builder(spatial_dims=dims, seed=7).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    another = builder(spatial_dims=dims, seed=8).state_dict()
    assert not all(torch.equal(first[key], another[key]) for key in first)


@each_builder
def test_seed_leaves_the_random_state_as_it_was(builder):
    before = torch.random.get_rng_state()
    builder(spatial_dims=2, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)


@each_builder
def test_without_a_seed_weights_come_from_the_random_state(builder):
    torch.manual_seed(3)
    first, second = builder(spatial_dims=2).state_dict(), builder(spatial_dims=2).state_dict()
    assert not all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(3)
    again = builder(spatial_dims=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_network_and_estimator_of_one_seed_have_different_weights():
    network, estimator = build("voxelmorph", 2, seed=7), build_estimator(2, seed=7, in_channels=2)
    assert not torch.equal(network.unet.down[0].conv.weight, estimator.unet.down[0].conv.weight)


@each_network
def test_other_numbers_of_dimensions_are_refused(name):
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3"):
        build(name, spatial_dims=4)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"architecture: expected one of .*got 'voxelmorf'.*'voxelmorph'\?"):
        build("voxelmorf", spatial_dims=2)


def test_parameters_reach_the_builder():
    network = build("voxelmorph", spatial_dims=2, encoder=[4, 4], decoder=[4, 4, 4])
    assert isinstance(network, nn.Module) and network.flow.in_channels == 4
    chain = build("icon", spatial_dims=3, factors=[2, 1], down=[2, 4, 6], up=[4, 4])
    assert chain.step.second.last.in_channels == 6 and chain.step.second.last.out_channels == 3
