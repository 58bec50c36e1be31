# SPDX-License-Identifier: Apache-2.0
"""Transforms as files: one displacement field (NIfTI), or ITK's affine and field (.h5, .tfm), both read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import atomic_path
from ..spatial.fields import all_finite
from ..spatial.units import plane_affine
from .fields import ONE_SLICE, field_mm, field_voxels, load_ddf, save_ddf
from .images import NIFTI_SUFFIXES, Image
from .itk_geometry import LPS, geometry, image_affine, set_geometry
from .nifti import open_nifti
from .placement import checked_placement
from .transforms import Transform

ITK_SUFFIXES = (".h5", ".tfm")
EXPECTED = "expected a name that ends in .nii, .nii.gz (one field), .h5 or .tfm (ITK: affine and field)"


def save_transform(path: str | Path, transform: Transform) -> None:
    """Write a transform for ITK, ANTs and 3D Slicer, atomically; mm, LPS, from points of fixed to points of moving.

    Args:
        path: .nii or .nii.gz: one field, placement included (``common.io.fields.save_ddf``). .h5 or .tfm: an
            ``itk.CompositeTransform`` of the placement, an ``itk.AffineTransform``, and the displacement, an
            ``itk.DisplacementFieldTransform``, which acts first. 2D where ITK reads the fixed image as 2D.
        transform: to write. Without a displacement ITK's file holds the affine alone.

    Raises:
        ValueError: for another suffix, or a grid that ITK cannot express (``common.io.fields.check_grid``).
    """
    if str(path).endswith(NIFTI_SUFFIXES):
        save_ddf(path, transform.displacement(), transform.grid)
        return
    if not str(path).endswith(ITK_SUFFIXES):
        raise ValueError(f"path: {EXPECTED}; got {path}. Rename the output.")
    dims = transform.grid.array.dim() + int(transform.grid.slice_axis)
    if str(path).endswith(".h5"):
        with atomic_path(path) as temporary:
            _write_h5(temporary, transform, dims)
        return
    import itk

    composite = itk.CompositeTransform[itk.D, dims].New()
    composite.AddTransform(_affine(LPS @ transform.placement @ LPS, dims))
    if transform.ddf is not None:
        composite.AddTransform(_field(transform.ddf, transform.grid))  # what is added last acts first
    with atomic_path(path) as temporary:
        itk.transformwrite([composite], str(temporary))


def _write_h5(path: Path, transform: Transform, dims: int) -> None:
    """As ``itk.transformwrite`` does; to load that takes ten times as long as to register a small pair."""
    import h5py  # here, so that what writes no such file does without it

    matrix = LPS @ transform.placement @ LPS
    matrix = plane_affine(matrix) if dims == 2 else matrix
    affine = [*matrix[:dims, :dims].ravel(), *matrix[:dims, dims]]
    parts: list[tuple[str, Any, Any]] = [("Affine", [0.0] * dims, affine)]
    if transform.ddf is not None:  # what is last acts first
        vectors = field_mm(transform.ddf, transform.grid)
        direction, spacing, origin = geometry(transform.grid.affine, dims)
        grid = [*map(float, vectors.shape[1:]), *origin, *spacing, *direction.ravel()]
        parts.append(("DisplacementField", grid, vectors.permute(*range(dims, 0, -1), 0).reshape(-1).numpy()))
    with h5py.File(path, "w") as file:
        for name, text in (
            ("ITKVersion", "5.4"),
            ("HDFVersion", h5py.version.hdf5_version),
            ("OSName", ""),
            ("OSVersion", ""),
        ):
            file.create_dataset(name, data=[text], dtype=h5py.string_dtype())
        kinds = [("Composite", None, None), *parts]
        for number, (kind, fixed, parameters) in enumerate(kinds):
            group = file.create_group(f"TransformGroup/{number}")
            name = f"{kind}Transform_double_{dims}_{dims}"
            group.create_dataset("TransformType", data=[name], dtype=h5py.string_dtype("ascii"))
            if fixed is not None:
                group.create_dataset("TransformFixedParameters", data=np.asarray(fixed, dtype=np.float64))
                group.create_dataset("TransformParameters", data=np.asarray(parameters), dtype=np.float64)


def load_transform(path: str | Path, grid: Image | None = None, argument: str = "path") -> Transform:
    """Read a transform that ``save_transform``, ITK or ANTs wrote.

    Args:
        path: .nii, .nii.gz: a displacement field. .h5, .tfm, ANTs' .mat: whatever ITK reads, linear transforms,
            displacement fields, B-splines, composites. Linear ones and a field that acts before them are taken as they
            are; all else is sampled at the voxels of ``grid``.
        grid: the fixed image: the grid of the result where it is given. Needed where the file holds no field, or what
            has to be sampled, and for ITK's files of images of the form (X, Y, 1).
        argument: what errors call the path.

    Returns:
        Transform on ``grid``, else on that of the file's field.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for what ITK cannot read, another number of axes than that of ``grid``, or where a grid is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: expected a file of a transform, there is no {path}. Check the spelling.")
    if path.name.endswith(NIFTI_SUFFIXES):
        ddf, affine = load_ddf(path, argument)
        header = open_nifti(path, argument).header
        one_slice = bytes(header["descrip"].item()).decode("latin1") == ONE_SLICE
        read = Transform(np.eye(4), ddf, _grid(affine, ddf.shape[1:], one_slice))
    else:
        read = _checked(_read_itk(path, grid, argument), path, argument)
    return read if grid is None or read.ddf is None else read.on(grid)


def _checked(read: Transform, path: Path, argument: str) -> Transform:
    if read.ddf is not None and not all_finite(read.ddf):
        raise ValueError(
            f"{argument}: expected finite displacements; {path} holds NaN or infinite ones. Export it again."
        )
    return read


def _placed(placement: np.ndarray, path: Path, argument: str) -> np.ndarray:
    try:
        return checked_placement(placement)
    except ValueError:
        raise ValueError(
            f"{argument}: expected an invertible linear transform; {path} holds (mm, RAS) {placement.tolist()}. Export "
            "it again."
        ) from None


def _read_itk(path: Path, grid: Image | None, argument: str) -> Transform:
    import itk

    try:
        whole = [itk.down_cast(top) for top in itk.transformread(str(path))]
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{argument}: {EXPECTED}; ITK cannot read {path}: {str(error)[-200:]}") from error
    parts = [part for top in whole for part in _parts(top)]
    kinds = "".join("A" if kind == "affine" else kind[0] for kind in map(_kind, parts))
    if re.fullmatch("A*f?", kinds) is None or not kinds:
        if grid is None:
            raise ValueError(f"grid: {path} is to be sampled on a grid: expected the fixed image, got None.")
        return _sampled(whole, grid, path, argument)
    placement = np.eye(4)
    for part in parts:
        if _kind(part) == "affine":
            placement = _placed(placement @ LPS @ _matrix(part) @ LPS, path, argument)
    if kinds[-1] == "A":
        if grid is None:
            raise ValueError(f"grid: {path} holds no displacement field: expected the fixed image, got None.")
        return Transform(placement, None, grid)
    return _with_field(placement, parts[-1].GetDisplacementField(), grid is not None and grid.slice_axis)


def _sampled(whole: list[Any], grid: Image, path: Path, argument: str) -> Transform:
    """Any transforms of ITK, what acts last first, as a field on a grid; exact at its voxels."""
    import itk

    dims = whole[0].GetInputSpaceDimension()
    if dims != grid.array.dim() + int(grid.slice_axis):
        raise ValueError(
            f"{argument}: expected a transform of {grid.array.dim()}D images, as the fixed image is; {path} holds one "
            f"of {dims}D."
        )
    composite = itk.CompositeTransform[itk.D, dims].New()
    for part in whole:
        composite.AddTransform(part)
    direction, spacing, origin = geometry(grid.affine, dims)
    field = itk.TransformToDisplacementFieldFilter[itk.Image[itk.Vector[itk.F, dims], dims], itk.D].New()
    field.SetTransform(composite)
    field.SetSize([*grid.array.shape, 1][:dims])
    field.SetOutputSpacing(spacing.tolist())
    field.SetOutputOrigin(origin.tolist())
    field.SetOutputDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
    field.Update()
    values = torch.from_numpy(np.ascontiguousarray(itk.array_from_image(field.GetOutput()))).movedim(-1, 0)
    ddf = field_voxels(values.permute(0, *range(dims, 0, -1)).float(), grid.affine)
    return Transform(np.eye(4), ddf[:2, :, :, 0].contiguous() if grid.slice_axis else ddf, grid)


def _with_field(placement: np.ndarray, image: Any, one_slice: bool) -> Transform:
    import itk

    values = np.ascontiguousarray(itk.array_from_image(image))  # (Z, Y, X, components)
    vectors = torch.from_numpy(values).movedim(-1, 0)
    vectors = vectors.permute(0, *range(vectors.dim() - 1, 0, -1)).float()
    affine = image_affine(image)
    ddf = field_voxels(vectors, affine)
    if one_slice:  # which is written twice, see io.fields
        ddf = ddf[:2, :, :, 0].contiguous()
    return Transform(placement, ddf, _grid(affine, ddf.shape[1:], one_slice))


def _parts(transform: Any) -> list[Any]:
    """The transforms of a composite, what acts last first."""
    if "CompositeTransform" not in type(transform).__name__:
        return [transform]
    import itk

    numbers = range(transform.GetNumberOfTransforms())
    return [part for n in numbers for part in _parts(itk.down_cast(transform.GetNthTransform(n)))]


def _kind(transform: Any) -> str:
    if hasattr(transform, "GetDisplacementField"):
        return "field"
    return "affine" if hasattr(transform, "GetMatrix") and hasattr(transform, "GetOffset") else "other"


def _affine(matrix_lps: np.ndarray, dims: int) -> Any:
    import itk

    matrix = plane_affine(matrix_lps) if dims == 2 else matrix_lps
    affine = itk.AffineTransform[itk.D, dims].New()
    affine.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:dims, :dims])))
    affine.SetTranslation(matrix[:dims, dims].tolist())
    return affine


def _matrix(affine: Any) -> np.ndarray:
    """(4, 4), mm, LPS; the offset holds translation and centre of rotation."""
    import itk

    matrix, linear = np.eye(4), itk.array_from_matrix(affine.GetMatrix())
    matrix[: len(linear), : len(linear)] = linear
    matrix[: len(linear), 3] = list(affine.GetOffset())
    return matrix


def _field(ddf: Tensor, grid: Image) -> Any:
    import itk

    vectors = field_mm(ddf, grid).double()
    dims = len(vectors)
    values = vectors.permute(*range(dims, 0, -1), 0).numpy()  # (Z, Y, X, components)
    image = itk.Image[itk.Vector[itk.D, dims], dims].New()
    image.SetRegions(list(values.shape[-2::-1]))
    image.Allocate()
    itk.array_view_from_image(image)[:] = values
    set_geometry(image, grid.affine)
    transform = itk.DisplacementFieldTransform[itk.D, dims].New()
    transform.SetDisplacementField(image)
    return transform


def _grid(affine: np.ndarray, shape: tuple[int, ...], slice_axis: bool) -> Image:
    spacing = tuple(float(mm) for mm in np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)])
    return Image(torch.empty(tuple(shape), device="meta"), affine, spacing, slice_axis=slice_axis)
