# SPDX-License-Identifier: Apache-2.0
"""Transforms that ITK, ANTs and elastix write, of every kind, map points here as they do there."""

import h5py
import itk
import numpy as np
import pytest
import torch

from common.io.composite import load_transform, save_transform
from common.io.images import Image
from common.io.transforms import Transform

DIRECTION = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0]
AFFINE = np.eye(4)
AFFINE[:3] = np.column_stack([DIRECTION * [1.5, -2.0, 2.5], [10.0, -20.0, 5.0]])
GRID = Image(torch.zeros(14, 12, 10), AFFINE, (1.5, 2.0, 2.5))


def spline(seed=0):
    """A B-spline over the grid, of a few millimetres."""
    transform = itk.BSplineTransform[itk.D, 3, 3].New()
    transform.SetTransformDomainOrigin([-60.0] * 3)
    transform.SetTransformDomainPhysicalDimensions([120.0] * 3)
    transform.SetTransformDomainMeshSize([4, 4, 4])
    values = np.random.default_rng(seed).normal(0, 3, transform.GetNumberOfParameters())
    parameters = itk.OptimizerParameters[itk.D](len(values))
    for index, value in enumerate(values):
        parameters.SetElement(index, float(value))
    transform.SetParameters(parameters)
    return transform


def euler(angle=0.2):
    transform = itk.Euler3DTransform[itk.D].New()
    transform.SetCenter([3.0, -4.0, 5.0])
    transform.SetRotation(angle, -angle, 0.5 * angle)
    transform.SetTranslation([2.0, 1.0, -3.0])
    return transform


def composite(*parts):
    transform = itk.CompositeTransform[itk.D, 3].New()
    for part in parts:
        transform.AddTransform(part)
    return transform


def check(path, written, tolerance=1e-4):
    itk.transformwrite([written], str(path))
    read = load_transform(path, GRID)
    voxels = np.array([[3, 4, 5], [0, 0, 0], [13, 11, 9], [7, 2, 8]])
    points = voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    theirs = np.array([list(written.TransformPoint((p * [-1, -1, 1]).tolist())) for p in points]) * [-1, -1, 1]
    np.testing.assert_allclose(read.points(points), theirs, atol=tolerance)
    return read


@pytest.mark.parametrize("suffix", ["h5", "tfm"])
@pytest.mark.parametrize(
    "parts", [(spline,), (euler, spline), (spline, euler), (euler, spline, euler)], ids=["s", "es", "se", "ese"]
)
def test_splines_and_what_acts_before_them_are_sampled(tmp_path, parts, suffix):
    check(tmp_path / f"t.{suffix}", composite(*(part() for part in parts)))


def test_several_linear_ones_become_one(tmp_path):
    read = check(tmp_path / "t.h5", composite(euler(), euler(-0.4)), tolerance=1e-9)
    assert read.ddf is None


def test_a_linear_one_that_acts_first_is_sampled_with_the_field(tmp_path):
    field = Transform(
        np.eye(4), 0.3 * torch.randn(3, *GRID.array.shape, generator=torch.Generator().manual_seed(0)), GRID
    )
    save_transform(tmp_path / "field.h5", field)
    (written,) = itk.transformread(str(tmp_path / "field.h5"))
    check(tmp_path / "t.h5", composite(itk.down_cast(written).GetNthTransform(1), euler(0.01)))


def test_a_plane(tmp_path):
    grid = Image(torch.zeros(14, 12), np.diag([1.5, -2.0, 1.0, 1.0]), (1.5, 2.0))
    transform = itk.BSplineTransform[itk.D, 2, 3].New()
    transform.SetTransformDomainOrigin([-60.0] * 2)
    transform.SetTransformDomainPhysicalDimensions([120.0] * 2)
    itk.transformwrite([transform], str(tmp_path / "t.h5"))
    assert load_transform(tmp_path / "t.h5", grid).ddf.abs().max() < 1e-6
    with pytest.raises(ValueError, match="transforms: expected a transform of 3D images, .* holds one of 2D"):
        load_transform(tmp_path / "t.h5", GRID, "transforms")


def test_what_is_sampled_needs_a_grid(tmp_path):
    itk.transformwrite([spline()], str(tmp_path / "t.h5"))
    with pytest.raises(ValueError, match="grid: .*t.h5 is to be sampled .* the fixed image"):
        load_transform(tmp_path / "t.h5")


@pytest.mark.parametrize(("scale", "shift"), [(0, 0), (1, "nan")])
def test_linear_ones_that_cannot_be_inverted_or_hold_nan_are_refused(tmp_path, scale, shift):
    (tmp_path / "t.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: 1 0 0 0 1 0 0 0 {scale} {shift} 0 0\nFixedParameters: 0 0 0\n"
    )
    with pytest.raises(ValueError, match=r"affine: expected .*t.tfm"):
        load_transform(tmp_path / "t.tfm", GRID, "affine")


def test_a_field_with_nan_is_refused(tmp_path):
    ddf = torch.zeros(3, *GRID.array.shape)
    save_transform(tmp_path / "t.h5", Transform(np.eye(4), ddf, GRID))
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["TransformGroup/2/TransformParameters"][5] = np.nan
    with pytest.raises(ValueError, match=r"transforms: expected finite displacements; .*t.h5"):
        load_transform(tmp_path / "t.h5", GRID, "transforms")


def test_an_unknown_file_is_refused(tmp_path):
    (tmp_path / "t.h5").write_bytes(b"no HDF5")
    (tmp_path / "t.txt").write_text("no transform")
    for name in ("t.h5", "t.txt"):
        with pytest.raises(ValueError, match=f"transforms: expected a name that ends in .* ITK cannot read .*{name}"):
            load_transform(tmp_path / name, GRID, "transforms")
