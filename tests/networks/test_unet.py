# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import VoxelMorphUNet

from common.networks.convolution import convolution, convolve, convolve_up
from common.networks.unet import PixelEstimator, UNet, UpConvBlock, bounded_log_variance

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


@pytest.mark.parametrize("size", [*ODD_SIZES, (16, 64), (1, 16), (10, 13)])
def test_any_size_is_kept(size):
    torch.manual_seed(0)
    unet = UNet(len(size), 2)
    with torch.no_grad():
        assert unet(random_image(2, size)).shape == (2, 16, *size)


def test_widths_may_be_others():
    unet = UNet(2, 1, encoder=(4, 8), decoder=(8, 8, 4))
    assert unet.out_channels == 4
    assert unet(random_image(1, (10, 13))).shape == (2, 4, 10, 13)


def plainly(unet, image):
    """The U-Net with images up-sampled, padded to one size and concatenated."""
    pool = F.max_pool2d if image.dim() == 4 else F.max_pool3d
    x, skips = image, []
    for block in unet.down:
        x = block(x)
        skips.append(x)
        x = pool(x, 2, ceil_mode=True)
    x = unet.bottom(x)
    for block in unet.up:
        skip = skips.pop()
        inside = (..., *(slice(n) for n in skip.shape[2:]))
        up = F.interpolate(x, scale_factor=2.0, mode="nearest")
        padded = skip.new_zeros(*skip.shape[:2], *up.shape[2:])
        padded[inside] = skip
        x = F.leaky_relu(block.conv(torch.cat([up, padded], dim=1)), 0.2)[inside]
    for block in unet.full:
        x = block(x)
    return x


@pytest.mark.parametrize("half_resolution", [False, True])
@pytest.mark.parametrize("size", [*ODD_SIZES, (48, 16)])
def test_odd_sizes_are_rounded_up_on_the_way_down_and_cut_on_the_way_up(size, half_resolution):
    torch.manual_seed(0)
    unet = UNet(len(size), 2, half_resolution=half_resolution)
    image = random_image(2, size)
    with torch.no_grad():
        value = unet(image)
        torch.testing.assert_close(value, plainly(unet, image), atol=1e-6, rtol=1e-5)
    assert value.shape == (2, 16, *((n + 1) // 2 if half_resolution else n for n in size))


THIN = [(1, 1), (1, 7), (2, 2), (1, 1, 1), (2, 1, 1), (1, 5, 1), (3, 1, 3), (2, 2, 2), (2, 7, 2), (2, 2, 3)]
each_layout = pytest.mark.parametrize("layout", [None, (torch.channels_last, torch.channels_last_3d)])


def agrees_in_bfloat16(function, weight, image, poison):
    """Compare value and gradient of the weight, under autocast, with those of float64."""
    exact = weight.double().requires_grad_()
    expected = function(image.double(), exact)
    weight.requires_grad_()
    poison(weight, image)
    with torch.autocast("cpu", torch.bfloat16):
        value = function(image, weight)
    slope = torch.randn(value.shape)
    poison(weight, image, value)
    value.backward(slope.to(value.dtype))
    expected.backward(slope.double())
    for ours, theirs in ((value, expected), (weight.grad, exact.grad)):
        assert (ours.double() - theirs).abs().max() < 0.02 * theirs.abs().max()


@each_layout
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", THIN)
def test_convolution_of_thin_images_has_its_gradients_in_bfloat16(size, stride, layout, poison):
    torch.manual_seed(0)
    form = {"memory_format": layout[len(size) - 2]} if layout else {}
    weight, image = torch.randn(32, 16, *[3] * len(size)).to(**form), torch.randn(3, 16, *size).to(**form)
    agrees_in_bfloat16(lambda x, w: convolve(x, w, stride=stride), weight, image, poison)
    plain = F.conv2d if len(size) == 2 else F.conv3d
    expected = plain(image, weight, stride=stride, padding=1)
    torch.testing.assert_close(convolve(image, weight, stride=stride), expected, atol=1e-4, rtol=1e-4)


@each_layout
@pytest.mark.parametrize("size", THIN)
def test_transposed_convolution_of_thin_images_has_its_gradients_in_bfloat16(size, layout, poison):
    torch.manual_seed(0)
    form = {"memory_format": layout[len(size) - 2]} if layout else {}
    weight, image = torch.randn(16, 32, *[4] * len(size)).to(**form), torch.randn(3, 16, *size).to(**form)
    cut = [2 * size[0] - 1, *(2 * n for n in size[1:])]
    agrees_in_bfloat16(lambda x, w: convolve_up(x, w, None, cut), weight, image, poison)
    plain = F.conv_transpose2d if len(size) == 2 else F.conv_transpose3d
    expected = plain(image, weight, stride=2, padding=1)[:, :, : cut[0]]
    torch.testing.assert_close(convolve_up(image, weight, None, cut), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dims", "channels", "activation", "count"),
    [(2, 1, "sigmoid", 108_881), (2, 2, "log_variance", 109_025)],
)
def test_pixel_estimators_have_the_published_number_of_parameters(dims, channels, activation, count):
    assert parameters(PixelEstimator(dims, channels, activation)) == count


@pytest.mark.parametrize("size", [(19, 33), (17, 5, 30)])
@pytest.mark.parametrize("activation", ["sigmoid", "log_variance"])
def test_estimates_are_the_activation_of_the_head(size, activation):
    torch.manual_seed(3)
    estimator, image = PixelEstimator(len(size), 1, activation), random_image(1, size)
    with torch.no_grad():
        value = estimator(image)
        linear = convolve(estimator.unet(image), estimator.head.weight, estimator.head.bias)
    expected = torch.sigmoid(linear) if activation == "sigmoid" else bounded_log_variance(linear)
    torch.testing.assert_close(value, expected, atol=0, rtol=0)
    assert value.shape == (2, 1, *size)


def test_variance_is_bounded_smoothly_on_both_sides():
    """1/σ² = 1/(exp(x) + 1e-6) + 1/10."""
    value = torch.linspace(-40, 40, 81, dtype=torch.float64)
    expected = 1 / (1 / (value.exp() + 1e-6) + 0.1)
    torch.testing.assert_close(bounded_log_variance(value).exp(), expected, rtol=1e-7, atol=0)
    ends = bounded_log_variance(torch.tensor([-1e6, 1e6])).exp()
    torch.testing.assert_close(ends, torch.tensor([1e-6, 10.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(bounded_log_variance(torch.tensor([-5.0])), torch.tensor([-5.0]), atol=1e-3, rtol=0)


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
    with pytest.raises(ValueError, match="activation must be 'sigmoid' or 'log_variance', got 'relu'"):
        PixelEstimator(2, 1, "relu")


@pytest.mark.parametrize(("activation", "initial"), [("sigmoid", 0.88), ("log_variance", -5.0)])
def test_estimator_starts_at_its_initial_value(activation, initial):
    estimator = PixelEstimator(2, 1, activation, initial=initial)
    value = estimator(torch.rand(2, 1, 20, 12))
    torch.testing.assert_close(value, torch.full_like(value, initial), atol=1e-3, rtol=0)


def test_estimator_refuses_a_score_it_cannot_take():
    with pytest.raises(ValueError, match=r"initial must lie between 0 and 1"):
        PixelEstimator(2, 1, "sigmoid", initial=1.0)


def test_inference_of_a_volume_agrees_with_training():
    """Without gradient results are added in place and slab by slab."""
    network = UNet(3, 2)
    image = torch.rand(1, 2, 13, 18, 17)
    with torch.no_grad():
        fast = network(image)
    torch.testing.assert_close(fast, network(image).detach(), rtol=1e-4, atol=1e-6)
