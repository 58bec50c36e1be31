# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from torch import nn

from common.networks.convolution import convolve_up
from common.networks.diffusemorph import DiffuseMorph
from common.networks.noise_schedule import NoiseSchedule
from tests.networks.test_registry import SMALL

NARROW = SMALL["diffusemorph"]
SIZES = [(24, 20), (12, 16, 10)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def network_of(dims, **options):
    torch.manual_seed(0)
    return DiffuseMorph(dims, **(NARROW | options)).eval()


def images(size, batch=2):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dims", "diffusion", "field"), [(2, 15_936_129, 74_736_258), (3, 715_665, 361_299)])
def test_published_parameter_counts(dims, diffusion, field):
    with torch.device("meta"):
        network = DiffuseMorph(dims)
    counts = [sum(p.numel() for p in part.parameters()) for part in (network.diffusion, network.field)]
    assert counts == [diffusion, field]


@pytest.mark.parametrize(("dims", "weight"), [(2, 0.5), (3, 0.05)])
def test_the_published_weight_of_the_noise_is_one_over_lambda(dims, weight):
    assert network_of(dims).noise_weight == weight and network_of(dims, noise_weight=3).noise_weight == 3


def test_published_initial_weights_are_orthogonal_and_normal():
    network = network_of(2, channels=16, field_encoder=(16, 32, 32), field_decoder=(32, 32, 16))
    for module in network.diffusion.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight.flatten(1)
            gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
            torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
            assert module.bias is None or not module.bias.any()
    drawn = torch.cat([p.flatten() for name, p in network.field.named_parameters() if name.endswith("weight")])
    drawn = drawn.detach()
    assert drawn.std() == pytest.approx(0.02, rel=0.02) and abs(drawn.mean()) < 5e-4
    assert not any(p.any() for name, p in network.field.named_parameters() if name.endswith("bias"))


def test_the_schedule_is_linear_and_ends_in_noise():
    """Closed form: ᾱ_T = Π (1 − β_t), the product of T factors between 1 − β_1 and 1 − β_T."""
    schedule = network_of(2).schedule
    products = (1 - torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(schedule.signal.square().double(), products, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(schedule.noise.square().double(), 1 - products, atol=0, rtol=1e-6)
    mean = (1e-6 + 1e-2) / 2  # log ᾱ_T = −Σ β − Σ β²/2 − …, Σ β = T (β_1 + β_T)/2
    assert products[-1].log() == pytest.approx(-2000 * mean, rel=0.01) and schedule.signal[-1] < 0.01


@pytest.mark.parametrize("step", [0, 1, 40, 199])
def test_a_step_back_agrees_with_monais_but_for_its_rounding(step):
    """MONAI's tables are float32: with a larger first β, where that does not matter, both are the same."""
    ours, monais = NoiseSchedule(200, 1e-3, 2e-2), DDPMScheduler(200, beta_start=1e-3, beta_end=2e-2)
    current, noise = torch.randn(2, 1, 5, 6), torch.randn(2, 1, 5, 6)
    seed = torch.random.get_rng_state()
    expected, _ = monais.step(noise, step, current)
    torch.random.set_rng_state(seed)
    torch.testing.assert_close(ours.denoise(current, noise, step, -1, 1), expected, atol=1e-4, rtol=1e-4)
    steps = torch.tensor([step, 7])
    diffused = ours.diffuse(current, noise, steps)
    torch.testing.assert_close(diffused, monais.add_noise(current, noise, steps), atol=1e-4, rtol=1e-4)


@each_size
@pytest.mark.parametrize("step", [0, 300, 1999])
def test_the_diffused_image_has_the_closed_forms_mean_and_variance(size, step, monkeypatch):
    """F_t = √ᾱ F + √(1 − ᾱ) ε: its mean is √ᾱ F and its variance 1 − ᾱ."""
    network, seen = network_of(len(size)).train(), []
    monkeypatch.setattr(torch, "randint", lambda high, shape, device: torch.full(shape, step))
    network.diffusion.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    image = torch.rand(1, 2, *size).expand(64, -1, *[-1] * len(size))
    with torch.no_grad():
        network.estimate(image)
    (inputs, steps), product = seen[0], float((1 - torch.linspace(1e-6, 1e-2, 2000).double())[: step + 1].prod())
    symmetric = 2 * image - 1
    assert torch.equal(inputs[:, :2], symmetric) and (steps == step).all()
    rest = inputs[:, 2:] - product**0.5 * symmetric[:, 1:]
    spread = (1 - product) ** 0.5
    assert rest.std() == pytest.approx(spread, rel=0.02)
    assert abs(rest.mean()) < 4 * spread / rest.numel() ** 0.5


def test_steps_are_drawn_from_all():
    network, seen = network_of(2, diffusion_steps=4).train(), []
    network.diffusion.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    with torch.no_grad():
        network.estimate(torch.rand(200, 2, 4, 4))
    counts = torch.bincount(seen[0], minlength=4)
    assert len(counts) == 4 and counts.min() > 30


@each_size
def test_draws_are_those_of_torchs_generator(size):
    network = network_of(len(size)).train()
    estimates = []
    with torch.no_grad():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            estimates.append(network.estimate(images(size)))
    assert torch.equal(estimates[0].ddf, estimates[1].ddf)
    assert torch.equal(estimates[0].noise_error, estimates[1].noise_error)
    assert not torch.equal(estimates[0].noise_error, estimates[2].noise_error)


@each_size
def test_training_registers_from_the_predicted_noise_and_returns_its_error(size, monkeypatch):
    network, image, seen = network_of(len(size)).train(), images(size), []
    drawn = torch.randn(2, 1, *size)
    monkeypatch.setattr(torch, "randn_like", lambda x: drawn)
    network.diffusion.register_forward_hook(lambda _, arguments, output: seen.append(output))
    with torch.no_grad():
        estimate = network.estimate(image, torch.full((2, 1), 0.5))
        ddf = network.field(torch.cat([2 * image[:, :1] - 1, 0.5 * seen[0]], dim=1))
    torch.testing.assert_close(estimate.noise_error, (seen[0] - drawn).square())
    assert estimate.noise_error.shape == (2, 1, *size)
    torch.testing.assert_close(estimate.ddf, ddf)
    assert estimate.velocity is estimate.ddf


@each_size
def test_in_eval_mode_nothing_is_drawn_and_there_is_no_error(size):
    network, before = network_of(len(size)), torch.random.get_rng_state()
    with torch.no_grad():
        assert network.estimate(images(size)).noise_error is None
    assert torch.equal(torch.random.get_rng_state(), before)


@each_size
def test_gradients_of_noise_and_displacement_reach_both_networks(size):
    network = network_of(len(size)).train()
    estimate = network.estimate(images(size))
    parts = {"diffusion": network.diffusion.stem.weight, "field": network.field.last.weight}
    from_error = torch.autograd.grad(
        estimate.noise_error.mean(), [*parts.values()], retain_graph=True, allow_unused=True
    )
    assert from_error[0].any() and from_error[1] is None
    from_ddf = torch.autograd.grad(estimate.ddf.square().mean(), [*parts.values()])
    assert from_ddf[0].any() and from_ddf[1].any()


@each_size
def test_under_autocast_the_error_stays_float32_and_close(size):
    network, estimates = network_of(len(size)).train(), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            estimates.append(network.estimate(images(size)))
    plain, mixed = estimates
    assert mixed.ddf.dtype == mixed.noise_error.dtype == torch.float32
    torch.testing.assert_close(mixed.noise_error.mean(), plain.noise_error.mean(), atol=0, rtol=0.02)
    (mixed.ddf.mean() + mixed.noise_error.mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@each_size
def test_the_trajectory_holds_the_displacement_of_every_condition(size):
    network, image, runs = network_of(len(size)), images(size), []
    network.diffusion.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        trajectory = network.trajectory(image, steps=5)
        assert len(runs) == 1 and trajectory.shape == (5, 2, len(size), *size)
        for ddf, eta in zip(trajectory, (0.0, 0.25, 0.5, 0.75, 1.0), strict=True):
            torch.testing.assert_close(ddf, network(image, condition=torch.full((2, 1), eta)), atol=1e-7, rtol=1e-4)
    assert not torch.equal(trajectory[0], trajectory[-1])


@each_size
@pytest.mark.parametrize("intensity_range", ["symmetric", "unit"])
def test_generation_with_a_perfect_network_ends_at_the_fixed_image(size, intensity_range, monkeypatch):
    """Where ε̂ is the noise that leads from F to the current image, its every step points at F."""
    network, image = network_of(len(size), intensity_range=intensity_range), images(size)
    products = (1 - torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)).cumprod(0)

    def perfect(x, step):
        product = float(products[step[0]])
        return (x[:, 2:] - product**0.5 * x[:, 1:2]) / (1 - product) ** 0.5

    monkeypatch.setattr(network.diffusion, "forward", perfect)
    torch.testing.assert_close(network.generate(image, steps=20), image[:, 1:], atol=1e-5, rtol=0)


def test_generation_of_few_steps_stays_near_the_moving_image_and_in_range():
    network, image = network_of(2), images((24, 20))
    torch.manual_seed(0)
    first = network.generate(image, steps=1)
    assert first.shape == (2, 1, 24, 20) and not first.requires_grad
    torch.testing.assert_close(first, image[:, :1], atol=0.02, rtol=0)
    last = network.generate(image, steps=30)
    assert last.min() >= 0 and last.max() <= 1


@each_size
def test_scripted_networks_are_saved_and_register_in_either_mode(size, tmp_path):
    network, image = network_of(len(size)), images(size)
    torch.jit.script(network).save(tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    with torch.no_grad():
        expected = network(image)
        for mode in (True, False):
            torch.testing.assert_close(loaded.train(mode)(image), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(5,), (4, 6), (1, 3)], ids=str)
def test_transposed_convolution_of_three_taps_is_torchs(size):
    size = size if len(size) > 1 else (5, 4, 3)
    x, flat = torch.randn(2, 3, *size, dtype=torch.float64), len(size) == 2
    layer = (nn.ConvTranspose2d if flat else nn.ConvTranspose3d)(
        3, 2, 3, stride=2, padding=1, output_padding=1
    ).double()
    expected = layer(x)
    torch.testing.assert_close(convolve_up(x, layer.weight, layer.bias, list(expected.shape[2:])), expected)
    cut = [n - 1 for n in expected.shape[2:]]
    torch.testing.assert_close(convolve_up(x, layer.weight, layer.bias, cut), expected[(..., *map(slice, cut))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 6}, "channels, multipliers, groups: .*got channels 6"),
        ({"groups": 3}, "channels, multipliers, groups: .*groups 3"),
        ({"multipliers": ()}, "channels, multipliers, groups: .*multipliers"),
        ({"field_encoder": (4,), "field_decoder": (4,)}, "field_encoder, field_decoder: .*at least two"),
        ({"field_decoder": (4, 4)}, "field_encoder, field_decoder: expected as many widths"),
        ({"diffusion_steps": 0}, "diffusion_steps, .*got 0"),
        ({"beta_start": 0.1}, "beta_start, beta_end: .*got 2000, 0.1"),
        ({"intensity_range": "symetric"}, "intensity_range: .*Did you mean 'symmetric'"),
    ],
)
def test_constants_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network_of(2, **options)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_conditions_outside_0_to_1_are_refused(eta):
    with pytest.raises(ValueError, match=r"condition: expected one η in \[0, 1\]"):
        network_of(2)(images((24, 20)), condition=torch.full((2, 1), eta))


@pytest.mark.parametrize(("method", "steps"), [("trajectory", 1), ("generate", 0), ("generate", 2001)])
def test_numbers_of_steps_out_of_range_are_refused(method, steps):
    with pytest.raises(ValueError, match=f"steps: expected .*got {steps}"):
        getattr(network_of(2), method)(images((24, 20)), steps=steps)
