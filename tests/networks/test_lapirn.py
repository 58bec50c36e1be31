# SPDX-License-Identifier: Apache-2.0
import io

import pytest
import torch

from common.networks.lapirn import LapIRN
from common.spatial.integrate import integrate_svf, resize_field

SIZES = [(32, 48), (27, 30), (16, 32, 19)]
each_size = pytest.mark.parametrize("size", SIZES)


def pair(size, batch=2):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


def network_of(size, channels=2, conditional=True, **options):
    torch.manual_seed(0)
    return LapIRN(len(size), channels, conditional=conditional, **options).eval()


@pytest.mark.parametrize(
    ("dims", "conditional", "counts"),
    [
        (3, True, [405_844, 813_956, 1_222_068]),
        (2, True, [8_924_736, 17_854_080, 26_783_424]),
        (3, False, [306_404, 615_076, 923_748]),
    ],
)
def test_levels_have_the_published_numbers_of_parameters(dims, conditional, counts):
    with torch.device("meta"):
        network = LapIRN(dims, conditional=conditional)
    sizes = [sum(p.numel() for p in network.levels[:number].parameters()) for number in (1, 2, 3)]
    assert sizes == counts and sizes[-1] == sum(p.numel() for p in network.parameters())


@each_size
def test_flow_ends_at_its_range_and_levels_add_up(size):
    """A head that saturates moves by 0.4 of half the extent a level, in the order of the axes."""
    network = network_of(size)
    signs = torch.tensor([1.0, -1.0, 1.0][: len(size)])
    with torch.no_grad():
        for level in network.levels:
            level.head[0].weight.zero_()
            level.head[1].weight.zero_()
        assert not network(pair(size)).any()
        flow = 1e9 * signs.view(1, -1, *[1] * len(size))
        handles = [
            level.register_forward_hook(lambda _, __, out: (torch.nn.functional.softsign(flow + out[0]), out[1]))
            for level in network.levels
        ]
        for number in (1, 2, 3):
            network.run_levels(number)
            expected = number * 0.2 * signs * (torch.tensor(size) - 1.0)
            torch.testing.assert_close(network(pair(size)).amax(dim=list(range(2, len(size) + 2)))[0], expected)
    for handle in handles:
        handle.remove()


@each_size
def test_levels_that_do_not_run_are_not_computed(size):
    network, called = network_of(size), []
    for number, level in enumerate(network.levels):
        level.register_forward_hook(lambda *_, number=number: called.append(number))
    grids = [tuple(-(-n // factor) for n in size) for factor in (4, 2, 1)]
    for running in (1, 2, 3):
        network.run_levels(running)
        called.clear()
        estimate = network.estimate(pair(size))
        assert called == list(range(running))
        assert tuple(estimate.velocity.shape[2:]) == grids[running - 1]
        assert [tuple(field.shape[2:]) for field in estimate.coarser] == grids[: min(running, 2)]
        finest = [*estimate.coarser, estimate.ddf][running - 1]
        assert torch.equal(finest, estimate.velocity)
        torch.testing.assert_close(estimate.ddf, resize_field(finest, list(size)))


def test_lower_levels_do_not_depend_on_how_many_run():
    network, image = network_of((27, 30)), pair((27, 30))
    with torch.no_grad():
        whole = network.estimate(image).coarser
        for running in (1, 2):
            network.run_levels(running)
            for field, expected in zip(network.estimate(image).coarser, whole[:running], strict=True):
                assert torch.equal(field, expected)


def test_number_of_levels_is_stored_with_the_weights():
    first, second = network_of((16, 16)), network_of((16, 16))
    first.run_levels(1)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.running == 1 and torch.equal(second(pair((16, 16))), first(pair((16, 16))))


@pytest.mark.parametrize(("running", "options"), [(1, {}), (2, {}), (3, {"conditional": False, "diffeomorphic": True})])
def test_scripted_equals_eager_in_every_form(running, options):
    network = network_of((27, 30), blocks=1, **options)
    network.run_levels(running)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(pair((27, 30))), network(pair((27, 30))))


@each_size
def test_diffeomorphic_form_integrates_the_sum_of_the_flows(size):
    network = network_of(size, conditional=False, diffeomorphic=True)
    with torch.no_grad():
        estimate = network.estimate(pair(size))
        torch.testing.assert_close(estimate.ddf, integrate_svf(estimate.velocity, 7))
    assert not torch.allclose(estimate.ddf, estimate.velocity, atol=1e-3)


@each_size
def test_code_changes_the_field_and_each_image_has_its_own(size):
    network, image = network_of(size), pair(size)
    with torch.no_grad():
        both = network(image, None, torch.tensor([[0.0], [1.0]]))
        for number, code in ((0, 0.0), (1, 1.0)):
            alone = network(image[number : number + 1], None, torch.tensor([[code]]))
            torch.testing.assert_close(both[number : number + 1], alone, atol=1e-4, rtol=1e-3)
        assert (network(image[1:], None, torch.tensor([[0.0]])) - both[1:]).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "default"), [((16, 24), 0.1), ((8, 8, 12), 0.4)])
def test_default_is_the_published_code_and_is_stored(size, default):
    network, image = network_of(size), pair(size)
    assert network.state_dict()["default_condition"].tolist() == [[pytest.approx(default)]]
    with torch.no_grad():
        assert torch.equal(network(image), network(image, None, torch.full((2, 1), default)))
        network.default_condition.fill_(0.9)
        assert torch.equal(network(image), network(image, None, torch.full((2, 1), 0.9)))


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (2, 1, 7), (4, 4, 1)])
@pytest.mark.parametrize("conditional", [True, False])
def test_smallest_grids_are_taken(size, conditional):
    network = network_of(size, conditional=conditional).train()
    ddf = network(pair(size))
    ddf.square().sum().backward()
    assert ddf.shape == (2, len(size), *size) and ddf.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (torch.ones(1), r"condition: expected one code for each image, \(B, 1\) = \[2, 1\], got \[1\]"),
        (torch.ones(2, 2), r"condition: expected one code for each image, \(B, 1\) = \[2, 1\], got \[2, 2\]"),
        (torch.tensor([[0.5], [10.0]]), r"condition: expected a code in \[0, 1.0\], got 0.5 to 10.0; it is a share"),
    ],
)
def test_conditions_that_are_no_codes_are_refused(condition, message):
    with pytest.raises(ValueError, match=message):
        network_of((16, 16))(pair((16, 16)), None, condition)


@pytest.mark.parametrize("number", [0, 4])
def test_other_numbers_of_levels_are_refused(number):
    with pytest.raises(ValueError, match=f"levels: expected 1 to 3, got {number}"):
        network_of((16, 16)).run_levels(number)


@pytest.mark.parametrize("options", [{"start_channels": 0}, {"blocks": 0}, {"flow_range": 0.0}])
def test_numbers_that_are_not_above_0_are_refused(options):
    with pytest.raises(ValueError, match="start_channels, blocks, flow_range: expected numbers above 0"):
        LapIRN(2, **options)
