# SPDX-License-Identifier: Apache-2.0
"""Maps beside a registration: what they hold, and that they lie where the fixed image's content is."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import nn

from common.engines.inferers import InferenceEvaluator, StackInferer
from common.engines.maps import PixelMaps, evaluated_maps, pixel_maps
from common.engines.solvers import Identity
from common.handlers.state import save_weights
from common.networks.registry import build, build_estimator
from common.runs.outputs import MAPS
from common.spatial.warp import warp
from common.transforms.loading import LoadPaird
from common.transforms.registration import CropPaird, RegistrationResultd
from common.transforms.save import DESCRIPTIONS, SaveRegistrationd
from tests.engines.synthetic import estimating_method
from tests.transforms.synthetic import blobs

BUNDLES = Path(__file__).parents[2] / "bundles"
SIZES = {2: (13, 10), 3: (9, 7, 5)}


class Constant(nn.Module):
    """Moves everything by as much, voxels an axis."""

    def __init__(self, *shift):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, image, fixed=None, condition=None):
        return self.shift.reshape(-1, *[1] * len(self.shift)).expand(len(image), -1, *image.shape[2:])


class LogVariance(nn.Module):
    """log σ² = 2 (fixed − warped), as a linear ``PixelEstimator`` would return it."""

    sigmoid = False

    def forward(self, image):
        return 2 * (image[:, :1] - image[:, 1:])


class Seen(nn.Module):
    """A score that is the fixed image itself."""

    def forward(self, image):
        return image[:, :1]


class InverseWeight(nn.Module):
    def weight_map(self, fixed, estimated):
        return fixed * (-estimated).exp()


def pair(dims, batch=2, seed=0):
    return torch.rand(batch, 2, *SIZES[dims], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_noise_and_weight_are_of_the_image_warped_by_the_result(dims, padding):
    image, ddf = pair(dims), 3 * pair(dims, seed=1).repeat(1, 2, *[1] * dims)[:, :dims] - 1.5
    maps = PixelMaps(estimating_method(Identity(), LogVariance(), "fixed_warped", InverseWeight(), padding))
    found = maps(torch.cat([image, ddf], dim=1))
    warped = warp(image[:, :1], ddf, padding=padding)
    assert list(found) == ["noise_deviation", "weight"]
    torch.testing.assert_close(found["noise_deviation"], (image[:, 1:] - warped).exp())
    torch.testing.assert_close(found["weight"], image[:, 1:] * (-2 * (image[:, 1:] - warped)).exp())


def test_score_is_the_estimators_and_needs_no_weight():
    estimator = build_estimator(2, in_channels=1, seed=3).eval()
    image = pair(2)
    found = PixelMaps(estimating_method(Identity(), estimator, weight=nn.Identity()))(torch.cat([image, image], dim=1))
    assert list(found) == ["score"]
    torch.testing.assert_close(found["score"], estimator(image[:, 1:]))
    assert 0 < found["score"].min() and found["score"].max() < 1


def test_what_has_no_map_is_refused():
    with pytest.raises(ValueError, match="maps: the solver 'identity' estimates neither"):
        pixel_maps(estimating_method(Identity(), Seen()), True)
    assert pixel_maps(estimating_method(Identity(), Seen()), False) is None
    plain = estimating_method(build("voxelmorph", 2))
    with pytest.raises(ValueError, match="maps: expected a method with a score or variance network, .*got VoxelMorph"):
        pixel_maps(plain, True)
    assert evaluated_maps(plain) is None and evaluated_maps(estimating_method(Identity(), Seen())) is None


@pytest.mark.parametrize("batch_size", [2, 16])
def test_engine_maps_a_stack_slice_by_slice(batch_size):
    image = torch.rand(2, 12, 9, 5, generator=torch.Generator().manual_seed(0))
    method = estimating_method(Constant(2.0, -1.0), LogVariance(), "fixed_warped")
    engine = InferenceEvaluator(
        "cpu", [{"image": image}], method.network, StackInferer(batch_size), maps=PixelMaps(method)
    )
    engine.run()
    found = engine.state.output["window_maps"]["noise_deviation"]
    assert found.shape == (1, 12, 9, 5)
    moved = torch.zeros(12, 9, 5)
    moved[:-2, 1:] = image[0, 2:, :-1]
    torch.testing.assert_close(found[0], (image[1] - moved).exp())


def test_without_maps_nothing_is_run():
    method = estimating_method(Constant(0.0, 0.0), Seen())
    method.modules["model_score"].register_forward_hook(lambda *_: pytest.fail("the estimator ran"))
    engine = InferenceEvaluator("cpu", [{"image": pair(2)[0]}], method.network, StackInferer())
    engine.run()
    assert list(engine.state.output) == ["pred"]


def turned(nifti, codes):
    start, end = nib.io_orientation(nifti.affine), nib.orientations.axcodes2ornt(tuple(codes))
    return nifti.as_reoriented(nib.orientations.ornt_transform(start, end))


AFFINES = {2: np.diag([-1.5, -1.5, 8.0, 1.0]), 3: np.diag([1.5, 1.5, 1.5, 1.0])}
AFFINES[2][:3, 3], AFFINES[3][:3, 3] = [40.0, -12.0, 7.0], [-9.0, 3.0, 31.0]


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SPL", "IRA"])
@pytest.mark.parametrize(("dims", "size", "centre"), [
    (2, (16, 12), (14, 20)), (2, (48, 20), (20, 13)), (3, (16, 12, 8), (15, 15, 9)), (3, (24, 40, 14), (3, 20, 11)),
])  # fmt: skip
def test_map_lies_where_the_content_of_fixed_is(tmp_path, dims, size, centre, codes):
    """A score that is the image seen: written, it is the fixed file scaled to [0, 1] in the window, and 0 outside."""
    shape = (37, 30, 5) if dims == 2 else (29, 31, 18)
    stored = {}
    for name, seed in (("image", 1), ("fixed", 2)):
        nifti = turned(nib.Nifti1Image(blobs(shape, seed).numpy(), AFFINES[dims]), codes)
        stored[name] = str(tmp_path / f"{name}.nii.gz")
        nib.save(nifti, stored[name])
    orientation = "LPS" if dims == 2 else "RAS"
    item = LoadPaird(dims, orientation=orientation)(stored)
    start = [c - s // 2 for c, s in zip(centre, size, strict=True)]
    item = cropped(item, size, centre)
    method = estimating_method(Constant(*[0.0] * dims), Seen())
    engine = InferenceEvaluator(
        "cpu", [item], method.network, StackInferer(spatial_dims=dims), RegistrationResultd(), maps=PixelMaps(method)
    )
    engine.run()
    result = {**engine.state.batch, **engine.state.output}
    SaveRegistrationd(tmp_path / "out")(result)
    written, fixed = nib.load(tmp_path / "out" / "score.nii.gz"), nib.load(stored["fixed"])
    np.testing.assert_allclose(written.affine, fixed.affine, atol=1e-5)
    assert written.shape == fixed.shape and written.header["descrip"].item().decode() == DESCRIPTIONS["score"]
    values, content = (turned(nifti, orientation).get_fdata() for nifti in (written, fixed))
    start = item["pair"].start
    box = tuple(slice(max(a, 0), min(a + s, n)) for a, s, n in zip(start, size, shape[:dims], strict=True))
    inside = content[box]
    axes = (0, 1) if dims == 2 else None
    low, high = inside.min(axes, keepdims=True), inside.max(axes, keepdims=True)
    np.testing.assert_allclose(values[box], (inside - low) / (high - low), atol=1e-5)
    values[box] = 0
    assert not values.any()


def cropped(item, size, centre):
    """The window about a point of the working grid."""
    pair, dims = item["pair"], len(size)
    relative = np.linalg.inv(pair.fixed.affine) @ pair.working.affine
    at = relative[:3, :dims] @ np.array(centre) + relative[:3, 3]
    plane = sorted(pair.axes.order[:dims])
    return CropPaird(size, [float(at[axis]) for axis in plane])(item)


@pytest.mark.parametrize("resize", [None, (40, 26)])
def test_map_of_another_grid_is_interpolated_in_the_window_alone(tmp_path, resize):
    """Fixed of 2 mm registered at 1.5, or brought to another shape: a linear ramp stays one, up to the window's end."""
    affine, shape = np.diag([2.0, 2.0, 9.0, 1.0]), (50, 40, 3)
    ramp = np.broadcast_to(np.arange(50.0)[:, None, None] * 2 + np.arange(40.0)[:, None], shape).astype(np.float32)
    for name in ("image", "fixed"):
        nib.save(nib.Nifti1Image(ramp, affine), tmp_path / f"{name}.nii.gz")
    size = (24, 20) if resize is None else resize
    options = {"spacing": (1.5, 1.5)} if resize is None else {"resize": resize}
    item = LoadPaird(2, **options)({name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "fixed")})
    item = CropPaird(size, "middle")(item)
    window = torch.as_tensor(item["image"])[1:]
    result = RegistrationResultd()(
        item
        | {"pred": torch.zeros(2, *size, 3), "window_maps": {"score": window, "displacement_deviation": 0 * window + 2}}
    )
    score = result["maps"]["score"].numpy()
    assert score.shape == shape
    inside = score != 0
    fitted = np.polynomial.polynomial.polyfit(
        ramp[2:-2, 2:-2][inside[2:-2, 2:-2]], score[2:-2, 2:-2][inside[2:-2, 2:-2]], 1
    )
    error = np.abs(fitted[0] + fitted[1] * ramp - score)[2:-2, 2:-2][inside[2:-2, 2:-2]]
    assert error.max() < 0.03 and fitted[1] > 0
    spacing = (1.5, 1.5) if resize is None else (2 * 50 / 40, 2 * 40 / 26)
    expected = 2 * np.sqrt(np.square(spacing).mean())
    deviation = result["maps"]["displacement_deviation"].numpy()
    np.testing.assert_allclose(deviation[deviation != 0], expected, rtol=1e-5)
    covered = (24 * 1.5 / 2 * 20 * 1.5 / 2 * 3) if resize is None else np.prod(shape)
    assert (deviation != 0).sum() == pytest.approx(covered, rel=0.12)


def test_deviation_of_several_channels_is_their_root_mean_square_in_mm(tmp_path):
    for name in ("image", "fixed"):
        nib.save(nib.Nifti1Image(blobs((12, 10, 8)).numpy(), np.diag([1.0, 2.0, 4.0, 1.0])), tmp_path / f"{name}.nii")
    files = {name: str(tmp_path / f"{name}.nii") for name in ("image", "fixed")}
    item = CropPaird((12, 10, 8), "middle")(LoadPaird(3)(files))
    deviation = torch.tensor([0.5, 1.0, 0.25]).reshape(3, 1, 1, 1).expand(3, 12, 10, 8)
    result = RegistrationResultd()(
        item | {"pred": torch.zeros(3, 12, 10, 8), "window_maps": {"displacement_deviation": deviation}}
    )
    expected = torch.full((12, 10, 8), ((0.5**2 + 2**2 + 1**2) / 3) ** 0.5)
    torch.testing.assert_close(result["maps"]["displacement_deviation"], expected)
    bad = {"pred": torch.zeros(3, 12, 10, 8), "window_maps": {"score": deviation[:1] * torch.nan}}
    with pytest.raises(FloatingPointError, match="score: expected finite values"):
        RegistrationResultd()(item | bad)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Networks of the shipped shape, with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(build("voxelmorph", 2), folder / "model.pt")
    save_weights(build_estimator(2, in_channels=1, seed=5), folder / "model_score.pt")
    return folder


@pytest.fixture
def options(tmp_path):
    for seed, name in enumerate(("moving", "fixed")):
        nib.save(nib.Nifti1Image(blobs((45, 37, 3), seed).numpy(), AFFINES[2]), tmp_path / f"{name}.nii.gz")
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in ("moving", "fixed")}
    return files | {"device": "cpu", "spatial_size": [32, 32], "output_dir": str(tmp_path / "out")}


def run(name="adacs_acdc", **options):
    file = str(BUNDLES / name / "configs" / "inference.json")
    workflow = ConfigWorkflow(file, workflow_type="infer", logging_file=False, **options)
    workflow.initialize()
    workflow.run()


@pytest.mark.parametrize("target", [None, "weights", "field"])
def test_bundle_writes_the_score_of_its_weights(tmp_path, trained, options, target):
    fit = {} if target is None else {"instance_iterations": 1, "instance_target": target}
    run(**options, **fit, ckpt_path=str(trained / "model.pt"), maps="true")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written >= {"score.nii.gz", "warped.nii.gz"} and "noise_deviation.nii.gz" not in written
    score = nib.load(tmp_path / "out" / "score.nii.gz").get_fdata()
    estimator = build_estimator(2, in_channels=1)
    estimator.load_state_dict(torch.load(trained / "model_score.pt", weights_only=True))
    fixed = nib.load(options["fixed"]).get_fdata()
    box = np.argwhere(score[..., 1] > 0)
    (a, b), (c, d) = box.min(0), box.max(0) + 1
    assert (c - a, d - b) == (32, 32)
    seen = np.minimum(fixed, np.percentile(fixed, 99))[a:c, b:d, 1]
    seen = torch.from_numpy((seen - seen.min()) / (seen.max() - seen.min())).float()
    with torch.no_grad():
        expected = estimator(seen[None, None])[0, 0].numpy()
    np.testing.assert_allclose(score[a:c, b:d, 1], expected, atol=1e-5)
    run(**options, ckpt_path=str(trained / "model.pt"))  # replaces the earlier set, its maps too
    assert not {f"{name}.nii.gz" for name in MAPS} & {path.name for path in (tmp_path / "out").iterdir()}


def test_missing_weights_of_the_estimator_are_named(tmp_path, trained, options):
    shutil.copy(trained / "model.pt", tmp_path / "model.pt")
    run(**options, ckpt_path=str(tmp_path / "model.pt"))
    with pytest.raises(RuntimeError) as caught:  # MONAI's, with ours as its cause
        run(**options, ckpt_path=str(tmp_path / "model.pt"), maps=True)
    assert f"expected a file of weights at {tmp_path / 'model_score.pt'}, there is none" in causes(caught.value)


def test_solver_in_a_bundle_has_no_maps(options):
    with pytest.raises(RuntimeError) as caught:
        run(**options, architecture="pairwise", maps=True)
    assert "maps: the solver 'pairwise' estimates neither" in causes(caught.value)


def causes(error):
    return str(error) if error.__cause__ is None else f"{error} {causes(error.__cause__)}"
