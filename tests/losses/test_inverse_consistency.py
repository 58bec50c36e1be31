# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from common.losses import inverse_consistency
from common.losses.inverse_consistency import KINDS, PRESETS, InverseConsistencyPenalty
from common.spatial.inversion import invert

SHAPES = [(8, 14), (6, 12, 8)]  # even: no sub-sampled point is on the far border
every_kind = pytest.mark.parametrize("kind", KINDS)
every_preset = pytest.mark.parametrize("preset", PRESETS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def random_fields(shape, batch=2, scale=1.5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, batch, len(shape), *shape, generator=generator, dtype=torch.float64)).to(dtype)


def contractions(dims, seed=1):
    """Two matrices that map the cube about its centre into itself: rows of absolute sum below 1."""
    generator = np.random.default_rng(seed)
    matrices = 0.5 * np.eye(dims) + generator.uniform(-0.45, 0.45, (2, dims, dims)) / dims
    assert np.abs(matrices).sum(axis=2).max() < 1
    return matrices


def affine(shape, matrix):
    """Voxel displacement of x -> c + matrix (x - c) in the unit cube, c its centre: (1, d, *S)."""
    unit = np.stack(np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij"))
    moved = np.einsum("ij,j...->i...", matrix - np.eye(len(shape)), unit)
    return torch.from_numpy(moved * (np.array(shape) - 1.0).reshape(-1, *[1] * len(shape)))[None]


def translation(shape, voxels):
    return torch.tensor(voxels[: len(shape)]).view(1, -1, *[1] * len(shape)).expand(2, len(shape), *shape).clone()


def scipy_error(points, ab, ba):
    """Displacement of Φ_AB ∘ Φ_BA at points (d, …) in the unit cube, of one pair of arrays (d, *S)."""
    inner = np.stack([map_coordinates(c, points, order=1, mode="nearest") for c in ba])
    outer = np.stack([map_coordinates(c, points + inner, order=1, mode="nearest") for c in ab])
    size = np.array(ab.shape[1:]) - 1.0
    return (inner + outer) / size.reshape(-1, *[1] * (points.ndim - 1))


@every_kind
@every_preset
@every_shape
def test_identity_costs_nothing(shape, preset, kind):
    ab, ba = torch.zeros(2, 2, len(shape), *shape, requires_grad=True)
    penalty = InverseConsistencyPenalty(kind, preset)(ab, ba)
    assert penalty.shape == () and penalty.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(penalty, (ab, ba)))


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_pair_costs_the_squared_norm_of_identity_minus_its_product(shape, dtype, monkeypatch):
    monkeypatch.setattr(inverse_consistency, "JITTER", 0.0)  # points beyond the grid see no affine map
    dims = len(shape)
    a, b = contractions(dims)
    ab, ba = affine(shape, a).to(dtype), affine(shape, b).to(dtype)
    one = np.square(np.eye(dims) - a @ b).sum() / dims
    other = np.square(np.eye(dims) - b @ a).sum() / dims
    assert abs(one - other) > 5e-4
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    released, paper = (InverseConsistencyPenalty("gradicon", preset) for preset in ("released", "paper_v1"))
    assert released(ab, ba).item() == pytest.approx(one, rel=tolerance)
    assert released(ba, ab).item() == pytest.approx(other, rel=tolerance)
    assert paper(ab, ba).item() == pytest.approx(one + other, rel=tolerance)


@every_shape
def test_icon_of_an_affine_pair_is_its_mean_squared_displacement(shape, monkeypatch):
    monkeypatch.setattr(inverse_consistency, "JITTER", 0.0)
    a, b = contractions(len(shape))
    ab, ba = affine(shape, a), affine(shape, b)
    axes = [np.linspace(-0.5, 0.5, n) for n in shape]

    def expected(product, stride):
        points = np.stack(np.meshgrid(*(axis[::stride] for axis in axes), indexing="ij"))
        return np.square(np.einsum("ij,j...->i...", product - np.eye(len(shape)), points)).mean()

    assert InverseConsistencyPenalty("icon", "released")(ab, ba).item() == pytest.approx(expected(a @ b, 2), rel=1e-9)
    both = expected(a @ b, 1) + expected(b @ a, 1)
    assert InverseConsistencyPenalty("icon")(ab, ba).item() == pytest.approx(both, rel=1e-9)


@every_preset
@every_shape
def test_translation_costs_nothing_in_gradicon_and_its_square_in_icon(shape, preset):
    ab, ba = translation(shape, [1.5, -2.25, 0.75]), translation(shape, [0.5, 1.0, 2.0])
    unit = (ab + ba)[0].flatten(1)[:, 0] / (torch.tensor(shape) - 1.0)
    orders = 2 if preset == "paper_v1" else 1
    assert InverseConsistencyPenalty("gradicon", preset)(ab, ba).item() == pytest.approx(0, abs=1e-7)
    expected = orders * unit.square().mean().item()
    assert InverseConsistencyPenalty("icon", preset)(ab, ba).item() == pytest.approx(expected, rel=1e-5)


@every_kind
@every_shape
def test_paper_agrees_with_scipy_in_both_orders(shape, kind):
    ab, ba = random_fields(shape)
    points = np.indices(shape).astype(float)
    expected = []
    for first, second in [*zip(ab.numpy(), ba.numpy(), strict=True), *zip(ba.numpy(), ab.numpy(), strict=True)]:
        error = scipy_error(points, first, second)
        if kind == "icon":
            expected.append(np.square(error).mean())
        else:
            steps = [np.diff(error, axis=1 + j) * (n - 1) for j, n in enumerate(shape)]
            expected.append(sum(np.square(step).mean() for step in steps))
    value = InverseConsistencyPenalty(kind, "paper_v1")(ab, ba)
    assert value.item() == pytest.approx(2 * np.mean(expected), rel=1e-9)


@every_kind
@pytest.mark.parametrize("shape", [(9, 14), (6, 7, 8)])
def test_released_agrees_with_scipy_at_its_random_points(shape, kind):
    dims, ab_ba = len(shape), random_fields(shape)
    nodes = np.stack(np.meshgrid(*(np.arange(0, n, 2) for n in shape), indexing="ij")).reshape(dims, -1)
    noise = torch.randn(2, *nodes.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    expected = []
    for moved, ab, ba in zip(nodes + 2 * noise, *ab_ba.numpy(), strict=True):
        error = scipy_error(moved, ab, ba)
        if kind == "icon":
            expected.append(np.square(error).mean())
            continue
        steps = 0.001 * np.diag(np.array(shape) - 1.0)
        slopes = [(scipy_error(moved + step[:, None], ab, ba) - error) / 0.001 for step in steps]
        expected.append(sum(np.square(slope).mean() for slope in slopes))
    value = InverseConsistencyPenalty(kind, "released")(*ab_ba, generator=torch.Generator().manual_seed(5))
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-7)


@every_kind
@every_preset
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3)])
def test_gradient(shape, preset, kind):
    ab, ba = random_fields(shape, scale=0.6, seed=2).clone().requires_grad_()

    def penalty(*fields):  # the same points every time
        return InverseConsistencyPenalty(kind, preset)(*fields, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(penalty, (ab, ba), atol=1e-6, rtol=1e-4)


@every_kind
def test_a_field_and_its_inverse_cost_little(kind):
    shape = (24, 30)
    grid = np.stack(np.meshgrid(*(np.linspace(0, np.pi, n) for n in shape), indexing="ij"))
    bump = torch.from_numpy(2.0 * np.sin(grid[0]) ** 2 * np.sin(grid[1]) ** 2)
    ddf = torch.stack([bump, -bump])[None]
    inverse = invert(ddf)
    for preset in PRESETS:
        penalty = InverseConsistencyPenalty(kind, preset)
        assert penalty(ddf, inverse) < 0.05 * penalty(ddf, ddf)
        assert penalty(ddf, ddf) > 0


@every_kind
def test_points_come_from_the_global_generator_or_the_one_given(kind):
    ab, ba = random_fields((10, 12), dtype=torch.float32)
    penalty = InverseConsistencyPenalty(kind, "released")
    torch.manual_seed(7)
    first, second = penalty(ab, ba), penalty(ab, ba)
    state = torch.get_rng_state()
    given = [penalty(ab, ba, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(penalty(ab, ba), first)
    assert first != second and given[0] == given[1] != first


@every_kind
@every_preset
def test_low_precision_and_autocast_are_computed_in_float32(preset, kind):
    ab, ba = random_fields((10, 12), dtype=torch.bfloat16)
    penalty = InverseConsistencyPenalty(kind, preset)
    expected = penalty(ab.float(), ba.float(), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = penalty(ab, ba, generator=torch.Generator().manual_seed(0))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, atol=0, rtol=1e-6)


@every_preset
def test_fields_that_do_not_fit_are_refused(preset):
    penalty = InverseConsistencyPenalty(preset=preset)
    with pytest.raises(ValueError, match=r"expected one shape .*\(1, 2, 8, 9\) and \(1, 2, 9, 8\).*resize_field"):
        penalty(torch.zeros(1, 2, 8, 9), torch.zeros(1, 2, 9, 8))
    for shape in [(1, 3, 8, 9), (1, 2, 8, 1), (2, 8, 9), (1, 1, 9)]:
        with pytest.raises(ValueError, match="at least 2 voxels, got .*channel axis"):
            penalty(torch.zeros(shape), torch.zeros(shape))


def test_unknown_kind_and_preset_are_refused():
    with pytest.raises(ValueError, match="kind: expected one of gradicon, icon, got 'grad'"):
        InverseConsistencyPenalty("grad")
    with pytest.raises(ValueError, match="preset: expected one of paper_v1, released, got 'paper'"):
        InverseConsistencyPenalty(preset="paper")
