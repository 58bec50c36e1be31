# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn

from common.engines.adaptation import Adaptation, adapt, with_terms
from common.losses.similarity import build_similarity
from common.methods.baselines import plain
from common.networks.registry import build


class Constant(nn.Module):
    def forward(self, step):
        return torch.tensor(3.0)


def method():
    return plain(build("voxelmorph", 2), build_similarity("mse"), torch.optim.Adam, 0.01)


def test_a_network_that_brings_nothing_leaves_the_method():
    trained = method()
    assert adapt(trained) == Adaptation(trained, ())


def test_terms_are_added_to_the_first_update_and_replace_those_of_their_name():
    trained = with_terms(method(), {"smoothness": (2.0, Constant()), "own": (0.5, Constant())})
    objective = trained.updates[0].objective
    assert objective.weights == {"similarity": 1.0, "smoothness": 2.0, "own": 0.5}
    assert isinstance(objective.terms["smoothness"], Constant)
