# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.networks.composition import TwoStep
from common.networks.voxelmorph import VoxelMorph
from common.spatial.integrate import integrate_svf, resize_field
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp

SIZES = [(32, 48), (19, 34), (16, 32, 17)]
TINY = {"encoder": (4, 4), "decoder": (4, 4, 4)}


def pair(size, batch=2, seed=0):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def awakened(size, strength=0.5, seed=0, **options):
    """A network whose flow is far from 0, as after training."""
    torch.manual_seed(seed)
    network = VoxelMorph(len(size), **(TINY | options))
    torch.nn.init.normal_(network.flow.weight, std=strength)
    return network


@pytest.mark.parametrize(("dims", "count"), [(2, 109_170), (3, 327_331)])
def test_has_the_published_number_of_parameters(dims, count):
    assert sum(parameter.numel() for parameter in VoxelMorph(dims).parameters()) == count


@pytest.mark.parametrize(("dims", "count"), [(2, 104_562), (3, 313_507)])
def test_at_half_resolution_only_the_skip_at_full_resolution_is_missing(dims, count):
    # 16 channels of the skip times 32 of the output times 3^d taps.
    assert sum(parameter.numel() for parameter in VoxelMorph(dims, half_resolution=True).parameters()) == count


@pytest.mark.parametrize("size", SIZES)
def test_starts_close_to_the_identity_but_not_at_it(size):
    torch.manual_seed(0)
    network = VoxelMorph(len(size))
    assert not network.flow.bias.any()
    assert 0.8e-5 < network.flow.weight.std() < 1.2e-5
    with torch.no_grad():
        ddf = network(pair(size))
    assert 0 < ddf.abs().max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_estimate_is_forward_with_the_velocity_it_integrates(size):
    network = awakened(size)
    with torch.no_grad():
        estimate = network.estimate(pair(size))
        ddf = network(pair(size))
    half = [(n + 1) // 2 for n in size]
    assert list(estimate.velocity.shape[2:]) == half
    assert torch.equal(estimate.ddf, ddf)
    by_hand = resize_field(integrate_svf(estimate.velocity, 7), list(size))
    torch.testing.assert_close(ddf, by_hand, atol=0, rtol=0)
    assert ddf.abs().max() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_at_half_resolution_the_flow_is_the_velocity(size):
    network = awakened(size, half_resolution=True)
    with torch.no_grad():
        flow = network.flow(network.unet(pair(size)))
        estimate = network.estimate(pair(size))
    assert list(flow.shape[2:]) == [(n + 1) // 2 for n in size]
    torch.testing.assert_close(estimate.velocity, flow, atol=0, rtol=0)
    assert list(estimate.ddf.shape[2:]) == list(size) and estimate.ddf.abs().max() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_constant_flow_moves_by_that_many_voxels_of_the_image(size):
    network = VoxelMorph(len(size), **TINY)
    torch.nn.init.zeros_(network.flow.weight)
    shift = torch.tensor([1.5, -2.5, 0.75][: len(size)])
    with torch.no_grad():
        network.flow.bias.copy_(shift)
        ddf = network(pair(size))
    torch.testing.assert_close(ddf, shift.view([1, -1] + [1] * len(size)).expand_as(ddf), atol=1e-4, rtol=0)


def test_no_integration_and_no_downsampling_return_the_flow():
    network = awakened((19, 34), integration_steps=0, velocity_downsample=1)
    with torch.no_grad():
        flow = network.flow(network.unet(pair((19, 34))))
        torch.testing.assert_close(network(pair((19, 34))), flow, atol=0, rtol=0)


def test_integration_avoids_the_foldings_of_the_bare_velocity():
    size = (48, 64)
    svf = awakened(size, strength=8.0, seed=1)
    bare = awakened(size, strength=8.0, seed=1, integration_steps=0)
    with torch.no_grad():
        folded = [float((jacobian_determinant(network(pair(size))) <= 0).float().mean()) for network in (svf, bare)]
    assert folded[1] > 0.01 and folded[0] < 0.5 * folded[1]


@pytest.mark.parametrize("size", SIZES)
def test_fields_stay_float32_under_autocast(size):
    network = awakened(size)
    with torch.no_grad():
        plain = network.estimate(pair(size))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network.estimate(pair(size))
    assert mixed.ddf.dtype == mixed.velocity.dtype == torch.float32
    scale = plain.ddf.abs().max()
    assert 0 < (mixed.ddf - plain.ddf).abs().max() < 0.05 * scale


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_passes_are_a_chain_of_the_network_with_itself(size, passes):
    once, network = awakened(size, strength=0.1), awakened(size, strength=0.1, passes=passes)
    assert once.state_dict().keys() == network.state_dict().keys()
    chain = once
    for _ in range(passes - 1):
        chain = TwoStep(chain, once)
    with torch.no_grad():
        ddf = network(pair(size))
        torch.testing.assert_close(ddf, chain(pair(size)), atol=1e-5, rtol=0)
        assert (ddf - once(pair(size))).abs().max() > 0.05


@pytest.mark.parametrize("size", SIZES)
def test_velocities_of_all_passes_are_regularised(size):
    once, network, image = awakened(size), awakened(size, passes=2), pair(size)
    with torch.no_grad():
        first, velocity = once.estimate(image), network.estimate(image).velocity
        warped = torch.cat([warp(image[:, :1], first.ddf, padding="border"), image[:, 1:]], dim=1)
        second = once.velocity(warped)
    assert (first.velocity - second).abs().max() > 1e-3
    torch.testing.assert_close(velocity, torch.cat([first.velocity, second], dim=1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("passes", [0, -1])
def test_less_than_one_pass_is_refused(passes):
    with pytest.raises(ValueError, match=f"passes: expected at least 1, got {passes}"):
        VoxelMorph(2, passes=passes)


@pytest.mark.parametrize("options", [{}, {"half_resolution": True}, {"passes": 2}])
@pytest.mark.parametrize("size", SIZES)
def test_scripted_equals_eager(size, options):
    network = awakened(size, **options)
    scripted = torch.jit.script(network)
    image = pair(size)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), network(image), atol=1e-5, rtol=0)
        torch.testing.assert_close(scripted(image[:, :1], image[:, 1:]), network(image), atol=1e-5, rtol=0)


def test_gradient_reaches_every_parameter():
    network = awakened((19, 34))
    network(pair((19, 34))).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_condition_is_refused():
    with pytest.raises(ValueError, match="condition: VoxelMorph takes none"):
        VoxelMorph(2, **TINY)(pair((16, 16)), condition=torch.ones(1))
