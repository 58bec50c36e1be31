# SPDX-License-Identifier: Apache-2.0
"""Accuracy and regularity of every case of an evaluation, before and after registration."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

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


class CaseMetrics:
    """Measures every case; at the end writes ``metrics.csv``, ``subjects.csv``, ``summary.json`` and says a table.

    A label's mask is warped (bi)linearly and counts where it reaches 0.5. A case is scorable for a label that both
    originals hold; one that is not keeps its row, with empty cells, and is counted. Columns without a label's name are
    of the first label. ``*_before`` are the same measures of the unregistered pair; ``*_official`` those of the
    published Yale code (any warped value above 0 counts, surface distance from fixed to warped only). The error of
    inverse consistency is measured where the evaluator registers ``both_ways``. Distances are in voxels, those in
    ``*_mm`` only where the spacing is known. ``state.metrics`` receives the means.

    Args:
        labels: label value by name, the scored one first.
        surface: also surface distances and the ``official`` columns (slower; validation while training leaves it out).
        output_dir: where to write; None writes nothing.
        settings: configuration to record in ``summary.json``, or a function that returns it at the end.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        surface: bool = True,
        output_dir: str | Path | None = None,
        settings: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        if not labels:
            raise ValueError("labels: expected at least one name and value, as {'myocardium': 2}; got none.")
        self.names, self.values = list(labels), [int(value) for value in labels.values()]
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
        present = (moving.flatten(2).any(-1) & fixed.flatten(2).any(-1)).cpu()
        columns = self._overlap(warped, fixed, "") | self._overlap(moving, fixed, "_before")
        determinant = jacobian_determinant(ddf)
        image, warped_image = batch["fixed_image"], engine.state.output["warped_image"]
        for name, other in (("mse", warped_image), ("mse_before", batch["moving_image"])):
            columns[name] = (other - image).square().flatten(1).mean(1)
        columns["foldings_percent"] = foldings_percent(determinant)
        columns["sd_log_jacobian"] = sd_log_jacobian(determinant)
        if self.surface:
            columns |= self._surfaces(
                moving[:, :1], warped[:, :1], soft[:, :1] > TOUCHED, fixed[:, :1], batch["spacing"]
            )
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
            row = {name: value[index] for name, value in values.items()}
            self.rows.append(self._identified(row, batch, index, present[index].tolist()) | {"seconds": seconds})

    def _identified(
        self, row: dict[str, Any], batch: Mapping[str, Any], index: int, present: list[bool]
    ) -> dict[str, Any]:
        subject = batch["subject"][index]
        case: dict[str, Any] = {"case": batch["case"][index] if "case" in batch else subject}
        if "slice" in batch:
            number = int(batch["slice"][index])
            case = {"case": f"{subject}_slice{number:02d}", "slice": number}
        for position, scorable in enumerate(present):
            suffix = f"_{self.names[position]}" if position else ""
            measures = [f"dice{suffix}"] if position else ["dice", "hd", "hd95", "asd", "dice_official", "asd_official"]
            for name in row if not scorable else ():
                plain = name.removesuffix("_mm").removesuffix("_before").removesuffix("_mm")
                if plain in measures:
                    row[name] = NAN
        return case | {"subject": subject, "scorable": int(present[0])} | row

    def _overlap(self, masks: Tensor, fixed: Tensor, suffix: str) -> dict[str, Tensor]:
        return {
            f"dice_{name}{suffix}" if index else f"dice{suffix}": dice_score(
                masks[:, index : index + 1].byte(), fixed[:, index : index + 1].byte(), [1]
            )[:, 0]
            for index, name in enumerate(self.names)
        }

    def _surfaces(
        self, moving: Tensor, warped: Tensor, touched: Tensor, fixed: Tensor, spacing: Tensor
    ) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        reference = fixed.byte()
        for suffix, mask in (("", warped), ("_before", moving)):
            distances = surface_distances(mask.byte(), reference, [1])
            columns |= {f"{name}{suffix}": value[:, 0] for name, value in distances._asdict().items()}
            for index, sizes in enumerate(spacing.tolist()):
                known = all(math.isfinite(size) for size in sizes)
                pair = slice(index, index + 1)
                in_mm = surface_distances(mask[pair].byte(), reference[pair], [1], spacing=sizes) if known else None
                for name in ("hd", "hd95", "asd"):
                    column = columns.setdefault(f"{name}_mm{suffix}", torch.full((len(mask),), NAN))
                    if in_mm is not None:
                        column[index] = getattr(in_mm, name)[0, 0]
        columns["dice_official"] = dice_score(touched.byte(), reference, [1])[:, 0]
        columns["asd_official"] = surface_distances(touched.byte(), reference, [1], symmetric=False).asd[:, 0]
        return {name: value for name, value in columns.items() if "_mm" not in name or bool(value.isfinite().any())}

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
            for index, name in enumerate(self.names):
                known = bool(reference[index] > 0) and bool(size_before[index] > 0)
                pairs = {"dice_3d": (overlap, size), "dice_3d_before": (overlap_before, size_before)}
                for measure, (joint, own) in pairs.items():
                    value = float(2 * joint[index] / (own[index] + reference[index])) if known else NAN
                    row[f"{measure}_{name}"] = value
            rows.append(row)
        return rows

    def _finish(self, engine: Engine) -> None:
        if self.output_dir is None:
            for name in ["dice", "foldings_percent"] + [f"dice_{name}" for name in self.names[1:]]:
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
            "%d cases of %d subjects; label '%s' in both images: %d scored, %d not scorable.\n%s\nWritten to %s.",
            len(self.rows), len(self.volumes), self.names[0], scored, len(self.rows) - scored, table, self.output_dir,
        )  # fmt: skip
