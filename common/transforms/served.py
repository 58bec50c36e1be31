# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a request reaches the client of a server that runs a bundle's transforms, as MONAI Label does."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

REFUSED = (ValueError, FileNotFoundError)
STATUS = 400  # "bad request"


def answers_client(call: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the errors that a user can mend into a server's answer, 400 and the message; elsewhere they stay.

    MONAI Label gives its client a bare "Internal Server Error" for every error but those of its web framework,
    ``starlette.exceptions.HTTPException``. Where that is loaded, the error becomes one of these too, and is still a
    ``ValueError`` or ``FileNotFoundError``.

    Args:
        call: method that may raise them.

    Returns:
        The method.
    """

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except REFUSED as error:
            web = sys.modules.get("starlette.exceptions")
            if web is None or isinstance(error, web.HTTPException):
                raise
            raise _answer(web.HTTPException, error) from error

    return wrapped


def _answer(answer: type[Exception], error: Exception) -> Exception:
    kind = next(kind for kind in REFUSED if isinstance(error, kind))
    both = type(kind.__name__, (answer, kind), {"__str__": lambda self: self.detail})
    return both(STATUS, str(error))
