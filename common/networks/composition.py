# SPDX-License-Identifier: Apache-2.0
"""Operators that compose displacement networks into a coarse-to-fine chain, as ICON and GradICON do."""

import re
from collections.abc import Mapping
from typing import ClassVar, Optional

import torch
from torch import Tensor, nn

from ..checks import known_name
from ..spatial.fields import compose
from ..spatial.integrate import resize_field
from ..spatial.warp import warp
from .contract import Estimate, pair_image, refuse_condition
from .icon import DOWN, UP, TallUNet2, halve


class Downsample(nn.Module):
    """Runs a step on images of half the size and brings its displacement back.

    Images are average-pooled; displacements are resampled corner to corner, as all fields here are.

    Shape: (B, 2, *S) -> (B, d, *S) in voxels.

    Args:
        step: displacement network, cat(moving, fixed) -> ddf.

    Reference:
        Tian et al., GradICON, CVPR 2023, Sec. 5.1 (downsampling).
    """

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, image: Tensor) -> Tensor:
        return resize_field(self.step(halve(image)), image.shape[2:])


class TwoStep(nn.Module):
    """Composes two steps: the second one sees the moving image warped by the first.

    With u = first(moving, fixed) and v = second(moving ∘ (id + u), fixed) the map is (id + u) ∘ (id + v).

    Shape: (B, 2, *S) -> (B, d, *S) in voxels.

    Args:
        first: displacement network, cat(moving, fixed) -> ddf.
        second: displacement network, likewise.

    Reference:
        Tian et al., GradICON, CVPR 2023, Eq. 6.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, image: Tensor) -> Tensor:
        before = self.first(image)
        warped = warp(image[:, :1], before, padding="border")
        after = self.second(torch.cat([warped, image[:, 1:]], dim=1))
        return compose(before, after)


class Composition(nn.Module):
    """A chain of steps as a displacement network.

    Args:
        step: of one or more steps, cat(moving, fixed) -> ddf.

    Attributes:
        levels: the steps, coarse to fine.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["levels"]

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.running = len(self.levels)

    @property
    def levels(self) -> list[nn.Module]:
        """The steps, coarse to fine."""
        return _listed(self.step)

    @torch.jit.unused
    def run_levels(self, number: int) -> None:
        """Have the first steps alone run in training mode, on images of the size that the last of these sees.

        For training in stages, whose images are as small (``image_scale``, 1/4 for steps of factor 4). In eval mode all
        steps run on images of full size: steps that no stage has trained yet are the identity.

        Args:
            number: of steps, from 1.

        Raises:
            ValueError: for another number than the chain has.
        """
        if number not in range(1, len(self.levels) + 1):
            raise ValueError(f"levels: expected 1 to {len(self.levels)}, the steps of this chain, got {number!r}.")
        self.running = int(number)

    @torch.jit.unused
    def first_steps(self, number: int) -> nn.Module:
        """The chain of the first steps, which sees images of the size that the last of these sees.

        Args:
            number: of steps; all are the whole chain, which sees images of full size.

        Returns:
            A part of this module.
        """
        chain, longer = self.step, len(self.levels) - number
        for _ in range(longer):
            while isinstance(chain, Downsample):
                chain = chain.step
            chain = chain.first  # type: ignore[assignment]
        while longer and isinstance(chain, Downsample):
            chain = chain.step
        return chain

    def forward(self, image: Tensor, fixed: Optional[Tensor] = None, condition: Optional[Tensor] = None) -> Tensor:
        """Displacement that pulls moving onto fixed.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: must be None: this network takes none.

        Returns:
            ddf (B, d, *S) in voxels.

        Raises:
            ValueError: for another number of channels or axes, or a condition.
        """
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """As ``forward``; nothing is integrated, so a smoothness would act on the displacement itself.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: must be None.

        Returns:
            The displacement.
        """
        refuse_condition(condition, "a composition of steps")
        if image.shape[1] != 2:  # Said here: the first step to notice would name the size of its coarser image.
            raise ValueError(
                f"image: expected moving and fixed on the channel axis, (B, 2, *S), got {list(image.shape)}."
            )
        if torch.jit.is_scripting() or not self.training:
            ddf = self.step(image)
        else:
            ddf = self.first_steps(self.running)(image)
        return Estimate(ddf, ddf)


# Factors of the published chains. "oai": two steps at a quarter, one at a half, one at full resolution (A.2.1).
# "oai_table" and "oai_table_full": the caption of Table 1, two at a quarter and two at a half of 160 x 384 x 384, which
# is the grid itself for images of 80 x 192 x 192, and one more at full resolution. "oai_code": a quarter, a half, and
# twice the whole of 80 x 192 x 192, as the code's knee networks. "lung": P = 3 (A.3.1). "released": published later.
CHAINS: dict[str, tuple[int, ...]] = {
    "single": (1,), "triangles": (8, 4, 2, 1), "oai": (4, 4, 2, 1), "oai_table": (2, 2, 1, 1),
    "oai_table_full": (4, 4, 2, 2, 1), "oai_code": (4, 2, 1, 1), "lung": (4, 2, 1), "released": (4, 2, 1, 1),
}  # fmt: skip


def build_icon(
    spatial_dims: int,
    factors: str | tuple[int, ...] = "released",
    down: tuple[int, ...] = DOWN,
    up: tuple[int, ...] = UP,
    checkpointing: bool = False,
) -> Composition:
    """Compose one ``TallUNet2`` a factor, coarse to fine.

    Args:
        spatial_dims: 2 or 3.
        factors: by which each step's images are down-sampled, in order: powers of two that never grow; or a name of
            ``CHAINS``.
        down: widths of every step, see ``TallUNet2``.
        up: widths of every step, see ``TallUNet2``.
        checkpointing: of every step, see ``TallUNet2``: less memory in training for a second forward.

    Returns:
        The network.

    Raises:
        ValueError: for factors that are not as described, or an unknown name.

    Reference:
        Tian et al., GradICON, CVPR 2023, Sec. 5.1, A.1.1, A.2.1.
    """
    if isinstance(factors, str):
        factors = CHAINS[known_name("factors", factors, CHAINS)]
    if not factors or any(f < 1 or f & (f - 1) for f in factors) or list(factors) != sorted(factors, reverse=True):
        raise ValueError(
            f"factors: expected powers of two from coarse to fine such as [4, 2, 1, 1], got {list(factors)}."
        )
    network: nn.Module = TallUNet2(spatial_dims, tuple(down), tuple(up), checkpointing)
    for coarser, factor in zip(factors[:-1], factors[1:]):
        step = TallUNet2(spatial_dims, tuple(down), tuple(up), checkpointing)
        network = TwoStep(_downsampled(network, coarser // factor), step)
    return Composition(_downsampled(network, factors[-1]))


def _downsampled(network: nn.Module, factor: int) -> nn.Module:
    while factor > 1:
        network, factor = Downsample(network), factor // 2
    return network


def _listed(chain: nn.Module) -> list[nn.Module]:
    """The steps of a chain, coarse to fine."""
    while isinstance(chain, Downsample):
        chain = chain.step
    return [*_listed(chain.first), chain.second] if isinstance(chain, TwoStep) else [chain]


def lengthened(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights of a chain from those of a shorter one, for training in stages: its steps first, in their order.

    Steps beyond it start as copies of its last one. Departure: the paper's stages (knees) add steps that start as the
    identity.

    Args:
        weights: state dict of a chain of fewer steps, or as many, that ``build_icon`` or the operators here made.
        network: the chain that is to receive them; its factors may be others.

    Returns:
        A state dict; whether it fits, ``load_state_dict`` says.

    Reference:
        Tian et al., GradICON, CVPR 2023, A.2.1 (stages).
    """
    steps, own = _steps(weights), _steps(network.state_dict())
    if not 0 < len(steps) <= len(own):  # no chain, or a longer one: nothing to lengthen
        return dict(weights)
    given = dict(zip(own, steps + steps[-1:] * (len(own) - len(steps))))
    return {
        step + name.removeprefix(source): value
        for step, source in given.items()
        for name, value in weights.items()
        if name.startswith(source)
    }


def _steps(weights: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of a chain's steps in a state dict, coarse to fine, in whatever order the file holds them."""
    found = [re.match(r"((step|first|second)\.)+", name) for name in weights]
    return sorted({match.group() for match in found if match}, key=lambda prefix: prefix.replace("step.", ""))
