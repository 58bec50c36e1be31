# SPDX-License-Identifier: Apache-2.0
"""Every network by every objective of the bundles, in 2D and 3D: one real step of training."""

import functools

import pytest
import torch

from common.engines.adaptation import adapt
from common.engines.trainer import RegistrationTrainer
from common.losses.similarity import build_similarity
from common.methods import baselines
from common.networks.registry import build, build_estimator
from tests.bundles.suite import BUNDLES_DIR, config
from tests.engines.synthetic import adacs_method, hetero_method

NETWORKS = {
    "voxelmorph": {"encoder": (4, 4), "decoder": (4, 4, 4)},
    "transmorph": {"size": "tiny", "channels": 8, "head_channels": 8},
    "diffusemorph": {
        "channels": 4, "groups": 2, "multipliers": (1, 2), "field_encoder": (4, 8, 8), "field_decoder": (8, 8, 4),
    },
    "clapirn": {"start_channels": 2, "blocks": 1},
}  # fmt: skip
# By the name to show: an architecture that bundles need not list, and those with a parameter that changes the training.
UNCERTAIN = {"voxelmorph_diff": ("voxelmorph_diff", NETWORKS["voxelmorph"])} | {
    f"{name}_uncertain": (name, NETWORKS[name] | {"displacement_uncertainty": True})
    for name in ("voxelmorph", "transmorph")
}
VARIANTS = {name: (name, own) for name, own in NETWORKS.items()} | UNCERTAIN
OBJECTIVES = config(BUNDLES_DIR / "baseline_acdc")["objectives"]
REFUSED = {
    "clapirn": ("adaframe", "adareg", "nll", "beta_nll", "hetero"),
    "voxelmorph_diff": tuple(objective for objective in (*OBJECTIVES, "adacs", "hetero") if objective != "mse"),
}
REASONS = {
    "clapirn": "architecture: c-LapIRN minimises a similarity and the diffusion energy",
    "voxelmorph_diff": "architecture: voxelmorph_diff minimises the squared error .*Choose .*mse",
}
SIZES = {2: (18, 24), 3: (16, 12, 18)}
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


def batch(dims):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(2, 1, *SIZES[dims], generator=generator) for _ in range(2)]
    return dict(zip(("moving_image", "fixed_image"), images, strict=True))


def method_of(name, objective, dims):
    architecture, own = VARIANTS[name]
    network = build(architecture, dims, seed=0, **own)
    if objective == "adacs":
        return adacs_method(network, build_estimator(dims, seed=0, encoder=(4, 4), decoder=(4, 4, 4)))
    if objective == "hetero":
        small = {"encoder": (4, 4), "decoder": (4, 4, 4), "activation": "log_variance"}
        return hetero_method(network, build_estimator(dims, seed=0, in_channels=2, **small))
    entry = OBJECTIVES[objective]
    return baselines.build(objective, entry, network, build_similarity(entry["similarity"]), ADAM, dims, seed=0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("objective", [*OBJECTIVES, "adacs", "hetero"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_moves_every_network_of_the_method(name, objective, dims):
    method = method_of(name, objective, dims)
    if objective in REFUSED.get(name, ()):
        with pytest.raises(ValueError, match=REASONS[name]):
            adapt(method)
        return
    method = adapt(method).method
    before = {key: [p.detach().clone() for p in module.parameters()] for key, module in method.modules.items()}
    trainer = RegistrationTrainer("cpu", 1, [batch(dims)], method)
    trainer.run()
    assert all(value.isfinite() for terms in trainer.state.output.values() for value in terms.values())
    for key, module in method.modules.items():
        after = list(module.parameters())
        assert all(p.isfinite().all() for p in after)
        assert any(not torch.equal(p, q) for p, q in zip(after, before[key], strict=True)), key


@pytest.mark.parametrize(
    "bundle", sorted(path for path in BUNDLES_DIR.iterdir() if path.is_dir()), ids=lambda b: b.name
)
def test_a_bundle_s_parameters_of_every_network_build_it(bundle):
    train = config(bundle)
    dims = len(train["spatial_size"])
    listed = {name: own for name, own in train["architectures"].items() if name not in ("pairwise", "elastix")}
    own = {"gradicon": {"icon"}, "tmspr": {"tmspr", "voxelmorph", "transmorph"}}
    assert set(listed) >= own.get(bundle.name.partition("_")[0], set(NETWORKS))
    for name, parameters in listed.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in build(name, dims, **parameters).parameters()) > 1000
