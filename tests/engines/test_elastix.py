# SPDX-License-Identifier: Apache-2.0
import sys
import types

import pytest
import torch

from common.engines.elastix import Elastix
from common.losses.similarity import SIMILARITIES, build_similarity
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import identity_grid

itk = pytest.importorskip("itk")
needs_elastix = pytest.mark.skipif(
    not hasattr(itk, "elastix_registration_method"), reason="itk-elastix is not installed"
)
SHAPES = [(40, 52), (26, 32, 20)]
QUICK = {"iterations": 100, "samples": 1000}


def blobs(points, shape):
    """A sum of Gaussians at random places, sampled anywhere: (d, *S) -> (*S)."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor(shape, dtype=torch.float32)
    total = torch.zeros(points.shape[1:])
    for centre in torch.rand(30, len(shape), generator=generator) * (size - 1):
        total += torch.exp(-(points - centre.view(-1, *[1] * len(shape))).square().sum(0) / (2 * 3.0**2))
    return total / 4


def pair(truth):
    """fixed(x) = moving(x + truth(x)), (1, 2, *S); what elastix is to find is another amount along every axis."""
    shape = tuple(truth.shape[1:])
    grid = identity_grid(list(shape), torch.device("cpu"))
    return torch.stack([blobs(grid, shape), blobs(grid + truth, shape)])[None]


def translation(shape):
    return torch.tensor([2.3, -1.6, 1.2][: len(shape)]).view(-1, *[1] * len(shape)).expand(-1, *shape)


def waves(shape):
    """Smooth, and along each axis of another amplitude."""
    grid = identity_grid(list(shape), torch.device("cpu"))
    size = torch.tensor(shape, dtype=torch.float32).view(-1, *[1] * len(shape))
    phase = torch.sin(3.1416 * grid / (size - 1)).prod(0)
    return torch.stack([amplitude * phase for amplitude in [2.5, -1.5, 1.0][: len(shape)]])


def errors(ddf, truth, image):
    """Mean distance to the truth after and before, where the fixed image has contrast, two voxels off the border."""
    slope = torch.stack(torch.gradient(image[0, 1])).square().sum(0).sqrt()
    inner = torch.zeros_like(slope, dtype=torch.bool)
    inner[tuple(slice(2, -2) for _ in slope.shape)] = True
    where = inner & (slope > slope[inner].median())
    return [distance.square().sum(0).sqrt()[where].mean().item() for distance in (ddf[0] - truth, truth)]


@needs_elastix
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("field", "name"), [(translation, "mse"), (waves, "mse"), (waves, "global_ncc")])
def test_finds_a_known_displacement_without_foldings(field, name, shape):
    truth = field(shape)
    image = pair(truth)
    ddf = Elastix(build_similarity(name), **QUICK)(image)
    after, before = errors(ddf, truth, image)
    assert ddf.shape == (1, len(shape), *shape)
    assert before > 1
    assert after < 0.3
    assert jacobian_determinant(ddf).min() > 0.5


@needs_elastix
def test_mutual_information_finds_a_translation_of_inverted_contrast():
    truth = translation(SHAPES[0])
    image = pair(truth)
    image[:, 1:] = image[:, 1:].max() - image[:, 1:]
    similarity = build_similarity("mi", bins=16)
    after, before = errors(Elastix(similarity, linear="rigid", **QUICK)(image), truth, image)
    assert after < 0.35 * before


@needs_elastix
def test_equal_seeds_give_equal_fields_and_the_random_state_stays():
    image = pair(waves(SHAPES[0]))
    state = torch.get_rng_state()
    first, again, other = (Elastix(build_similarity("mse"), seed=seed, iterations=20)(image) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, atol=1e-4, rtol=0)
    assert (first - other).abs().max() > 1e-3
    assert torch.equal(torch.get_rng_state(), state)


@needs_elastix
def test_no_file_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Elastix(build_similarity("mse"), iterations=5)(pair(waves(SHAPES[0])))
    assert not list(tmp_path.iterdir())


@needs_elastix
@pytest.mark.parametrize("linear", ["none", "rigid", "affine"])
def test_stages_are_those_asked_for(linear):
    register = Elastix(build_similarity("mi", bins=16), linear, 12.0, 0.5, resolutions=2, iterations=7)
    parameters = register._parameter_maps((64, 64))
    stages = [parameters.GetParameterMap(index) for index in range(parameters.GetNumberOfParameterMaps())]
    kinds = {"none": [], "rigid": ["EulerTransform"], "affine": ["AffineTransform"]}[linear] + ["BSplineTransform"]
    assert [stage["Transform"][0] for stage in stages] == kinds
    for stage in stages:
        assert stage["Metric"][0] == "AdvancedMattesMutualInformation"
        assert stage["NumberOfHistogramBins"][0] == "16"
        assert stage["NumberOfResolutions"][0] == "2" and stage["MaximumNumberOfIterations"][0] == "7"
    assert tuple(stages[-1]["Metric"]) == ("AdvancedMattesMutualInformation", "TransformBendingEnergyPenalty")
    assert stages[-1]["Metric1Weight"][0] == "0.5"
    assert stages[-1]["FinalGridSpacingInPhysicalUnits"][0] == "12.0"


@needs_elastix
@pytest.mark.parametrize("shape", [(4, 5), (9, 33), (6, 5, 7)])
def test_small_images_are_registered_with_fewer_levels(shape):
    image = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    ddf = Elastix(build_similarity("mse"), iterations=5, samples=50)(image)
    assert ddf.shape == (1, len(shape), *shape) and ddf.isfinite().all()


@needs_elastix
def test_images_too_small_are_refused():
    with pytest.raises(ValueError, match=r"axes of at least 4 voxels, got \(1, 2, 3, 9\); --architecture pairwise"):
        Elastix(build_similarity("mse"))(torch.rand(1, 2, 3, 9))


@pytest.mark.parametrize("name", sorted(set(SIMILARITIES) - {"mse", "global_ncc", "mi"}))
def test_similarities_that_elastix_does_not_have_are_refused(name):
    with pytest.raises(ValueError, match=f"elastix minimises one of mse, global_ncc, mi, got {name}; .*pairwise"):
        Elastix(build_similarity(name))


def test_a_sum_is_refused():
    with pytest.raises(ValueError, match="elastix minimises one of mse, global_ncc, mi, got SimilaritySum"):
        Elastix(build_similarity({"mse": 1.0, "lncc": 0.1}))


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "itk", types.ModuleType("itk"))
    with pytest.raises(ImportError, match=r'pip install "registration-bundles\[elastix\]"'):
        Elastix(build_similarity("mse"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": "afine"}, "linear: expected one of none, rigid, affine.*Did you mean 'affine'"),
        ({"grid_spacing": 0}, "grid_spacing: expected a number above 0"),
        ({"bending_weight": -1}, "bending_weight: expected a number from 0"),
        ({"resolutions": 0}, "resolutions: expected a whole number from 1"),
        ({"iterations": 2.5}, "iterations: expected a whole number from 1"),
        ({"samples": 0}, "samples: expected a whole number from 1"),
    ],
)
def test_option_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        Elastix(build_similarity("mse"), **options)
