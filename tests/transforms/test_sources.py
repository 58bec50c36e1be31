# SPDX-License-Identifier: Apache-2.0
"""Every form in which a pair reaches the bundles."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.transforms.loading import LoadPaird
from common.transforms.registration import CropPaird
from common.transforms.sources import input_files
from tests.transforms.synthetic import AFFINE, blobs, write


def test_input_files_are_both_images_or_the_example():
    def example(folder):
        return f"{folder}/ed.nii.gz", f"{folder}/es.nii.gz"

    assert input_files("a", "b", "", "phantom", example) == {"moving": "a", "fixed": "b"}
    assert input_files("a", "b", "c", "phantom", example)["moving_label"] == "c"
    assert input_files(None, None, None, "x", example) == {"moving": "x/ed.nii.gz", "fixed": "x/es.nii.gz"}
    for given in (("a", None, None), (None, "b", None), (None, None, "c")):
        with pytest.raises(ValueError, match="pass --moving FILE --fixed FILE"):
            input_files(*given, "phantom", example)


def same(one, other):
    """Two items show the network and the results the same."""
    crop = CropPaird([16, 12], "middle")
    assert torch.equal(crop(one)["image"].as_subclass(torch.Tensor), crop(other)["image"].as_subclass(torch.Tensor))
    for role in ("moving", "fixed"):
        (a, b) = (getattr(item["pair"], role) for item in (one, other))
        np.testing.assert_allclose(a.affine, b.affine, rtol=0, atol=1e-6)
        assert a.spacing == pytest.approx(b.spacing) and torch.equal(a.array, b.array)


def test_two_paths_in_all_forms_are_one_pair(files):
    moving, fixed = files["image"], files["fixed"]
    plain = LoadPaird(2)({"moving": moving, "fixed": fixed})
    # as the command line, and MONAI Label, whose panel sends "" for what is left empty
    for item in (
        {"image": moving, "fixed": fixed},
        {"image": moving, "fixed": fixed, "moving": "", "moving_label": "", "answer": "image"},
        {"image": fixed, "moving": moving, "fixed": " ", "moving_label": None},
        {"image": None, "moving": moving, "fixed": fixed},
    ):
        same(LoadPaird(2)(item), plain)


@pytest.mark.parametrize("shape", [(37, 30, 5), (37, 30), (37, 30, 1)])
def test_a_tensor_in_memory_is_as_its_two_files(tmp_path, shape):
    """As MONAI Deploy delivers it: both images on one grid, that of the affine."""
    flat = shape[:2] if shape[-1] == 1 else shape
    values = [blobs(flat, seed).reshape(shape) for seed in (1, 2)]
    paths = [write(tmp_path / f"{n}.nii.gz", v) for n, v in enumerate(values)]
    image = MetaTensor(torch.stack(values), affine=torch.from_numpy(AFFINE))
    from_files = LoadPaird(2)({"moving": paths[0], "fixed": paths[1]})
    in_memory = LoadPaird(2)({"image": image})
    same(in_memory, from_files)
    assert in_memory["pair"].fixed.slice_axis == (shape[-1] == 1)
    planar = MetaTensor(torch.stack(values), affine=torch.from_numpy(AFFINE)[[0, 1, 3]][:, [0, 1, 3]])
    if len(shape) == 2:
        assert LoadPaird(2)({"image": planar})["pair"].fixed.spacing == (1.5, 1.25)
    bare = LoadPaird(2)({"image": torch.stack(values)})["pair"]
    assert bare.fixed.spacing == (1.0,) * len(bare.fixed.array.shape)


@pytest.mark.parametrize(
    "given",
    [{}, {"image": "x"}, {"moving": "x"}, {"image": "x", "fixed": ""}, {"image": "x", "fixed": "y", "moving": "z"}],
)
def test_one_path_or_three_are_refused_with_the_forms(given):
    with pytest.raises(ValueError, match="expected the paths of two images, got image=.*Name 'moving' and 'fixed'; or"):
        LoadPaird(2)(given)


def test_bad_sources_are_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="fixed: expected an image .*absent.nii.gz does not exist"):
        LoadPaird(2)({"image": files["image"], "fixed": str(tmp_path / "absent.nii.gz")})
    with pytest.raises(ValueError, match="fixed: expected the path of an image, got int"):
        LoadPaird(2)({"image": files["image"], "fixed": 3})
    with pytest.raises(ValueError, match="moving: expected the path of an image, got Tensor"):
        LoadPaird(2)({"image": files["image"], "moving": torch.zeros(1, 3, 3)})
    pair = torch.stack([blobs((20, 16), seed) for seed in (1, 2)])
    with pytest.raises(ValueError, match="fixed: expected none beside an image in memory"):
        LoadPaird(2)({"image": pair, "fixed": files["fixed"]})
    for wrong in (pair[:1], pair[0], pair[..., None, None]):
        with pytest.raises(ValueError, match=r"image: expected two channels in memory, .* got the shape \("):
            LoadPaird(2)({"image": wrong})
    with pytest.raises(ValueError, match="the channel of fixed has none"):
        LoadPaird(2)({"image": torch.stack([pair[0], torch.ones(20, 16)])})
    with pytest.raises(ValueError, match="the channel of moving has none"):
        LoadPaird(2)({"image": torch.stack([pair[0] / 0 * 0, pair[1]])})
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(ValueError, match="image: expected an affine with orthogonal axes"):
        LoadPaird(2)({"image": MetaTensor(pair, affine=torch.from_numpy(sheared))})


def test_nothing_but_the_input_is_a_tensor(files, tmp_path):
    """MONAI Deploy gives the network every tensor that preprocessing leaves."""
    label = write(tmp_path / "label.nii.gz", nib.load(files["image"]).get_fdata() > 500, dtype=np.uint8)
    item = CropPaird([16, 12])(LoadPaird(2)(files | {"moving_label": label, "placement": np.eye(4)}))
    assert [key for key, value in item.items() if isinstance(value, torch.Tensor)] == ["image"]
