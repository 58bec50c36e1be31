# SPDX-License-Identifier: Apache-2.0
"""The one reader of images: NIfTI by nibabel, NRRD, MetaImage and DICOM series by ITK."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from .affine import file_affine
from .itk_files import ItkFile, is_for_itk, open_with_itk, read_with_itk
from .nifti import check_finite, open_nifti, read_values, read_whole_numbers, whole_numbers

READABLE = "an image (.nii, .nii.gz, .nrrd, .mha, .mhd, or a folder of one DICOM series)"


class OpenedFile(NamedTuple):
    """An image file whose values are not read yet.

    path: of the file or folder.
    argument: the option that gave the path.
    source: its header.
    """

    path: Path
    argument: str
    source: nib.Nifti1Pair | ItkFile

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels an axis, as they lie in the file."""
        return tuple(self.source.shape)

    @property
    def form_codes(self) -> tuple[int, int]:
        """NIfTI's codes of qform and sform; other formats always say where their voxels are."""
        if isinstance(self.source, ItkFile):
            return 1, 1
        return int(self.source.header["qform_code"]), int(self.source.header["sform_code"])

    def affine(self) -> np.ndarray:
        """Where the voxels are.

        Returns:
            (4, 4) float64, voxels to mm, RAS.

        Raises:
            ValueError: if it is not invertible, or its axes are not orthogonal to ITK's tolerance.
        """
        if isinstance(self.source, ItkFile):
            return self.source.affine
        return file_affine(self.source, self.path, self.argument)

    def values(self) -> np.ndarray:
        """All values.

        Returns:
            float32 array in the file's shape.

        Raises:
            ValueError: as ``common.io.nifti.read_values``.
        """
        if not isinstance(self.source, ItkFile):
            return read_values(self.source, self.path, self.argument)
        values = read_with_itk(self.source, self.path, self.argument).astype(np.float32, copy=False)
        check_finite(values, self.path, self.argument)
        return values

    def whole_numbers(self) -> tuple[np.ndarray, np.dtype | None]:
        """All values as integers.

        Returns:
            Array in the file's shape, and the type in the file where that holds just these integers.

        Raises:
            ValueError: as ``common.io.nifti.read_whole_numbers``.
        """
        if not isinstance(self.source, ItkFile):
            values, plain = read_whole_numbers(self.source, self.path, self.argument)
            return values, self.source.get_data_dtype().newbyteorder("=") if plain else None
        raw = read_with_itk(self.source, self.path, self.argument)
        values, plain = whole_numbers(raw, 1, 0, self.path, self.argument)
        return values, raw.dtype if plain else None


def open_file(path: str | Path, argument: str = "path") -> OpenedFile:
    """Open an image of any format that is read, values not read yet.

    Args:
        path: a file, or a folder that holds one DICOM series.
        argument: what errors call it: the option that gave the path.

    Returns:
        The opened file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is in another format, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{argument}: expected {READABLE}; {path} does not exist. Check the path's spelling.")
    if is_for_itk(path):
        return OpenedFile(path, argument, open_with_itk(path, argument))
    return OpenedFile(path, argument, open_nifti(path, argument))
