# SPDX-License-Identifier: Apache-2.0
"""Arrays out of pickle files, without running the code that a pickle may hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import DatasetLayoutError

# What pickles of arrays name, whatever numpy wrote them. Nothing else is looked up, so nothing else can run.
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_NAMES = ("ndarray", "dtype", "_reconstruct", "_frombuffer")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays alone."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle names, where it belongs to arrays.

        Args:
            module: in which to look.
            name: what to look up there.

        Returns:
            A class or function.

        Raises:
            UnpicklingError: for anything else.
        """
        if (module in _MODULES and name in _NAMES) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")


def read_arrays(path: str | Path) -> tuple[NDArray, ...]:
    """Read a pickle that holds a tuple or list of arrays of numbers.

    Args:
        path: the file.

    Returns:
        The arrays.

    Raises:
        DatasetLayoutError: for an absent or damaged file, and for a pickle that holds anything but arrays of numbers;
            code in it is not run.
    """
    try:
        with Path(path).open("rb") as stream:
            content = _ArrayUnpickler(stream).load()
    except FileNotFoundError as error:
        raise DatasetLayoutError(f"no file {path}; restore the published file.") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise DatasetLayoutError(
            f"{path} is no pickle of arrays alone: {error or type(error).__name__}. Nothing in it was run. Restore the "
            "published file, from a source that you trust."
        ) from error
    arrays = content if isinstance(content, (tuple, list)) else ()
    if not arrays or not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in arrays):
        raise DatasetLayoutError(f"expected a tuple of arrays of numbers in {path}, got {type(content).__name__}.")
    return tuple(arrays)
