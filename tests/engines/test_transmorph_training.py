# SPDX-License-Identifier: Apache-2.0
"""A narrow TransMorph learns to register a pair of phantoms, whatever the method."""

import functools

import pytest
import torch
from ignite.engine import Events

from common.data import acdc, hippocampus
from common.data.hippocampus_phantom import make_hippocampus_phantom
from common.data.pairs import PairDataset
from common.engines.method import MODEL, Method, Update
from common.engines.trainer import RegistrationTrainer
from common.losses.objective import Objective
from common.losses.score import Distrust, ScoredResidual, ScoreSmoothness, ScoreWeight
from common.losses.similarity import build_similarity
from common.losses.terms import Similarity, Smoothness
from common.methods.baselines import plain
from common.networks.registry import build, build_estimator

ADAM = functools.partial(torch.optim.Adam, lr=2e-3)
NARROW = {"size": "tiny", "channels": 8, "depths": (2, 2), "heads": (2, 4), "head_channels": 8, "seed": 0}


@pytest.fixture(scope="module")
def batches(acdc_dir, tmp_path_factory):
    """One pair each, by the number of dimensions."""
    slices = PairDataset(acdc.load_pairs(acdc_dir, "train")[2:3], [48, 52])
    root = make_hippocampus_phantom(tmp_path_factory.mktemp("hippocampus"), n_train=2, n_validation=1)
    volumes = PairDataset(hippocampus.load_pairs(root, "train")[:1], [16, 24, 20])
    images = ("moving_image", "fixed_image")
    return {2 + i: {key: data[0][key][None].float() for key in images} for i, data in enumerate((slices, volumes))}


def adacs(network, dims):
    score = build_estimator(dims, seed=0, encoder=(4, 4), decoder=(4, 4, 4))
    terms = {"similarity": (1.0, Similarity(ScoreWeight())), "smoothness": (0.02, Smoothness())}
    of_score = {"ucs": (1.0, ScoredResidual()), "reg": (0.02, Distrust()), "smooth": (1.5, ScoreSmoothness())}
    updates = [Update("displacement", [MODEL], Objective(terms), ADAM),
               Update("score", ["model_score"], Objective(of_score), ADAM)]  # fmt: skip
    modules = {MODEL: network, "model_score": score}
    return Method(modules, build_similarity("mse"), updates, estimator="model_score")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["plain", "both_ways", "adacs"])
def test_thirty_steps_lower_the_similarity(kind, dims, batches):
    network = build("transmorph", dims, **NARROW)
    if kind == "adacs":
        method = adacs(network, dims)
    else:
        switches = {"bidirectional": True, "inverse_by_negation": True} if kind == "both_ways" else {}
        method = plain(network, build_similarity("mse"), ADAM, 0.01, **switches)
    seen = []
    trainer = RegistrationTrainer("cpu", 1, [batches[dims]] * 30, method)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output["displacement"]))
    trainer.run()
    first, last = (float(terms["similarity"]) for terms in (seen[0], seen[-1]))
    assert len(seen) == 30 and last < 0.9 * first
