# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks.conditional_norm import (
    ConditionalInstanceNorm,
    ConditionalLayerNorm,
    Mapping,
    Styles,
    instance_norm,
    layer_norm,
    mapping,
    styled,
)

SHAPES = [(7, 9), (4, 5, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES)


@each_shape
def test_is_the_plain_instance_norm_where_the_latent_vector_is_0(shape):
    x = 3 * torch.rand(2, 4, *shape) + 1
    torch.testing.assert_close(ConditionalInstanceNorm(4, 8)(x, torch.zeros(2, 8)), F.instance_norm(x))


@each_shape
def test_style_gives_each_image_and_channel_its_mean_and_deviation(shape):
    torch.manual_seed(0)
    norm, x, latent = ConditionalInstanceNorm(4, 8, eps=1e-12), torch.rand(2, 4, *shape), torch.rand(2, 8)
    nn.init.normal_(norm.style.bias)
    axes = list(range(2, x.dim()))
    gamma, beta = norm.style(latent).chunk(2, dim=1)
    deviation, mean = torch.std_mean(norm(x, latent), axes, correction=0)
    torch.testing.assert_close(mean, beta, atol=1e-5, rtol=0)
    torch.testing.assert_close(deviation, (1 + gamma).abs(), atol=1e-4, rtol=0)


def test_gradients_are_those_of_the_plain_formula():
    torch.manual_seed(0)
    norm, latent = ConditionalInstanceNorm(3, 5), torch.rand(2, 5)
    one, other = (torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    gamma, beta = norm.style(latent)[..., None, None].chunk(2, dim=1)
    weight = torch.rand(2, 3, 6, 5)
    (weight * norm(one, latent)).sum().backward()
    (weight * ((1 + gamma) * F.instance_norm(other) + beta)).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_one_voxel_and_bfloat16_are_taken():
    norm = ConditionalInstanceNorm(3, 5)
    assert norm(torch.rand(1, 3, 1, 1), torch.zeros(1, 5)).abs().max() < 1e-4
    x = (torch.rand(2, 3, 8, 8) + 100).bfloat16()
    normed = norm(x, torch.zeros(2, 5))
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.float(), F.instance_norm(x.float()), atol=0.02, rtol=0.01)


def test_mapping_is_linear_layers_with_an_activation_after_each():
    torch.manual_seed(0)
    mapping, condition = Mapping(conditions=2, width=6, layers=3), torch.rand(4, 2)
    latent = condition
    for layer in mapping.layers:
        latent = F.leaky_relu(latent @ layer.weight.T + layer.bias, 0.2)
    torch.testing.assert_close(mapping(condition), latent)
    assert mapping(condition).shape == (4, 6) and len(mapping.layers) == 3


@each_shape
def test_conditional_layer_norm_is_the_layer_norm_scaled_and_shifted_for_each_image(shape):
    torch.manual_seed(0)
    norm, x, latent = ConditionalLayerNorm(6, 8), 3 * torch.rand(2, *shape, 6) + 1, torch.rand(2, 8)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    gamma, beta = norm.style(latent).view(2, *[1] * len(shape), 12).chunk(2, dim=-1)
    expected = (1 + gamma) * F.layer_norm(x, (6,), norm.weight, norm.bias) + beta
    torch.testing.assert_close(norm(x, latent), expected)
    assert norm(x.bfloat16(), latent).dtype == torch.bfloat16


@each_shape
def test_styled_scales_and_shifts_each_channel_of_each_image(shape):
    x, style = torch.rand(2, 3, *shape), torch.rand(2, 6)
    y = styled(x, style)
    for image in range(2):
        for channel in range(3):
            expected = (1 + style[image, channel]) * x[image, channel] + style[image, 3 + channel]
            torch.testing.assert_close(y[image, channel], expected)


@pytest.mark.parametrize(("form", "scale", "width"), [(None, 1, None), ("paper", 1, 64), ("official", 2, 6)])
def test_norms_of_each_form_start_at_their_scale(form, scale, width):
    tokens, image = torch.rand(2, 9, 6), torch.rand(2, 6, 9, 5)
    latents = [mapping(form, 6)(code) for code in (torch.zeros(2, 1), torch.ones(2, 1))]
    layer, instance = layer_norm(form, 6), instance_norm(form, 6)
    if form is None:
        assert not list(instance.parameters()) and not list(mapping(form, 6).parameters())
    else:
        assert latents[0].shape == (2, width)
        if form == "official":  # where it starts but for its random weights
            nn.init.zeros_(layer.style.weight)
            nn.init.zeros_(instance.style.weight)
    for latent in latents:
        torch.testing.assert_close(layer(tokens, latent), scale * F.layer_norm(tokens, (6,)))
        torch.testing.assert_close(instance(image, latent), scale * F.instance_norm(image), atol=1e-5, rtol=1e-5)


def test_styles_share_one_mapping_network_and_start_at_0():
    styles = Styles([3, 5])
    assert sum(p.numel() for p in styles.parameters()) == 12_608 + 65 * (6 + 10)
    found = styles(torch.rand(2, 1))
    assert [list(style.shape) for style in found] == [[2, 6], [2, 10]] and not any(style.any() for style in found)
    nn.init.ones_(styles.layers[0].weight)
    assert styles(torch.rand(2, 1))[0].any()
