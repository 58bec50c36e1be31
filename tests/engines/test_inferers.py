# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor

from common.data.acdc import frame_files
from common.data.acdc_phantom import make_acdc_phantom
from common.data.layout import DatasetLayoutError
from common.engines.inferers import StackInferer
from common.handlers.state import save_weights
from common.io.fields import load_ddf
from common.networks.registry import build

BUNDLES = Path(__file__).parents[2] / "bundles"
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.linalg.qr(np.array([[1.0, 0.4, -0.2], [-0.5, 1.0, 0.3], [0.1, -0.2, 1.0]]))[0] * [1.4, -1.6, 9.0]
OBLIQUE[:3, 3] = [13.0, -52.0, 31.0]
PLANAR = np.diag([-1.3, 1.7, 1.0, 1.0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained network that displaces by some voxels."""
    torch.manual_seed(3)
    network = build("voxelmorph", 2)
    torch.nn.init.normal_(network.flow.weight, std=4.0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_weights(network, path)
    return path


def volume(shape, seed):
    coarse = torch.rand(1, 1, *(n // 3 + 2 for n in shape), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return 700 * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0, 0].numpy() + 20


def write(path, values, affine, dtype=np.float32):
    nib.save(nib.Nifti1Image(values.astype(dtype), affine), path)
    return str(path)


def workflow(name="adacs_acdc", **overrides):
    file = str(BUNDLES / name / "configs" / "inference.json")
    run = ConfigWorkflow(file, workflow_type="infer", logging_file=False, **{"device": "cpu", **overrides})
    run.initialize()
    return run


def itk_warp(moving, fixed, field) -> np.ndarray:
    """The moving image resampled by ITK from the three files alone; -1 outside of it."""
    image, reference, vectors = itk.imread(moving, itk.F), itk.imread(fixed, itk.F), itk.imread(field)
    dims = image.GetImageDimension()
    array = np.ascontiguousarray(itk.array_from_image(vectors), dtype=np.float64)
    double = itk.image_view_from_array(array, ttype=itk.Image[itk.Vector[itk.D, dims], dims])
    double.CopyInformation(vectors)
    transform = itk.DisplacementFieldTransform[itk.D, dims].New()
    transform.SetDisplacementField(double)
    warped = itk.resample_image_filter(
        image, transform=transform, reference_image=reference, use_reference_image=True, default_pixel_value=-1
    )
    return itk.array_from_image(warped).T


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_stack_is_registered_slice_by_slice(batch_size):
    def network(image, offset=0.0):
        assert len(image) <= batch_size and image.dim() == 4
        return image.flip(1) * image.mean((1, 2, 3), keepdim=True) + offset

    inputs = torch.rand(2, 2, 9, 7, 4)
    result = StackInferer(batch_size)(inputs, network, offset=0.5)
    assert result.shape == inputs.shape
    for b in range(2):
        for z in range(4):
            expected = network(inputs[b : b + 1, ..., z], 0.5)[0]
            torch.testing.assert_close(result[b, ..., z], expected, rtol=0, atol=1e-6)


def test_inputs_without_slices_go_to_the_network_unchanged():
    inputs = torch.rand(2, 2, 8, 6, 5)
    torch.testing.assert_close(StackInferer(1, spatial_dims=3)(inputs, lambda x: 2 * x), 2 * inputs)
    torch.testing.assert_close(StackInferer(1)(inputs[..., 0], lambda x: 2 * x), 2 * inputs[..., 0])


def test_scripted_network_takes_the_meta_tensor_of_preprocessing():
    network = torch.jit.script(build("voxelmorph", 2).eval())
    with torch.no_grad():
        result = StackInferer()(MetaTensor(torch.rand(1, 2, 32, 24, 3)), network)
    assert type(result) is torch.Tensor and result.shape == (1, 2, 32, 24, 3)


def test_inferer_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"with 3 axes S, or one more for slices, .*, got \(1, 2, 8, 8\)"):
        StackInferer(spatial_dims=3)(torch.zeros(1, 2, 8, 8), lambda x: x)
    with pytest.raises(ValueError, match="none of them empty"):
        StackInferer()(torch.zeros(1, 2, 8, 8, 0), lambda x: x)
    with pytest.raises(ValueError, match="batch_size: expected a whole number"):
        StackInferer(0)


@pytest.mark.parametrize(
    ("shape", "affine", "options"),
    [
        ((61, 47, 5), OBLIQUE, {"spatial_size": [32, 32], "crop_center": [28, 25]}),
        ((45, 41, 3), OBLIQUE, {}),  # smaller than the crop of 128
        ((150, 137), PLANAR, {"amp": "true"}),
    ],
)
def test_itk_applies_the_written_field_to_the_same_image(tmp_path, weights, shape, affine, options):
    moving = write(tmp_path / "moving.nii.gz", volume(shape, 1), affine)
    fixed = write(tmp_path / "fixed.nii.gz", volume(shape, 2), affine)
    label = write(tmp_path / "seg.nii.gz", 400 * (volume(shape, 1) > 350), affine, np.uint16)
    out = tmp_path / "out"
    workflow(
        moving=moving, fixed=fixed, moving_label=label, output_dir=str(out), ckpt_path=str(weights), **options
    ).run()
    names = ["ddf.nii.gz", "jacobian.nii.gz", "registration.png", "warped.nii.gz", "warped_label.nii.gz"]
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == names
    ddf, _ = load_ddf(out / "ddf.nii.gz")
    assert ddf[:2].abs().max() > 0.5
    if len(shape) == 3:
        assert ddf[2].abs().max() < 1e-5
    warped = nib.load(out / "warped.nii.gz")
    np.testing.assert_allclose(warped.affine, affine, atol=1e-5)
    ours = warped.get_fdata()
    theirs = itk_warp(moving, fixed, str(out / "ddf.nii.gz"))
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape[:2]], indexing="ij"))
    points = (grid if len(shape) == 2 else grid[..., None]) + ddf[:2].numpy()
    inside = np.all([(p > 0.01) & (p < n - 1.01) for p, n in zip(points, shape[:2], strict=True)], axis=0)
    # ITK takes points a rounding error beyond the first or last slice for outside.
    inside &= theirs >= 0
    assert inside.mean() > 0.8
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=0, atol=0.05)  # of intensities up to 720


def test_written_jacobian_and_label(tmp_path, weights):
    shape = (52, 44, 4)
    moving = write(tmp_path / "a.nii.gz", volume(shape, 1), OBLIQUE)
    fixed = write(tmp_path / "b.nii.gz", volume(shape, 2), OBLIQUE)
    label = write(tmp_path / "seg.nii.gz", 400 * (volume(shape, 1) > 350), OBLIQUE, np.uint16)
    options = {"moving": moving, "fixed": fixed, "moving_label": label, "ckpt_path": str(weights)}
    workflow(**options, output_dir=str(tmp_path)).run()
    jacobian = nib.load(tmp_path / "jacobian.nii.gz")
    assert b"2D in-plane" in jacobian.header["descrip"].item()
    u, v, _ = load_ddf(tmp_path / "ddf.nii.gz")[0].numpy()
    (ux, uy), (vx, vy) = (np.gradient(field, axis=(0, 1)) for field in (u, v))
    np.testing.assert_allclose(jacobian.get_fdata(), (1 + ux) * (1 + vy) - uy * vx, atol=1e-4)
    warped = nib.load(tmp_path / "warped_label.nii.gz")
    assert warped.get_data_dtype() == np.uint16
    assert set(np.unique(warped.get_fdata())) == {0, 400}


def test_phantom_is_registered_without_arguments(tmp_path, weights):
    root = make_acdc_phantom(tmp_path / "acdc", n_train=1, n_test=0, shape=(96, 80), n_slices=2)
    workflow("baseline_acdc", dataset_dir=str(root), output_dir=str(tmp_path / "out"), ckpt_path=str(weights)).run()
    frame = next((root / "training" / "patient004").glob("patient004_frame01.nii.gz"))
    assert nib.load(tmp_path / "out" / "warped.nii.gz").shape == nib.load(frame).shape
    with pytest.raises(DatasetLayoutError, match="subject: expected one of .*'patient004'.*, got 'patient099'"):
        frame_files(root, "patient099")


def test_single_slice_files_stay_single_slice_files(tmp_path, weights):
    files = [write(tmp_path / f"{n}.nii.gz", volume((40, 36), n)[..., None], OBLIQUE) for n in (1, 2)]
    options = {"spatial_size": [32, 32], "output_dir": str(tmp_path / "out"), "ckpt_path": str(weights)}
    workflow(moving=files[0], fixed=files[1], **options).run()
    for name in ("warped.nii.gz", "jacobian.nii.gz"):
        assert nib.load(tmp_path / "out" / name).shape == (40, 36, 1)


def test_missing_weights_are_an_error_that_says_what_to_do(tmp_path):
    files = [write(tmp_path / f"{n}.nii.gz", volume((40, 36), n), PLANAR) for n in (1, 2)]
    run = workflow(moving=files[0], fixed=files[1], ckpt_path=str(tmp_path / "none.pt"), output_dir=str(tmp_path))
    with pytest.raises(RuntimeError) as failure:
        run.run()
    assert isinstance(failure.value.__cause__, FileNotFoundError)
    assert "none.pt, there is none. Train the bundle first" in str(failure.value.__cause__)
