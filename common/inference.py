# SPDX-License-Identifier: Apache-2.0
"""A bundle's inference for many pairs in one process: its configuration is read and its weights are loaded once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from . import bundle as bundles
from .engines.inferers import InferenceEvaluator
from .engines.maps import evaluated_maps
from .engines.solvers import is_solver
from .runs import arguments
from .runs.command_line import Words
from .runs.configuration import FILES
from .runs.options import INFERENCE
from .runs.package import read_bundle
from .transforms.answer import Answerd
from .workflow import load, registration

logger = logging.getLogger(__name__)


class BundleRegistration:
    """A bundle's inference, its options set and checked, its weights loaded.

    Args:
        name: of the bundle, or its folder.
        options: of its inference.json; ``maps`` false leaves out what the method estimates beside.

    Raises:
        FileNotFoundError: for a bundle or weights that do not exist.
        ValueError: for options that are refused.
    """

    def __init__(self, name: str | Path, options: dict[str, Any]) -> None:
        folder = Path(name) if (Path(name) / "configs").is_dir() else Path(bundles.root(Path(name).name))
        parser = read_bundle(folder, FILES[INFERENCE])
        parser.update(options)
        arguments.check(parser, Words([], {}), "inferring")
        self.parser = parser
        self.settings = {"bundle": str(name), **options}
        method, run = (parser.get_parsed_content(key) for key in ("method", "options"))
        ckpt_path = Path(parser.get_parsed_content("ckpt_path"))
        self.maps = evaluated_maps(method) if options.get("maps", True) not in (False, "false") else None
        beside = [ckpt_path.with_name(f"{name}.pt") for name in method.modules if name != "model"]
        if self.maps is not None and not all(path.is_file() for path in beside):
            logger.warning("maps: the weights %s are missing, no maps are written.", [str(path) for path in beside])
            self.maps = None
        every = self.maps is not None or bool(run.instance_iterations)
        load(method, ckpt_path, all_modules=every)
        self.weights = [] if is_solver(method.network) else [str(ckpt_path), *map(str, beside if every else [])]
        self.method, self.run = method, run

    def register(self, item: dict[Any, Any]) -> dict[Any, Any]:
        """Register a pair.

        Args:
            item: of ``LoadPaird``.

        Returns:
            What ``RegistrationResultd`` makes of it.
        """
        after = self.parser.get_parsed_content("postprocessing")
        engine = InferenceEvaluator(
            self.run.device,
            [self.parser.get_parsed_content("preprocessing")(item)],
            registration(self.method, self.run),
            self.parser.get_parsed_content("inferer"),
            postprocessing=type(after)([step for step in after.transforms if not isinstance(step, Answerd)]),
            amp=self.run.amp,
            condition=self.run.condition,
            maps=self.maps,
        )
        engine.run()
        return {**engine.state.batch, **engine.state.output}
