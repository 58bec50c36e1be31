# SPDX-License-Identifier: Apache-2.0
"""Small synthetic data of every bundle, and a short training of each, once a test session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles.suite import BUNDLES, data_of, run, small


@pytest.fixture(scope="session")
def data_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``dataset_dir`` of every bundle."""
    made: dict[str, str] = {}
    for data in {data_of(bundle).__name__: data_of(bundle) for bundle in BUNDLES}.values():
        made[data.__name__] = "phantom"
        if data.PHANTOM is not None:
            folder = tmp_path_factory.mktemp("phantom") / data.__name__.rpartition(".")[2]
            data.PHANTOM.make(folder, **data.PHANTOM.small)
            made[data.__name__] = str(folder)
    return {bundle.name: made[data_of(bundle).__name__] for bundle in BUNDLES}


@pytest.fixture(scope="session")
def trained(data_dirs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folder of a short training of every bundle; each is trained when it is first asked for."""

    class Trainings(dict):  # type: ignore[type-arg]
        def __missing__(self, name: str) -> Path:
            bundle = next(bundle for bundle in BUNDLES if bundle.name == name)
            self[name] = tmp_path_factory.mktemp(name)
            run(
                bundle, "training", "train.json", dataset_dir=data_dirs[name], output_dir=str(self[name]), **small(bundle)
            )
            return self[name]

    return Trainings()
