# SPDX-License-Identifier: Apache-2.0
"""A lone model.ts, run as MONAI Deploy's operator runs it, with MONAI's parts alone."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform

from common.cli.export import export_inference
from common.handlers.state import load_weights
from common.io.fields import load_ddf

BUNDLES = sorted(path.parents[1] for path in (Path(__file__).parents[2] / "bundles").rglob("configs/metadata.json"))
with_weights = pytest.mark.parametrize(
    "bundle", [path for path in BUNDLES if (path / "models" / "model.pt").exists()], ids=lambda path: path.name
)
every_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


def blobs(shape, seed):
    coarse = torch.rand(1, 1, *(n // 4 + 2 for n in shape), generator=torch.Generator().manual_seed(seed))
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return 900 * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)[0, 0] + 50


def parsed(config):
    parser = ConfigParser()
    parser.read_config(json.loads(json.dumps(config)))
    parser.parse()
    return parser


def deploy(config, network, image):
    """The operator's steps: one input, every other tensor of the item to the network, one output."""
    parser = parsed(config)
    item = {"image": image}
    pre, post = (
        parser.get_parsed_content(key) if parser.get(key) is not None else Compose([])
        for key in ("preprocessing", "postprocessing")
    )
    item = pre(item)
    assert not [key for key, value in item.items() if isinstance(value, torch.Tensor) and key != "image"]
    with torch.no_grad():
        pred = parser.get_parsed_content("inferer")(inputs=item["image"][None], network=network)[0]
    return post({"pred": pred, **item})["pred"]


def scripted(bundle):
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    network = load_weights(parser.get_parsed_content("network_def"), bundle / "models" / "model.pt").eval()
    return network, torch.jit.script(network)


@every_bundle
def test_only_parts_of_monai_are_named(bundle):
    config = export_inference(bundle)
    text = json.dumps(config)
    assert {"device", "inferer"} <= config.keys() and "common" not in text and "imports" not in config
    parser = parsed(config)
    for key in ("preprocessing", "postprocessing"):
        for transform in parser.get_parsed_content(key).transforms if key in config else ():
            assert isinstance(transform, MapTransform) and type(transform).__module__.startswith("monai.")


@with_weights
def test_a_prepared_window_gives_the_networks_own_displacement(bundle):
    network, script = scripted(bundle)
    size = json.loads((bundle / "configs" / "inference.json").read_text())["spatial_size"]
    window = torch.stack([blobs(size, seed) for seed in (1, 2)])
    window = (window - window.amin((1, 2), True)) / (window.amax((1, 2), True) - window.amin((1, 2), True))
    config = {key: part for key, part in export_inference(bundle).items() if not key.endswith("processing")}
    got = deploy(config, script, MetaTensor(window))
    with torch.no_grad():
        expected = network(window[None])[0]
    torch.testing.assert_close(got.as_subclass(torch.Tensor), expected, rtol=0, atol=1e-5)
    if len(size) == 2:
        stack = torch.stack([window, window.flip(0), window.flip(1)], -1)
        got = deploy(config, script, MetaTensor(stack))
        torch.testing.assert_close(got[..., 0].as_subclass(torch.Tensor), expected, rtol=0, atol=1e-4)
        assert got.shape == (2, *size, 3)


@every_bundle
def test_a_window_that_monai_alone_cannot_prepare_is_left_to_the_caller(bundle):
    source = json.loads((bundle / "configs" / "inference.json").read_text())
    prepared = source["resize"] or "intensities" in source or len(source["spatial_size"]) == 2
    assert ("preprocessing" not in export_inference(bundle)) == prepared


@pytest.mark.parametrize("shape", [(33, 50, 36), (40, 45, 31)])
@pytest.mark.parametrize("name", ["baseline_hippocampus", "gradicon_hippocampus"])
def test_whole_volumes_give_what_inferring_writes(name, shape, tmp_path):
    bundle = next(path for path in BUNDLES if path.name == name)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    values = [blobs(shape, seed) for seed in (1, 2)]
    paths = [str(tmp_path / f"{role}.nii.gz") for role in ("moving", "fixed")]
    for path, array in zip(paths, values, strict=True):
        nib.save(nib.Nifti1Image(array.numpy(), affine), path)
    run = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"), workflow_type="infer", logging_file=False, device="cpu",
        moving=paths[0], fixed=paths[1], output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    run.initialize()
    run.run()
    expected, _ = load_ddf(tmp_path / "out" / "ddf.nii.gz")
    image = MetaTensor(torch.stack(values), affine=torch.from_numpy(affine))
    got = deploy(export_inference(bundle), scripted(bundle)[1], image).as_subclass(torch.Tensor)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
