# SPDX-License-Identifier: Apache-2.0
"""Training a chain of networks in stages: more steps, larger images and smaller batches from stage to stage."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import known_name
from ..engines.method import MODEL
from ..networks.composition import Composition
from .stages import Stages

logger = logging.getLogger(__name__)
EXAMPLE = {
    "levels": [2, 3, 4],
    "image_scale": [0.25, 0.5, 1],
    "batch_size": [128, 16, 4],
    "share": [0.5, 0.25, 0.25],
}


def growing_chain(
    network: Composition,
    epochs: int,
    levels: Sequence[int],
    image_scale: Sequence[float],
    batch_size: Sequence[int | None],
    share: Sequence[float],
    frozen: bool = False,
    updates: Sequence[str] = ("displacement",),
) -> Stages:
    """Train the first steps of a chain on small images, then more of them on larger ones, at last the whole chain.

    GradICON on knees: levels 2, 3, 4 at a scale of 1/4, 1/2, 1 in batches of 128, 16, 4, all steps trained throughout.
    ICON freezes the steps of the stages before. New steps are the identity when they join. How long the published
    stages were is not said: shares are this project's.

    Args:
        network: the chain, see ``networks.composition``.
        epochs: of the whole training.
        levels: number of steps in each stage.
        image_scale: of the images of each stage: the inverse of its last step's factor.
        batch_size: pairs a step of each stage; None is the training's own.
        share: of the epochs for each stage, which are rounded to whole ones; the last stage has the rest,
            at least one.
        frozen: keep the steps of earlier stages as they are. Batch norms go on following their inputs, as in the
            published code.
        updates: that run.

    Returns:
        The stages.

    Raises:
        ValueError: for a network that is no chain, lists of unlike lengths, or shares that do not add up to 1.

    Reference:
        Tian et al., GradICON, CVPR 2023, A.2.1 and A.2.2; Greer et al., ICON, ICCV 2021 (frozen).
    """
    if not isinstance(network, Composition):
        raise ValueError(
            f"stages: expected a chain of networks (icon) to train step by step, got {type(network).__name__}; pass "
            "--stages null with other architectures."
        )
    lengths = {len(entry) for entry in (levels, image_scale, batch_size, share)}
    if len(lengths) != 1 or not levels or abs(sum(share) - 1) > 1e-6:
        raise ValueError(
            "stages: expected levels, image_scale, batch_size and share of one length, shares that add up to 1, got "
            f"{list(levels)}, {list(image_scale)}, {list(batch_size)} and {list(share)}."
        )
    ends = [*(min(round(epochs * sum(share[:number])), epochs - 1) for number in range(1, len(share))), epochs]
    counts = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    if 0 in counts:
        logger.warning(
            "A STAGE IS LEFT OUT, the training is too short for its share: %d epochs in all, of the stages %s. Raise "
            "--epochs.", epochs, counts,
        )  # fmt: skip
    stages: list[dict[str, Any]] = []
    before = 0
    for number, count in enumerate(counts):
        stage: dict[str, Any] = {"updates": list(updates), "levels": levels[number], "epochs": count}
        stage |= {"image_scale": image_scale[number], "batch_size": batch_size[number]}
        if frozen and count and 0 < before < levels[number]:
            stage["freeze"] = [_path(network, before)]
        before = levels[number] if count else before
        stages.append(stage)
    del stages[-1]["epochs"]
    return Stages(stages)


def course(stages: Mapping[str, Any], network: Any, epochs: int) -> Stages:
    """The handler of a bundle's key ``stages``.

    Args:
        stages: further arguments of ``growing_chain``.
        network: of the bundle.
        epochs: of the training.

    Returns:
        The stages.

    Raises:
        ValueError: as ``growing_chain``, for an unknown argument, with the nearest, or lists that are missing.
    """
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(growing_chain).parameters.items()
        if name not in ("network", "epochs")
    }
    for key in stages:
        known_name("stages", key, known)
    lists = [name for name, default in known.items() if default is inspect.Parameter.empty]
    for name in lists:
        if not isinstance(stages.get(name), (list, tuple)):
            raise ValueError(
                f"stages: expected the lists {', '.join(lists)}, got {stages.get(name, 'nothing')!r} as {name}; e.g. "
                f'--stages "{EXAMPLE}".'
            )
    return growing_chain(network, epochs, **stages)


def _path(network: Composition, number: int) -> str:
    """The name of the first steps among a method's modules."""
    part = network.first_steps(number)
    return f"{MODEL}." + next(name for name, module in network.named_modules() if module is part)
