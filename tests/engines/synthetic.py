# SPDX-License-Identifier: Apache-2.0
"""Small networks, blobs that move, and the plainest methods: what several suites of engines and handlers share."""

from functools import partial

import torch
from ignite.engine import Events
from torch import nn
from torch.utils.data import DataLoader

from common.engines.method import Method, Update
from common.engines.trainer import RegistrationTrainer
from common.losses.heteroscedastic import SnrWeight
from common.losses.inverse_consistency import InverseConsistencyPenalty
from common.losses.likelihood import NegativeLogLikelihood
from common.losses.objective import Objective
from common.losses.score import Distrust, MeanResidual, Momentum, ScoredResidual, ScoreSmoothness, ScoreWeight
from common.losses.similarity import SquaredError
from common.losses.terms import InverseConsistency, Similarity, Smoothness
from common.networks.contract import Estimate, pair_image
from common.networks.unet import PixelEstimator
from common.networks.voxelmorph import VoxelMorph
from common.spatial.warp import identity_grid

SIZES = [(24, 32), (12, 16, 10)]
TINY = {"encoder": (6,), "decoder": (6, 6)}


def blob(size, shift, batch):
    """Gaussian blobs; the fixed ones lie ``shift`` voxels further along the first axis."""
    grid = identity_grid(list(size), torch.device("cpu"))
    width = max(size) / 6

    def at(offset, seed):
        centre = torch.tensor([n / 2 for n in size]) + torch.rand(len(size), generator=seed) - 0.5
        centre[0] += offset
        distance = (grid - centre.view([-1] + [1] * len(size))).square().sum(0)
        return torch.exp(-distance / (2 * width**2))[None]

    pairs = []
    for number in range(batch):
        seeds = [torch.Generator().manual_seed(number) for _ in range(2)]
        pairs.append({"moving_image": at(0.0, seeds[0]), "fixed_image": at(shift, seeds[1])})
    return pairs


def networks(dims, in_channels=1, seed=0):
    torch.manual_seed(seed)
    return VoxelMorph(dims, **TINY), PixelEstimator(dims, in_channels, **TINY)


def moving_network(dims, std=0.3, **options):
    """A displacement network that moves."""
    torch.manual_seed(0)
    network = VoxelMorph(dims, **TINY, **options)
    nn.init.normal_(network.flow.weight, std=std)
    return network


class Conditional(nn.Module):
    """Moves everything by its condition, the mean over K, times a weight an axis; remembers what it was given."""

    def __init__(self, dims):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dims))
        self.seen = []

    def forward(self, image, fixed=None, condition=None):
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image, condition=None):
        self.seen.append(condition)
        value = image.new_zeros(len(image), 1) if condition is None else condition.mean(1, keepdim=True)
        dims = image.dim() - 2
        ddf = (value * self.scale).view(len(image), dims, *[1] * dims).expand(-1, -1, *image.shape[2:])
        return Estimate(ddf, ddf)


def adam(lr):
    return partial(torch.optim.Adam, lr=lr)


def displacement_objective(weight=0.01, data_weight=None):
    return Objective({"similarity": (1.0, Similarity(data_weight)), "smoothness": (2 * weight, Smoothness())})


def score_objective(momentum=None, alpha=0.02, beta=1.5, leak=False):
    momentum = Momentum() if momentum is None else momentum
    logged = {"mu": (0.0, MeanResidual()), "momentum": (0.0, momentum)}
    return Objective(
        {
            "ucs": (1.0, ScoredResidual(leak)),
            "reg": (alpha, Distrust()),
            "smooth": (beta, ScoreSmoothness(momentum)),
            **logged,
            **({"alpha": (0.0, alpha)} if isinstance(alpha, nn.Module) else {}),
        }
    )


def gradicon_objective(weight=0.2, penalty=None):
    penalty = InverseConsistencyPenalty() if penalty is None else penalty
    terms = {
        "similarity": (1.0, Similarity(both_ways=True)),
        "inverse_consistency": (weight, InverseConsistency(penalty)),
    }
    return Objective(terms)


def method_of(network, objective=None, optimizer=None, **form):
    """A method of one update."""
    objective = displacement_objective() if objective is None else objective
    update = Update("displacement", ["model"], objective, optimizer or adam(1e-3))
    return Method({"model": network}, SquaredError(), [update], **form)


def adacs_method(network, score, momentum=None, lr=1e-3, leak=False, objective=None, **form):
    """AdaCS: two networks, two updates."""
    objective = score_objective(momentum, leak=leak) if objective is None else objective
    both = ["model_score", "model"] if leak else None
    updates = [
        Update("displacement", ["model"], displacement_objective(data_weight=ScoreWeight()), adam(lr)),
        Update("score", ["model_score"], objective, adam(lr), both),
    ]
    form = {"second_forward": leak} | form
    return Method({"model": network, "model_score": score}, SquaredError(), updates, estimator="model_score", **form)


def hetero_method(network, variance, lr=1e-3, leak=False, weight=None, beta=0.5, **form):
    """Heteroscedastic uncertainty: two networks, two updates."""
    terms = {"nll": (1.0, NegativeLogLikelihood(beta, detached=not leak))}
    both = ["model_variance", "model"] if leak else None
    updates = [
        Update("displacement", ["model"], displacement_objective(data_weight=weight or SnrWeight()), adam(lr)),
        Update("variance", ["model_variance"], Objective(terms), adam(lr), both),
    ]
    form = {"second_forward": leak, "through_estimator": leak, "estimator_input": "fixed_warped"} | form
    modules = {"model": network, "model_variance": variance}
    return Method(modules, SquaredError(), updates, estimator="model_variance", **form)


def estimating_method(network, estimator=None, estimator_input="fixed", weight=None, padding="zeros"):
    """A method that is not trained: what maps are made of."""
    modules = {"model": network} | ({} if estimator is None else {"model_score": estimator})
    update = Update("displacement", ["model"], Objective({"similarity": (1, Similarity(weight))}), adam(1e-3))
    name = None if estimator is None else "model_score"
    return Method(modules, SquaredError(), [update], estimator=name, estimator_input=estimator_input, padding=padding)


def baseline(network, loader, lr=1e-2, weight=0.01, max_epochs=1, options=None, **form):
    method = method_of(network, displacement_objective(weight), adam(lr), **form)
    return RegistrationTrainer("cpu", max_epochs, loader, method, **(options or {}))


def adacs(network, score, loader, max_epochs=1, handlers=(), options=None, **form):
    method = adacs_method(network, score, **form)
    return RegistrationTrainer("cpu", max_epochs, loader, method, train_handlers=handlers, **(options or {}))


def record_similarity(trainer, losses):
    def record(engine):
        losses.append(float(engine.state.output["displacement"]["similarity"]))

    trainer.add_event_handler(Events.EPOCH_COMPLETED, record)


def loader_of(size, batch_size=2, pairs=4, shift=2.0):
    return DataLoader(blob(size, shift, pairs), batch_size=batch_size)


def count_forwards(trainer):
    """Calls of the networks that the trainer makes, by module."""
    calls = {}

    def count(name):
        def hook(*_):
            calls[name] = calls.get(name, 0) + 1

        return hook

    trainer._displacement.register_forward_hook(count("model"))
    if trainer._estimator is not None:
        trainer._estimator.register_forward_hook(count("model_score"))
    return calls
