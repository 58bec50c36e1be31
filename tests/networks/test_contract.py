# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from common.networks.contract import Estimate, chunk, join, pair_image, refuse_condition


class Other(NamedTuple):
    """A named tuple that the contract has never heard of."""

    ddf: Tensor
    levels: list[Tensor] | None = None
    extra: Other | None = None


def tensors(batch: int, seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 2, 5 + i, 7, generator=generator) for i in range(count)]


def bare(batch: int, seed: int) -> Estimate:
    return Estimate(*tensors(batch, seed, 2))


def full(batch: int, seed: int) -> Estimate:
    first, second, third, fourth, *levels = tensors(batch, seed, 7)
    return Estimate(first, second, third, fourth, levels)


def partial(batch: int, seed: int) -> Estimate:
    first, second, *levels = tensors(batch, seed, 4)
    return Estimate(first, second, coarser=levels)


def other(batch: int, seed: int) -> Other:
    first, second, third = tensors(batch, seed, 3)
    return Other(first, [second], Other(third))


def assert_equal(ours: object, expected: object) -> None:
    assert type(ours) is type(expected)
    if isinstance(expected, Tensor):
        assert torch.equal(ours, expected)
    elif expected is not None:
        assert len(ours) == len(expected)
        for one, another in zip(ours, expected, strict=True):
            assert_equal(one, another)


each_kind = pytest.mark.parametrize("kind", [bare, full, partial, other])


@each_kind
def test_chunks_of_what_was_joined_are_what_there_was(kind) -> None:
    parts = [kind(3, seed) for seed in range(4)]
    whole = join(parts)
    assert len(whole.ddf) == 12
    for part, expected in zip(chunk(whole, 4), parts, strict=True):
        assert_equal(part, expected)


def test_batches_of_different_sizes_are_joined_in_their_order() -> None:
    first, second = full(1, 0), full(3, 1)
    joined = join([first, second])
    assert torch.equal(joined.ddf, torch.cat([first.ddf, second.ddf]))
    assert torch.equal(joined.coarser[2], torch.cat([first.coarser[2], second.coarser[2]]))


def test_one_estimate_is_not_copied() -> None:
    estimate = partial(2, 0)
    assert join([estimate]) is estimate


def test_gradient_flows_through_both() -> None:
    parts = [Estimate(*(torch.ones(1, 2, 4, 4, requires_grad=True) for _ in range(2))) for _ in range(2)]
    (chunk(join(parts), 2)[1].ddf * 3).sum().backward()
    assert not parts[0].ddf.grad.any() and (parts[1].ddf.grad == 3).all()


@pytest.mark.parametrize(("one", "another"), [(bare, partial), (full, partial), (bare, other)])
def test_estimates_of_different_entries_are_refused(one, another) -> None:
    with pytest.raises(ValueError, match="join: expected estimates with the same entries"):
        join([one(2, 0), another(2, 0)])


def test_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chunk: expected batches that 2 divides, got \[3, 3\]"):
        chunk(bare(3, 0), 2)


def test_pair_is_concatenated_where_fixed_is_given() -> None:
    moving, fixed = torch.rand(2, 3, 1, 5, 7)
    assert torch.equal(pair_image(moving, fixed), torch.cat([moving, fixed], dim=1))
    assert pair_image(moving, None) is moving


def test_condition_is_refused_with_the_network_and_the_remedy() -> None:
    refuse_condition(None, "Mine")
    with pytest.raises(ValueError, match="condition: Mine takes none.*choose a conditional architecture"):
        refuse_condition(torch.ones(1), "Mine")


class Levels(nn.Module):
    """Fills some of the optional entries, as networks to come will."""

    def forward(self, image: Tensor) -> tuple[Tensor, Estimate]:
        estimate = Estimate(image, 2 * image, None, None, [image, 3 * image])
        coarser = estimate.coarser
        return (image if coarser is None else coarser[1]), estimate


def test_estimate_can_be_scripted_whatever_it_holds() -> None:
    image = torch.rand(1, 2, 4, 4)
    second, estimate = torch.jit.script(Levels())(image)
    assert torch.equal(second, 3 * image) and torch.equal(estimate.velocity, 2 * image)
    assert estimate.weight_volume is None and len(estimate.coarser) == 2
