# SPDX-License-Identifier: Apache-2.0
"""Registered pairs in closed form: nested ellipsoids, and displacements that are waves."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from common.handlers.measures import CaseMeasures
from common.metrics.displacement import DisplacementMeasures
from common.metrics.folding import FieldMeasures
from common.metrics.image import ImageMeasures
from common.metrics.labels import LabelMeasures
from common.spatial.warp import warp

LABELS = {"myocardium": 2, "lv": 3, "rv": 1}
SHAPES = {"2d": (34, 27), "3d": (19, 16, 14)}
SPACINGS = {
    "2d": ((1.3671875, 1.3671875), (1.25, 2.5), (float("nan"), float("nan"))),
    "3d": ((1.5, 1.5, 1.5), (0.9, 1.1, 2.0), (float("nan"),) * 3),
}


def label_map(shape: tuple[int, ...], shift: float, lack: int | None = None) -> Tensor:
    """Three nested ellipsoids, labels 1, 2, 3 from outside to inside, (1, *S) uint8; ``lack`` is left out."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    radius = sum((x - shift / (i + 1)).square() * (1 + 0.37 * i) for i, x in enumerate(axes))
    label = torch.zeros(shape, dtype=torch.uint8)
    for value, size in ((1, 0.613), (2, 0.307), (3, 0.109)):
        label[radius < size] = value
    if lack is not None:
        label[label == lack] = 0
    return label[None]


def wave(shape: tuple[int, ...], size: float, phase: float) -> Tensor:
    """A smooth displacement in voxels, (d, *S)."""
    axes = torch.meshgrid(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    return torch.stack([size * torch.sin(3.1 * sum(axes) + phase + i) for i in range(len(shape))]).float()


def registered_pairs(dims: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Batch and output of three pairs: spacing isotropic, anisotropic, unknown; the last lacks a scored label."""
    shape, number = SHAPES[dims], range(3)
    lack = (None, None, 2)
    batch: dict[str, Any] = {
        "moving_label": torch.stack([label_map(shape, 0.11 + 0.05 * n) for n in number]),
        "fixed_label": torch.stack([label_map(shape, -0.07 * n, lack[n]) for n in number]),
        "true_ddf": torch.stack([wave(shape, 1.7, 0.2 * n) for n in number]),
        "spacing": torch.tensor(SPACINGS[dims]),
        "subject": ["one", "two", "two"],
        "case": ["a", "b", "c"],
    }
    batch |= {f"{role}_image": batch[f"{role}_label"] / 3.0 for role in ("moving", "fixed")}
    ddf = torch.stack([wave(shape, 1.4 + 1.9 * n, 0.25 * n) for n in number])
    output = {"ddf": ddf, "warped_image": warp(batch["moving_image"], ddf), "reverse_ddf": -0.9 * ddf, "seconds": 0.6}
    return batch, output


def measures_of(labels: Any, scored: Any = None, *more: Any, **options: Any) -> CaseMeasures:
    """The handler with the measures of most bundles."""
    measures = [LabelMeasures(labels, scored), ImageMeasures(), FieldMeasures(), DisplacementMeasures(required=False)]
    return CaseMeasures([*measures, *more], **options)


def run_batch(handler: CaseMeasures, batch: Any, output: Any) -> Engine:
    """Run an engine of one batch whose registration is ``output``."""

    def register(engine, _):
        engine.state.batch = batch
        return output

    engine = Engine(register)
    handler.attach(engine)
    engine.run([0])
    return engine
