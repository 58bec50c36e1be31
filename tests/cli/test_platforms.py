# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from common.cli import lone, pack, platforms
from common.cli.platforms import OPTIONS
from common.cli.torchscript import build_network

COPY = {"_target_": "monai.transforms.CopyItemsd", "keys": "image", "names": "copy"}
NO_DICTIONARY = {"_target_": "monai.transforms.Identity"}
SQUEEZE = {"_target_": "monai.transforms.SqueezeDimd", "keys": "pred", "dim": -1}


def computed(key, expression):
    return {"_target_": "monai.transforms.Lambdad", "keys": key, "func": f"$lambda value: {expression}"}


@pytest.fixture
def add(bundle, edit):
    """Append a transform, or put it in place of all others."""

    def apply(key, transform, alone=False):
        def change(config):
            config[key]["transforms"] = [transform] if alone else [*config[key]["transforms"], transform]

        edit(bundle / "configs" / "inference.json", change)

    return apply


@pytest.mark.parametrize("key", ["preprocessing", "postprocessing"])
def test_a_transform_of_single_tensors_fails(bundle, add, key):
    platforms.check_transforms(bundle)
    add(key, NO_DICTIONARY)
    with pytest.raises(ValueError, match=f"{key}: Identity is no MapTransform"):
        platforms.check_transforms(bundle)


def test_processing_that_is_no_compose_fails(bundle, edit):
    edit(bundle / "configs" / "inference.json", lambda config: config.update(preprocessing=[NO_DICTIONARY]))
    with pytest.raises(ValueError, match=r"preprocessing: expected a monai\.transforms\.Compose, got list"):
        platforms.check_transforms(bundle)


@pytest.mark.parametrize(
    ("transform", "alone", "reason"),
    [
        (COPY, False, "leaves the tensors copy beside image"),
        (computed("image", "value[:1]"), False, r"expected the network's input, a tensor of two channels.*got \(1, "),
        (computed("image", "'path'"), False, "under image, got str"),
        (computed("absent", "value"), True, "does not take image with fixed: .*absent"),
        (computed("image", "torch.zeros(2, 8, 8)"), True, "takes image alone, which does not name a pair"),
        (computed("image", "torch.full((2, 8, 8), float(len(value)))"), True, "fixed and image with moving differ"),
    ],
)
def test_preprocessing_that_a_platform_cannot_use_fails(bundle, add, transform, alone, reason):
    add("preprocessing", transform, alone)
    with pytest.raises(ValueError, match=reason):
        platforms.check_pair(bundle)


@pytest.mark.parametrize(
    "change", [lambda c: c.pop("displayable_configs"), lambda c: c["displayable_configs"].popitem()]
)
def test_options_that_no_panel_shows_fail(bundle, edit, change):
    platforms.check_options(bundle)
    edit(bundle / "configs" / "inference.json", change)
    with pytest.raises(ValueError, match="displayable_configs: expected .*'moving_label': ''"):
        platforms.check_options(bundle)
    assert "image" not in OPTIONS  # the displayed one: the server names it


@pytest.mark.parametrize(
    ("key", "transform", "reason"),
    [
        (
            "preprocessing",
            computed("image", "value.as_tensor()"),
            r"three entries in spatial_shape, \(96, 80, 1\), got",
        ),
        ("postprocessing", SQUEEZE, r"expected \(1, 96, 80, 1\) with answer=image, got \(1, 96, 80\)"),
        ("postprocessing", computed("pred", "value * 0.5"), "answer=label expected the label map's values"),
    ],
)
def test_an_answer_that_label_cannot_show_fails(bundle, add, key, transform, reason):
    add(key, transform)
    with pytest.raises(ValueError, match=reason):
        platforms.check_answer(bundle)


def test_a_second_weight_file_of_a_short_name_fails(bundle):
    (bundle / "models" / "model_score.pt").touch()
    platforms.check_weight_names(bundle)
    (bundle / "models" / "score.pt").touch()
    with pytest.raises(ValueError, match=r"models/score\.pt: .*Rename it model_score\.pt"):
        platforms.check_weight_names(bundle)


FIRST_SLICE = "$lambda inputs, network: network(inputs[..., 0])[..., None]"
RESIZE = {"_target_": "monai.transforms.Resized", "keys": "pred", "spatial_size": [8, 8, 2]}
COMPOSE = {"_target_": "monai.transforms.Compose", "transforms": [RESIZE]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inferer": {"_target_": "common.engines.inferers.StackInferer"}}, r"names common\.engines\.inferers\.StackI"),
        ({"imports": ["$import scripts.common.bundle as b"]}, r"names scripts\.common\.bundle"),
        ({"inferer": FIRST_SLICE}, "gives another ddf than the network, shape .*largest difference"),
        ({"preprocessing": COMPOSE | {"transforms": [COPY]}}, "leaves the tensors copy"),
        ({"postprocessing": COMPOSE}, r"returns pred of shape \(2, 8, 8, 2\).*Undo its preprocessing"),
    ],
)
def test_an_inference_json_that_a_lone_torchscript_file_cannot_run_fails(bundle, monkeypatch, change, reason):
    whole = pack.export_inference(bundle)
    monkeypatch.setattr(pack, "export_inference", lambda bundle: whole | change)
    with pytest.raises(ValueError, match=reason):
        lone.check_torchscript(bundle)


class DriftingScript(nn.Module):
    """Returns something else once it is scripted."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + 1e-4 if torch.jit.is_scripting() else image


def test_an_export_that_drifts_fails(bundle, monkeypatch):
    for module in (pack, lone):
        monkeypatch.setattr(module, "build_network", lambda bundle: DriftingScript())
    with pytest.raises(ValueError, match="TorchScript's ddf differs by 0.0001 voxels"):
        lone.check_torchscript(bundle)


def test_networks_are_tried_on_a_small_window_and_a_visible_displacement(bundle, tmp_path):
    copy = platforms.small_copy(bundle, tmp_path / "copy")
    network = build_network(copy)
    with platforms.inference(bundle) as parser:
        assert parser.get_parsed_content("spatial_size") == [48, 40]
    with torch.no_grad():
        ddf = network(torch.rand(1, 2, 33, 25, generator=torch.Generator().manual_seed(1)))
    assert ddf.shape == (1, 2, 33, 25)
    assert ddf.abs().max() > 1e-2
