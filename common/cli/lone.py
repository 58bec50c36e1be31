# SPDX-License-Identifier: Apache-2.0
"""What MONAI Deploy needs of a lone model.ts, checked offline; ``verify`` calls it."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import Tensor, nn

from ..engines.inferers import StackInferer
from ..runs.package import PACKAGE
from .pack import torchscript_of
from .platforms import WINDOW, compose_of, dims_of, prepared_item, small_copy
from .torchscript import build_network

ODD = 15  # less than WINDOW on every axis: a size that networks have to pad
SCRIPT_TOLERANCE = 1e-5  # voxels, of a scripted network's ddf


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        yield from (str(value) for key, value in config.items() if key == "_target_")
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from _targets(value)


def lone_configuration(content: bytes) -> ConfigParser:
    """The configuration inside model.ts, as MONAI Deploy reads it where it is given this file alone.

    Args:
        content: of model.ts.

    Returns:
        The parsed configuration.

    Raises:
        ValueError: where it needs code that the file does not carry.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        metadata, config = (json.loads(archive.read(f"model/extra/{name}.json")) for name in ("metadata", "inference"))
    foreign = [target for target in _targets(config) if not target.startswith("monai.")]
    foreign += re.findall(rf"\b(?:{re.escape(PACKAGE)}|scripts)\.[\w.]+", json.dumps(config))
    if foreign:
        raise ValueError(
            f"the inference.json inside model.ts names {', '.join(sorted(set(foreign)))}: a lone model.ts carries no "
            "Python, so that MONAI's own parts alone run. Embed what export_inference returns."
        )
    parser = ConfigParser()
    parser.read_meta(metadata)
    parser.read_config(config)
    return parser


def check_torchscript(bundle: Path) -> None:
    """model.ts gives the network's ddf, on a size that has to be padded, and where MONAI Deploy has this file alone.

    Args:
        bundle: its folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = small_copy(bundle, Path(folder))
        network, content = build_network(copy), torchscript_of(copy)
    scripted = torch.jit.load(io.BytesIO(content)).eval()
    size = WINDOW[: dims_of(bundle)]
    image = torch.rand((1, 2, *(n - ODD for n in size)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.jit.optimized_execution(False):  # optimising takes longer than the few runs
        difference = (scripted(image) - network(image)).abs().max().item()
    if not difference < SCRIPT_TOLERANCE:
        raise ValueError(f"TorchScript's ddf differs by {difference:.2g} voxels, allowed {SCRIPT_TOLERANCE:g}.")
    stack = (*size, 2) if len(size) == 2 else size
    image = torch.rand((2, *stack), generator=torch.Generator().manual_seed(1))
    check_lone(lone_configuration(content), scripted, image, len(size))


def check_lone(parser: ConfigParser, scripted: nn.Module, image: Tensor, dims: int) -> None:
    """What Deploy does with a lone model.ts returns what the network returns of the same input.

    Args:
        parser: of the inference.json inside.
        scripted: the network inside.
        image: (2, *S), for 2D networks (2, *S, Z).
        dims: axes that the network registers.

    Raises:
        ValueError: where the displacement differs at all, or does not come back on the image's grid.
    """
    item: dict[str, Any] = {"image": MetaTensor(image, affine=torch.eye(4))}
    if "preprocessing" in parser:
        item = prepared_item(compose_of(parser, "preprocessing"), item, "two channels in memory")
    inputs = item["image"][None]
    with torch.no_grad(), torch.jit.optimized_execution(False):
        expected = StackInferer(spatial_dims=dims)(inputs, scripted)
        pred = parser.get_parsed_content("inferer")(inputs=inputs, network=scripted)
    difference = float((pred - expected).abs().max()) if pred.shape == expected.shape else np.inf
    if difference != 0:
        raise ValueError(
            f"the inference.json inside model.ts gives another ddf than the network, shape {tuple(pred.shape)} for "
            f"{tuple(expected.shape)}, largest difference {difference:.2g} voxels. Correct its inferer."
        )
    if "postprocessing" in parser:
        returned = compose_of(parser, "postprocessing")({**item, "pred": pred[0]})["pred"]
        if returned.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"the inference.json inside model.ts returns pred of shape {tuple(returned.shape)} for an image of "
                f"{tuple(image.shape)}. Undo its preprocessing with Invertd."
            )
