# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs and says every ratio; how large they are is for a quiet machine to say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from common.cli import benchmark_attention, benchmark_gradicon, benchmark_inference
from common.cli.benchmark import benchmark
from common.engines.cost import allocated_peak

BUNDLES = Path(__file__).parents[2] / "bundles"


def test_every_variant_and_ratio_is_reported() -> None:
    table = benchmark(suite="adacs", size=16, batch_size=2, repeats=1, steps=2, lncc_size=16, compiled=False)
    for name in ("bare loop", "baseline", "AdaCS", "AdaCS, second forward", "baseline, amp"):
        assert re.search(rf"^\| {name} \| \d+\.\d \|", table, flags=re.MULTILINE), name
    monai, ours = (
        float(re.search(rf"^\| {name} \|.*\| (-\d\.\d+) \|$", table, flags=re.MULTILINE)[1])
        for name in ("MONAI", "ours")
    )
    assert abs(monai - ours) < 1e-5
    peak = float(re.search(r"^\| ratio ours / MONAI \| \d+\.\d+ \| (\d\.\d+) \|", table, flags=re.MULTILINE)[1])
    assert peak < 1


@pytest.fixture(scope="module")
def sections() -> dict[str, dict[str, list[float]]]:
    """Numbers of every row of suite "gradicon" by table (its title's first words) and variant."""
    text = benchmark(suite="gradicon", size=32, batch_size=2, repeats=1, steps=1, volume=(16, 20, 24), cube=16)
    found: dict[str, dict[str, list[float]]] = {}
    for line in text.splitlines():
        if line.startswith(("GradICON", "VoxelMorph")):
            rows = found.setdefault(" ".join(line.replace(",", "").split()[:3]), {})
        elif re.match(r"\| \w.* \d", line):
            name, *numbers = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name] = [float(number) for number in numbers]
        elif share := re.match(r"Share of the penalty in a step, (\w+): (-?[\d.]+) %$", line):
            rows[share[1]] = [float(share[2])]
    return found


@pytest.mark.parametrize("table", ["GradICON 2D 32×32", "GradICON 3D 16×20×24"])
def test_gradicon_steps_are_compared_with_plain_loops_of_the_same_loss(
    sections: dict[str, dict[str, list[float]]], table: str
) -> None:
    rows = sections[table]
    names = [benchmark_gradicon.PLAIN, benchmark_gradicon.PLAIN_LAST, benchmark_gradicon.TWO, benchmark_gradicon.ONE]
    others = [benchmark_gradicon.SAVED, benchmark_gradicon.RELEASED, benchmark_gradicon.ALONE]
    assert list(rows) == [*names, *others, "paper_v1", "released"]
    saved = rows[benchmark_gradicon.SAVED]
    assert saved[-1] == pytest.approx(rows[benchmark_gradicon.TWO][-1], rel=1e-5)
    assert saved[2] < rows[benchmark_gradicon.TWO][2]
    losses = [rows[name][-1] for name in names]
    # One forward takes the batch statistics of both directions together, so its loss is another.
    assert losses[:3] == pytest.approx([losses[0]] * 3, rel=1e-4)
    assert rows[benchmark_gradicon.ALONE][-1] < losses[3]
    peaks = [rows[name][2] for name in (*names, benchmark_gradicon.ALONE)]
    assert 0 < peaks[4] <= peaks[3] <= peaks[0]
    assert rows["paper_v1"][0] < 100 and rows["released"][0] < 100


def test_voxelmorph_stands_beside_monais_with_as_many_parameters(
    sections: dict[str, dict[str, list[float]]],
) -> None:
    rows = sections["VoxelMorph 3D 16³"]
    ours = [benchmark_gradicon.OURS, benchmark_gradicon.OURS_HALF]
    assert list(rows) == [benchmark_gradicon.MONAI, benchmark_gradicon.MONAI_LAST, *ours]
    assert rows[benchmark_gradicon.MONAI][1] == 1
    assert rows[ours[0]][2] > rows[ours[1]][2] > 0


@pytest.mark.slow
def test_checkpointing_lowers_the_peak_of_a_step() -> None:
    cpu = torch.device("cpu")
    runs = benchmark_gradicon.gradicon_runs((48, 64, 64), 1, cpu)
    plain, saved = (
        allocated_peak(lambda run=runs[name]: run(1), cpu)
        for name in (benchmark_gradicon.PLAIN, benchmark_gradicon.SAVED)
    )
    assert saved < 0.8 * plain


@pytest.mark.slow
def test_inference_stands_beside_monais_in_time_and_peak_memory() -> None:
    table = benchmark(suite="inference", repeats=1, registered=(64, 64, 64))
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| float32")]
    assert [row[1] for row in rows] == [
        benchmark_inference.MONAI,
        benchmark_inference.OURS,
        benchmark_inference.OURS_HALF,
    ]
    assert rows[0][3] == rows[0][5] == "1.00"
    # At this size libraries outweigh the images, and times are for a quiet machine to compare.
    assert all(float(row[column]) > 0 for row in rows for column in (2, 4))


def test_plain_attention_is_ours_beside_it() -> None:
    """Same values and gradients, on grids that windows do not divide."""
    for grid in ([9, 6], [7, 6, 8]):
        outputs = []
        for variant in (benchmark_attention.PLAIN, benchmark_attention.OURS):
            torch.manual_seed(0)
            block = benchmark_attention.Block(variant, len(grid))
            x = torch.rand(2, math.prod(grid), 96, requires_grad=True)
            y = block(x, grid)
            outputs.append([y, *torch.autograd.grad(y.sin().sum(), (x, *block.parameters()))])
        for plain, ours in zip(*outputs, strict=True):
            torch.testing.assert_close(ours, plain, atol=1e-5 * float(plain.abs().max()), rtol=0)


@pytest.mark.slow
def test_attention_stands_beside_the_plain_one_in_time_and_peak_memory() -> None:
    table = benchmark(suite="attention", repeats=1, size=128, batch_size=8)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith(("| plain", "| ours"))]
    assert [row[0] for row in rows] == 2 * [benchmark_attention.PLAIN, benchmark_attention.OURS]
    for plain, ours in (rows[:2], rows[2:]):
        assert ours[5] == plain[5] and float(ours[4]) <= 0.8  # memory; times are for a quiet machine to compare


def test_plain_loops_and_trainer_take_the_same_steps() -> None:
    torch.manual_seed(0)
    runs = benchmark_gradicon.gradicon_runs((18, 16), 2, torch.device("cpu"))
    plain, ours = (float(runs[name](3)) for name in (benchmark_gradicon.PLAIN, benchmark_gradicon.TWO))
    assert ours == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("name", ["gradicon_triangles", "gradicon_hippocampus"])
def test_networks_are_those_of_the_bundles(name: str) -> None:
    config = json.loads((BUNDLES / name / "configs" / "train.json").read_text())
    icon = config["architectures"]["icon"]
    assert {key: tuple(icon[key]) for key in ("down", "up")} == benchmark_gradicon.WIDTHS
    assert tuple(icon["factors"]) == benchmark_gradicon.FACTORS[len(config["spatial_size"])]
    chosen = [(row["preset"], row["weight"]) for row in config["objectives"].values() if row["similarity"] != "lncc"]
    assert set(benchmark_gradicon.WEIGHTS.items()) <= set(chosen)


def test_unknown_suite_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="suite: expected one of adacs, gradicon, inference, attention, all, got 'gradicom'"
    ):
        benchmark(suite="gradicom")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("size", 7), ("size", "abc"), ("batch_size", 0), ("repeats", 0), ("steps", 1.5), ("steps_3d", 0),
        ("lncc_size", 0), ("cube", 40), ("cube", None), ("volume", (8, 32, 32)), ("volume", 32),
        ("registered", (160, 192, 225)), ("registered", (160, 192)),
    ],
)  # fmt: skip
def test_sizes_and_counts_that_cannot_be_are_refused_by_name(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}: expected "):
        benchmark(**{argument: value})
