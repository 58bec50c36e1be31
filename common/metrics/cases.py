# SPDX-License-Identifier: Apache-2.0
"""What a measure is, and the record of registered cases that measures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..spatial.jacobian import jacobian_determinant


@dataclass(eq=False)
class Cases:
    """A batch of B registered pairs.

    Attributes:
        batch: the loader's items: ``moving_image``, ``fixed_image`` and what else the data hold (labels, landmarks …).
        ddf: displacement in voxels, (B, d, *S).
        warped_image: (B, 1, *S).
        reverse_ddf: displacement of fixed onto moving, (B, d, *S); None where one direction is registered.
        thorough: False leaves out what is slow (validation while training).
        estimate: returns the maps of ``uncertainty``; called only where a measure asks for them.
        sums: what measures leave here is added up over the cases of a subject, (B, …) a name; see ``SubjectMeasure``.
        pools: what measures leave here, (B, N) a name, is put together over all cases, NaN left out; see
            ``PooledMeasure``.
    """

    batch: Mapping[str, Any]
    ddf: Tensor
    warped_image: Tensor
    reverse_ddf: Tensor | None = None
    thorough: bool = True
    estimate: Callable[[], Mapping[str, Tensor]] = dict
    sums: dict[str, Tensor] = field(default_factory=dict)
    pools: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def determinant(self) -> Tensor:
        """Jacobian determinant of id + ddf, (B, *S)."""
        return jacobian_determinant(self.ddf)

    @cached_property
    def uncertainty(self) -> Mapping[str, Tensor]:
        """What the method says of its uncertainty, (B, 1, *S) a map; empty where it says nothing.

        ``score`` S in [0, 1], or ``noise_deviation`` σ in intensities; ``weight`` of the data term;
        ``displacement_deviation`` σ_z in voxels.
        """
        return self.estimate()

    @cached_property
    def spacing(self) -> Tensor:
        """Voxel size in mm along each array axis, (B, d); NaN where unknown."""
        unknown = self.ddf.new_full((len(self.ddf), self.ddf.shape[1]), torch.nan)
        return self.batch.get("spacing", unknown)

    def of(self, measure: str, *keys: str) -> list[Tensor]:
        """The batch's tensors of these keys.

        Args:
            measure: what the error calls the measure that asks.
            keys: what it needs.

        Returns:
            Tensors in the order of ``keys``.

        Raises:
            ValueError: naming the keys that the data lack, and those that they hold.
        """
        missing = [key for key in keys if key not in self.batch]
        if missing:
            raise ValueError(
                f"{measure}: the data hold no {' and no '.join(missing)}, but {', '.join(sorted(self.batch))}; leave "
                f"the measure out of 'measures', or give data that hold {' and '.join(keys)}."
            )
        return [self.batch[key] for key in keys]


class Measure(Protocol):
    """One kind of measure: some columns of a table that has a row a case.

    A class with ``headlines``, those of its columns that a summary shows, and a call.
    """

    @property
    def headlines(self) -> Sequence[str]:
        """The columns to show."""
        ...

    def __call__(self, cases: Cases) -> dict[str, Tensor]:
        """Values by column, each (B,), NaN where a case has none; ``NAME_before`` is NAME before registration.

        Args:
            cases: a batch.

        Returns:
            (B,) by column.
        """
        ...


@runtime_checkable
class SubjectMeasure(Protocol):
    """A measure that also says something of all cases of a subject together, such as the Dice of a volume."""

    def of_subject(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Columns of a table that has a row a subject, from the sums over its cases of what ``Cases.sums`` held.

        Args:
            sums: by name, each summed over the subject's cases.

        Returns:
            Value by column.
        """
        ...


@runtime_checkable
class EvaluationMeasure(Protocol):
    """A measure that also says something of all cases together, such as a mean curve."""

    def of_evaluation(self, sums: Mapping[str, Tensor]) -> dict[str, list[dict[str, float]]]:
        """Tables, from the sums over all cases of what ``Cases.sums`` held.

        Args:
            sums: by name, each summed over all cases.

        Returns:
            Rows by the name of the table, which is that of its file.
        """
        ...


@runtime_checkable
class PooledMeasure(Protocol):
    """A measure that also says something of single values of all cases together, such as quantiles over all points."""

    def of_pool(self, pools: Mapping[str, Tensor]) -> dict[str, list[dict[str, float]]]:
        """Tables, from all that ``Cases.pools`` held.

        Args:
            pools: by name, (N,), no NaN.

        Returns:
            Rows by the name of the table, which is that of its file.
        """
        ...
