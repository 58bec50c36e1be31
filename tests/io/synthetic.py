# SPDX-License-Identifier: Apache-2.0
"""NIfTI files with headers that nibabel itself would not write."""

from pathlib import Path

import itk
import nibabel as nib
import numpy as np


def ramp(shape) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 10


def write_header(
    path: Path, values, sform=None, qform=None, pixdim=None, quaternion=None, units=0, scale=(1, 0)
) -> Path:
    """Write values (of a NIfTI type) with the fields of the header just as they are given; absent forms have code 0."""
    values = np.asarray(values)
    header = nib.Nifti1Header()
    header.set_data_shape(values.shape)
    header.set_data_dtype(values.dtype)
    if qform is not None:
        header.set_qform(qform, 1)
    if sform is not None:
        header.set_sform(sform, 1)
        header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    if pixdim is not None:
        header["pixdim"][1 : 1 + len(pixdim)] = pixdim
    if quaternion is not None:
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion
        header["qform_code"] = 1
    header["xyzt_units"] = units
    header["scl_slope"], header["scl_inter"] = scale
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + values.tobytes(order="F"))
    return path


def itk_affine(path: Path) -> np.ndarray | None:
    """Voxels to mm, RAS (4, 4), as ITK reads a file; None where it refuses to open it."""
    try:
        image = itk.imread(str(path))
    except RuntimeError:
        return None
    dims = image.GetImageDimension()
    affine = np.eye(4)
    affine[:dims, :dims] = itk.array_from_matrix(image.GetDirection()) * np.array(list(image.GetSpacing()))
    affine[:dims, 3] = list(image.GetOrigin())
    affine[:2] *= -1
    if dims == 2:
        affine[:2, 2] = 0
    return affine
