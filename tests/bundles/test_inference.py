# SPDX-License-Identifier: Apache-2.0
"""Every bundle registers a pair the same, however its files are stored, and whoever asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform

from common.data import acdc, hippocampus, triangles
from common.data.hippocampus_phantom import make_hippocampus_phantom
from common.handlers.state import load_weights

BUNDLES_DIR = Path(__file__).resolve().parents[2] / "bundles"
BUNDLES = sorted(path.parents[1] for path in BUNDLES_DIR.rglob("configs/metadata.json"))
SIZES = {"acdc": [64, 48], "hippocampus": [24, 32, 21], "triangles": [32, 25]}
# Of volumes and stacks, and of 2D images, whose axes swap and flip in their plane.
STORED = {3: ["LAS", "SRA", "PIR", "ILA"], 2: ["LAS", "ARS", "PLS", "RPS"]}


@pytest.fixture(scope="module")
def files(acdc_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Moving, fixed and (but for triangles) the label of moving, of every data set."""
    volumes = make_hippocampus_phantom(tmp_path_factory.mktemp("hippocampus"), n_train=2, n_validation=1)
    names = hippocampus.subjects(volumes)[:2]
    heart = list(acdc.frame_files(acdc_dir, "patient001"))
    found = {
        "acdc": [*heart, heart[0].with_name(heart[0].name.replace(".nii", "_gt.nii"))],
        "hippocampus": [
            *hippocampus.image_files(volumes, *names),
            volumes / "labelsTr" / f"{names[0]}.nii.gz",
        ],
        "triangles": [],
    }
    pair = triangles.load_pairs("phantom", "test", 1, (40, 33))[0]
    for key in ("moving_image", "fixed_image", "moving_label"):
        found["triangles"].append(tmp_path_factory.mktemp("triangles") / "image.nii.gz")
        array = pair[key][0].numpy().astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0])), found["triangles"][-1])
    return found


def stored(path: Path, codes: str, folder: Path) -> Path:
    """The same image with axes in another order and direction."""
    nifti = nib.load(path)
    flat = nifti.ndim == 2
    volume = nib.Nifti1Image(np.asarray(nifti.dataobj)[..., None] if flat else np.asarray(nifti.dataobj), nifti.affine)
    start, end = nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(tuple(codes))
    turned = volume.as_reoriented(nib.orientations.ornt_transform(start, end))
    values = np.asarray(turned.dataobj)
    file = folder / f"{codes}_{path.parent.name}_{path.name}"
    nib.save(nib.Nifti1Image(values[..., 0] if flat else values, turned.affine), file)
    return file


def register(bundle: Path, files: list[Path], folder: Path) -> dict[str, nib.Nifti1Image]:
    configs = bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=str(configs / "inference.json"), meta_file=str(configs / "metadata.json"), logging_file=False,
        workflow_type="infer", run_id="inferring", moving=str(files[0]), fixed=str(files[1]), device="cpu",
        moving_label=str(files[2]), output_dir=str(folder), spatial_size=SIZES[bundle.name.partition("_")[2]],
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return {name: nib.load(folder / f"{name}.nii.gz") for name in ("warped", "warped_label", "jacobian", "ddf")}


@pytest.mark.parametrize("number", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2, 3))])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_results_do_not_depend_on_how_files_are_stored(
    bundle: Path, number: int, files: dict[str, list[Path]], tmp_path: Path
) -> None:
    own = files[bundle.name.partition("_")[2]]
    plain = register(bundle, own, tmp_path / "plain")
    dims = nib.load(own[1]).ndim
    codes, other = STORED[dims][number], STORED[dims][number - 1]
    given = [stored(path, name, tmp_path) for path, name in zip(own, (other, codes, other), strict=True)]
    turned = register(bundle, given, tmp_path / "turned")
    for name in ("warped", "warped_label", "jacobian"):
        assert turned[name].shape == nib.load(given[1]).shape
        np.testing.assert_allclose(turned[name].affine, nib.load(given[1]).affine, atol=1e-4)
        folder = tmp_path / name
        folder.mkdir()
        nib.save(turned[name], folder / "result.nii.gz")
        back = nib.load(stored(folder / "result.nii.gz", "".join(nib.aff2axcodes(plain[name].affine)), folder))
        got, expected = back.get_fdata(), plain[name].get_fdata()
        close = np.abs(got - expected) <= 1e-3 * max(np.abs(expected).max(), 1)
        assert close.mean() > 0.995, name  # nearest neighbours half way between two voxels may be either
    lengths = [np.linalg.norm(field["ddf"].get_fdata(), axis=-1) for field in (plain, turned)]
    np.testing.assert_allclose(np.sort(lengths[0], axis=None), np.sort(lengths[1], axis=None), atol=1e-3)


def answered(bundle: Path, item: dict[str, Any]) -> torch.Tensor:
    """The order of calls of MONAI Label and of MONAI Deploy's operator; both return what is under ``pred``."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"], parser["spatial_size"] = str(bundle), SIZES[bundle.name.partition("_")[2]]
    before, after = (parser.get_parsed_content(f"{stage}processing") for stage in ("pre", "post"))
    for compose in (before, after):
        assert isinstance(compose, Compose) and all(isinstance(step, MapTransform) for step in compose.transforms)
    network = load_weights(parser.get_parsed_content("network_def"), bundle / "models" / "model.pt").eval()
    item = before(item)
    assert [key for key, value in item.items() if isinstance(value, torch.Tensor)] == ["image"]
    with torch.no_grad():
        pred = parser.get_parsed_content("inferer")(inputs=item["image"][None], network=network)[0]
    result = after({"pred": pred, **item})["pred"]
    # MONAI Label's Restored resamples where the shapes differ, and drops the channel of more than three axes.
    assert result.dim() == 4 and list(result.shape) == [1, *item["image"].meta["spatial_shape"]]
    return result[0].as_subclass(torch.Tensor)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_label_and_deploy_get_what_inferring_writes(bundle: Path, files: dict[str, list[Path]], tmp_path: Path) -> None:
    moving, fixed, label = (str(path) for path in files[bundle.name.partition("_")[2]])
    written = register(bundle, [Path(moving), Path(fixed), Path(label)], tmp_path / "out")
    image, labels = (np.asarray(written[name].dataobj) for name in ("warped", "warped_label"))
    shape = (*image.shape, 1)[:3]
    panel = ConfigParser.load_config_file(str(bundle / "configs" / "inference.json"))["displayable_configs"]
    assert panel == {"fixed": "", "moving": "", "moving_label": "", "answer": "image"}
    request = panel | {"device": "cpu", "model": bundle.name, "image": moving, "fixed": fixed}
    np.testing.assert_array_equal(answered(bundle, request).numpy(), image.reshape(shape))
    carried = {"image": fixed, "moving": moving, "moving_label": label, "answer": "label", "result_dtype": "uint8"}
    got = answered(bundle, panel | carried).numpy()
    assert got.dtype == labels.dtype and len(np.unique(got)) > 1
    np.testing.assert_array_equal(got, labels.reshape(shape))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_pair_in_memory_is_as_its_files(bundle: Path, files: dict[str, list[Path]], tmp_path: Path) -> None:
    fixed = files[bundle.name.partition("_")[2]][1]
    still = nib.load(fixed)
    values = still.get_fdata(dtype=np.float32)
    moved = np.roll(values, 2, 0) + 0.1 * values  # on the grid of fixed, as in memory it must be
    nib.save(nib.Nifti1Image(moved, still.affine), tmp_path / "moving.nii.gz")
    by_files = answered(bundle, {"moving": str(tmp_path / "moving.nii.gz"), "fixed": str(fixed)})
    image = MetaTensor(torch.from_numpy(np.stack([moved, values])), affine=torch.from_numpy(still.affine))
    torch.testing.assert_close(answered(bundle, {"image": image}), by_files, rtol=0, atol=1e-3)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_inference_has_the_network_and_the_window_of_training(bundle: Path) -> None:
    """Whatever both configurations name is the same, but for what belongs to a run and how the window is found."""
    inference, train = (
        ConfigParser.load_config_file(str(bundle / "configs" / f"{n}.json")) for n in ("inference", "train")
    )
    shared = inference.keys() & train.keys() - {"_doc_", "imports", "output_dir", "batch_size", "crop_center", "run"}
    assert {"network_def", "architecture", "spatial_size", "ckpt_path", "device", "amp"} <= shared
    assert {key: inference[key] for key in shared} == {key: train[key] for key in shared}
