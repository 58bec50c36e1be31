# SPDX-License-Identifier: Apache-2.0
"""Sensitivity studies, ablations and published comparisons of trainings as one command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..atomic import atomic_path
from ..checks import known_name, whole
from .bundles import find_bundles, read_json
from .study_tables import CONVERGENCE_FILES, TABLE_FILES, convergence_report, table_report
from .trainings import Run, Training, grid_runs, run_in_processes, run_in_turn, run_with_ray


class Study(NamedTuple):
    """Trainings that belong together: their report, the files that it writes, and the axes of a grid."""

    runs: tuple[Run, ...]
    report: Callable[..., str] = table_report
    files: tuple[str, ...] = TABLE_FILES
    axes: Mapping[str, Sequence[Any]] | None = None


SHAPES, VESSELS = "gradicon_triangles", "gradicon_drive"
STEPS = "architectures#icon#factors"  # one step at each of these fractions of the resolution
ALPHA_BETA = {"score_alpha": [0.005, 0.02, 0.08], "score_beta": [0.5, 1.5, 4.5]}
SIGMA_Z = "architectures#voxelmorph#displacement_uncertainty"
GAMMA = {"gamma": [0.0, 0.25, 0.5, 0.75, 1.0]}
STUDIES: dict[str, Study] = {
    # Tian et al., GradICON, CVPR 2023, Fig. 3 and A.1.1
    "gradicon_convergence": Study((
        Run("ICON, one step", "gradicon_triangles", {"objective": "icon", STEPS: [1], "epochs": 128}),
        Run("ICON, multi-step", "gradicon_triangles", {"objective": "icon", STEPS: [8, 4, 2, 1], "epochs": 128}),
        Run("GradICON, one step", "gradicon_triangles", {"objective": "gradicon", STEPS: [1], "epochs": 64}),
        Run("GradICON, multi-step", "gradicon_triangles", {"objective": "gradicon", STEPS: [8, 4, 2, 1], "epochs": 64}),
    ), convergence_report, CONVERGENCE_FILES),
    # there, Fig. 4, measured on the training pairs; --bundle gradicon_triangles has shapes, without true displacement
    "gradicon_vessels": Study(tuple(
        Run(f"net-{len(steps)}, {scales}", VESSELS, {
            "objective": name, STEPS: steps, "epochs": 1000, "split": "train"})
        for steps in ([1], [2, 1], [8, 4, 2, 1])
        for scales, name in (("single", "global_ncc"), ("averaged", "averaged"), ("adaptive", "adaptive")))),
    # there, Sec. 7: one weight at every resolution; ICON's with its published one and with its schedule
    "gradicon_resolution": Study(tuple(
        Run(f"{label} at {size}", SHAPES, own | {"spatial_size": [size, size]})
        for size in (32, 64, 128) for label, own in (
            ("GradICON", {"objective": "gradicon", "epochs": 64}), ("ICON", {"objective": "icon", "epochs": 128}),
            ("ICON, schedule", {"objective": "icon", "epochs": 128, "objectives#icon#weight": 64.0,
                                "objectives#icon#schedule": {"increment": 10.0, "threshold": 0.0}})))),
    # there, Sec. 7: no affine registration first; an affine network would push outlines out of view
    "gradicon_affine": Study(tuple(
        Run(f"{label}, {'misaligned' if moved else 'as drawn'}", SHAPES, own | {
            "misalignment": moved, "style": "filled", "epochs": 64})
        for moved in (0.0, 0.2) for label, own in (
            ("VoxelMorph", {"architecture": "voxelmorph", "objective": "diffusion"}),
            ("affine, VoxelMorph", {"architecture": "affine_voxelmorph", "objective": "diffusion"}),
            ("GradICON", {"objective": "gradicon"})))),
    # Zhang et al., AdaCS, ECCV 2024, Fig. 6 (right)
    "adacs_sensitivity": Study(grid_runs("adacs_acdc", ALPHA_BETA), axes=ALPHA_BETA),
    # there, Tables 2, 4 and 10. Without L_reg the score falls to 0: α must be above 0, and is tiny.
    "adacs_ablation": Study((
        Run("AdaCS", "adacs_acdc", {}),
        Run("without L_smooth", "adacs_acdc", {"score_beta": 0.0}),
        Run("without L_reg (alpha 1e-9)", "adacs_acdc", {"score_alpha": 1e-9}),
        Run("without m_T", "adacs_acdc", {"score_momentum": "none"}),
        Run("score from fixed and warped", "adacs_acdc", {"score_input": "fixed_warped"}),
    )),
    # there, Table 9
    "adacs_losses": Study((
        *(Run(label, "baseline_acdc", {"objective": name}) for label, name in (
            ("NCC", "lncc"), ("MI", "mi"), ("TBL", "tukey"), ("MAE", "mae"), ("MSE", "mse"))),
        Run("AdaCS", "adacs_acdc", {}),
    )),
    # Zhang et al., Heteroscedastic Uncertainty Estimation Framework, MICCAI 2024, Table 4; γ = 0 trusts no estimate
    "hetero_gamma": Study(grid_runs("hetero_acdc", GAMMA), axes=GAMMA),
    # the gain of the weight, of its mean alone, and of its values at random places
    "hetero_controls": Study((
        Run("MSE", "baseline_acdc", {}),
        *(Run(f"weight: {control}", "hetero_acdc", {"weight_control": control}) for control in (
            "none", "mean", "shuffled", "other")),
    )),
    # there, supplement, Table 5
    "hetero_displacement": Study((
        Run("Vxm", "baseline_acdc", {}), Run("Vxm-diff", "baseline_acdc", {"architecture": "voxelmorph_diff"}),
        Run("sigma_z", "baseline_acdc", {SIGMA_Z: True}), Run("sigma_I", "hetero_acdc", {}),
        Run("sigma_z and sigma_I", "hetero_acdc", {SIGMA_Z: True}),
    )),
}  # fmt: skip
BACKENDS = ("processes", "ray")
SETTINGS_FILE = "settings.json"
SHARED = ("epochs",)  # an override of these replaces a study's own value
KEPT = ("output_dir", "resume", "seed", "run_id", "config_file", "meta_file")


def study(
    name: str,
    output_dir: str,
    grid: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] = 0,
    workers: int = 1,
    samples: int | None = None,
    backend: str = "processes",
    icon_epochs: int | None = None,
    bundle: str | None = None,
    **overrides: Any,
) -> str:
    """Run the trainings of a study, or of a grid over a bundle's options; ``python -m common study NAME …``.

    As in ``study adacs_ablation --output_dir results/ablation --seeds 0,1,2`` or
    ``study adacs_acdc --grid "{'score_alpha': [0.005, 0.02], 'score_beta': [0.5, 1.5]}" --output_dir results/grid
    --epochs 60 --workers 2 --architecture transmorph``: every further option is one of the bundles' trainings.

    Each run trains a bundle with its own train.json and the study's overrides, in a folder of its own. Killed and
    started again with the same arguments, the command repeats no finished run (one with a ``summary.json``), and
    resumes those it was in. Further seeds and values of a grid may be added later, beside the earlier ones. At the end
    ``results.md`` and ``results.csv`` hold a row a run, mean ± standard deviation over the seeds, and of a grid of two
    options ``heat_map.png`` shows them; gradicon_convergence writes ``convergence.png`` (curves of all runs) and
    ``convergence.csv``, whose threshold is the lowest training similarity that all runs reach. Measures are those of
    the cases that the bundle evaluates, its validation cases: what is chosen by them must be measured on others.

    Args:
        name: of the study: gradicon_convergence, adacs_sensitivity, adacs_ablation, adacs_losses, hetero_gamma,
            hetero_controls, hetero_displacement, gradicon_vessels, gradicon_resolution, gradicon_affine; or of a
            bundle.
        output_dir: receives a folder a run, the table and the figure.
        grid: of a bundle, the values of each option that is varied; all combinations are run.
        seeds: every run is trained once with each.
        workers: number of trainings at a time, each in a process of one thread that writes ``log.txt`` in its folder; 1
            trains in this process, with all its threads.
        samples: run this many combinations of the grid, drawn at random; ``{'loguniform': [0.001, 0.1]}`` and
            ``{'uniform': [0, 1]}`` then stand for values between two ends.
        backend: "processes", or "ray" for Ray Tune on one machine or many (pip install 'registration-bundles[sweep]').
        icon_epochs: of those runs of gradicon_convergence that minimise ICON's penalty; by default the published ones.
        bundle: to train in the place of the study's one: gradicon_vessels on gradicon_triangles, say.
        overrides: further options of all trainings: epochs, device, dataset_dir, ….

    Returns:
        The table, Markdown.

    Raises:
        ValueError: for an unknown study or option, or a run in ``output_dir`` that has other settings, naming them.
        RuntimeError: where a training failed in another process, once all others are finished.
    """
    known_name("backend", backend, BACKENDS)
    whole("workers", workers, 1)
    chosen, output = _chosen(name, grid, samples), Path(output_dir)
    if bundle is not None:
        chosen = _moved(chosen, bundle)
    runs = _checked(chosen.runs, overrides, icon_epochs, SHARED if grid is None else ())
    trainings = [
        Training(run, seed, output / f"{run.folder}_seed{seed}", _overrides(run, overrides, icon_epochs, seed))
        for run in runs
        for seed in _seeds(seeds)
    ]
    trainings = [t._replace(overrides=t.overrides | {"output_dir": str(t.folder.resolve())}) for t in trainings]
    _check_settings(output, chosen.files, {training.folder.name: training for training in trainings})
    if backend == "ray":
        run_with_ray(trainings, workers)
    elif workers > 1:
        run_in_processes(trainings, workers)
    else:
        run_in_turn(trainings)
    return chosen.report(output, trainings, chosen.axes)


def _chosen(name: str, grid: Mapping[str, Any] | None, samples: int | None) -> Study:
    if grid is None:
        if samples is not None:
            raise ValueError("samples: expected a --grid to draw from, got none.")
        return STUDIES[known_name("name", name, STUDIES)]
    if name in STUDIES:
        raise ValueError(f"grid: {name} has its own; give a bundle's name with --grid, or leave --grid out.")
    (bundle,) = find_bundles((str(name),), own_code=True)
    return Study(grid_runs(str(bundle), grid, samples), axes=grid if samples is None else None)


def _moved(chosen: Study, bundle: str) -> Study:
    """A study on another bundle."""
    own = {run.bundle for run in chosen.runs}
    if len(own) > 1:
        raise ValueError(f"bundle: this study trains several, {', '.join(sorted(own))}; leave --bundle out.")
    (found,) = find_bundles((str(bundle),), own_code=True)
    return chosen._replace(runs=tuple(run._replace(bundle=str(found)) for run in chosen.runs))


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    given = [seeds] if isinstance(seeds, int) else list(seeds) if isinstance(seeds, (list, tuple)) else []
    if not given or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in given):
        raise ValueError(f"seeds: expected whole numbers, as in --seeds 0,1,2, got {seeds!r}.")
    return list(dict.fromkeys(given))


def _checked(
    runs: Sequence[Run], overrides: Mapping[str, Any], icon_epochs: int | None, shared: Sequence[str]
) -> Sequence[Run]:
    varied = {key for run in runs for key in run.overrides} - set(shared)
    for key in overrides:
        if key in varied:
            raise ValueError(f"{key}: the study varies it, and cannot be given one value for all runs.")
        if key in KEPT:
            raise ValueError(f"{key}: the study sets it for every run" + ("; give --seeds." if key == "seed" else "."))
    if icon_epochs is not None and not any(run.overrides.get("objective") == "icon" for run in runs):
        raise ValueError("icon_epochs: no run of this study minimises ICON's penalty; give --epochs.")
    folders = [run.folder for run in runs]
    double = sorted({folder for folder in folders if folders.count(folder) > 1})
    if double:
        raise ValueError(f"grid: expected different values, got {double[0]} more than once.")
    return runs


def _overrides(run: Run, given: Mapping[str, Any], icon_epochs: int | None, seed: int) -> dict[str, Any]:
    own = {} if icon_epochs is None or run.overrides.get("objective") != "icon" else {"epochs": icon_epochs}
    return run.overrides | dict(given) | own | {"seed": seed}


def _check_settings(output: Path, files: Sequence[str], trainings: Mapping[str, Training]) -> None:
    """Refuse to go on with runs that were started otherwise, and record the settings of all."""
    path = output / SETTINGS_FILE
    recorded = read_json(path) if path.is_file() else {}
    settings = {name: training.settings() for name, training in trainings.items()}
    foreign = [path] if recorded and not recorded.keys() & settings.keys() else []
    foreign += [output / name for name in files if not path.is_file() and (output / name).exists()]
    if foreign:
        raise ValueError(
            f"output_dir: {foreign[0]} is not of this study and would be overwritten. Choose another folder."
        )
    for name, training in trainings.items():
        now, then = settings[name], recorded.get(name, {})
        if not (training.finished or training.started) or then == now:
            continue
        different = [
            f"{key} was {then.get(key, 'not recorded')!r} and is now {now.get(key, 'not set')!r}"
            for key in sorted(then.keys() | now.keys())
            if key not in then or key not in now or then[key] != now[key]
        ]
        raise ValueError(
            f"output_dir: {training.folder} holds a run with other settings: {'; '.join(different)}. Pass those it was "
            "started with, or another --output_dir, or remove that folder to repeat the run."
        )
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(recorded | settings, indent=2) + "\n", encoding="utf-8")
