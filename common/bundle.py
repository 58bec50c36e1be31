# SPDX-License-Identifier: Apache-2.0
"""What the bundles' JSON needs: where the bundle lies, checked arguments, coerced switches, the start of a run."""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from .checks import known_name
from .console import forgive_signs

logger = logging.getLogger(__name__)
MONAI_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow", "workflow_type", "workflow_name", "properties_path",
}  # fmt: skip
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def root(name: str) -> str:
    """Folder of a bundle, found from where this file lies, whatever the working directory.

    Args:
        name: the bundle's name, "adacs_acdc".

    Returns:
        Absolute path: ``bundles/NAME`` of the repository, or the packed bundle that carries this file.

    Raises:
        FileNotFoundError: naming the places that were tried.
    """
    here = Path(__file__).resolve().parent
    packed = here.parent.parent  # NAME/scripts/common/bundle.py
    tried = [here.parent / "bundles" / name, packed]
    for folder in tried if here.parent.name != "scripts" else [packed]:
        if (folder / "configs" / "metadata.json").is_file():
            return str(folder)
    raise FileNotFoundError(
        f"bundle_root: '{name}' is in none of {[str(folder) for folder in tried]}. Run from a clone of the repository "
        "or from the unpacked bundle, or pass --bundle_root."
    )


def rank() -> int:
    """This process's number among those that torchrun started, 0 without it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def switch(value: Any, name: str) -> bool:
    """Read a switch as a person means it: the command line delivers ``--amp false`` as text.

    Args:
        value: bool, 0, 1, or one of true/false, yes/no, on/off in any case.
        name: what to call it in the error.

    Raises:
        ValueError: for anything else.
    """
    text = str(value).strip().lower()
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(f"{name} must be true or false, got {value!r}.")


def select_device(value: Any) -> torch.device:
    """Read a device name; under torchrun a plain "cuda" means this process's own GPU.

    Args:
        value: "cpu", "cuda", "cuda:1", "mps" or a ``torch.device``.

    Raises:
        ValueError: for an unknown name, or CUDA where there is none.
    """
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be like 'cpu', 'cuda' or 'cuda:1', got {value!r}.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: '{value}' was asked for, but torch sees no CUDA GPU here. Pass --device cpu.")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def choose(options: dict[str, Any], name: str, argument: str) -> Any:
    """One of several named things.

    Raises:
        ValueError: for a name that is not among them, with the nearest.
    """
    return options[known_name(argument, name, options)]


def _configuration_files(arguments: Sequence[str]) -> list[Path]:
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name.lstrip("-") == "config_file":
            value = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            files = value.strip("[]() ").split(",")
            return [Path(file.strip().strip("'\"")) for file in files if file.strip()]
    return []


def _cause_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback, then what really went wrong: MONAI wraps every error in "Failed to evaluate …"."""
    sys.__excepthook__(kind, error, trace)
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not error:
        print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)


def check_arguments(arguments: Sequence[str] | None = None) -> None:
    """Refuse an override that no configuration file knows: MONAI itself accepts a misspelt one silently.

    Does nothing where the process was not started by ``python -m monai.bundle run``; otherwise an error that ends the
    process is from here on said once more, after MONAI's traceback.

    Args:
        arguments: the command line; ``sys.argv`` by default.

    Raises:
        ValueError: naming the key and the nearest known one.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    files = [path for path in _configuration_files(arguments) if path.suffix == ".json" and path.is_file()]
    if not files:
        return
    sys.excepthook = _cause_last
    known = {key.lstrip("+").split("#")[0].split("::")[0] for path in files for key in json.loads(path.read_text())}
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        key = argument[2:].partition("=")[0].lstrip("+").split("#")[0].split("::")[0]
        if key in known or key in MONAI_ARGUMENTS:
            continue
        near = difflib.get_close_matches(key, sorted(known | MONAI_ARGUMENTS), n=1)
        hint = f" Did you mean '--{near[0]}'?" if near else f" Known keys: {', '.join(sorted(known))}."
        raise ValueError(f"Unknown override '--{key}': none of {[str(path) for path in files]} has that key.{hint}")


def start(seed: int, device: Any = "cpu") -> None:
    """First entry of every run: logging, processes (under torchrun), seeds.

    Args:
        seed: of torch's random state in every process.
        device: decides between NCCL and gloo.
    """
    forgive_signs()
    root_logger = logging.getLogger()
    if not root_logger.handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    root_logger.setLevel(min(root_logger.level or logging.INFO, logging.INFO) if rank() == 0 else logging.WARNING)
    for noisy in ("ignite", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if world_size() > 1 and not dist.is_initialized():
        chosen = select_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    torch.manual_seed(int(seed))


def finish() -> None:
    """Last entry of a run: leave the process group where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def clear_output(output_dir: str | Path, resume: bool) -> None:
    """Make room for a new run without losing an earlier one: its files move to ``previous_<k>`` inside the folder.

    Args:
        output_dir: of the run; created.
        resume: True keeps everything where it is.
    """
    folder = Path(output_dir)
    if rank() > 0 or resume:
        return
    folder.mkdir(parents=True, exist_ok=True)
    earlier = [path for path in folder.iterdir() if not path.name.startswith("previous_")]
    if not earlier:
        return
    numbers = [path.name.removeprefix("previous_") for path in folder.glob("previous_*")]
    target = folder / f"previous_{1 + max([int(number) for number in numbers if number.isdigit()], default=0)}"
    target.mkdir()
    for path in earlier:
        path.rename(target / path.name)
    logger.warning("%s held an earlier run; its files are now in %s.", folder, target)


def dataset_root(dataset_dir: str | Path, phantom: Callable[[], Path]) -> Path:
    """Folder to read a data set from.

    Args:
        dataset_dir: a path, or "phantom" for synthetic data in the same layout.
        phantom: makes them, once, and returns their folder.
    """
    return phantom() if str(dataset_dir) == "phantom" else Path(dataset_dir).expanduser()
