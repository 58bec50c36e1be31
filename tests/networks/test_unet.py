# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import VoxelMorphUNet

from common.networks.unet import PixelEstimator, UNet, UpConvBlock, convolution

SIZES = [(32, 48), (16, 32, 16)]
ODD_SIZES = [(19, 33), (17, 5, 30)]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def random_image(channels, size, batch=2, seed=0):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def monai_twin(unet, head):
    """MONAI's network of the same convolutions with the same weights: the U-Net, then ``head``."""
    dims = unet.spatial_dims
    twin = VoxelMorphUNet(
        spatial_dims=dims,
        in_channels=unet.in_channels,
        unet_out_channels=32,
        channels=(16,) + (32,) * 7,
        final_conv_channels=(16, 16),
    )
    convs = [block.conv for block in (*unet.down, unet.bottom, *unet.up, *unet.full)] + [head]
    theirs = [module for module in twin.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d))]
    with torch.no_grad():
        for conv, their in zip(convs, theirs, strict=True):
            assert conv.weight.shape == their.weight.shape
            weight = conv.weight.clone()
            for low in (block.low_channels for block in unet.up if block.conv is conv):
                # MONAI concatenates the skip first, then what comes from below.
                weight = torch.cat([weight[:, low:], weight[:, :low]], dim=1)
            their.weight.copy_(weight)
            their.bias.copy_(conv.bias)
    return twin


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_monai_given_the_same_weights(size):
    torch.manual_seed(0)
    unet = UNet(len(size), 2)
    head = convolution(len(size), 16, len(size))
    image = random_image(2, size)
    with torch.no_grad():
        torch.testing.assert_close(head(unet(image)), monai_twin(unet, head)(image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 6)])
def test_up_block_is_upsampling_concatenation_and_convolution(size):
    torch.manual_seed(1)
    block = UpConvBlock(len(size), 3, 4, 5).double()
    small, skip = torch.randn(2, 3, *size).double(), torch.randn(2, 4, *(2 * n for n in size)).double()
    up = F.interpolate(small, scale_factor=2.0, mode="nearest")
    expected = F.leaky_relu(block.conv(torch.cat([up, skip], dim=1)), 0.2)
    torch.testing.assert_close(block(small, skip), expected, atol=1e-12, rtol=1e-12)


def test_up_block_has_the_gradients_of_the_plain_block():
    torch.manual_seed(2)
    block = UpConvBlock(2, 3, 4, 5).double()
    small, skip = torch.randn(1, 3, 4, 5).double().requires_grad_(), torch.randn(1, 4, 8, 10).double().requires_grad_()
    inputs = [small, skip, *block.parameters()]
    ours = torch.autograd.grad(block(small, skip).square().sum(), inputs)
    up = F.interpolate(small, scale_factor=2.0, mode="nearest")
    plain = F.leaky_relu(block.conv(torch.cat([up, skip], dim=1)), 0.2)
    for one, other in zip(ours, torch.autograd.grad(plain.square().sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", [*ODD_SIZES, (16, 64), (1, 16)])
def test_any_size_is_kept(size):
    torch.manual_seed(0)
    unet = UNet(len(size), 2)
    with torch.no_grad():
        assert unet(random_image(2, size)).shape == (2, 16, *size)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_odd_size_is_zero_padding_at_the_end_and_cropping(size):
    torch.manual_seed(0)
    unet = UNet(len(size), 2)
    image = random_image(2, size)
    padded = torch.zeros(2, 2, *(-(-n // 16) * 16 for n in size))
    inside = (..., *(slice(n) for n in size))
    padded[inside] = image
    with torch.no_grad():
        torch.testing.assert_close(unet(image), unet(padded)[inside], atol=0, rtol=0)


def test_padding_follows_the_number_of_levels():
    unet = UNet(2, 1, encoder=(4, 8), decoder=(8, 8, 4))
    assert unet.multiple == 4 and unet.out_channels == 4
    assert unet(random_image(1, (10, 13))).shape == (2, 4, 10, 13)


@pytest.mark.parametrize(
    ("dims", "channels", "activation", "count"),
    [(2, 1, "sigmoid", 108_881), (2, 2, "linear", 109_025)],
)
def test_pixel_estimators_have_the_published_number_of_parameters(dims, channels, activation, count):
    assert parameters(PixelEstimator(dims, channels, activation)) == count


@pytest.mark.parametrize("size", [(19, 33), (17, 5, 30)])
def test_score_lies_between_0_and_1_and_is_the_sigmoid_of_the_linear_output(size):
    torch.manual_seed(3)
    score = PixelEstimator(len(size), 1)
    linear = PixelEstimator(len(size), 1, "linear")
    linear.load_state_dict(score.state_dict())
    image = random_image(1, size)
    with torch.no_grad():
        value = score(image)
        torch.testing.assert_close(value, torch.sigmoid(linear(image)), atol=0, rtol=0)
    assert value.shape == (2, 1, *size) and value.min() > 0 and value.max() < 1


def test_estimator_returns_float32_from_a_bfloat16_network():
    with torch.autocast("cpu", torch.bfloat16):
        assert PixelEstimator(2, 1)(random_image(1, (16, 16))).dtype == torch.float32


@pytest.mark.parametrize("size", ODD_SIZES)
def test_scripted_equals_eager(size):
    torch.manual_seed(0)
    estimator = PixelEstimator(len(size), 1)
    image = random_image(1, size)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(estimator)(image), estimator(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 16, 16), (1, 2, 16, 16, 16)])
def test_other_channels_or_axes_are_refused(shape):
    with pytest.raises(ValueError, match="image: expected .B, 2, .S. with 2 spatial axes"):
        UNet(2, 2)(torch.zeros(shape))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, got 4"):
        UNet(4, 2)
    with pytest.raises(ValueError, match="decoder needs more entries"):
        UNet(2, 2, encoder=(8, 8), decoder=(8, 8))
    with pytest.raises(ValueError, match="activation must be 'sigmoid' or 'linear', got 'relu'"):
        PixelEstimator(2, 1, "relu")


@pytest.mark.parametrize(("activation", "initial"), [("sigmoid", 0.88), ("linear", -2.0)])
def test_estimator_starts_at_its_initial_value(activation, initial):
    estimator = PixelEstimator(2, 1, activation, initial=initial)
    value = estimator(torch.rand(2, 1, 20, 12))
    torch.testing.assert_close(value, torch.full_like(value, initial))


def test_estimator_refuses_a_score_it_cannot_take():
    with pytest.raises(ValueError, match=r"initial must lie between 0 and 1"):
        PixelEstimator(2, 1, "sigmoid", initial=1.0)
