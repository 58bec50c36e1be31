# SPDX-License-Identifier: Apache-2.0
"""A MONAI Deploy application: ``python deploy_application.py BUNDLE INPUT.npz OUTPUT.npy``, in Deploy's environment.

BUNDLE is a bundle's folder or a lone model.ts; INPUT holds ``image`` (2, X, Y[, Z]), moving and fixed on one grid, and
its ``affine``. OUTPUT receives ``pred``, float32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Fragment, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators import IOMapping, MonaiBundleInferenceOperator


class Source(Operator):
    """Sends the pair as an Image whose metadata keep the affine on its way."""

    def __init__(self, fragment: Fragment, *args: Any, path: Path, **kwargs: Any) -> None:
        self.path = path
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        stored = np.load(self.path)
        affine = stored["affine"]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        metadata = {"affine": affine, "original_affine": affine, "spacing": spacing}
        op_output.emit(Image(stored["image"], metadata=metadata), "image")


class Sink(Operator):
    """Writes what the bundle returns."""

    def __init__(self, fragment: Fragment, *args: Any, path: Path, **kwargs: Any) -> None:
        self.path = path
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        np.save(self.path, np.asarray(op_input.receive("pred")))


class Registration(Application):
    """Source, the bundle, sink."""

    def __init__(self, bundle: Path, source: Path, sink: Path) -> None:
        self.bundle, self.source, self.sink = bundle, source, sink
        super().__init__()

    def compose(self) -> None:
        register = MonaiBundleInferenceOperator(
            self,
            app_context=AppContext({}),
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", np.ndarray, IOType.IN_MEMORY)],
            bundle_path=self.bundle,
            name="register",
        )
        source = Source(self, CountCondition(self, 1), path=self.source, name="source")  # emits once
        sink = Sink(self, path=self.sink, name="sink")
        self.add_flow(source, register, {("image", "image")})
        self.add_flow(register, sink, {("pred", "pred")})


if __name__ == "__main__":
    Registration(*map(Path, sys.argv[1:4])).run()
