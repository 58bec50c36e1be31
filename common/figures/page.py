# SPDX-License-Identifier: Apache-2.0
"""A web page in one file: text, tables and pictures, readable on a telephone and without a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..atomic import atomic_path

STYLE = """
:root{color-scheme:light dark;--line:#8885;--good:#0a7d33;--look:#c25700}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}
img{max-width:100%;height:auto}figure{margin:0 0 1rem}figcaption{font-size:.9rem}
.scroll{overflow:auto;max-height:28rem}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.text{text-align:left}
td.text{white-space:normal;min-width:16rem}thead th{position:sticky;top:0;background:Canvas}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.verdict{border-left:.4rem solid var(--good);padding:.4rem 1rem;font-size:1.1rem}
.verdict.look{border-color:var(--look)}.verdict ul{margin:.3rem 0;padding-left:1.2rem;font-size:1rem}
.board{position:relative;--squares:6}.board img{display:block;width:100%;image-rendering:pixelated}
.board img+img{position:absolute;inset:0;mask-image:conic-gradient(#000 25%,#0000 0 50%,#000 0 75%,#0000 0);
mask-size:calc(200%/var(--squares)) calc(200%/var(--squares))}
input[type=range]{width:100%}pre{overflow-x:auto;font-size:.8rem}summary{cursor:pointer}
"""
SCRIPT = (
    "document.querySelectorAll('.board+label input').forEach(s=>s.addEventListener('input',()=>"
    "s.closest('figure').querySelector('.board').style.setProperty('--squares',s.value)))"
)


class Verdict(NamedTuple):
    """What to think of a result.

    Attributes:
        fine: whether nothing speaks against it.
        reasons: sentences; of a fine one what was looked at.
    """

    fine: bool
    reasons: Sequence[str]


def write_page(path: str | Path, title: str, parts: Iterable[str]) -> None:
    """Write a page, atomically.

    Args:
        path: the .html file.
        title: heading.
        parts: HTML, as the functions of this module return it.
    """
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    text = (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n'
        f"{body}\n<script>{SCRIPT}</script></body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it.

    Args:
        title: of the section.
        parts: HTML.

    Returns:
        HTML.
    """
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text.

    Args:
        text: not HTML.

    Returns:
        HTML.
    """
    return f"<p>{escape(text)}</p>"


def verdict_box(verdict: Verdict) -> str:
    """The verdict and its reasons.

    Args:
        verdict: of the result.

    Returns:
        HTML.
    """
    word, kind = ("Fine", "verdict") if verdict.fine else ("Look again", "verdict look")
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    return f'<div class="{kind}" role="status"><strong>{word}</strong><ul>{reasons}</ul></div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        header: a text a column.
        rows: of as many texts.

    Returns:
        HTML.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = ["<tr>" + "".join(f"<td{_kind(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    body = "\n".join(lines)
    name = escape(f"table: {', '.join(header)}")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def picture(source: Path | bytes | np.ndarray, text: str) -> str:
    """A picture with a caption, which also describes it to those who cannot see it.

    Args:
        source: a PNG file, its bytes, or a grey image as ``grey_png`` takes it.
        text: caption.

    Returns:
        HTML that holds the picture.
    """
    return (
        f'<figure><img src="{_encoded(source)}" alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'
    )


def checkerboard(first: np.ndarray, second: np.ndarray, text: str, shape: tuple[float, float] | None = None) -> str:
    """Two grey images in alternating squares, as many as a slider says: edges go on across them where both fit.

    Args:
        first: (H, W), see ``grey_png``.
        second: (H, W).
        text: caption.
        shape: width and height in one unit, where voxels are not square.

    Returns:
        HTML.
    """
    width, height = shape or first.shape
    images = "".join(
        f'<img src="{_encoded(image)}" alt="" style="aspect-ratio:{width:g}/{height:g}">' for image in (first, second)
    )
    slider = f'<input type="range" min="2" max="24" step="2" value="6" aria-label="squares: {escape(text)}">'
    return (
        f'<figure><div class="board" role="img" aria-label="{escape(text)}">{images}</div>'
        f"<label>squares {slider}</label><figcaption>{escape(text)}</figcaption></figure>"
    )


def grid(parts: Iterable[str]) -> str:
    """Parts beside each other where there is room.

    Args:
        parts: HTML.

    Returns:
        HTML.
    """
    return '<div class="grid">' + "\n".join(parts) + "</div>"


def details(title: str, text: str) -> str:
    """Text that is folded away.

    Args:
        title: what is always seen.
        text: plain, its lines kept.

    Returns:
        HTML.
    """
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def grey_png(image: np.ndarray) -> bytes:
    """A grey image as PNG, axis 0 to the right and axis 1 downwards.

    Args:
        image: (H, W); 0 becomes black, 1 white, and what lies beyond is cut.

    Returns:
        The file's bytes.
    """
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, np.clip(np.nan_to_num(np.asarray(image, dtype=float)), 0, 1).T, cmap="gray", vmin=0, vmax=1)
    return stream.getvalue()


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure as PNG.

    Args:
        figure: a ``matplotlib.figure.Figure``.

    Returns:
        The file's bytes.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, facecolor="white")
    return stream.getvalue()


def _kind(cell: str) -> str:
    """Sentences are left-aligned and may wrap."""
    return ' class="text"' if cell.endswith(".") else ""


def _encoded(source: Path | bytes | np.ndarray) -> str:
    data = grey_png(source) if isinstance(source, np.ndarray) else source
    data = data if isinstance(data, bytes) else Path(data).read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
