# SPDX-License-Identifier: Apache-2.0
"""Curves over the heart's cycle: volume of the left ventricle, and strain of its muscle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .drawing import save_figure

TITLES = {"volume_ml": "LV volume, ml", "voxels": "LV volume, voxels"}


def cine_curves(path: str | Path, rows: Sequence[Mapping[str, float]], volume: str, ed: int, es: int) -> None:
    """Draw volume and strain over the frames, with lines at ED and ES.

    Args:
        path: image file to write; its suffix chooses the format.
        rows: a frame each, in order: ``frame``, the volume's column, ``radial`` and ``circumferential`` in per cent.
        volume: column of the volume, one of ``TITLES``.
        ed: frame of end-diastole.
        es: of end-systole.

    Raises:
        ValueError: for no row.
    """
    if not rows:
        raise ValueError("rows: expected at least one frame, got none.")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    frames = [row["frame"] for row in rows]
    axes[0].plot(frames, [row[volume] for row in rows], "o-", markersize=3)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel(TITLES[volume])
    for name in ("radial", "circumferential"):
        axes[1].plot(frames, [row[name] for row in rows], "o-", markersize=3, label=name)
    axes[1].axhline(0, color="0.7", linewidth=0.8)
    axes[1].set_ylabel("Lagrangian Green strain, %")
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.set_xlabel("frame")
        for frame, name in ((ed, "ED"), (es, "ES")):
            axis.axvline(frame, color="0.5", linestyle=":", linewidth=1.0)
            axis.annotate(name, (frame, 1), xycoords=("data", "axes fraction"), xytext=(3, -10),
                          textcoords="offset points", fontsize=8, color="0.4")  # fmt: skip
    save_figure(figure, path)
