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

from common.handlers.state import load_weights
from tests.bundles.suite import BUNDLES, SIZES, config, data_of

# Of volumes and stacks, and of 2D images, whose axes swap and flip in their plane.
STORED = {3: ["LAS", "SRA", "PIR", "ILA"], 2: ["LAS", "ARS", "PLS", "RPS"]}


@pytest.fixture(scope="module")
def files(data_dirs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Moving, fixed and the label of moving, of the data set of every bundle."""
    found = {}
    for bundle in BUNDLES:
        keys, data = ("moving_image", "fixed_image", "moving_label"), data_of(bundle)
        if data.PHANTOM is not None:
            entry = data.datalist(data_dirs[bundle.name], "validation")[0]
            if "generated" not in entry:
                found[bundle.name] = [Path(entry[key]) for key in keys]
                continue
        pair, found[bundle.name] = data.load_pairs(data_dirs[bundle.name], "validation", spatial_size=(40, 33))[0], []
        for key in keys:
            found[bundle.name].append(tmp_path_factory.mktemp("generated") / "image.nii.gz")
            array = pair[key][0].numpy().astype(np.float32)
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 1.0, 1.0])), found[bundle.name][-1])
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The weights of every bundle; where it ships none, random ones that move something."""
    found = {}
    for bundle in BUNDLES:
        found[bundle.name] = bundle / "models" / "model.pt"
        if not found[bundle.name].exists():
            parser = ConfigParser()
            parser.read_config(str(bundle / "configs" / "inference.json"))
            parser["bundle_root"] = str(bundle)
            network = parser.get_parsed_content("network_def")
            for parameter in network.parameters():
                if parameter.dim() > 1 and parameter.abs().max() < 1e-3:
                    torch.nn.init.normal_(parameter, std=0.05)
            found[bundle.name] = tmp_path_factory.mktemp("weights") / "model.pt"
            torch.save(network.state_dict(), found[bundle.name])
    return found


def size_of(bundle: Path) -> list[int]:
    return SIZES[len(config(bundle)["spatial_size"])]


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


def register(bundle: Path, files: list[Path], weights: Path, folder: Path) -> dict[str, nib.Nifti1Image]:
    configs = bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=str(configs / "inference.json"), meta_file=str(configs / "metadata.json"), logging_file=False,
        workflow_type="infer", run_id="inferring", moving=str(files[0]), fixed=str(files[1]), device="cpu",
        moving_label=str(files[2]), output_dir=str(folder), spatial_size=size_of(bundle),
        ckpt_path=str(weights),
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return {name: nib.load(folder / f"{name}.nii.gz") for name in ("warped", "warped_label", "jacobian", "ddf")}


@pytest.mark.parametrize("number", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2, 3))])
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_results_do_not_depend_on_how_files_are_stored(
    bundle: Path, number: int, files: dict[str, list[Path]], weights: dict[str, Path], tmp_path: Path
) -> None:
    own, used = files[bundle.name], weights[bundle.name]
    plain = register(bundle, own, used, tmp_path / "plain")
    dims = nib.load(own[1]).ndim
    codes, other = STORED[dims][number], STORED[dims][number - 1]
    given = [stored(path, name, tmp_path) for path, name in zip(own, (other, codes, other), strict=True)]
    turned = register(bundle, given, used, tmp_path / "turned")
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


def answered(bundle: Path, weights: Path, item: dict[str, Any]) -> torch.Tensor:
    """The order of calls of MONAI Label and of MONAI Deploy's operator; both return what is under ``pred``."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"], parser["spatial_size"] = str(bundle), size_of(bundle)
    before, after = (parser.get_parsed_content(f"{stage}processing") for stage in ("pre", "post"))
    for compose in (before, after):
        assert isinstance(compose, Compose) and all(isinstance(step, MapTransform) for step in compose.transforms)
    network = load_weights(parser.get_parsed_content("network_def"), weights).eval()
    item = before(item)
    assert [key for key, value in item.items() if isinstance(value, torch.Tensor)] == ["image"]
    with torch.no_grad():
        pred = parser.get_parsed_content("inferer")(inputs=item["image"][None], network=network)[0]
    result = after({"pred": pred, **item})["pred"]
    # MONAI Label's Restored resamples where the shapes differ, and drops the channel of more than three axes.
    assert result.dim() == 4 and list(result.shape) == [1, *item["image"].meta["spatial_shape"]]
    return result[0].as_subclass(torch.Tensor)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_label_and_deploy_get_what_inferring_writes(
    bundle: Path, files: dict[str, list[Path]], weights: dict[str, Path], tmp_path: Path
) -> None:
    used = weights[bundle.name]
    moving, fixed, label = (str(path) for path in files[bundle.name])
    written = register(bundle, [Path(moving), Path(fixed), Path(label)], used, tmp_path / "out")
    image, labels = (np.asarray(written[name].dataobj) for name in ("warped", "warped_label"))
    shape = (*image.shape, 1)[:3]
    panel = ConfigParser.load_config_file(str(bundle / "configs" / "inference.json"))["displayable_configs"]
    assert panel == {"fixed": "", "moving": "", "moving_label": "", "answer": "image"}
    request = panel | {"device": "cpu", "model": bundle.name, "image": moving, "fixed": fixed}
    np.testing.assert_array_equal(answered(bundle, used, request).numpy(), image.reshape(shape))
    carried = {"image": fixed, "moving": moving, "moving_label": label, "answer": "label", "result_dtype": "uint8"}
    got = answered(bundle, used, panel | carried).numpy()
    assert got.dtype == labels.dtype and len(np.unique(got)) > 1
    np.testing.assert_array_equal(got, labels.reshape(shape))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_pair_in_memory_is_as_its_files(
    bundle: Path, files: dict[str, list[Path]], weights: dict[str, Path], tmp_path: Path
) -> None:
    fixed, used = files[bundle.name][1], weights[bundle.name]
    still = nib.load(fixed)
    values = still.get_fdata(dtype=np.float32)
    moved = np.roll(values, 2, 0) + 0.1 * values  # on the grid of fixed, as in memory it must be
    nib.save(nib.Nifti1Image(moved, still.affine), tmp_path / "moving.nii.gz")
    by_files = answered(bundle, used, {"moving": str(tmp_path / "moving.nii.gz"), "fixed": str(fixed)})
    image = MetaTensor(torch.from_numpy(np.stack([moved, values])), affine=torch.from_numpy(still.affine))
    torch.testing.assert_close(answered(bundle, used, {"image": image}), by_files, rtol=0, atol=1e-3)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_inference_has_the_network_and_the_window_of_training(bundle: Path) -> None:
    """Whatever both configurations name is the same, but for what belongs to a run and how the window is found."""
    inference, train = (
        ConfigParser.load_config_file(str(bundle / "configs" / f"{n}.json")) for n in ("inference", "train")
    )
    shared = inference.keys() & train.keys() - {"_doc_", "imports", "output_dir", "batch_size", "crop_center", "run"}
    assert {"network_def", "architecture", "spatial_size", "ckpt_path", "device", "amp"} <= shared
    assert {key: inference[key] for key in shared} == {key: train[key] for key in shared}
