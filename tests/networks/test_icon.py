# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from torch import nn

from common.networks.composition import Composition, Downsample, TwoStep, build_icon, lengthened
from common.networks.icon import DownBlock, TallUNet2, UpBlock, halve
from common.networks.voxelmorph import VoxelMorph
from common.spatial.fields import compose
from common.spatial.warp import identity_grid, warp

DEEP = {"down": (2, 4, 4, 6, 6, 8), "up": (4, 4, 6, 6, 8)}  # as deep as published
FLAT = {"down": (2, 4, 6), "up": (4, 4)}
# Down to one voxel along one axis or all of them, or odd on the way.
SIZES = [(32, 48), (17, 9), (5, 33), (1, 40), (13, 21, 9), (16, 6, 24)]
SHAPES = [(17, 10), (13, 20, 9)]
each_size = pytest.mark.parametrize("size", SIZES)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def pair(size, batch=2, seed=0):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def awakened(network, seed=0, strength=0.3):
    """As after training: displacements and batch statistics that are not those of the start."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, TallUNet2):
            nn.init.normal_(module.last.weight, std=strength)
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def along_axes(values, dims):
    return torch.tensor(values[:dims]).view(1, -1, *[1] * dims)


class Shift(nn.Module):
    """A step that knows one displacement, in voxels, and keeps what it saw."""

    def __init__(self, *shift):
        super().__init__()
        self.shift, self.seen = shift, []

    def forward(self, image):
        self.seen.append(image)
        dims = image.dim() - 2
        return along_axes(self.shift, dims).expand(len(image), dims, *image.shape[2:])


class Stretch(nn.Module):
    """u(x) = a x along each axis."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, image):
        return self.factor * identity_grid(list(image.shape[2:]), image.device).expand(len(image), -1, *image.shape[2:])


# --- one U-Net


@pytest.mark.parametrize(("dims", "count"), [(2, 4_756_902), (3, 17_670_229)])
def test_has_the_published_number_of_parameters(dims, count):
    with torch.device("meta"):
        network = TallUNet2(dims)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_four_networks_have_the_published_number_of_parameters():
    with torch.device("meta"):
        network = build_icon(3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 70_680_916
    assert sum(isinstance(module, TallUNet2) for module in network.modules()) == 4


@pytest.mark.parametrize("training", [True, False])
@each_size
def test_untrained_is_the_identity_to_the_bit(size, training):
    torch.manual_seed(0)
    ddf = TallUNet2(len(size), **DEEP).train(training)(pair(size))
    assert ddf.shape == (2, len(size), *size) and not ddf.any()


@each_size
def test_any_size_is_kept_and_every_voxel_has_its_own_displacement(size):
    network = awakened(TallUNet2(len(size), **DEEP))
    with torch.no_grad():
        ddf = network(pair(size))
    assert ddf.shape == (2, len(size), *size) and ddf.dtype == torch.float32 and ddf.isfinite().all()
    for axis, channel in enumerate(ddf.unbind(1)):  # an axis of one voxel has an extent of 1
        assert channel.abs().mean() > 1e-3, axis
        assert channel.flatten(1).unique().numel() > 0.9 * channel.numel()


@each_shape
def test_output_is_a_tenth_of_the_extent(shape):
    network = TallUNet2(len(shape), **FLAT)
    nn.init.constant_(network.last.bias, 0.5)
    with torch.no_grad():
        ddf = network(pair(shape))
    expected = along_axes([0.05 * (n - 1) for n in shape], len(shape)).expand_as(ddf)
    torch.testing.assert_close(ddf, expected, atol=1e-6, rtol=0)


def test_halving_averages_what_there_is():
    rows, columns = torch.arange(5.0), 10 * torch.arange(3.0)
    halves = torch.tensor([[0.5], [2.5], [4.0]]) + torch.tensor([5.0, 20.0])
    torch.testing.assert_close(halve((rows[:, None] + columns)[None, None])[0, 0], halves)
    assert torch.equal(halve(rows.view(1, 1, 1, 5))[0, 0, 0], torch.tensor([0.5, 2.5, 4.0]))  # one row stays
    volume = torch.arange(4.0 * 6 * 2).view(1, 1, 4, 6, 2)
    blocks = volume.view(2, 2, 3, 2, 1, 2).mean((1, 3, 5))
    torch.testing.assert_close(halve(volume)[0, 0], blocks)


@each_shape
@pytest.mark.parametrize("channels", [3, 7])
def test_down_block_without_its_convolution_is_the_pool(shape, channels):
    block = DownBlock(len(shape), 5, channels)
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    image = torch.randn(2, 5, *shape)
    value, missing = block(image), max(0, channels - 5)
    assert value.shape == (2, channels, *(math.ceil(n / 2) for n in shape))
    # Channels that the input lacks are zeros before its own; of too many the first are kept.
    assert torch.equal(value[:, missing:], halve(image)[:, : channels - missing]) and not value[:, :missing].any()


@each_shape
def test_up_block_without_its_convolution_is_interpolation_beside_the_skip(shape):
    dims = len(shape)
    block = UpBlock(dims, 5, 3).eval()
    nn.init.zeros_(block.conv.weight)
    nn.init.zeros_(block.conv.bias)
    grid = identity_grid(list(shape), torch.device("cpu"))
    low = torch.cat([grid, torch.ones(5 - dims, *shape)])[None]
    skip = torch.randn(1, 4, *(2 * n - 1 for n in shape))
    value = block(low, skip)
    assert value.shape == (1, 3 + 4, *skip.shape[2:]) and torch.equal(value[:, 3:], skip)
    # Voxel y of the large grid lies at y / 2 - 1 / 4 of the small one, whose border goes on.
    where = (identity_grid(list(skip.shape[2:]), torch.device("cpu")) / 2 - 0.25).clamp(min=0)
    expected = where[: min(dims, 3)] / math.sqrt(1 + block.norm.eps)
    torch.testing.assert_close(value[0, : len(expected)], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(17, 9), (5, 33), (13, 21, 9)])
def test_scripted_equals_eager(size):
    network, image = awakened(TallUNet2(len(size), **DEEP)), pair(size)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 16, 16), (1, 2, 16, 16, 16), (2, 16, 16)])
def test_other_channels_or_axes_are_refused(shape):
    with pytest.raises(ValueError, match=r"image: expected cat\(moving, fixed\), \(B, 2, \*S\) with 2 spatial axes"):
        TallUNet2(2, **FLAT)(torch.zeros(shape))


@pytest.mark.parametrize("dims", [1, 4])
def test_other_numbers_of_dimensions_are_refused(dims):
    with pytest.raises(ValueError, match=f"spatial_dims must be 2 or 3, got {dims}"):
        TallUNet2(dims, **FLAT)


@pytest.mark.parametrize(("down", "up"), [((2, 4, 6), (4,)), ((2, 4), (4, 4)), ((1, 4, 6), (4, 4)), ((2,), ())])
def test_widths_that_do_not_fit_are_refused(down, up):
    with pytest.raises(ValueError, match="down, up: expected 2 input channels and one more width down than up"):
        TallUNet2(2, down, up)


@pytest.mark.parametrize("memory_format", ["plain", "channels_last"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (1, 1, 1), (2, 1, 1), (1, 5, 1)])
def test_bfloat16_gradients_at_the_bottom_are_those_of_float64(size, memory_format, poison):
    torch.manual_seed(0)
    down, image = DownBlock(len(size), 16, 32), torch.randn(3, 16, *size)
    if memory_format == "channels_last":
        layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d
        down, image = down.to(memory_format=layout), image.contiguous(memory_format=layout)
    exact = copy.deepcopy(down).double()
    poison(down.conv.weight, down.conv.bias, image)
    with torch.autocast("cpu", torch.bfloat16):
        value = down(image)
    slope = torch.randn(value.shape)
    poison(down.conv.weight, down.conv.bias, image, value)
    value.backward(slope.to(value.dtype))
    exact(image.double()).backward(slope.double())
    for name, parameter in down.named_parameters():
        expected = exact.get_parameter(name).grad
        tolerance = 0.02 * float(expected.abs().max())
        assert (parameter.grad.double() - expected).abs().max() < tolerance, name


@pytest.mark.parametrize("size", [(9, 1), (3, 2, 5), (3, 1, 3)])
def test_bfloat16_training_from_tiny_images_has_finite_gradients(size, poison):
    """(9, 1): the bottom is one voxel from the second level on."""
    network = awakened(TallUNet2(len(size), **DEEP)).train()
    poison(*network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        ddf = network(pair(size))
    assert ddf.dtype == torch.float32
    poison(*network.parameters())
    ddf.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


# --- operators


@each_shape
def test_two_translations_add_up(shape):
    ddf = TwoStep(Shift(1.5, -2.0, 0.25), Shift(0.25, 3.0, -1.0))(pair(shape))
    expected = along_axes([1.75, 1.0, -0.75], len(shape)).expand_as(ddf)
    torch.testing.assert_close(ddf, expected, atol=1e-6, rtol=0)


@each_shape
def test_first_map_is_applied_last_to_points(shape):
    """u(x) = a x, v(x) = s: (id + u) ∘ (id + v) - id = s + a (x + s), where x + s lies inside."""
    a, s = 0.1, along_axes([2.0, 1.5, 1.0], len(shape))
    ddf = TwoStep(Stretch(a), Shift(2.0, 1.5, 1.0))(pair(shape))
    expected = s + a * (identity_grid(list(shape), torch.device("cpu")) + s)
    inside = (..., *(slice(0, n - 2) for n in shape))
    torch.testing.assert_close(ddf[inside], expected.expand_as(ddf)[inside], atol=1e-5, rtol=0)
    swapped = TwoStep(Shift(2.0, 1.5, 1.0), Stretch(a))(pair(shape))
    torch.testing.assert_close((ddf - swapped)[inside], (a * s).expand_as(ddf)[inside], atol=1e-5, rtol=0)


@each_shape
def test_second_step_sees_the_warped_image_and_the_fixed_one(shape):
    second = Shift(0.0, 0.0, 0.0)
    ramp = identity_grid(list(shape), torch.device("cpu"))[1]
    fixed = torch.rand(shape)
    TwoStep(Shift(0.0, 2.0, 0.0), second)(torch.stack([ramp, fixed])[None])
    (seen,) = second.seen
    border = shape[1] - 1.0
    torch.testing.assert_close(seen[0, 0], (ramp + 2).clamp(max=border), atol=1e-5, rtol=0)
    assert torch.equal(seen[0, 1], fixed)


@each_shape
def test_two_networks_are_composed(shape):
    first, second = (awakened(TallUNet2(len(shape), **FLAT), seed) for seed in (1, 2))
    image = pair(shape)
    with torch.no_grad():
        before = first(image)
        after = second(torch.cat([warp(image[:, :1], before, padding="border"), image[:, 1:]], dim=1))
        assert before.abs().max() > 0.1 and after.abs().max() > 0.1
        torch.testing.assert_close(TwoStep(first, second)(image), compose(before, after), atol=1e-5, rtol=0)


@each_shape
def test_downsampling_scales_a_displacement_between_the_grids(shape):
    step, shift = Shift(1.0, -2.0, 0.5), [1.0, -2.0, 0.5]
    image = pair(shape)
    ddf = Downsample(step)(image)
    small = [math.ceil(n / 2) for n in shape]
    scaled = [s * (new - 1) / (old - 1) for s, new, old in zip(shift, shape, small, strict=False)]
    torch.testing.assert_close(ddf, along_axes(scaled, len(shape)).expand_as(ddf), atol=1e-5, rtol=0)
    assert torch.equal(step.seen[0], halve(image)) and list(step.seen[0].shape[2:]) == small


@each_shape
def test_another_network_can_be_a_step(shape):
    torch.manual_seed(0)
    steps = [VoxelMorph(len(shape), encoder=(4,), decoder=(4, 4)) for _ in range(2)]
    for step in steps:
        nn.init.normal_(step.flow.weight, std=0.3)
    network, image = Composition(TwoStep(Downsample(steps[0]), steps[1])), pair(shape)
    ddf = network(image)
    ddf.square().sum().backward()
    assert ddf.shape == (2, len(shape), *shape)
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-5, rtol=0)


# --- the chain


@pytest.mark.parametrize("factors", [(4, 2, 1, 1), (8, 4, 2, 1), (4, 4, 2), (8, 1), (2,), (1,)])
@pytest.mark.parametrize("size", [(32, 48), (13, 21, 9)])
def test_each_step_sees_its_factor_of_the_image_in_order(factors, size):
    network = build_icon(len(size), factors, **FLAT)
    seen = []
    for module in network.modules():
        if isinstance(module, TallUNet2):
            module.register_forward_hook(lambda m, inputs, out: seen.append((m, tuple(inputs[0].shape[2:]))))
    with torch.no_grad():
        assert network(pair(size)).shape == (2, len(size), *size)
    assert [shape for _, shape in seen] == [tuple(math.ceil(n / factor) for n in size) for factor in factors]
    assert len({id(step) for step, _ in seen}) == len(factors)  # weights are not shared


def test_published_chain_is_nested_as_the_papers_operators():
    chain = build_icon(2, (4, 2, 1, 1), **FLAT).step
    assert [type(chain), type(chain.first), type(chain.first.first)] == [TwoStep, TwoStep, Downsample]
    inner = chain.first.first.step
    assert [type(inner), type(inner.first), type(inner.first.step)] == [TwoStep, Downsample, TallUNet2]
    assert {type(step) for step in (chain.second, chain.first.second, inner.second)} == {TallUNet2}


@pytest.mark.parametrize("factors", [(4, 2, 1, 1), (8, 4, 2, 1), (2,)])
@each_shape
def test_translations_in_units_of_the_extent_add_up_whatever_the_factors(shape, factors):
    network = build_icon(len(shape), factors, **FLAT)
    for module in network.modules():
        if isinstance(module, TallUNet2):
            nn.init.constant_(module.last.bias, 0.2)
    with torch.no_grad():
        ddf = network(pair(shape))
    expected = along_axes([len(factors) * 0.02 * (n - 1) for n in shape], len(shape)).expand_as(ddf)
    torch.testing.assert_close(ddf, expected, atol=1e-5, rtol=0)


def test_condition_is_refused():
    with pytest.raises(ValueError, match="condition: a composition of steps takes none"):
        build_icon(2, (2, 1), **FLAT)(pair((16, 16)), condition=torch.ones(1))


@pytest.mark.parametrize("method", ["forward", "estimate"])
def test_number_of_channels_is_refused_with_the_shape_that_was_given(method):
    network = build_icon(2, (4, 2), **FLAT)
    with pytest.raises(ValueError, match=r"image: expected moving and fixed .*got \[1, 3, 32, 32\]"):
        getattr(network, method)(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("factors", [[1, 2], [3], [], [4, 0], [-2], [8, 6, 1]])
def test_factors_other_than_falling_powers_of_two_are_refused(factors):
    with pytest.raises(ValueError, match="factors: expected powers of two from coarse to fine such as"):
        build_icon(2, factors, **FLAT)


# --- training in stages


@pytest.mark.parametrize(
    ("before", "after"), [((1,), (1, 1)), ((4, 4), (4, 4, 2, 1)), ((4, 2, 1), (4, 2, 1, 1)), ((2, 1), (2, 1))]
)
@each_shape
def test_longer_chain_starts_with_the_steps_of_the_shorter_and_copies_of_its_last(shape, before, after):
    dims = len(shape)
    short, long = awakened(build_icon(dims, before, **FLAT)), build_icon(dims, after, **FLAT).eval()
    long.load_state_dict(lengthened(short.state_dict(), long))
    old, new = ([m for m in chain.modules() if isinstance(m, TallUNet2)] for chain in (short, long))
    assert len(old) == len(before) and len(new) == len(after)
    for step, source in zip(new, old + old[-1:] * (len(new) - len(old)), strict=True):
        image = pair(shape)
        with torch.no_grad():
            assert torch.equal(step(image), source(image)) and source(image).abs().max() > 0.1


def test_steps_are_told_by_their_names_not_by_the_order_of_the_file():
    torch.manual_seed(0)
    network = build_icon(2, (4, 2, 1, 1), **FLAT)
    weights = dict(sorted(network.state_dict().items(), key=lambda entry: len(entry[0])))
    same = lengthened(weights, build_icon(2, (4, 2, 1, 1), **FLAT))
    assert same.keys() == weights.keys() and all(torch.equal(same[name], weights[name]) for name in weights)


def test_lengthened_steps_do_not_share_their_weights():
    network = build_icon(2, (1, 1), **FLAT)
    network.load_state_dict(lengthened(awakened(build_icon(2, (1,), **FLAT)).state_dict(), network))
    with torch.no_grad():
        network.step.second.last.weight.add_(1.0)
    assert not torch.equal(network.step.first.last.weight, network.step.second.last.weight)


def test_another_network_can_be_a_step_that_is_copied():
    short = Composition(VoxelMorph(2, encoder=(4,), decoder=(4, 4)))
    long = Composition(TwoStep(*(VoxelMorph(2, encoder=(4,), decoder=(4, 4)) for _ in range(2))))
    long.load_state_dict(lengthened(short.state_dict(), long))
    for step in (long.step.first, long.step.second):
        assert torch.equal(step.flow.weight, short.step.flow.weight)


@pytest.mark.parametrize("other", [lambda: VoxelMorph(2), lambda: build_icon(2, (2, 1, 1), **FLAT)])
def test_weights_of_no_chain_or_a_longer_one_are_left_as_they_are(other):
    weights = other().state_dict()
    assert lengthened(weights, build_icon(2, (2, 1), **FLAT)) == weights
