# SPDX-License-Identifier: Apache-2.0
"""The page on a registered pair: the same picture however the files are stored, and a verdict in words."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from common.engines import pair_page
from common.engines.pair_page import flat, write_pair_page
from common.engines.result import Result
from common.io.images import Image
from common.io.transforms import Transform

SHAPE = (12, 14, 10)


def result_of(codes: str, ddf_ras: np.ndarray) -> Result:
    """A smooth pair with a displacement along right, front and up, stored along other axes."""
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    images = [np.exp(-3 * ((axes[0] - shift) ** 2 + axes[1] ** 2 + 0.5 * axes[2])) for shift in (0.0, 0.2)]
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    stored_affine = affine @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    stored = [nib.orientations.apply_orientation(image, turn) for image in images]
    field = [nib.orientations.apply_orientation(part, turn) for part in ddf_ras]
    order = np.argsort(turn[:, 0])  # which axis of RAS each stored one is
    signs = turn[order, 1]
    ddf = np.stack([field[axis] * sign for axis, sign in zip(order.astype(int), signs, strict=True)])
    spacing = tuple(float(n) for n in np.linalg.norm(stored_affine[:3, :3], axis=0))
    moving, fixed = (Image(torch.from_numpy(np.ascontiguousarray(a)).float(), stored_affine, spacing) for a in stored)
    return Result(Transform(np.eye(4), torch.from_numpy(np.ascontiguousarray(ddf)).float(), fixed), moving, fixed)


def warped_of(result: Result) -> torch.Tensor:
    return result.transform.apply(result.moving, "bilinear").array


def shown_of(result: Result) -> Any:
    shown = pair_page._shown(result, warped_of(result))
    return shown._replace(ddf=np.reshape(shown.signs, (-1, 1, 1, 1)) * shown.ddf, signs=(1, 1, 1))


def smooth_field(size: float = 0.6) -> np.ndarray:
    axes = np.stack(np.meshgrid(*[np.linspace(0, 3, n) for n in SHAPE], indexing="ij"))
    return size * np.stack([np.sin(axes[1]), np.cos(axes[0]), np.sin(axes[0] + axes[2])])


@pytest.mark.parametrize("codes", ["RAS", "LPI", "ASR", "ILP"])
def test_pictures_do_not_depend_on_how_the_files_are_stored(codes: str) -> None:
    ddf = smooth_field()
    shown = shown_of(result_of(codes, ddf))
    assert shown.fixed.shape == SHAPE and tuple(shown.spacing) == (1.0, 1.5, 2.0)
    turned = -ddf[:, ::-1, ::-1, ::-1]  # left, back, down
    np.testing.assert_allclose(shown.ddf, turned, atol=1e-6)
    reference = shown_of(result_of("RAS", ddf))
    for one, other in zip(shown, reference, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_page_has_a_verdict_and_the_numbers(tmp_path) -> None:
    result = result_of("RAS", smooth_field())
    metrics = result.metrics()
    write_pair_page(tmp_path / "report.html", result, metrics, warped_of(result))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{metrics['similarity']['after']['ncc']:.4g}" in text and "there and back again, voxels: mean" in text
    assert "<h2>Axial</h2>" in text and "<h2>Sagittal</h2>" in text and 'role="status"' in text


def test_a_folding_map_is_doubted(tmp_path) -> None:
    result = result_of("RAS", smooth_field(6.0))
    metrics = result.metrics()
    values = flat(metrics, result)
    assert values["foldings_percent"] > 0.5 and values["strong_change"] > 0
    write_pair_page(tmp_path / "report.html", result, metrics, warped_of(result))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Look again" in text and "The map folds at" in text
