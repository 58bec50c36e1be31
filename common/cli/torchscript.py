# SPDX-License-Identifier: Apache-2.0
"""A bundle's network with its weights, and as model.ts: the same sources give the same bytes."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..handlers.state import load_weights
from ..runs.configuration import FILES
from ..runs.options import INFERENCE
from ..runs.package import read_bundle

ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold


def write_zip(stream: Any, files: Mapping[str, bytes], compression: int) -> None:
    """Write files in the order of their names, with fixed times and permissions: same content, same bytes.

    Args:
        stream: a path or a binary stream.
        files: content by name inside the archive.
        compression: ``zipfile.ZIP_STORED`` or ``zipfile.ZIP_DEFLATED``.
    """
    with zipfile.ZipFile(stream, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.create_system = 3  # Unix, also where it is packed on Windows
            entry.external_attr = 0o100644 << 16
            entry.compress_type = compression
            archive.writestr(entry, files[name])


def build_network(bundle: Path) -> nn.Module:
    """Network of inference.json in evaluation mode, with the bundle's weights.

    Without weights, every parameter is drawn from N(0, 0.05^2): a fresh network's displacement is too close to zero to
    tell whether an export is right.

    Args:
        bundle: its folder.

    Returns:
        The network.
    """
    parser = read_bundle(bundle, FILES[INFERENCE])
    network: nn.Module = parser.get_parsed_content("network_def")
    if (bundle / "models" / "model.pt").is_file():
        return load_weights(network, bundle / "models" / "model.pt").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return network.eval()


def clean_torchscript(content: bytes, extra: Mapping[str, bytes]) -> bytes:
    """A TorchScript archive without its debug records, which hold paths of this machine, and with other extra files.

    Args:
        content: of the .ts file.
        extra: replaces files of the archive's extra folder.

    Returns:
        The cleaned archive.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    top = next(iter(files)).partition("/")[0]
    # Deploy looks for the folder of the file's own name, torch takes any.
    files = {f"model/{name.removeprefix(top + '/')}": text for name, text in files.items()}
    files |= {f"model/extra/{name}": text for name, text in extra.items()}
    stream = io.BytesIO()
    write_zip(stream, files, zipfile.ZIP_STORED)  # torch reads stored records only
    return stream.getvalue()


def export_torchscript(network: nn.Module, extra: Mapping[str, bytes]) -> bytes:
    """A network as the content of model.ts.

    TorchScript numbers its classes by what the process compiled before, and orders sets by Python's hash seed: equal
    bytes need a fresh process with a fixed seed (``pack`` sees to it).

    Args:
        network: in evaluation mode.
        extra: files to embed, the metadata.json and inference.json that MONAI Deploy reads.

    Returns:
        The archive.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        stream = io.BytesIO()
        torch.jit.save(torch.jit.script(network), stream)
    return clean_torchscript(stream.getvalue(), extra)
