# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from common.losses.lncc import LNCC
from common.losses.similarity import SquaredError, build_similarity
from common.losses.sums import SimilaritySum

SHAPES = [(13, 18), (11, 9, 14)]
SPEC = {"mse": 1.0, "lncc": {"weight": 0.03, "window": 5}, "mind": 0.2}
AS_LIST = [{"name": "mse"}, {"name": "lncc", "weight": 0.03, "window": 5}, {"weight": 0.2, "name": "mind"}]


def image_pair(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    warped, fixed = torch.rand(2, 2, 1, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return warped, fixed


def by_hand(warped, fixed):
    parts = {"mse": {}, "lncc": {"window": 5}, "mind": {}}
    maps = {name: build_similarity(name, **options)(warped, fixed) for name, options in parts.items()}
    return maps["mse"] + 0.03 * maps["lncc"] + 0.2 * maps["mind"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spec", [SPEC, str(SPEC), f"  {SPEC}", AS_LIST, str(AS_LIST), tuple(AS_LIST)])
def test_a_sum_is_the_weighted_sum_of_the_maps(spec, shape):
    warped, fixed = image_pair(shape)
    residual = build_similarity(spec)(warped, fixed)
    assert residual.shape == (2, 1, *shape)
    torch.testing.assert_close(residual, by_hand(warped, fixed), atol=1e-6, rtol=1e-6)


def test_a_similarity_may_occur_twice_in_a_list():
    warped, fixed = image_pair(SHAPES[0])
    spec = [{"name": "lncc", "window": 3}, {"name": "lncc", "window": 7, "weight": 0.5}]
    expected = LNCC(3)(warped, fixed) + 0.5 * LNCC(7)(warped, fixed)
    torch.testing.assert_close(build_similarity(spec)(warped, fixed), expected)


@pytest.mark.parametrize("spec", [{"mse": 1.0}, "{'mse': 1}", [{"name": "mse"}]])
def test_a_sum_of_one_with_weight_one_is_that_similarity(spec):
    assert isinstance(build_similarity(spec), SquaredError)


def test_options_of_one_similarity_may_stand_in_a_mapping():
    similarity = build_similarity({"lncc": {"window": 5}})
    assert isinstance(similarity, LNCC) and similarity.window == 5


def test_one_value_a_pair_counts_at_every_voxel():
    warped, fixed = image_pair((20, 24))
    residual = build_similarity({"mse": 1.0, "global_ncc_multiscale": 0.5})(warped, fixed)
    means = SquaredError()(warped, fixed).mean() + 0.5 * build_similarity("global_ncc_multiscale")(warped, fixed).mean()
    assert residual.shape == (2, 1, 20, 24)
    torch.testing.assert_close(residual.mean(), means)


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 4)])
def test_gradient_of_every_voxel_of_the_map(shape):
    warped, fixed = image_pair(shape, torch.float64)
    similarity = build_similarity({"mse": 1.0, "lncc": {"weight": 0.3, "window": 3}, "mind": 0.2})
    assert torch.autograd.gradcheck(similarity, (warped.requires_grad_(), fixed.requires_grad_()))


def test_a_sum_scales_with_its_weights():
    warped, fixed = image_pair(SHAPES[0])
    once = build_similarity({"mse": 0.5, "mae": 2.0})(warped, fixed)
    torch.testing.assert_close(build_similarity({"mse": 1.0, "mae": 4.0})(warped, fixed), 2 * once)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "expected a name, a sum such as"),
        ([], "expected a name, a sum such as"),
        (3, "expected a name, a sum such as .*got 3"),
        (None, "expected a name, a sum such as .*got None"),
        ([{"weight": 1.0}], "or a list such as"),
        (["mse", "lncc"], "or a list such as"),
        ("{'mse': 1.0, ", "expected a name or a sum such as"),
        ("{mse: 1.0}", "expected a name or a sum such as"),
        ({"mse": 0}, "expected a weight above 0 for mse, got 0"),
        ({"mse": -1.0}, "expected a weight above 0 for mse"),
        ({"mse": True}, "expected a weight above 0 for mse, got True"),
        ({"mse": "1"}, "expected a weight above 0 for mse, got '1'"),
        ({"mse": float("nan")}, "expected a weight above 0 for mse"),
        ({"mse": 1.0, "lnc": 0.1}, "Did you mean 'lncc'"),
        ({"name": "lncc", "window": 5}, "similarity: expected one of .*, got 'name'"),
        ({"lncc": {"wieght": 0.1}}, "option of the similarity lncc: expected one of window"),
    ],
)
def test_what_is_no_sum_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build_similarity(spec)


def test_options_beside_a_sum_are_refused():
    with pytest.raises(ValueError, match="options window stand beside the sum .*write them into it"):
        build_similarity({"mse": 1.0, "lncc": 0.1}, window=5)


@pytest.mark.parametrize(
    ("similarities", "weights", "message"),
    [
        ([], [], "at least one similarity"),
        ([SquaredError()], [1.0, 2.0], "expected one weight for each"),
        ([SquaredError()], [0.0], "weights: expected numbers above 0, got 0.0"),
        ([SquaredError()], [float("inf")], "weights: expected numbers above 0"),
    ],
)
def test_sums_without_terms_or_weights_are_refused(similarities, weights, message):
    with pytest.raises(ValueError, match=message):
        SimilaritySum(similarities, weights)


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected one shape .*\(1, 1, 8, 9\) and \(1, 1, 9, 8\)"):
        build_similarity(SPEC)(torch.rand(1, 1, 8, 9), torch.rand(1, 1, 9, 8))
