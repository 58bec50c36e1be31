# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import nn

from common.engines.evaluator import RegistrationEvaluator
from common.engines.inferers import StackInferer
from common.engines.pairwise import PairwiseRegistration
from common.losses.similarity import SIMILARITIES, build_similarity
from common.spatial.fields import compose
from common.spatial.integrate import integrate_svf, resize_field
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import identity_grid, warp

SHAPES = [(33, 46), (19, 24, 16)]


def coordinates(shape):
    return identity_grid(list(shape), torch.device("cpu"))


def blobs(points, shape, seed=0, width=3.0):
    """A sum of Gaussians at random places, a closed form that can be sampled anywhere: (d, *S) -> (1, 1, *S)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(shape, dtype=torch.float32)
    total = torch.zeros(points.shape[1:])
    count = 24
    for centre in torch.rand(count, len(shape), generator=generator) * (size - 1):
        offset = points - centre.view(-1, *[1] * len(shape))
        total += torch.exp(-offset.square().sum(0) / (2 * width**2))
    return (total / 4)[None, None]


def pair(truth, seed=0):
    """Images with fixed(x) = moving(x + truth(x)), without interpolation: (1, 2, *S)."""
    shape = truth.shape[2:]
    grid = coordinates(shape)
    width = 3.0 if len(shape) == 2 else 2.5
    moving, fixed = blobs(grid, shape, seed, width), blobs(grid + truth[0], shape, seed, width)
    return torch.cat([moving, fixed], dim=1)


def translation(shape):
    return torch.tensor([2.3, -1.6, 1.2][: len(shape)]).view(1, -1, *[1] * len(shape)).expand(1, len(shape), *shape)


def affine(shape):
    """Stretch along the axes and a shear about the centre."""
    dims = len(shape)
    centre = (torch.tensor(shape) - 1.0).view(-1, *[1] * dims) / 2
    matrix = torch.diag(torch.tensor([0.12, -0.08, 0.1][:dims]))
    matrix[0, 1] = 0.06
    return torch.einsum("ij,j...->i...", matrix, coordinates(shape) - centre)[None]


def vortex(shape):
    """exp of v(x) = w(r) (x - c) turned by 90° in the first two axes: a rotation by the angle w(r), since r is kept."""
    offset = coordinates(shape)[:2] - (torch.tensor(shape[:2]) - 1.0).view(-1, *[1] * len(shape)) / 2
    squared = offset.square().sum(0)
    angle = 0.5 * torch.exp(-squared / (2 * (min(shape[:2]) / 4) ** 2))
    ddf = torch.zeros(1, len(shape), *shape)
    ddf[0, 0] = (angle.cos() - 1) * offset[0] - angle.sin() * offset[1]
    ddf[0, 1] = angle.sin() * offset[0] + (angle.cos() - 1) * offset[1]
    return ddf


def registration(**options):
    settings = {"levels": (2, 1), "steps": (30, 30), "smoothness_weight": 0.003, "integration_steps": 5}
    return PairwiseRegistration(**{"similarity": build_similarity("mse"), **settings, **options})


def textured_error(ddf, truth, fixed):
    """Mean length of ddf - truth where the fixed image has contrast: elsewhere no similarity can tell."""
    slope = torch.stack(torch.gradient(fixed[0, 0])).square().sum(0).sqrt()
    inner = torch.zeros_like(slope, dtype=torch.bool)
    inner[tuple(slice(3, -3) for _ in fixed.shape[2:])] = True
    where = inner & (slope > slope[inner].median())
    return (ddf - truth)[0].square().sum(0).sqrt()[where].mean().item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("field", [translation, affine, vortex])
def test_recovers_a_known_displacement_without_foldings(field, shape):
    truth = field(shape)
    image = pair(truth)
    ddf = registration()(image)
    assert ddf.shape == truth.shape and ddf.dtype == torch.float32
    assert textured_error(0 * truth, truth, image[:, 1:]) > 0.7
    assert textured_error(ddf, truth, image[:, 1:]) < 0.4
    assert jacobian_determinant(ddf).min() > 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_annealed_steps_settle(shape):
    image = pair(vortex(shape))
    errors = []
    for annealed in (False, True):
        ddf = registration(annealed=annealed, learning_rate=0.3)(image)
        errors.append((warp(image[:, :1], ddf, padding="border") - image[:, 1:]).square().mean().item())
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_level_that_is_not_finer_begins_a_velocity_for_the_warped_image(shape):
    image = pair(vortex(shape))
    first = registration(levels=(2, 1), steps=(20, 5))(image)
    moved = torch.cat([warp(image[:, :1], first, padding="border"), image[:, 1:]], dim=1)
    expected = compose(first, registration(levels=(2, 1), steps=(10, 10))(moved))
    found = registration(levels=(2, 1, 2, 1), steps=(20, 5, 10, 10))(image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        registration(levels=(2, 2), steps=(0, 20))(image), registration(levels=(2,), steps=(20,))(image)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_two_velocities_reach_further_than_one_under_a_strong_weight(shape):
    image, truth = pair(vortex(shape)), vortex(shape)
    options = {"smoothness_weight": 0.1}
    one = registration(levels=(2, 1), steps=(30, 60), **options)(image)
    two = registration(levels=(2, 1, 1), steps=(30, 30, 30), **options)(image)
    errors = [textured_error(ddf, truth, image[:, 1:]) for ddf in (one, two)]
    assert errors[1] < 0.85 * errors[0]
    assert jacobian_determinant(two).min() > 0.2


@pytest.mark.parametrize(
    ("levels", "tolerance"),
    # a second velocity begins with residuals near rounding errors, whose gradients Adam brings to one length
    [((2, 1), 1e-3), ((2, 2, 1), 0.05)],
)
def test_pairs_of_a_batch_do_not_influence_each_other(levels, tolerance):
    shape = SHAPES[0]
    images = torch.cat([pair(field(shape), seed) for seed, field in enumerate([translation, affine, vortex])])
    register = registration(levels=levels, steps=[15] * len(levels))
    together = register(images)
    alone = torch.cat([register(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=tolerance, rtol=0)
    assert together.abs().amax(dim=(1, 2, 3)).min() > 0.5


def test_runs_in_the_evaluator_which_disables_gradients_and_may_use_autocast():
    image = pair(affine(SHAPES[0]))
    batch = {"moving_image": image[:, :1], "fixed_image": image[:, 1:]}
    register = registration(steps=(5, 5))
    evaluator = RegistrationEvaluator("cpu", [batch], register, amp=True)
    evaluator.run()
    ddf = evaluator.state.output["ddf"]
    assert not ddf.requires_grad
    torch.testing.assert_close(ddf, register(image), atol=0, rtol=0)
    assert ddf.abs().max() > 0.1


def test_parameters_of_a_similarity_get_no_gradient():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(1.0))

        def forward(self, warped, fixed):
            return self.factor * (warped - fixed).square()

    similarity = Scaled()
    registration(similarity=similarity, steps=(2, 2))(pair(affine(SHAPES[0])))
    assert similarity.factor.grad is None


@pytest.mark.parametrize("shape", SHAPES)
def test_no_steps_give_the_identity(shape):
    assert (registration(steps=(0, 0))(pair(affine(shape))) == 0).all()


@pytest.mark.parametrize("name", sorted(SIMILARITIES))
def test_lowers_every_similarity(name):
    similarity = build_similarity(name)
    image = pair(affine(SHAPES[0]))
    ddf = registration(similarity=similarity, smoothness_weight=1e-3)(image)
    before = similarity(image[:, :1], image[:, 1:]).mean()
    after = similarity(warp(image[:, :1], ddf, padding="border"), image[:, 1:]).mean()
    assert after < before - 0.5 * (before - similarity(image[:, 1:], image[:, 1:]).mean())


def test_more_smoothness_gives_a_smaller_and_smoother_field():
    image = pair(affine(SHAPES[0]))
    free, stiff = (registration(smoothness_weight=weight)(image) for weight in (0.001, 10.0))
    assert stiff.abs().mean() < 0.5 * free.abs().mean()
    assert stiff.diff(dim=2).abs().mean() < 0.2 * free.diff(dim=2).abs().mean()


def test_smoothness_weight_means_the_same_at_every_level():
    """Where the two terms balance, coarse and fine grids agree on the size of the field: it would differ twofold and
    more if the energy were taken in voxels of the full image."""
    image = pair(vortex((49, 65)))
    sizes = [
        registration(levels=(level,), steps=(80,), smoothness_weight=0.05, smoothing=0.0)(image).square().mean().sqrt()
        for level in (1, 2)
    ]
    torch.testing.assert_close(sizes[0], sizes[1], atol=0, rtol=0.15)


@pytest.mark.parametrize("shape", SHAPES)
def test_initial_velocity_is_where_it_starts(shape):
    velocity = 0.5 * affine([math.ceil(size / 2) for size in shape])
    kept = velocity.clone()
    register = registration(steps=(0, 0))
    expected = resize_field(integrate_svf(velocity, register.integration_steps), list(shape))
    torch.testing.assert_close(register.register(pair(affine(shape)), initial=velocity), expected, atol=0, rtol=0)
    registration(levels=(1,), steps=(3,)).register(pair(affine(shape)), initial=velocity.requires_grad_())
    assert torch.equal(velocity, kept) and velocity.grad is None


@pytest.mark.parametrize("shape", SHAPES)
def test_levels_hand_the_velocity_on_unchanged(shape):
    """Linear velocities survive resampling: with steps that do not move them, they come out as they went in."""
    velocity = 0.5 * affine([math.ceil(size / 2) for size in shape])
    still = registration(levels=(4, 2, 1), steps=(1, 1, 1), learning_rate=1e-6)
    expected = resize_field(integrate_svf(velocity, still.integration_steps), list(shape))
    torch.testing.assert_close(still.register(pair(affine(shape)), initial=velocity), expected, atol=1e-4, rtol=0)


def test_refines_an_initial_velocity():
    truth = translation(SHAPES[0])
    image = pair(truth)
    near = resize_field(0.8 * truth, [17, 23])
    refined = registration(levels=(1,), steps=(15,)).register(image, initial=near)
    errors = [textured_error(ddf, truth, image[:, 1:]) for ddf in (refined, 0.8 * truth)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("name", ["mse", "lncc", "mind"])
@pytest.mark.parametrize("shape", [(2, 3), (3, 31), (17, 5), (5, 7, 3), (2, 2, 2), (33, 4, 9)])
def test_any_size_is_registered(shape, name):
    image = torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    ddf = registration(similarity=build_similarity(name), levels=(4, 2, 1), steps=(3, 3, 3))(image)
    assert ddf.shape == (2, len(shape), *shape) and ddf.isfinite().all()
    # On a grid of corners alone nothing moves: the border's value lies beyond them.
    assert ddf.abs().max() > 0 or max(shape) == 2


@pytest.mark.parametrize(("axis", "shape"), [(2, (33, 46, 1)), (0, (1, 33, 46))])
def test_a_volume_of_one_slice_is_registered_as_the_slice_is(axis, shape):
    image = pair(vortex(SHAPES[0]))
    expected = registration()(image)
    # The energy is a mean over axes and channels: of a field in the plane, 4/9 of what it is in 2D.
    ddf = registration(smoothness_weight=0.003 * 9 / 4)(image.unsqueeze(axis + 2))
    in_plane = [i for i in range(3) if i != axis]
    assert ddf.shape == (1, 3, *shape)
    torch.testing.assert_close(ddf.select(axis + 2, 0)[:, in_plane], expected, atol=0.05, rtol=0)
    assert ddf[:, axis].abs().max() < 1e-4


def test_images_of_one_voxel_do_not_move():
    assert (registration()(torch.rand(1, 2, 1, 1)) == 0).all()


def test_a_stack_is_registered_slice_by_slice():
    slices = [pair(field(SHAPES[0]), seed) for seed, field in enumerate([translation, affine, vortex])]
    register = registration(steps=(10, 10))
    stack = StackInferer(batch_size=2)(torch.stack(slices, dim=-1), register)
    assert stack.shape == (1, 2, *SHAPES[0], 3)
    for index, image in enumerate(slices):
        torch.testing.assert_close(stack[..., index], register(image), atol=1e-3, rtol=0)


def test_a_sum_of_similarities_registers_images_of_other_contrast():
    """MIND sees through the inversion that the squared error minimises by pushing everything away."""
    truth = vortex(SHAPES[0])
    image = pair(truth)
    image[:, 1:] = image[:, 1:].max() - image[:, 1:]
    ddf = registration(similarity=build_similarity("mind"), smoothness_weight=0.01)(image)
    assert textured_error(ddf, truth, image[:, 1:]) < 0.5 * textured_error(0 * truth, truth, image[:, 1:])
    assert jacobian_determinant(ddf).min() > 0.2


class BreaksAt(nn.Module):
    """Mean squared error until a call, NaN from then on."""

    def __init__(self, call):
        super().__init__()
        self.left = call

    def forward(self, warped, fixed):
        self.left -= 1
        return (warped - fixed).square() * (1.0 if self.left > 0 else torch.nan)


def test_loss_that_is_not_finite_is_an_error_that_says_where():
    with pytest.raises(RuntimeError, match="level 1, step 3 of 5; check the images"):
        registration(similarity=BreaksAt(7), steps=(4, 5))(pair(affine(SHAPES[0])))


class BrokenGradient(nn.Module):
    """A finite value whose derivative is NaN where the images agree: 0 / 0 at the root of 0."""

    def forward(self, warped, fixed):
        return (warped - fixed).square().sqrt()


@pytest.mark.parametrize(("steps", "where"), [(1, "velocity is not finite at level 1, step 1"), (5, "loss .* step 2")])
def test_field_broken_by_a_step_is_an_error(steps, where):
    with pytest.raises(RuntimeError, match=f"{where} of {steps}; .*lower learning_rate"):
        registration(similarity=BrokenGradient(), levels=(1,), steps=(steps,))(torch.ones(1, 2, 9, 12))


def test_initial_velocity_that_is_not_finite_is_an_error():
    initial = torch.zeros(1, 2, 5, 6)
    initial[0, 1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="initial: expected finite velocities, got 1 value.*start without it"):
        registration(steps=(0, 0)).register(torch.ones(1, 2, 9, 12), initial=initial)


def test_images_that_are_not_finite_are_an_error():
    image = pair(affine(SHAPES[0]))
    image[0, 1, 12, 20] = torch.inf
    with pytest.raises(RuntimeError, match="loss is not finite at level 2, step 1 of 30; check the images"):
        registration()(image)


@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (1, 3, 9, 9), (2, 2, 9), (1, 2, 9, 0)])
def test_image_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"image: expected cat\(moving, fixed\).*use torch.cat"):
        registration()(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2, 5, 5), (2, 3, 5, 5), (2, 2, 5), (2, 2, 5, 1)])
def test_initial_velocity_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="initial: expected a velocity .*give one field a pair"):
        registration().register(torch.zeros(2, 2, 9, 9), initial=torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (2, 1), "steps": (5,)}, "levels, steps: expected one number of steps"),
        ({"levels": (), "steps": ()}, "levels, steps"),
        ({"levels": (2, 0)}, "levels, steps"),
        ({"steps": (2, -1)}, "levels, steps"),
        ({"smoothness_weight": -1.0}, "smoothness_weight: expected a number from 0"),
        ({"smoothness_weight": math.nan}, "smoothness_weight"),
        ({"smoothness_weight": "much"}, "smoothness_weight: expected a number from 0, got 'much'"),
        ({"learning_rate": "slow"}, "learning_rate: expected a number above 0, got 'slow'"),
        ({"smoothing": -0.5}, "smoothing"),
        ({"velocity_downsample": 0}, "velocity_downsample: expected a whole number from 1"),
        ({"integration_steps": 0}, "integration_steps"),
        ({"integration_steps": "7"}, "integration_steps: expected a whole number from 1, got '7'"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
        ({"learning_rate": math.inf}, "learning_rate: expected a number above 0"),
    ],
)
def test_option_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        registration(**options)
