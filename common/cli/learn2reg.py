# SPDX-License-Identifier: Apache-2.0
"""``python -m common learn2reg BUNDLE``: the displacements of a split, as the Learn2Reg challenge takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
from ignite.engine import Engine, Events

from ..checks import known_name
from ..data.pairs import evaluation_loader
from ..engines.evaluator import RegistrationEvaluator
from ..io.affine import file_affine
from ..io.learn2reg import FORMS, matching_axes, reoriented_field, suffix, write_disp
from ..io.nifti import open_nifti
from ..runs import arguments
from ..runs.command_line import Words
from ..workflow import load, registration
from .bundles import evaluation_config, find_bundles
from .render import dataset_module

NUMBER = re.compile(r"_(\d{4})$")  # of a subject in Learn2Reg's layout


def learn2reg(bundle: str, output_dir: str, split: str = "validation", form: str = "nii.gz", **overrides: Any) -> str:
    """Register the pairs of a split and write ``disp_FIXED_MOVING`` of each, (X, Y, Z, 3) float32 in voxels.

    The arrays lie along the axes of the images' files (OASIS: right, front, up; 160 x 224 x 192), and displace the
    fixed image's voxels into the moving image, as the challenge's evaluation takes them. ``--form half`` writes what it
    took in 2021: (3, X/2, Y/2, Z/2) float16.

    Args:
        bundle: name or path; its data must be in Learn2Reg's layout.
        output_dir: folder for the files, created; files of the same names are replaced.
        split: "validation" (19 pairs of OASIS) or "test" (38 pairs).
        form: "nii.gz", "npz", or "half", the .npz of 2021.
        overrides: options of an evaluation of the bundle, such as ``--dataset_dir``, ``--spatial_size``,
            ``--ckpt_path``, ``--architecture pairwise``.

    Returns:
        What was written.

    Raises:
        ValueError: for an unknown form, option or split, or data in another layout.
        FileNotFoundError: for an unknown bundle, or weights that are not there.
    """
    known_name("form", form, FORMS)
    (folder,) = find_bundles((bundle,))
    parser = evaluation_config(folder)
    parser.update({"split": split, **overrides, "bundle_root": str(folder)})
    arguments.check(parser, Words([], {}), "evaluating")
    parser.update({"validate#dataset#with_labels": False})  # those of the test subjects are not public
    method, options, dataset = (parser.get_parsed_content(key) for key in ("method", "options", "validate#dataset"))
    data = dataset_module(folder)
    own = {"pairs": parser.get_parsed_content("pairs")} if "pairs" in parser else {}
    listed = data.datalist(parser.get_parsed_content("data_root"), split, **own)
    if not all("case" in entry for entry in listed):
        raise ValueError(f"bundle: expected one of OASIS, whose pairs have Learn2Reg's numbers, got {folder.name}.")
    entries = {entry["case"]: entry for entry in listed}
    cases = [_case(entry) for entry in entries.values()]  # before anything is registered
    load(method, parser.get_parsed_content("ckpt_path"), all_modules=bool(options.instance_iterations))
    engine = RegistrationEvaluator(
        options.device, evaluation_loader(dataset, options.batch_size), registration(method, options),
        amp=options.amp, condition=options.condition,
    )  # fmt: skip
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    write = partial(_write, entries=entries, folder=Path(output_dir), form=form, orientation=data.ORIENTATION)
    engine.add_event_handler(Events.ITERATION_COMPLETED, write)
    engine.run()
    return f"Wrote {len(cases)} displacements into {output_dir}: disp_{'_'.join(cases[0])}.{suffix(form)} …"


def _case(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Numbers of the fixed and the moving subject."""
    moving, fixed = (NUMBER.search(name) for name in entry["case"].split("_to_"))
    if moving is None or fixed is None or not str(entry["fixed_image"]).endswith(".nii.gz"):
        raise ValueError(
            f"dataset_dir: expected data in Learn2Reg's layout, images like OASIS_0395_0000.nii.gz, got "
            f"{entry['fixed_image']} of case {entry['case']}; the challenge's numbers follow from its files alone."
        )
    return fixed[1], moving[1]


def _write(engine: Engine, entries: Mapping[str, Any], folder: Path, form: str, orientation: str) -> None:
    batch, fields = engine.state.batch, engine.state.output["ddf"]
    for index, case in enumerate(batch["case"]):
        file = entries[case]["fixed_image"]
        header = open_nifti(file, "fixed")
        axes = "".join(nib.orientations.aff2axcodes(file_affine(header, file, "fixed")))
        sizes = [header.shape[axis] for axis in matching_axes(axes, orientation)]
        starts = [-int(start) for start in batch["crop_start"][index]]  # the window may be larger than the volume
        if any(start < 0 or start + n > s for start, n, s in zip(starts, sizes, fields.shape[2:], strict=True)):
            raise ValueError(
                f"spatial_size: expected a window that holds the {sizes} voxels of {file} along {orientation}, got one "
                f"of {list(fields.shape[2:])}; give the size of the volumes."
            )
        window = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        field = fields[(index, slice(None), *window)].cpu()
        write_disp(folder, *_case(entries[case]), reoriented_field(field, orientation, axes), form)
