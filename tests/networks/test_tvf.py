# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from common.networks.tvf import PRESETS, TransMorphTVF
from common.spatial.warp import identity_grid, warp

TINY = {"channels": 8, "depths": (2, 2), "heads": (2, 4), "head_channels": 4, "time_steps": 2}
SIZES = [(37, 50), (17, 24, 30)]
each_size = pytest.mark.parametrize("size", SIZES)
each_form = pytest.mark.parametrize("form", PRESETS)


def pair(size, batch=1):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


def network_of(size, seed=0, **options):
    torch.manual_seed(seed)
    return TransMorphTVF(len(size), **(TINY | options)).eval()


def code_of(value, batch=1):
    return torch.full((batch, 1), value)


def styled(network):
    """As after training: what depends on the condition is no longer 0."""
    for module in network.modules():
        if hasattr(module, "style"):
            nn.init.normal_(module.style.weight, std=0.5)
    return network


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(dims=3, **options):
    with torch.device("meta"):
        return TransMorphTVF(dims, **options)


def test_parts_of_the_published_network_have_its_numbers_of_parameters():
    network = on_meta(**PRESETS["official"])
    head = network.weight_head
    parts = [network.encoder, *network.decoder, network.half_skip, head.first, head.second, head.last]
    assert [count(part) for part in parts] == [33_220_152, 3_981_312, 995_328, 248_832, 14_448, 32_592, 74_064, 1_297]
    of_steps = [sum(count(getattr(step, name)) for step in network.steps) for name in ("pair", "block", "flow")]
    assert of_steps == [101_136, 338_688, 9_093]


def test_the_published_number_of_parameters_includes_a_head_that_is_never_called():
    unused = 16 * 3 * 3**3 + 3  # 16 channels to a displacement
    assert count(on_meta(**PRESETS["official"])) == 39_018_241 - unused == 39_016_942


def test_what_depends_on_the_condition_and_what_does_not_add_up_to_the_published_network():
    whole, plain = count(on_meta(**PRESETS["official"])), count(on_meta())
    unconditional_head = count(on_meta(weight_volume="official")) - plain
    assert whole - plain - unconditional_head == 21_359_136 and unconditional_head == 107_953 - 2 * 11_856
    assert plain == 17_573_565


def test_the_papers_latent_vectors_are_64_wide():
    mappings = [m for m in on_meta(**PRESETS["paper"]).modules() if type(m).__name__ == "Mapping"]
    assert {count(mapping) for mapping in mappings} == {12_608}
    encoder = count(on_meta(conditional="paper").encoder) - count(on_meta().encoder)
    assert encoder == 962_624 + 324_736  # Swin blocks, patch mergings


def test_the_large_size_is_the_published_one_of_oasis():
    assert count(on_meta(size="large")) == 108_989_780


class Scripted(nn.Module):
    """A time step with a given flow, that keeps the warped image it is shown."""

    def __init__(self, flow):
        super().__init__()
        self.flow, self.seen = flow, None

    def forward(self, shared, warped, fixed, code):
        self.seen = warped
        return self.flow, shared


def composed(size, flows, **options):
    network = network_of(size, encoder_downsample=1, field_downsample=1, **options)
    network.steps = nn.ModuleList(Scripted(flow) for flow in flows)
    with torch.no_grad():
        return network.estimate(pair(size)).ddf, [step.seen for step in network.steps]


def shift(size, *voxels):
    return torch.tensor(voxels).view(1, -1, *[1] * len(size)).expand(1, -1, *size)


@pytest.mark.parametrize("self_warped", [False, True])
@pytest.mark.parametrize(
    ("size", "first", "second"), [(SIZES[0], (2.0, 1.0), (-0.5, 3.0)), (SIZES[1], (1, 2.5, 0), (1, 0, 2))]
)
def test_translations_add_and_steps_see_the_image_moved_so_far(size, first, second, self_warped):
    flows = [shift(size, *map(float, voxels)) for voxels in (first, second)]
    ddf, seen = composed(size, flows, self_warped=self_warped)
    inside = (..., *(slice(4, -4) for _ in size))
    torch.testing.assert_close(ddf[inside], sum(flows)[inside], atol=1e-5, rtol=0)
    moving = pair(size)[:, :1]
    assert torch.equal(seen[0], moving)
    torch.testing.assert_close(seen[1][inside], warp(moving, flows[0])[inside], atol=1e-5, rtol=0)


def test_rotations_are_composed_and_the_released_line_does_something_else():
    """Closed form: with f(x) = (R - 1) x twice, the map is R²; the released line gives x + 2 (R - 1) R x."""
    angle, size = torch.tensor(0.15), (41, 41)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    centred = identity_grid(list(size), torch.device("cpu")) - 20

    def turned(matrix):
        return torch.einsum("ij,jhw->ihw", matrix, centred)[None]

    once, inside = rotation - torch.eye(2), (..., slice(10, -10), slice(10, -10))
    right, _ = composed(size, [turned(once)] * 2)
    torch.testing.assert_close(right[inside], turned(rotation @ rotation - torch.eye(2))[inside], atol=1e-4, rtol=0)
    released, _ = composed(size, [turned(once)] * 2, self_warped=True)
    torch.testing.assert_close(released[inside], turned(2 * once @ rotation)[inside], atol=1e-4, rtol=0)
    assert (right - released)[inside].abs().max() > 0.2


def test_order_of_composition_is_first_outermost():
    """A stretch, then a shift: u(x) = f_1(x) + f_2(x + f_1(x))."""
    size = (40, 8)
    stretch = 0.1 * identity_grid(list(size), torch.device("cpu"))[None] * shift(size, 1.0, 0.0)
    moved = shift(size, 5.0, 0.0)
    first_moved, _ = composed(size, [moved, stretch])
    first_stretched, _ = composed(size, [stretch, moved])
    torch.testing.assert_close(first_moved[0, 0, :30], (stretch + 5.5)[0, 0, :30])
    torch.testing.assert_close(first_stretched, stretch + moved)


@each_size
def test_a_field_on_half_of_the_grid_is_doubled(size):
    network = network_of(size)
    voxels = torch.arange(1.0, len(size) + 1)
    for step in network.steps:
        nn.init.zeros_(step.flow.weight)
        step.flow.bias.data = voxels.clone()
    with torch.no_grad():
        estimate = network.estimate(pair(size))
    torch.testing.assert_close(estimate.ddf, 4 * shift(size, *voxels.tolist()), atol=1e-4, rtol=0)
    assert torch.equal(estimate.velocity, estimate.ddf)


@each_size
def test_the_papers_conditioning_starts_as_the_plain_network_whatever_the_condition(size):
    network = network_of(size, **PRESETS["paper"])
    plain = network_of(size, seed=1)
    own = network.state_dict()
    plain.load_state_dict({key: own[key] for key in plain.state_dict()})
    with torch.no_grad():
        one, other = (network.estimate(pair(size), code_of(value)) for value in (0.0, 1.0))
        expected = plain(pair(size))
    assert torch.equal(one.ddf, other.ddf) and torch.equal(one.weight_volume, other.weight_volume)
    torch.testing.assert_close(one.ddf, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_released_scales_start_at_two():
    network = network_of((32, 32), **PRESETS["official"])
    scales = [1 + m.style.bias.chunk(2)[0] for m in network.modules() if hasattr(m, "style")]
    assert scales and all(bool((scale == 2).all()) for scale in scales)
    assert not any("style" in name for name, _ in network.decoder.named_parameters())


@each_form
@each_size
def test_condition_changes_displacement_and_weights_of_its_own_image(size, form):
    network, images = styled(network_of(size, **PRESETS[form])), pair(size, 2)
    with torch.no_grad():
        low, high = (network.estimate(images, code_of(value, 2)) for value in (0.0, 1.0))
        mixed, default = network.estimate(images, torch.tensor([[0.0], [1.0]])), network.estimate(images)
        expected = network.estimate(images, code_of(0.55, 2))
    for name in ("ddf", "weight_volume"):
        first, second, both = (getattr(estimate, name) for estimate in (low, high, mixed))
        scale = float(first.abs().max())
        assert (first - second).abs().max() > 1e-3 * scale
        torch.testing.assert_close(both, torch.cat([first[:1], second[1:]]), atol=1e-3 * scale, rtol=0)
        assert torch.equal(getattr(default, name), getattr(expected, name))


@each_form
@pytest.mark.parametrize("grids", [(2, 2), (1, 2), (1, 1)])
@each_size
def test_weight_volume_is_a_share_on_the_grid_of_the_field_that_is_smoothed(size, grids, form):
    options = PRESETS[form] | dict(zip(("encoder_downsample", "field_downsample"), grids, strict=True))
    network = styled(network_of(size, **options))
    with torch.no_grad():
        estimate = network.estimate(pair(size))
    weight = estimate.weight_volume
    assert weight.shape == (1, 1, *size) and estimate.velocity.shape[2:] == weight.shape[2:]
    assert weight.dtype == torch.float32 and 0 < weight.min() < weight.max() < 1


def test_default_condition_is_an_argument_and_is_stored():
    network = styled(network_of((32, 40), default_condition=0.225, **PRESETS["paper"]))
    assert network.state_dict()["default_condition"].tolist() == [[pytest.approx(0.225)]]
    with torch.no_grad():
        assert torch.equal(network(pair((32, 40))), network(pair((32, 40)), None, code_of(0.225)))


def gradients(network, size):
    torch.manual_seed(3)
    estimate = network.estimate(pair(size))
    (estimate.ddf.square().mean() + estimate.weight_volume.log().mean()).backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@each_size
def test_checkpointing_keeps_less_and_gives_the_same_gradients(size):
    kept, found = [], []
    for checkpointing in (False, True):
        network = styled(network_of(size, checkpointing=checkpointing, drop_path=0.5, **PRESETS["paper"])).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            found.append(gradients(network, size))
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6 * float(plain.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (SIZES[0], PRESETS["official"]),
        (SIZES[1], {"diffeomorphic": True, "encoder_downsample": 1, "checkpointing": True}),
    ],
    ids=["official", "diffeomorphic"],
)
def test_scripted_equals_eager_in_other_forms(size, options):
    network, image = styled(network_of(size, **options)), pair(size)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(image), network(image), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("size", [(5, 7), (33, 1), (9, 6, 13), (1, 1, 3)])
def test_small_images_are_registered(size):
    network = network_of(size, **PRESETS["paper"]).train()
    estimate = network.estimate(pair(size))
    (estimate.ddf.square().sum() + estimate.weight_volume.sum()).backward()
    assert estimate.ddf.shape == (1, len(size), *size) and estimate.ddf.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": "small"}, "size: expected one of base, large, got 'small'"),
        ({"time_steps": 0}, "time_steps: expected at least 1, got 0"),
        ({"encoder_downsample": 2, "field_downsample": 1}, "encoder_downsample, field_downsample: .*got 2 and 1"),
        ({"field_downsample": 4}, "encoder_downsample, field_downsample: .*got 2 and 4"),
        ({"conditional": "officiel"}, "conditional: expected one of paper, official.*Did you mean 'official'"),
        ({"weight_volume": "half"}, "weight_volume: expected one of paper, official, got 'half'"),
        (
            {"default_condition": 2.2, "conditional": "paper"},
            "default_condition: expected a number from 0 to 1, got 2.2",
        ),
        ({"window": (8,)}, r"window: expected 2 numbers from 1, one an axis, got \[8\]"),
        ({"heads": (3, 3)}, "heads: expected numbers that divide the channels 8"),
        ({"checkpointing": "perhaps"}, "checkpointing: expected true or false"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TransMorphTVF(2, **(TINY | wrong))


@pytest.mark.parametrize("condition", [torch.ones(1), torch.ones(2, 1), torch.ones(1, 2)], ids=str)
def test_conditions_of_another_shape_are_refused(condition):
    with pytest.raises(ValueError, match=r"condition: expected one code for each image, \(B, 1\) = \[1, 1\]"):
        network_of((32, 32), **PRESETS["paper"])(pair((32, 32)), condition=condition)


def test_conditions_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"condition: expected a code in \[0, 2.0\], got 2.2.*not a weight"):
        network_of((32, 32), **PRESETS["paper"])(pair((32, 32)), condition=code_of(2.2))
    beyond = network_of((32, 32), **PRESETS["paper"])(
        pair((32, 32)), condition=code_of(1.25)
    )  # as the published search
    assert beyond.isfinite().all()


def test_a_condition_is_refused_where_none_is_taken():
    with pytest.raises(ValueError, match="condition: TransMorph-TVF takes none.*choose a conditional architecture"):
        network_of((32, 32), weight_volume="paper")(pair((32, 32)), condition=code_of(0.5))
