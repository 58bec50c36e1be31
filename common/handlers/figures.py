# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: the median case, and the score maps where the method has a score."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar
from torch import Tensor, nn

from ..figures.panels import registration_panel, score_panel
from ..spatial.jacobian import jacobian_determinant
from ..spatial.warp import warp
from .metrics import CaseMetrics, label_masks

logger = logging.getLogger(__name__)


def middle_plane(array: Tensor) -> Tensor:
    """The plane to show: (..., H, W) of 2D images as it is, of (C, H, W, D) the middle of the last axis."""
    return array if array.dim() == 3 else array[..., array.shape[-1] // 2]


class FigurePanels:
    """Draws ``registration.png`` for the scorable case of median Dice, and ``scores.png`` for a few.

    Runs after ``CaseMetrics``; the cases shown are registered once more, so that nothing is kept in memory meanwhile.

    Args:
        metrics: the handler whose rows say which case is the median.
        output_dir: where to write.
        estimator: the score network; None draws no score.
        estimator_input: what it sees, as in training: "fixed" or "fixed_warped".
        quantiles: of Dice, the rows of ``scores.png``.
    """

    def __init__(
        self,
        metrics: CaseMetrics,
        output_dir: str | Path,
        estimator: nn.Module | None = None,
        estimator_input: str = "fixed",
        quantiles: tuple[float, ...] = (0.75, 0.5, 0.25),
    ) -> None:
        self.metrics, self.output_dir = metrics, Path(output_dir)
        self.estimator, self.estimator_input, self.quantiles = estimator, estimator_input, quantiles

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationEvaluator``, after ``CaseMetrics``."""
        engine.add_event_handler(Events.COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        rows = self.metrics.rows
        ranked = sorted((row["dice"], index) for index, row in enumerate(rows) if not math.isnan(row["dice"]))
        if not ranked:
            logger.warning("No case is scorable: no figure is drawn.")
            return
        quantiles = (0.5, *self.quantiles) if self.estimator is not None else (0.5,)
        chosen = [ranked[min(int(q * len(ranked)), len(ranked) - 1)][1] for q in quantiles]
        cases = {index: self._case(engine, index) for index in dict.fromkeys(chosen)}
        median = cases[chosen[0]]
        registration_panel(
            self.output_dir / "registration.png",
            moving=median["moving_image"],
            fixed=median["fixed_image"],
            warped=median["warped_image"],
            ddf=median["ddf"],
            moving_label=median["moving_label"],
            fixed_label=median["fixed_label"],
            warped_label=median["warped_label"],
            score=median.get("score"),
            jacobian_determinant=median["determinant"],
            title=median["title"],
            label_names=self._label_names(),
        )
        logger.info("Figure of the median case: %s", self.output_dir / "registration.png")
        if self.estimator is not None:
            shown = [cases[index] | {"title": cases[index]["title"].replace("  ", "\n")} for index in chosen[1:]]
            score_panel(self.output_dir / "scores.png", shown, self._label_names())
            logger.info("Score maps: %s", self.output_dir / "scores.png")

    @torch.no_grad()
    def _case(self, engine: Any, index: int) -> dict[str, Any]:
        """Register one case and return arrays of the plane to show."""
        item, row = engine.data_loader.dataset[index], self.metrics.rows[index]
        device = engine.state.device
        moving, fixed, moving_label, fixed_label = (
            item[key][None].to(device) for key in ("moving_image", "fixed_image", "moving_label", "fixed_label")
        )
        ddf = engine.network(torch.cat([moving, fixed], dim=1)).float()
        warped = warp(moving, ddf)
        masks = warp(label_masks(moving_label, self.metrics.values), ddf) >= 0.5
        case: dict[str, Any] = {"moving_image": moving, "fixed_image": fixed, "warped_image": warped}
        case |= {"moving_label": moving_label, "fixed_label": fixed_label, "warped_label": self._labels(masks)}
        case["determinant"] = jacobian_determinant(ddf)[:, None]
        if self.estimator is not None:
            seen = fixed if self.estimator_input == "fixed" else torch.cat([fixed, warped], dim=1)
            case["score"] = self.estimator.to(device).eval()(seen)
        shown: dict[str, Any] = {name: middle_plane(value[0])[0].cpu().numpy() for name, value in case.items()}
        shown["ddf"] = middle_plane(ddf[0])[:2].cpu().numpy()
        shown["title"] = f"{row['case']}  Dice {row['dice_before']:.3f} → {row['dice']:.3f}"
        return shown

    def _label_names(self) -> dict[int, str]:
        return dict(zip(self.metrics.values, self.metrics.names, strict=True))

    def _labels(self, masks: Tensor) -> Tensor:
        """Masks (B, K, *S) -> label map (B, 1, *S); where two masks overlap the first label named wins."""
        label = torch.zeros_like(masks[:, :1], dtype=torch.uint8)
        for index in reversed(range(len(self.metrics.values))):
            label[masks[:, index : index + 1]] = self.metrics.values[index]
        return label


def evaluation_handlers(
    labels: Mapping[str, int],
    output_dir: str | Path,
    settings: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    estimator: nn.Module | None = None,
    estimator_input: str = "fixed",
    scored: Sequence[str] | None = None,
) -> list[Any]:
    """The handlers of a full evaluation: progress, measures with tables, figures. Arguments as those of the classes."""
    metrics = CaseMetrics(labels, scored, surface=True, output_dir=output_dir, settings=settings)
    panels = FigurePanels(metrics, output_dir, estimator, estimator_input)
    return [ProgressBar(desc="registering", mininterval=1.0), metrics, panels]
