# SPDX-License-Identifier: Apache-2.0
"""What a displacement network is, and what it returns."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Protocol, TypeVar, Union

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Named = TypeVar("Named", bound=tuple)
DEFAULT_CODE = 0.55  # TM-SPR's best η on IXI, 2.2 of 4


class Estimate(NamedTuple):
    """What training sees of a displacement network. What a network does not have is None.

    Attributes:
        ddf: displacement in voxels of the fixed grid, (B, d, *S).
        velocity: the field that smoothness acts on, (B, d, *S'), in voxels of its own (coarser) grid; of a network of
            several passes (B, passes d, *S'), so that a mean over the channels is one over the passes.
        weight_volume: weights of the smoothness, (B, 1, *S').
        log_variance: log σ² of the Gaussian that the displacement, or the velocity, is drawn from in training, σ in
            voxels of its own grid, (B, 1, *S') where all axes share one, else (B, d, *S').
        coarser: fields of the coarser levels, the coarsest first, (B, d, *S_level) in voxels of their own grids.
        mean: of that Gaussian, (B, d, *S') on the grid of ``log_variance``.
    """

    ddf: Tensor
    velocity: Tensor
    weight_volume: Optional[Tensor] = None
    log_variance: Optional[Tensor] = None
    coarser: Optional[list[Tensor]] = None
    mean: Optional[Tensor] = None


class DisplacementNetwork(Protocol):
    """The contract of every network in ``registry.ARCHITECTURES``: an ``nn.Module`` with these two methods.

    warped(x) = moving(x + ddf(x)). Any grid size is taken, in 2D or 3D. Fields are float32, under autocast too. Both
    methods can be scripted. One tensor in and one out suffice for ``forward``, so that exported models and MONAI's
    tools need to know nothing else.
    """

    def forward(self, image: Tensor, fixed: Optional[Tensor] = None, condition: Optional[Tensor] = None) -> Tensor:
        """Displacement that pulls moving onto fixed: ``estimate(...).ddf``.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: what the network is conditioned on, (B, C); None takes its default. A network that takes none
                raises ValueError for any other value.

        Returns:
            ddf (B, d, *S) in voxels.
        """
        ...

    def estimate(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """As ``forward``, with what training needs besides.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: as ``forward``.

        Returns:
            The displacement, and what the network has beside it.
        """
        ...


def pair_image(image: Tensor, fixed: Optional[Tensor]) -> Tensor:
    """cat(moving, fixed) from the first two arguments of ``DisplacementNetwork.forward``.

    Args:
        image: cat(moving, fixed), (B, 2, *S); or moving alone, (B, 1, *S), when ``fixed`` is given.
        fixed: (B, 1, *S), optional.

    Returns:
        (B, 2, *S).
    """
    return image if fixed is None else torch.cat([image, fixed], dim=1)


def check_pair(image: Tensor, spatial_dims: int) -> None:
    """Refuse what is no pair of images.

    Args:
        image: must be cat(moving, fixed), (B, 2, *S).
        spatial_dims: axes of S.

    Raises:
        ValueError: for another number of channels or axes.
    """
    if image.dim() != spatial_dims + 2 or image.shape[1] != 2:
        raise ValueError(
            f"image: expected moving and fixed on the channel axis, (B, 2, *S) with {spatial_dims} spatial "
            f"axes, got {list(image.shape)}."
        )


def refuse_condition(condition: Optional[Tensor], network: str) -> None:
    """For networks that take no condition.

    Args:
        condition: must be None.
        network: what the error calls it.

    Raises:
        ValueError: for a condition.
    """
    if condition is not None:
        raise ValueError(
            "condition: " + network + " takes none, expected None; leave it out, or choose a conditional architecture."
        )


def default_code(code: float, taken: bool = True) -> Optional[Tensor]:
    """The buffer ``default_condition`` of a network.

    Args:
        code: in [0, 1].
        taken: whether the network takes a code.

    Returns:
        (1, 1); None where none is taken.

    Raises:
        ValueError: for any other number.
    """
    if not 0 <= code <= 1:
        raise ValueError(f"default_condition: expected a number from 0 to 1, got {code!r}: a share of the range.")
    return torch.tensor([[float(code)]]) if taken else None


def condition_code(
    condition: Optional[Tensor],
    default: Optional[Tensor],
    image: Tensor,
    training: bool,
    network: str,
    largest: float = 2.0,
) -> Tensor:
    """The code of each image.

    Args:
        condition: code, (B, 1), in [0, 1] where it is drawn in training; None is ``default``.
        default: (1, 1); None for networks that take no condition.
        image: (B, …).
        training: whether the network is in training mode, where values are not checked.
        network: what the error calls it.
        largest: code that is taken; above 1 because TM-SPR's search goes beyond the trained range (published: 1.25).

    Returns:
        (B, 1); zeros for networks that take no condition.

    Raises:
        ValueError: for a condition of another shape or out of range, or for any where none is taken.
    """
    if default is None:
        refuse_condition(condition, network)
        return image.new_zeros([image.shape[0], 1])
    if condition is None:
        return default.expand(image.shape[0], 1)
    if condition.dim() != 2 or condition.shape[1] != 1 or condition.shape[0] != image.shape[0]:
        raise ValueError(
            f"condition: expected one code for each image, (B, 1) = {[image.shape[0], 1]}, got {list(condition.shape)}."
        )
    # In training the codes are drawn, and comparing them would wait for the device.
    checked = not training and not torch.jit.is_tracing()
    if checked and bool(((condition < 0) | (condition > largest)).any()):
        raise ValueError(
            f"condition: expected a code in [0, {largest}], got {float(condition.min())} to {float(condition.max())}; "
            "it is a share of the range of weights, not a weight."
        )
    return condition


def condition_tensor(condition: Union[Sequence[float], float, None], image: Tensor) -> Optional[Tensor]:
    """K numbers for every image of a batch, (B, K); None stays None.

    Args:
        condition: K numbers, one, or None.
        image: gives batch size and device.

    Returns:
        (B, K) float32, or None.
    """
    if condition is None:
        return None
    values = [condition] if isinstance(condition, (int, float)) else list(condition)
    return torch.tensor(values, dtype=torch.float32, device=image.device).expand(len(image), -1)


def join(estimates: Sequence[Named]) -> Named:
    """One estimate of several batches, one after the other.

    Args:
        estimates: named tuples of one kind. Entries are tensors (B, ...), lists of them or None.

    Returns:
        A named tuple of that kind; None stays None. A single one is returned as it is.

    Raises:
        ValueError: for estimates with different entries.
    """
    if len(estimates) == 1:
        return estimates[0]
    flat, kinds = zip(*(tree_flatten(estimate) for estimate in estimates), strict=True)
    absent = [[leaf is None for leaf in leaves] for leaves in flat]
    if any(kind != kinds[0] for kind in kinds) or any(places != absent[0] for places in absent):
        raise ValueError(
            f"join: expected estimates with the same entries, got {[_present(estimate) for estimate in estimates]}; "
            "have the network fill an entry always or never."
        )
    joined = [None if leaves[0] is None else torch.cat(leaves) for leaves in zip(*flat, strict=True)]
    return tree_unflatten(joined, kinds[0])


def chunk(estimate: Named, parts: int) -> list[Named]:
    """The inverse of ``join`` for batches of one size.

    Args:
        estimate: named tuple. Entries are tensors (parts B, ...), lists of them or None.
        parts: number of batches.

    Returns:
        ``parts`` named tuples of that kind; None stays None.

    Raises:
        ValueError: for a batch that does not divide.
    """
    leaves, kind = tree_flatten(estimate)
    sizes = [len(leaf) for leaf in leaves if leaf is not None]
    if any(size % parts for size in sizes):
        raise ValueError(f"chunk: expected batches that {parts} divides, got {sizes} for {_present(estimate)}.")
    pieces = [[None] * parts if leaf is None else leaf.chunk(parts) for leaf in leaves]
    return [tree_unflatten(list(piece), kind) for piece in zip(*pieces, strict=True)]


def _present(estimate: Any) -> list[str]:
    return [name for name, entry in zip(estimate._fields, estimate, strict=True) if entry is not None]
