# SPDX-License-Identifier: Apache-2.0
"""What the top-level keys of the bundles' JSON mean, and which values they take.

A new key of a bundle needs an entry in ``OPTIONS`` (a test says which is missing); its type is that of its default,
``kind`` is for defaults that do not show it (null, an expression).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .kinds import KINDS

TRAIN, EVALUATE, INFERENCE, FIT = "train", "evaluate", "inference", "fit"
ALL = (TRAIN, EVALUATE, INFERENCE)
DATA = (TRAIN, EVALUATE)
METHOD = (TRAIN, FIT)
SOLVERS = ("pairwise", "elastix", "identity")  # architectures that need no weights


class Option(NamedTuple):
    """One key.

    Attributes:
        meaning: one line.
        stages: the runs that it belongs to; "fit" is an evaluation that optimises each pair.
        kind: a name of ``KINDS``; by default that of the default's type.
        least: the smallest value that is taken.
        above: what all values must be larger than.
        fixed: a resumed training must have the value that it was started with.
        optional: null is a value.
        reads: the run reads the file of this name.
    """

    meaning: str
    stages: tuple[str, ...] = ALL
    kind: str | None = None
    least: float | None = None
    above: float | None = None
    fixed: bool = False
    optional: bool = False
    reads: bool = False


OPTIONS: dict[str, Option] = {
    # what is read and written
    "bundle_root": Option("folder of the bundle", kind="path"),
    "dataset_dir": Option('folder of the data set, or "phantom" for synthetic data', kind="path", fixed=True),
    "output_dir": Option("folder for the results", kind="path"),
    "ckpt_path": Option("weights of the network", (EVALUATE, INFERENCE), kind="path", reads=True),
    "initial_weights": Option(
        "weights to start from, model.pt, and those beside it", (TRAIN,), kind="path", optional=True, reads=True
    ),
    "resume": Option("continue the training that output_dir holds", (TRAIN,)),
    "moving": Option("image file to be warped", (INFERENCE,), kind="path", optional=True, reads=True),
    "fixed": Option("image file to be registered to", (INFERENCE,), kind="path", optional=True, reads=True),
    "moving_label": Option("label map of moving, warped with it", (INFERENCE,), kind="path", optional=True, reads=True),
    # data
    "split": Option("cases of validation and evaluation: train, validation, test, all", DATA),
    "pairs": Option("CSV file of the pairs to evaluate", DATA, kind="path", optional=True, reads=True),
    "views": Option("views of the heart: 2CH, 4CH", DATA, kind="names", fixed=True),
    "partition": Option("who is in which split: number (last digit), official (the release's files)", DATA, fixed=True),
    "label_set": Option("labels: of OASIS 35 structures, or 4 tissues; of OAI cartilages, or merged", DATA, fixed=True),
    "original_labels": Option("deliver labels at their original size as well", DATA, fixed=True),
    "cache": Option('where decoded volumes lie: "memory", or a folder', DATA, kind="path"),
    "partners": Option("moving partners of each training subject", (TRAIN,), least=1, fixed=True),
    "random_target": Option("draw the fixed subject of each training pair anew in each epoch", (TRAIN,), fixed=True),
    "count": Option("pairs of every split, one number or a number a split", DATA, kind="count", least=1, fixed=True),
    "style": Option("how the shapes are drawn: outlines, filled", DATA, fixed=True),
    "deformations": Option("synthetic deformations of each image, a pair each", DATA, least=1, fixed=True),
    "deformation_seed": Option("of the synthetic deformations", DATA, least=0, fixed=True),
    "picture": Option("what is registered of a retina: vessels, photograph", DATA, fixed=True),
    "labels": Option("label value by name", DATA, kind="table"),
    "scored": Option("labels whose mean is dice, hd, hd95, asd", DATA, kind="names"),
    "groups": Option("labels of each group whose mean Dice is reported", DATA, kind="table"),
    "skip_invalid": Option("leave unreadable cases out instead of stopping", DATA, fixed=True),
    "spatial_size": Option("voxels of the network's window", kind="sizes", least=1, fixed=True),
    "crop_center": Option("where the window lies: a name, or a voxel index an axis", kind="centre", fixed=True),
    "crop_jitter": Option("voxels by which the window is moved at random", (TRAIN,), least=0, fixed=True),
    "crop_shift": Option(
        "move a window that would leave the image inside it, instead of filling it with zeros", (TRAIN,), fixed=True
    ),
    "updates_per_epoch": Option(
        "batches drawn with replacement in an epoch, null for every pair once",
        (TRAIN,),
        kind="whole",
        least=1,
        fixed=True,
        optional=True,
    ),
    "augment": Option("random changes of pairs: affine, flips, swap, released", (TRAIN,), "switch or name", fixed=True),
    "misalignment": Option("affine misalignment added to all pairs, 0 to 0.4", DATA, least=0, fixed=True),
    "flips": Option("mirror the training pairs at random along each axis", (TRAIN,), fixed=True),
    "align": Option("placement of moving: physical (by the headers), centres", (INFERENCE,)),
    "orientation": Option("of the images inside, as in training", (INFERENCE,)),
    "spacing": Option(
        "mm to which the images are brought inside, null for their own",
        (INFERENCE,),
        kind="numbers",
        least=0,
        optional=True,
    ),
    "spacing_range": Option(
        "mm within which images keep their own spacing", (INFERENCE,), kind="numbers", least=0, optional=True
    ),
    "resize": Option("bring the whole field of view to spatial_size, its aspect ratio lost", (INFERENCE,), fixed=True),
    "percentiles": Option(
        "lower and upper, in per cent, to which a volume's intensities are clipped",
        kind="numbers",
        least=0,
        fixed=True,
        optional=True,
    ),
    # the computation
    "seed": Option("of weights, order of samples, random windows", (TRAIN, FIT), least=0, fixed=True),
    "device": Option("cpu, cuda, cuda:1, mps", kind="device"),
    "amp": Option("compute the network in bfloat16"),
    "compile": Option("compile the network (torch.compile)", (TRAIN,)),
    "num_workers": Option("processes that load training data", (TRAIN,), least=0),
    "batch_size": Option("pairs or slices that are computed together", least=1),
    "debug": Option("show the traceback of an error on the screen", kind="switch"),
    # training
    "epochs": Option("passes over the training pairs", (TRAIN,), least=1),
    "warmup_epochs": Option("epochs of each update by itself before both", (TRAIN,), kind="whole", least=0),
    "learning_rate": Option("of the optimiser", (TRAIN,), least=0),
    "learning_rate_decay": Option(
        "power of the polynomial decay, 0 for none", (TRAIN,), kind="powers", least=0, fixed=True
    ),
    "val_interval": Option("epochs between validations", (TRAIN,), least=1),
    # the method
    "architecture": Option("network, or solver without weights (pairwise, elastix, identity), by name", fixed=True),
    "architectures": Option("parameters of each network", kind="table", fixed=True),
    "objective": Option("what is minimised, by name", METHOD, fixed=True),
    "objectives": Option("parameters of each objective", METHOD, kind="table", fixed=True),
    "similarity": Option(
        "measure of the images' likeness: a name, or a weighted sum", METHOD, "similarity", fixed=True
    ),
    "smoothness_weight": Option("weight of the field's smoothness", METHOD, least=0, fixed=True),
    "field_weight": Option(
        "weight of the field's smoothness where the field is optimised", (FIT,), kind="number", least=0
    ),
    "bidirectional": Option("both directions of a pair", METHOD, fixed=True),
    "inverse_by_negation": Option("the other direction is the negated velocity of one pass", METHOD, fixed=True),
    "foreground": Option("only where one of the images is not 0", METHOD, fixed=True),
    "stages": Option("growing stages of a chain, null for none", (TRAIN,), "table", fixed=True, optional=True),
    "batched_directions": Option("both directions in one pass of the network", (TRAIN,)),
    "padding": Option("values outside moving: border, zeros", METHOD, fixed=True),
    "inside_only": Option("compare only where moving is sampled inside", METHOD, fixed=True),
    "gamma": Option(
        "trust in the noise estimate, exponent of the relative signal-to-noise ratio", METHOD, least=0, fixed=True
    ),
    "variance_beta": Option(
        "how far the variance's likelihood is weighted by the variance, 0 to 1", (TRAIN,), least=0, fixed=True
    ),
    "noise": Option("noise of the variance's likelihood: gaussian, laplace", (TRAIN,), fixed=True),
    "weight_form": Option("form of the weight: paper, official", METHOD, fixed=True),
    "weight_control": Option("what stands in the weight's place: none, mean, shuffled, other", (TRAIN,), fixed=True),
    "variance_input": Option("what the variance network sees: fixed_warped, warped_fixed", fixed=True),
    "variance_leak": Option("the variance's loss also moves the field, as in the published code", (TRAIN,), fixed=True),
    "score_input": Option("what the score network sees: fixed, fixed_warped", fixed=True),
    "score_initial": Option(
        "score before training, null for random weights", (TRAIN,), least=0, fixed=True, optional=True
    ),
    "score_alpha": Option(
        "weight of (1 - score)², which keeps the score from falling to 0; auto follows the mean residual",
        (TRAIN,),
        kind="number or auto",
        above=0,
        fixed=True,
    ),
    "score_beta": Option("weight of the score's smoothness", (TRAIN,), least=0, fixed=True),
    "score_momentum": Option("form of the momentum: paper, official, none", (TRAIN,), fixed=True),
    "score_leak": Option("the score's loss also moves the field, as in the published code", (TRAIN,), fixed=True),
    "score_control": Option(
        "what weighs the similarity in the score's place: none (the score), mean, shuffled, other", METHOD, fixed=True
    ),
    "eta": Option(
        "weight of the log loss to register for, 0 to eta_max, null for the default that the weights hold",
        kind="number",
        optional=True,
    ),
    "eta_max": Option(
        "largest weight of the log loss in training, where it is drawn between 0 and this", above=0, fixed=True
    ),
    "eta_per_direction": Option("draw a weight of the log loss for each direction of a pair", (TRAIN,), fixed=True),
    "epsilon": Option("smallest weight of the smoothness, between 0 and 1", METHOD, above=0, fixed=True),
    "energy": Option("what the weights of the smoothness multiply: diffusion, bending", METHOD, fixed=True),
    "dice_weight": Option(
        "weight of the Dice loss of the labels, 0 for a training without labels", METHOD, least=0, fixed=True
    ),
    "classes": Option("label values of the Dice loss, 0 (background) to classes - 1", METHOD, "whole", 2, fixed=True),
    "second_forward": Option("register anew before the score's update", (TRAIN,), kind="switch", fixed=True),
    "maps": Option(
        "also write maps of score or noise, data weight, weight of the smoothness, the displacement's uncertainty",
        (INFERENCE,),
    ),
    "condition": Option("what a conditional network is given, null for its default", kind="condition", optional=True),
    # optimisation of each pair
    "instance_iterations": Option("steps of optimising each pair, 0 for none", least=0),
    "instance_target": Option("what these steps change: weights, field", (FIT, INFERENCE)),
    "instance_learning_rate": Option("of these steps", (FIT, INFERENCE), above=0),
}
# Keys that hold neither values nor components, but what runs, what follows from options, or a group of components.
GROUPS = {
    "_doc_", "imports", "data_root", "chosen", "options", "measures", "train", "validate", "evaluate", "handlers",
    "displayable_configs", "training", "evaluating", "inferring", "run",
}  # fmt: skip


def is_part(name: str, value: Any) -> bool:
    """Whether a top-level key holds a part of the run and not an option of it.

    Args:
        name: of the key.
        value: what it holds.

    Returns:
        True or False.
    """
    return name in GROUPS or (isinstance(value, Mapping) and "_target_" in value)


def is_expression(value: Any) -> bool:
    """Whether MONAI computes the value: "$…", or "@…", the value of another key.

    Args:
        value: of a key.

    Returns:
        True or False.
    """
    return isinstance(value, str) and value.startswith(("$", "@"))


def kind_of(name: str, default: Any) -> str:
    """Name of a key's kind, from its entry or else from the type of its default.

    Args:
        name: of the key.
        default: value in the bundle's JSON.

    Returns:
        A key of ``KINDS``.
    """
    option = OPTIONS.get(name)
    if option is not None and option.kind is not None:
        return option.kind
    for kind, types in (("switch", bool), ("whole", int), ("number", float), ("table", Mapping)):
        if isinstance(default, types):
            return kind
    return "name"


def checked(name: str, value: Any, default: Any) -> Any:
    """The value of a key, converted to its type: the command line and files may deliver text.

    Args:
        name: the key.
        value: what was given.
        default: what the bundle's JSON has, which shows the type and an example.

    Returns:
        The converted value.

    Raises:
        ValueError: naming the option, what was expected, what came, and an example.
    """
    option, kind = OPTIONS[name], kind_of(name, default)
    if value is None and (option.optional or default is None):
        return None
    expected, read = KINDS[kind]
    try:
        result = read(value)
        numbers = [x for x in (result if isinstance(result, list) else [result]) if not isinstance(x, (bool, str))]
        if not isinstance(result, dict) and any(not _within(option, x) for x in numbers):
            raise ValueError
        if kind == "sizes" and isinstance(default, list) and len(result) != len(default):
            raise ValueError
    except (ValueError, TypeError, SyntaxError):
        bound = f", {option.least:g} or more" if option.least is not None else ""
        bound = f", above {option.above:g}" if option.above is not None else bound
        count = f" ({len(default)} of them)" if kind == "sizes" and isinstance(default, list) else ""
        shown = "no value" if value is True and kind != "switch" else repr(value)
        raise ValueError(
            f"{name}: expected {expected}{count}{bound}, got {shown}. It means: {option.meaning}. "
            f"{_example(name, default)}"
        ) from None
    return result


def _within(option: Option, number: float) -> bool:
    return (option.least is None or number >= option.least) and (option.above is None or number > option.above)


def _example(name: str, default: Any) -> str:
    if default is None or is_expression(default):
        return f"Leave --{name} out for the default."
    text = f'"{default}"' if isinstance(default, (list, dict)) else str(default).lower()
    return f"The default is --{name} {text}."
