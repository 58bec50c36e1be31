# SPDX-License-Identifier: Apache-2.0
"""``python -m common scales BUNDLE``: which scales the self-adaptive similarity looks at while a pair is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bundle import start
from ..checks import whole
from ..engines.pairwise import PairwiseRegistration
from ..figures.scale_weights import SCALES, scale_weights
from ..io.tables import Cell, Table, number, write_tables
from ..losses.adaptive import AdaptiveMultiScaleNCC
from ..metrics.folding import foldings_percent
from ..runs import arguments
from ..runs.command_line import Words
from ..spatial.jacobian import jacobian_determinant
from ..spatial.warp import warp
from .bundles import evaluation_config, find_bundles

FORMS = {"Eq. 7": False, "greedy, Eq. 8": True}
FILES_WRITTEN = ("scales.png", "scales.csv")


class _Recorded(AdaptiveMultiScaleNCC):
    """Keeps the weights that each call had."""

    def __init__(self, greedy: bool) -> None:
        super().__init__(greedy=greedy)
        self.history: list[list[float]] = []

    def weights(self, distances: Tensor) -> Tensor:
        found = super().weights(distances)
        self.history.append(found.mean(dim=1).tolist())
        return found


def scales(
    bundle: str = "gradicon_triangles",
    output_dir: str = "results/scales",
    case: int = 0,
    iterations: int = 1000,
    smoothness_weight: float = 0.2,
    **overrides: Any,
) -> str:
    """Register one pair by optimising its velocity under the self-adaptive similarity, and draw the scales' weights.

    As in ``python -m common scales gradicon_triangles --spatial_size "[128, 128]" --output_dir results/scales``: every
    further option is one of the bundle's evaluation. The field is optimised at full resolution alone, once for each
    form of the weights, so that whatever works from coarse to fine is the similarity. ``scales.png`` has a curve a
    scale, ``scales.csv`` a row an iteration. The paper does not say what it optimised; here it is the velocity of
    ``engines.pairwise``.

    Args:
        bundle: name or path of the bundle whose pairs are taken.
        output_dir: receives the two files.
        case: number of the pair among those that the bundle evaluates.
        iterations: of Adam.
        smoothness_weight: of the velocity.
        overrides: further options of the bundle's evaluation.

    Returns:
        A table of what each form reached, Markdown.

    Raises:
        ValueError: for a pair that is not there, less than one iteration, or files that would be overwritten.

    Reference:
        Tian et al., GradICON, CVPR 2023, Fig. 2.
    """
    output = Path(output_dir)
    taken = [name for name in FILES_WRITTEN if (output / name).exists()]
    whole("iterations", iterations, 1)
    if taken:
        raise ValueError(
            f"output_dir: expected a folder without {' or '.join(FILES_WRITTEN)}, got {output} with {taken[0]}. "
            "Choose another."
        )
    image = _pair(bundle, case, overrides | {"output_dir": str(output)})
    histories: dict[str, list[list[float]]] = {}
    rows: list[list[Cell | str]] = []
    for title, greedy in FORMS.items():
        similarity = _Recorded(greedy)
        solver = PairwiseRegistration(similarity, smoothness_weight, levels=(1,), steps=(iterations,))
        ddf = solver.register(image)
        histories[title] = similarity.history
        before, after = ((moved - image[:, 1:]).square().mean() for moved in (image[:, :1], warp(image[:, :1], ddf)))
        folded = float(foldings_percent(jacobian_determinant(ddf)))
        rows.append(
            [title, *(number(float(value), ".4g") for value in (before, after, folded)), _switch(histories[title])]
        )
    scale_weights(output / FILES_WRITTEN[0], histories)
    _write(output / FILES_WRITTEN[1], histories)
    header = [
        "weights",
        "MSE before",
        "MSE after",
        "foldings, %",
        "scale of the largest weight: first → last iteration",
    ]
    return Table("scales", header, rows).markdown()


def _pair(bundle: str, case: int, overrides: dict[str, Any]) -> Tensor:
    """cat(moving, fixed) of one pair that the bundle evaluates, (1, 2, *S)."""
    (folder,) = find_bundles((str(bundle),))
    parser = evaluation_config(folder)
    parser.update({"bundle_root": str(folder)} | overrides)
    arguments.check(parser, Words([], {}), "evaluating")
    options = parser.get_parsed_content("options")
    start(options.seed, options.device)
    dataset = parser.get_parsed_content("validate#dataset")
    if whole("case", case) >= len(dataset):
        raise ValueError(
            f"case: expected a number from 0 to {len(dataset) - 1}, of the pairs of the split, got {case!r}."
        )
    pair = dataset[case]
    return torch.cat([pair["moving_image"], pair["fixed_image"]])[None].to(options.device)


def _switch(history: list[list[float]]) -> str:
    names = [SCALES[max(range(len(row)), key=row.__getitem__)] for row in (history[0], history[-1])]
    return " → ".join(names)


def _write(path: Path, histories: dict[str, list[list[float]]]) -> None:
    scales_shown = SCALES[: len(next(iter(histories.values()))[0])]
    header = ["iteration", "form", *scales_shown]
    rows: list[list[Cell | str]] = [
        [str(step), title, *(number(weight, ".6g") for weight in weights)]
        for title, history in histories.items()
        for step, weights in enumerate(history, start=1)
    ]
    write_tables([Table("scales", header, rows)], path, "")
