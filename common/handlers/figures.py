# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: the median case, and the score maps."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from ..figures.bland_altman import bland_altman
from ..figures.panels import registration_panel, score_panel
from ..figures.uncertainty import reliability_plot, sparsification_plot, weight_panel
from ..figures.weight_volumes import weight_volume_panel
from ..io.results import spread
from ..metrics.ejection_fraction import COLUMNS as EJECTION_FRACTIONS
from ..metrics.labels import LabelMeasures, label_masks
from ..metrics.uncertainty import CURVES, RELIABILITY
from ..spatial.jacobian import jacobian_determinant
from ..spatial.warp import warp
from .measures import CaseMeasures

logger = logging.getLogger(__name__)


class Rank(NamedTuple):
    """A column that says how good a registration is, how a title calls it, and whether more is better."""

    column: str
    title: str
    sign: float


SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the largest weight of the log loss, in the figure of the weight volumes
RANKS = (Rank("dice", "Dice", 1.0), Rank("dice_vessels", "Dice", 1.0), Rank("mse", "MSE", -1.0))


def middle_plane(array: Tensor) -> Tensor:
    """The plane to show: (..., H, W) of 2D images as it is, of (C, H, W, D) the middle of the last axis.

    Args:
        array: an image or field.

    Returns:
        (C, H, W).
    """
    return array if array.dim() == 3 else array[..., array.shape[-1] // 2]


class FigurePanels:
    """Draws ``registration.png`` for the case of median quality, and maps of an estimator for a few.

    A score's maps go to ``scores.png``; of a log variance σ is shown, in ``deviations.png``, and where the evaluator
    gives a map ``weight`` of what the data term makes of it, ``weights.png``. Where the uncertainty is measured its
    curves are drawn as well: ``sparsification.png``, ``reliability.png``. Of a network that predicts the weight volume
    of its smoothness, ``weight_volumes.png`` shows the median case over the weight of the log loss. Where ejection
    fractions are measured, ``ejection_fraction.png`` compares them with those of the labels.

    The quality is the Dice where there is one, else the difference of the images. Runs after ``CaseMeasures``; the
    cases shown are registered once more, so that nothing is kept in memory meanwhile.

    Args:
        measures: the handler whose rows say which case is the median.
        output_dir: where to write.
        quantiles: of the quality, the rows of the maps.
    """

    def __init__(
        self,
        measures: CaseMeasures,
        output_dir: str | Path,
        quantiles: tuple[float, ...] = (0.75, 0.5, 0.25),
    ) -> None:
        self.measures, self.output_dir, self.quantiles = measures, Path(output_dir), quantiles
        labelled: list[Any] = [measure for measure in measures.measures if isinstance(measure, LabelMeasures)]
        self.labels: dict[str, int] = labelled[0].labels if labelled else {}

    def attach(self, engine: Engine) -> None:
        """Register on a ``RegistrationEvaluator``, after ``CaseMeasures``.

        Args:
            engine: the evaluator.
        """
        engine.add_event_handler(Events.COMPLETED, self._draw)
        engine.add_event_handler(Events.COMPLETED, self._draw_curves)

    def _draw(self, engine: Any) -> None:
        rank, ranked = ranked_rows(self.measures.rows)
        if rank is None:
            logger.warning(
                "No figure is drawn: no case has one of %s, by which the median is chosen. Add "
                "common.metrics.image.ImageMeasures to 'measures'.", ", ".join(rank.column for rank in RANKS),
            )  # fmt: skip
            return
        estimates = engine.maps is not None and engine.maps.estimator is not None
        quantiles = (0.5, *self.quantiles) if estimates else (0.5,)
        shown = [ranked[min(int(q * len(ranked)), len(ranked) - 1)] for q in quantiles]
        cases = {index: self.case(engine, index, rank) for index in dict.fromkeys(shown)}
        path = self.output_dir / "registration.png"
        draw_case(path, cases[shown[0]], self.label_names())
        logger.info("Figure of the median case: %s", path)
        self._draw_weight_volumes(engine, shown[0])
        if estimates:
            rows = [cases[index] | {"title": cases[index]["title"].replace("  ", "\n")} for index in shown[1:]]
            path = self.output_dir / ("scores.png" if "score" in rows[0] else "deviations.png")
            score_panel(path, rows, self.label_names())
            logger.info("Maps of the estimator: %s", path)
            if "weight" in rows[0]:
                weight_panel(self.output_dir / "weights.png", rows)

    def _draw_curves(self, engine: Engine) -> None:
        tables, rows = self.measures.tables, self.measures.rows
        for name in CURVES.keys() & tables.keys():
            area = spread([row[CURVES[name]] for row in rows])["mean"]
            sparsification_plot(self.output_dir / f"{name}.png", {"uncertainty": tables[name]}, {"uncertainty": area})
        if RELIABILITY in tables:
            error = spread([row["ence"] for row in rows])["mean"]
            path = self.output_dir / f"{RELIABILITY}.png"
            reliability_plot(path, {"σ": tables[RELIABILITY]}, {"σ": error})
        self._draw_ejection_fractions()

    def _draw_ejection_fractions(self) -> None:
        labelled, registered = (
            [row.get(column, math.nan) for row in self.measures.subjects] for column in EJECTION_FRACTIONS
        )
        if not any(math.isfinite(a) and math.isfinite(b) for a, b in zip(labelled, registered, strict=True)):
            return
        path = self.output_dir / "ejection_fraction.png"
        found = bland_altman(path, registered, labelled, "ejection fraction", "%")
        logger.info(
            "Ejection fraction of %d subjects, registered less labelled: bias %+.2f, limits of agreement %+.2f and "
            "%+.2f %%: %s", found.n, found.bias, found.lower, found.upper, path,
        )  # fmt: skip

    def _draw_weight_volumes(self, engine: Any, index: int) -> None:
        """As the trained network gives them: after a fit to the pair nothing is conditioned any more."""
        maps = engine.maps
        if maps is None or not maps.weighs_smoothness or engine.network is not maps.network:
            return
        item, kept, cases = engine.data_loader.dataset[index], engine.condition, {}
        try:
            for share in (kept,) if maps.eta_max is None else SHARES:
                engine.condition = share
                name = "" if maps.eta_max is None else f"η = {share * maps.eta_max:.3g}"
                cases[name] = registered_case(engine, item, {})
        finally:
            engine.condition = kept
        if all("weight_volume" in case for case in cases.values()):
            path = self.output_dir / "weight_volumes.png"
            weight_volume_panel(path, cases)
            logger.info("Weights of the smoothness: %s", path)

    def case(self, engine: Any, index: int, rank: Rank) -> dict[str, Any]:
        """Register one case.

        Args:
            engine: the evaluator.
            index: of the case in its data set.
            rank: whose values the title has.

        Returns:
            As ``registered_case``, with ``title``.
        """
        item, row = engine.data_loader.dataset[index], self.measures.rows[index]
        shown = registered_case(engine, item, self.labels)
        digits = ".3f" if rank.sign > 0 else ".3g"
        before, after = (format(row[name], digits) for name in (f"{rank.column}_before", rank.column))
        return shown | {"title": f"{row['case']}  {rank.title} {before} → {after}"}

    def label_names(self) -> dict[int, str]:
        """Names of the labels.

        Returns:
            Name by value.
        """
        return {value: name for name, value in self.labels.items()}


@torch.no_grad()
def registered_case(engine: Any, item: Mapping[str, Any], labels: Mapping[str, int]) -> dict[str, Any]:
    """Register a case, and return the plane to show of all that a panel needs.

    Args:
        engine: a ``RegistrationEvaluator``.
        item: of its data set.
        labels: value by name of those to show; none shows no label.

    Returns:
        ``moving_image``, ``fixed_image``, ``warped_image``, ``determinant``, and where there are any the maps of the
        engine's ``uncertainty``, ``moving_label``, ``fixed_label``, ``warped_label``: arrays (H, W); ``ddf``, (2, H, W)
        in voxels; and ``mse``, the mean squared difference of the warped and the fixed image, a number.
    """
    device = engine.state.device
    moving, fixed = (item[key][None].to(device) for key in ("moving_image", "fixed_image"))
    image = torch.cat([moving, fixed], dim=1)
    ddf = engine.register(image).float()
    warped = warp(moving, ddf)
    case: dict[str, Any] = {"moving_image": moving, "fixed_image": fixed, "warped_image": warped}
    if labels:
        moving_label, fixed_label = (item[key][None].to(device) for key in ("moving_label", "fixed_label"))
        case |= {"moving_label": moving_label, "fixed_label": fixed_label}
        case["warped_label"] = _warped_label(moving_label, fixed_label, ddf, labels)
    case["determinant"] = jacobian_determinant(ddf)[:, None]
    case |= engine.uncertainty(image, warped)
    shown: dict[str, Any] = {name: middle_plane(value[0])[0].cpu().numpy() for name, value in case.items()}
    return shown | {"ddf": middle_plane(ddf[0])[:2].cpu().numpy(), "mse": float((warped - fixed).square().mean())}


def _warped_label(moving: Tensor, fixed: Tensor, ddf: Tensor, labels: Mapping[str, int]) -> Tensor:
    """Label map (B, 1, *S) of the warped masks; where two of them overlap the first label named wins."""
    label = torch.zeros_like(moving)
    for value in reversed(list(labels.values())):
        label[label_masks(moving, fixed, ddf, value).warped] = value
    return label


def draw_case(path: Path, case: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Draw a registered case.

    Args:
        path: image file to write.
        case: as ``registered_case`` returns it, with ``title``.
        names: of label values.
    """
    optional = ("moving_label", "fixed_label", "warped_label", "score", "noise_deviation")
    registration_panel(
        path,
        moving=case["moving_image"],
        fixed=case["fixed_image"],
        warped=case["warped_image"],
        ddf=case["ddf"],
        **{name: case.get(name) for name in optional},
        jacobian_determinant=case["determinant"],
        title=case["title"],
        label_names=names,
    )


def ranked_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Rank | None, list[int]]:
    """The order of cases by their quality.

    Args:
        rows: of ``metrics.csv``.

    Returns:
        The first column that ranks any case, and the numbers of the cases that it ranks, the worst first.
    """
    for rank in RANKS:
        values = [(rank.sign * row.get(rank.column, math.nan), index) for index, row in enumerate(rows)]
        ranked = [index for value, index in sorted(pair for pair in values if not math.isnan(pair[0]))]
        if ranked:
            return rank, ranked
    return None, []
