# SPDX-License-Identifier: Apache-2.0
"""Accuracy and regularity of every case of an evaluation, before and after registration."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..checks import known_name
from ..io.results import results_table, undeformed, write_results, write_subjects
from ..metrics.folding import foldings_percent, sd_log_jacobian
from ..metrics.inverse_consistency import inverse_consistency_error
from ..metrics.landmarks import end_point_error
from ..metrics.overlap import dice_score
from ..metrics.surface import surface_distances
from ..spatial.jacobian import jacobian_determinant
from ..spatial.warp import warp

logger = logging.getLogger(__name__)
NAN = float("nan")
# The published code counts any warped value above 0; below this it is the interpolation's rounding.
TOUCHED = 1e-4


def label_masks(label: Tensor, values: list[int]) -> Tensor:
    """One mask a label, (B, K, *S) float32, from a label map (B, 1, *S)."""
    return torch.cat([label == value for value in values], dim=1).float()


def dice_of_masks(masks: Tensor, reference: Tensor) -> Tensor:
    """Dice of each mask, (B, K), from masks (B, K, *S) of 0 and 1; NaN where the reference's is empty."""
    pairs = zip(masks.byte().split(1, dim=1), reference.byte().split(1, dim=1), strict=True)
    return torch.cat([dice_score(mask, other, [1]) for mask, other in pairs], dim=1)


def scored_labels(names: Sequence[str], scored: Sequence[str] | None) -> list[int]:
    """Positions of the scored labels among all; None scores all. Raises ValueError for none or an unknown one."""
    if scored is None:
        return list(range(len(names)))
    chosen = [scored] if isinstance(scored, str) else list(scored)
    if not chosen:
        raise ValueError(f"scored: expected at least one of {list(names)}, got none.")
    return [names.index(known_name("scored", name, names)) for name in dict.fromkeys(chosen)]


class CaseMetrics:
    """Measures every case; at the end writes ``metrics.csv``, ``subjects.csv``, ``summary.json`` and says a table.

    A label's mask is warped (bi)linearly and counts where it reaches 0.5. ``dice_<label>`` of every label, surface
    distances ``hd_<label>`` etc. of the scored ones; ``dice``, ``hd``, ``hd95``, ``asd`` are the means of the scored
    labels. A label can be scored in a case whose originals both hold it; the case is ``scorable`` where that is true of
    all scored labels. Otherwise the cells of the label and the means are empty, and counted: a mean is never one over
    some of its labels. ``*_before`` are the same measures of the unregistered pair; ``*_official`` means of those of
    the published Yale code (any warped value above 0 counts, surface distance from fixed to warped only). The error of
    inverse consistency is measured where the evaluator registers ``both_ways``. Distances are in voxels, those in
    ``*_mm`` only where the spacing is known. ``state.metrics`` receives the means over cases.

    Args:
        labels: value by name of every label that is reported.
        scored: names of the labels that the means are of; None scores all.
        surface: also surface distances and the ``official`` columns (slower; validation while training leaves it out).
        output_dir: where to write; None writes nothing.
        settings: configuration to record in ``summary.json``, or a function that returns it at the end.

    Raises:
        ValueError: for no label, none that is scored, or a scored one that ``labels`` does not name.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        scored: Sequence[str] | None = None,
        surface: bool = True,
        output_dir: str | Path | None = None,
        settings: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        if not labels:
            raise ValueError("labels: expected at least one name and value, as {'myocardium': 2}; got none.")
        self.names, self.values = list(labels), [int(value) for value in labels.values()]
        self.scored = scored_labels(self.names, scored)
        self.surface = bool(surface)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.settings = settings
        self.rows: list[dict[str, Any]] = []
        self.volumes: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationEvaluator``, before handlers that read ``state.metrics``."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self, engine: Engine) -> None:
        self.rows, self.volumes = [], {}

    @torch.no_grad()
    def _measure(self, engine: Engine) -> None:
        batch, ddf = engine.state.batch, engine.state.output["ddf"]
        moving = label_masks(batch["moving_label"], self.values)
        fixed = label_masks(batch["fixed_label"], self.values)
        soft = warp(moving, ddf)
        warped = (soft >= 0.5).float()
        present = moving.flatten(2).any(-1) & fixed.flatten(2).any(-1)
        columns = self._columns("dice", dice_of_masks(warped, fixed), present)
        columns |= self._columns("dice", dice_of_masks(moving, fixed), present, "_before")
        determinant = jacobian_determinant(ddf)
        image, warped_image = batch["fixed_image"], engine.state.output["warped_image"]
        for name, other in (("mse", warped_image), ("mse_before", batch["moving_image"])):
            columns[name] = (other - image).square().flatten(1).mean(1)
        columns["foldings_percent"] = foldings_percent(determinant)
        columns["sd_log_jacobian"] = sd_log_jacobian(determinant)
        if self.surface:
            columns |= self._surfaces(moving, warped, fixed, batch["spacing"], present)
            columns |= self._official(soft > TOUCHED, fixed, present)
        if "reverse_ddf" in engine.state.output:
            columns["inverse_consistency_error"] = inverse_consistency_error(ddf, engine.state.output["reverse_ddf"])
        if "true_ddf" in batch:
            heart = batch["fixed_label"][:, 0] > 0
            columns["epe"] = end_point_error(ddf, batch["true_ddf"], heart)
            columns["epe_before"] = end_point_error(torch.zeros_like(ddf), batch["true_ddf"], heart)
        self._add_volumes(batch["subject"], moving, warped, fixed)
        values = {name: value.cpu().tolist() for name, value in columns.items()}
        seconds = engine.state.output["seconds"] / len(ddf)
        for index in range(len(ddf)):
            row = self._identified(batch, index) | {"scorable": int(present[index][self.scored].all())}
            self.rows.append(row | {name: value[index] for name, value in values.items()} | {"seconds": seconds})

    @staticmethod
    def _identified(batch: Mapping[str, Any], index: int) -> dict[str, Any]:
        subject = batch["subject"][index]
        case: dict[str, Any] = {"case": batch["case"][index] if "case" in batch else subject}
        if "slice" in batch:
            number = int(batch["slice"][index])
            case = {"case": f"{subject}_slice{number:02d}", "slice": number}
        return case | {"subject": subject}

    def _columns(
        self, name: str, values: Tensor, present: Tensor, suffix: str = "", labels: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """A measure (B, K): the scored labels' mean, and a column a label; NaN where a label is not in both images."""
        values = torch.where(present, values, NAN)
        shown = range(len(self.names)) if labels is None else labels
        each = {f"{name}_{self.names[index]}{suffix}": values[:, index] for index in shown}
        return {f"{name}{suffix}": values[:, self.scored].mean(1)} | each

    def _surfaces(
        self, moving: Tensor, warped: Tensor, fixed: Tensor, spacing: Tensor, present: Tensor
    ) -> dict[str, Tensor]:
        known = spacing.isfinite().all(1).tolist()
        columns: dict[str, Tensor] = {}
        for suffix, masks in (("", warped), ("_before", moving)):
            measured = {suffix: self._distances(masks, fixed)}
            if any(known):
                in_mm = torch.full_like(measured[suffix], NAN)
                for index in (index for index, is_known in enumerate(known) if is_known):
                    pair = slice(index, index + 1)
                    in_mm[:, pair] = self._distances(masks[pair], fixed[pair], spacing[index].tolist())
                measured[f"_mm{suffix}"] = in_mm
            for ending, distances in measured.items():
                for name, values in zip(("hd", "hd95", "asd"), distances, strict=True):
                    columns |= self._columns(name, values, present, ending, self.scored)
        return columns

    def _distances(
        self, masks: Tensor, fixed: Tensor, spacing: Sequence[float] | None = None, symmetric: bool = True
    ) -> Tensor:
        """hd, hd95 and asd of the scored labels, (3, B, K); NaN of the others."""
        values = torch.full((3, *fixed.shape[:2]), NAN, device=fixed.device)
        for index in self.scored:
            pair = masks[:, index : index + 1].byte(), fixed[:, index : index + 1].byte()
            values[:, :, index] = torch.stack(surface_distances(*pair, [1], spacing, symmetric))[..., 0]
        return values

    def _official(self, touched: Tensor, fixed: Tensor, present: Tensor) -> dict[str, Tensor]:
        dice, asd = dice_of_masks(touched, fixed), self._distances(touched, fixed, symmetric=False)[2]
        return self._columns("dice_official", dice, present, "", []) | self._columns(
            "asd_official", asd, present, "", []
        )

    def _add_volumes(self, subjects: list[str], moving: Tensor, warped: Tensor, fixed: Tensor) -> None:
        """Sum up what 3D Dice needs, over all slices of a subject, scorable or not."""
        for index, subject in enumerate(subjects):
            sums = torch.stack(
                [
                    torch.stack([(mask[index] * fixed[index]).flatten(1).sum(1), mask[index].flatten(1).sum(1)])
                    for mask in (warped, moving)
                ]
                + [torch.stack([fixed[index].flatten(1).sum(1)] * 2)]
            ).double()
            self.volumes[subject] = self.volumes[subject] + sums if subject in self.volumes else sums

    def _subject_rows(self) -> list[dict[str, Any]]:
        rows = []
        for subject, sums in self.volumes.items():
            (overlap, size), (overlap_before, size_before), (reference, _) = (part.cpu().unbind() for part in sums)
            row: dict[str, Any] = {"subject": subject, "slices": sum(r["subject"] == subject for r in self.rows)}
            known = (reference > 0) & (size_before > 0)
            after = torch.where(known, 2 * overlap / (size + reference), NAN)
            before = torch.where(known, 2 * overlap_before / (size_before + reference), NAN)
            row |= {"dice_3d": float(after[self.scored].mean()), "dice_3d_before": float(before[self.scored].mean())}
            for name, *values in zip(self.names, after.tolist(), before.tolist(), strict=True):
                row |= {f"dice_3d_{name}": values[0], f"dice_3d_before_{name}": values[1]}
            rows.append(row)
        return rows

    def _finish(self, engine: Engine) -> None:
        if self.output_dir is None:
            for name in ["dice", "foldings_percent"] + [f"dice_{name}" for name in self.names]:
                scores = [row[name] for row in self.rows if not math.isnan(row[name])]
                engine.state.metrics[name] = sum(scores) / len(scores) if scores else NAN
            return
        summary = write_results(
            self.rows, self.output_dir, dict(self.settings() if callable(self.settings) else self.settings or {})
        )
        write_subjects(self._subject_rows(), self.output_dir)
        for name, values in summary.items():
            if isinstance(values, dict) and isinstance(values.get("mean"), float):
                engine.state.metrics[name] = values["mean"]
        measures = ["dice", "hd", "hd95", "asd", "mse", "foldings_percent", "inverse_consistency_error", "epe"]
        measures = [name for name in measures if name in summary]
        table = results_table({"undeformed": undeformed(summary), "registered": summary}, measures)
        scored = sum(row["scorable"] for row in self.rows)
        logger.info(
            "%d cases of %d subjects; %s in both images: %d scored, %d not scorable.\n%s\nWritten to %s.",
            len(self.rows), len(self.volumes), " and ".join(self.names[index] for index in self.scored), scored,
            len(self.rows) - scored, table, self.output_dir,
        )  # fmt: skip
