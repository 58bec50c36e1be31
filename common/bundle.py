# SPDX-License-Identifier: Apache-2.0
"""What the bundles' JSON needs: where the bundle lies, checked arguments, coerced switches, the start of a run."""

from __future__ import annotations

import logging
import math
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .checks import known_name, switch
from .console import forgive_signs
from .runs import arguments, command_line, messages, outputs
from .runs.configuration import current_parser, stage_of
from .runs.options import INFERENCE, SOLVERS, TRAIN

logger = logging.getLogger(__name__)


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
    """This process's number among those that torchrun started, 0 without it.

    Returns:
        From 0.
    """
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun started, 1 without it.

    Returns:
        At least 1.
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def select_device(value: Any) -> torch.device:
    """Read a device name; under torchrun a plain "cuda" means this process's own GPU.

    Args:
        value: "cpu", "cuda", "cuda:1", "mps" or a ``torch.device``.

    Returns:
        The device.

    Raises:
        ValueError: for an unknown name, or CUDA where there is none.
    """
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be like 'cpu', 'cuda' or 'cuda:1', got {value!r}. Pass --device cpu.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: '{value}' was asked for, but torch sees no CUDA GPU here. Pass --device cpu.")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def choose(options: dict[str, Any], name: str, argument: str) -> Any:
    """One of several named things.

    Args:
        options: what there is, by name.
        name: which one.
        argument: what the error calls the choice.

    Returns:
        The entry of that name.

    Raises:
        ValueError: for a name that is not among them, with the nearest.
    """
    return options[known_name(argument, name, options)]


def choose_objective(objectives: dict[str, Any], name: str) -> Any:
    """The entry of an objective.

    Args:
        objectives: what there is, by name.
        name: which one.

    Returns:
        The entry of that name.

    Raises:
        ValueError: for a name that is not among them, with the nearest; for one of what registers without training,
            naming the command that takes it.
    """
    if name in SOLVERS and name not in objectives:
        raise ValueError(
            f"objective: expected one of {', '.join(objectives)}, got {name!r}, which is no objective but registers "
            f"without any training. Run the evaluating or inferring command with --architecture {name}."
        )
    if name == "ncc" and name not in objectives:
        raise ValueError(
            "objective: 'ncc' names two things. Take lncc, the local one in a window (what VoxelMorph, TransMorph and "
            "LapIRN call NCC), or global_ncc, the correlation coefficient of the whole images."
        )
    return choose(objectives, name, "objective")


def eta_condition(eta: float | None, eta_max: float) -> float | None:
    """What a network that is conditioned on the weight of the log loss is given: η / η_max.

    A value outside of the range that was drawn in training is taken, with a warning: the network extrapolates.

    Args:
        eta: η; None is the default that is stored with the weights.
        eta_max: the largest in training.

    Returns:
        The share, in [0, 1] for those in the range; None for None.

    Raises:
        ValueError: for what is no finite number, or an ``eta_max`` that is not above 0.
    """
    for name, value in (("eta", eta), ("eta_max", eta_max)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number and (name, value) != ("eta", None):
            raise ValueError(f"{name}: expected a number, got {value!r}. Pass e.g. --{name} 0.5.")
    if not eta_max > 0:
        raise ValueError(f"eta_max: expected a number above 0, got {eta_max!r}; 4 is published for IXI, 2 for OASIS.")
    if eta is None:
        return None
    if not 0 <= eta <= eta_max:
        logger.warning(
            "eta: %g lies outside of [0, %g], from which it was drawn in training: the network extrapolates. Give a "
            "value in that range, or train with a larger --eta_max.", eta, eta_max,
        )  # fmt: skip
    return eta / eta_max


def check_arguments(run_id: str | None = None) -> None:
    """First entry of every run list: check every option, before anything is loaded, built or written.

    Where ``python -m monai.bundle run`` started the process, the command line is read as it was typed. From then on an
    error that ends the process is shown as a message (``runs.messages``).

    Args:
        run_id: of the list.

    Raises:
        ValueError: naming the option, what was expected, what came, and the remedy.
    """
    words = command_line.Words([], {})
    if command_line.started_by_monai():
        words = command_line.read(sys.argv[2:])
        messages.install(switch(words.options.get("debug", False), "debug"))
    parser = current_parser()
    if parser is None:
        return
    arguments.check(parser, words, run_id)
    if "device" in parser.config:
        select_device(parser.get_parsed_content("device"))


def claim(output_dir: str | Path, resume: bool = False) -> None:
    """Take the output folder, once all that can fail has been built; of several processes the first does.

    A training or evaluation locks it and moves an earlier run's files to ``previous_<k>`` inside it. An inference,
    whose files are written at once in the end, only makes sure that it may (``runs.outputs``).

    Args:
        output_dir: of the run.
        resume: continue the training that the folder holds.

    Raises:
        ValueError: where the folder is in use, or holds files that are not ours or that the run reads.
    """
    parser = current_parser()
    if rank() > 0 or parser is None:
        return
    stage, reads = stage_of(parser.config), arguments.reads(parser)
    if stage == INFERENCE:
        outputs.check(Path(output_dir).expanduser(), outputs.INFERENCE, reads)
        return
    names = (outputs.TRAINING, outputs.EVALUATION) if stage == TRAIN else (outputs.EVALUATION,)
    outputs.claim(output_dir, names, reads, switch(resume, "resume"))
    if stage == TRAIN:
        messages.training_in(Path(output_dir) / outputs.STATE_FILE)


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
        own_device = select_device(device)
        if own_device.type == "cuda":
            torch.cuda.set_device(own_device)
        # The others wait while the first process evaluates, which may take longer than torch's ten minutes. A process
        # that dies does not leave them waiting: torchrun ends them.
        dist.init_process_group("nccl" if own_device.type == "cuda" else "gloo", timeout=timedelta(days=7))
    torch.manual_seed(int(seed))


def finish() -> None:
    """Last entry of a run: give the output folder back, leave the process group where there is one."""
    outputs.release()
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
