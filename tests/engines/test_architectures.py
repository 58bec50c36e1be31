# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from torch import nn

from common.data.acdc import load_pairs
from common.data.pairs import PairDataset
from common.engines.architectures import SOLVERS, build
from common.engines.inferers import StackInferer
from common.engines.solvers import Identity, is_solver, refuse_solver
from common.losses.similarity import build_similarity
from common.metrics.folding import foldings_percent
from common.metrics.overlap import count_overlap
from common.networks import registry
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp

itk = pytest.importorskip("itk")
ELASTIX = hasattr(itk, "elastix_registration_method")
needs_elastix = pytest.mark.skipif(not ELASTIX, reason="itk-elastix is not installed")
NAMES = [pytest.param(name, marks=needs_elastix if name == "elastix" else ()) for name in SOLVERS]
FEW = {"pairwise": {"steps": (4, 4, 4)}, "elastix": {"iterations": 10, "samples": 200}}
SHAPES = [(24, 31), (20, 17, 18)]


def solver(name, dims=2, **options):
    settings = {"parameters": FEW, "seed": 0, "similarity": build_similarity("mse"), "smoothness_weight": 0.025}
    return build(name, dims, **{**settings, **options})


def images(shape, batch=2):
    return torch.rand(batch, 2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(registry.ARCHITECTURES))
def test_a_network_is_that_of_the_registry(name):
    narrow = {"start_channels": 2}
    own = {
        "voxelmorph": {"half_resolution": False}, "lapirn": narrow, "clapirn": narrow,
        "diffusemorph": {"channels": 32, "field_encoder": (4,) * 5},
    }.get(name, {})  # fmt: skip
    network = build(name, 2, {"pairwise": {"steps": (1, 1, 1)}, name: own}, seed=3, smoothness_weight=0.1)
    reference = registry.build(name, 2, seed=3, **own)
    assert not is_solver(network)
    for (key, value), (other, expected) in zip(network.named_parameters(), reference.named_parameters(), strict=True):
        assert key == other and torch.equal(value, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_solvers_keep_the_networks_contract(name, shape):
    register = solver(name, len(shape))
    assert is_solver(register) and not list(register.parameters()) and not register.state_dict()
    image = images(shape).requires_grad_()
    with torch.no_grad():
        ddf = register(image)
    assert ddf.shape == (2, len(shape), *shape)
    assert ddf.dtype == torch.float32 and ddf.device == image.device and ddf.isfinite().all()
    apart = register(image[:, :1], image[:, 1:])
    assert not apart.requires_grad
    torch.testing.assert_close(apart, ddf, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_solvers_work_under_autocast_and_on_stacks(name):
    register = solver(name).eval()
    image = images((24, 31), batch=3)
    with torch.autocast("cpu", torch.bfloat16):
        slices = register(image.bfloat16())
    stack = StackInferer(batch_size=2)(image.bfloat16().float().movedim(0, -1)[None], register)
    assert slices.dtype == torch.float32
    torch.testing.assert_close(stack[0].movedim(-1, 0), slices, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_is_refused(name):
    with pytest.raises(ValueError, match=f"condition: the solver '{name}' takes none"):
        solver(name)(images((24, 31)), condition=torch.ones(1, 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_weights_is_refused_naming_the_command(name):
    register = solver(name)
    with pytest.raises(ValueError, match=f"training needs a network with weights.*evaluating.* --architecture {name}"):
        register.estimate(images((24, 31)))
    with pytest.raises(ValueError, match=f"packing needs a network with weights, and '{name}' is a solver"):
        refuse_solver(register, "packing")


def test_networks_are_not_refused():
    refuse_solver(nn.Conv2d(2, 2, 1), "training")
    assert not is_solver(nn.Conv2d(2, 2, 1))


@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (1, 3, 9, 9), (2, 2, 9), (1, 2, 9, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_images_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"image: expected cat\(moving, fixed\).*use torch.cat"):
        solver(name)(torch.zeros(shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_moves_nothing(shape):
    ddf = Identity()(images(shape).double())
    assert ddf.shape == (2, len(shape), *shape) and ddf.dtype == torch.float32 and (ddf == 0).all()


def test_pairwise_takes_the_similarity_its_weight_and_its_parameters():
    similarity = build_similarity({"mse": 1.0, "mind": 0.2})
    register = build("pairwise", 2, {"pairwise": {"velocity_downsample": 4}}, None, similarity, 0.03)
    assert register.similarity is similarity
    assert register.smoothness_weight == 0.03 and register.velocity_downsample == 4
    own = solver("pairwise", parameters={"pairwise": {"smoothness_weight": 0.5}})
    assert own.smoothness_weight == 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("voxelmorf", {}, "architecture: expected one of .*Did you mean 'voxelmorph'"),
        ("pairwize", {}, "Did you mean 'pairwise'"),
        ("pairwise", {"parameters": {"pairwize": {}}}, "architectures: expected one of .*Did you mean 'pairwise'"),
        ("pairwise", {"parameters": {"pairwise": {"level": (1,)}}}, "architectures#pairwise: .*Did you mean 'levels'"),
        ("pairwise", {"parameters": None, "similarity": None}, "similarity: the solver 'pairwise' needs the method's"),
        ("pairwise", {"smoothness_weight": None}, "smoothness_weight: the solver 'pairwise' needs the method's"),
        ("elastix", {"similarity": None}, "similarity: the solver 'elastix' needs the method's"),
        ("identity", {"parameters": {"identity": {"steps": 3}}}, "identity has no parameters, got 'steps'"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        solver(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_phantom_hearts_are_registered_without_foldings(name, acdc_dir):
    data = PairDataset(load_pairs(acdc_dir, "train"), [64, 64], with_labels=True)
    items = [item for item in data.__getitems__(list(range(len(data)))) if (item["fixed_label"] == 2).any()][:3]
    batch = {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0] if "_" in key}
    ddf = build(name, 2, {"elastix": {"iterations": 100}}, 0, build_similarity("mse"), 0.025)(
        batch["moving_image"].float(), batch["fixed_image"].float()
    )
    moving, fixed = batch["moving_label"] == 2, batch["fixed_label"] == 2
    before = count_overlap(moving, fixed).dice().mean()
    after = count_overlap(warp(moving.float(), ddf) >= 0.5, fixed).dice().mean()
    error = (ddf - batch["true_ddf"]).norm(dim=1)[batch["fixed_label"][:, 0] > 0].mean()
    still = batch["true_ddf"].norm(dim=1)[batch["fixed_label"][:, 0] > 0].mean()
    if name == "identity":
        assert after == before and error == still
    else:
        assert after > before + 0.15 and error < 0.5 * still
    assert (foldings_percent(jacobian_determinant(ddf)) == 0).all()
