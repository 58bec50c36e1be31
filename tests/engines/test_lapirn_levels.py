# SPDX-License-Identifier: Apache-2.0
"""LapIRN with learning rates and regularisers of its levels, as GradICON's paper compares with it."""

import pytest
import torch

from common.engines.adaptation import adapt
from common.handlers.stages import Stages
from common.losses.similarity import build_similarity
from common.methods.baselines import plain
from common.networks.lapirn import LUNG, LapIRN
from common.networks.registry import build
from tests.engines.synthetic import adam
from tests.engines.test_lapirn import published_smoothness, step_of

SIZES = [(16, 24), (8, 12, 10)]
SMALL = {"start_channels": 1, "blocks": 1}


def method(size, name, weight=1.0):
    return plain(build(name, len(size), seed=0, **SMALL), build_similarity("global_ncc"), adam(1e-3), weight)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LUNG)
@pytest.mark.parametrize(("running", "expected"), [(1, 1.0), (2, 0.1), (3, 0.1)])
def test_smoothness_of_each_level_weighs_what_table_4_says(size, name, running, expected):
    """In the released code's units, whatever the method's own weight."""
    trained = adapt(method(size, name, weight=7.0)).method
    trained.network.run_levels(running)
    step = step_of(size, trained)
    terms = trained.updates[0].objective(step)
    share = terms["total"] - terms["similarity"]
    torch.testing.assert_close(share, expected * published_smoothness(step.estimate.velocity), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "rates"), [("lapirn_lung", [1e-5, 5e-5, 1e-4]), ("lapirn_lung_svf", [5e-5, 1e-4, 1e-4])]
)
def test_stages_have_the_learning_rates_of_table_4(name, rates):
    adapted = adapt(method((8, 12, 10), name))
    assert [stage["levels"] for stage in adapted.stages] == [1, 2, 2, 3, 3]
    assert [stage["learning_rate"] for stage in adapted.stages] == [
        rates[stage["levels"] - 1] for stage in adapted.stages
    ]
    assert len(Stages(adapted.stages).stages) == 5
    assert adapted.method.network.diffeomorphic == name.endswith("svf")


def test_global_ncc_is_compared_on_every_level():
    """1 - NCC of two equal images is 0 on each of them, of an image and its negative 2."""
    size = (16, 24)
    trained = adapt(method(size, "lapirn_lung")).method
    term = trained.updates[0].objective.terms["similarity"]
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    values = [(part(image, image).mean(), part(image, 1 - image).mean()) for part in term.similarities]
    assert len(values) == 3
    for same, negative in values:
        torch.testing.assert_close(torch.stack([same, negative]), torch.tensor([0.0, 2.0]), atol=1e-3, rtol=0)


def test_without_them_the_methods_own_weight_and_rate_hold():
    adapted = adapt(method((8, 12, 10), "lapirn"))
    assert not any("learning_rate" in stage for stage in adapted.stages)
    assert adapted.method.updates[0].objective.weights["smoothness"] == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["level_learning_rates", "level_smoothness"])
@pytest.mark.parametrize("values", [(1.0, 2.0), (1.0, 2.0, -1.0)])
def test_numbers_that_are_not_one_a_level_are_refused(name, values):
    with pytest.raises(ValueError, match=f"{name}: expected 3 numbers of at least 0, the coarsest level's first"):
        LapIRN(2, 1, blocks=1, **{name: values})


def test_a_code_and_weights_of_the_levels_exclude_each_other():
    with pytest.raises(ValueError, match="level_smoothness: expected None with conditional"):
        LapIRN(2, 1, blocks=1, conditional=True, level_smoothness=(1, 1, 1))
