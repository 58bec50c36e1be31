# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks.affine import AffineNetwork, AffineVoxelMorph
from common.networks.registry import build
from common.spatial.fields import compose
from common.spatial.jacobian import jacobian_determinant
from common.spatial.warp import warp

SIZES = [(24, 30), (13, 16, 20)]
SMALL = {"widths": (2, 4, 8), "hidden": 8}
each_size = pytest.mark.parametrize("size", SIZES)


def pair(size, batch=2):
    return torch.rand(batch, 2, *size, generator=torch.Generator().manual_seed(0))


def awakened(network):
    torch.manual_seed(0)
    affine = network if isinstance(network, AffineNetwork) else network.affine
    nn.init.normal_(affine.last.weight, std=0.3)
    nn.init.normal_(affine.last.bias, std=0.1)
    if isinstance(network, AffineVoxelMorph):
        nn.init.normal_(network.deformable.flow.weight, std=0.1)
    return network.eval()


def published(network, image):
    """The matrix network of the ICON code written out, and its map applied to the points of the unit cube."""
    dims, x = network.spatial_dims, image
    convolve, pool = (F.conv2d, F.avg_pool2d) if dims == 2 else (F.conv3d, F.avg_pool3d)
    for layer in network.convolutions:
        x = pool(convolve(F.relu(x), layer.weight, layer.bias, padding=1), 2, ceil_mode=True)
    x = pool(x, list(x.shape[2:])).flatten(1)
    x = F.linear(F.relu(F.linear(x, network.dense.weight, network.dense.bias)), network.last.weight, network.last.bias)
    rows = x.reshape(-1, dims, dims + 1)
    homogeneous = torch.cat([rows, torch.zeros(len(x), 1, dims + 1)], dim=1) + torch.eye(dims + 1)
    there, back = torch.eye(dims + 1), torch.eye(dims + 1)
    there[:dims, dims], back[:dims, dims] = 0.5, -0.5
    matrix = there @ homogeneous @ back
    axes = [torch.linspace(0, 1, n) for n in image.shape[2:]]
    points = torch.stack([*torch.meshgrid(*axes, indexing="ij"), torch.ones(*image.shape[2:])]).flatten(1)
    moved = (matrix @ points)[:, :dims] - points[:dims]
    scale = torch.tensor(image.shape[2:]).view(1, -1, 1) - 1
    return (moved * scale).reshape(len(x), dims, *image.shape[2:])


@each_size
def test_agrees_with_the_published_network_written_out(size):
    network, image = awakened(AffineNetwork(len(size), **SMALL)), pair(size)
    with torch.no_grad():
        expected = published(network, image)
        assert expected.abs().mean() > 0.1
        torch.testing.assert_close(network(image), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("dims", "count"), [(2, 1_728_330), (3, 4_873_368)])
def test_has_the_published_number_of_parameters(dims, count):
    with torch.device("meta"):
        network = AffineNetwork(dims)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@each_size
def test_untrained_it_is_the_identity_and_trained_its_determinant_is_the_same_everywhere(size):
    network, image = AffineNetwork(len(size), **SMALL), pair(size)
    with torch.no_grad():
        assert not network(image).any()
        determinant = jacobian_determinant(awakened(network)(image))
    flat = determinant.flatten(1)
    torch.testing.assert_close(flat, flat[:, :1].expand_as(flat), atol=1e-3, rtol=0)


@each_size
def test_voxelmorph_sees_the_aligned_image_and_the_maps_are_composed(size):
    network, image = awakened(AffineVoxelMorph(len(size), **SMALL)), pair(size)
    with torch.no_grad():
        before = network.affine(image)
        warped = warp(image[:, :1], before, padding="border")
        found = network.deformable.estimate(torch.cat([warped, image[:, 1:]], dim=1))
        estimate = network.estimate(image)
        torch.testing.assert_close(estimate.ddf, compose(before, found.ddf), atol=1e-6, rtol=0)
        torch.testing.assert_close(estimate.velocity, found.velocity, atol=1e-6, rtol=0)


@each_size
def test_the_affine_network_runs_alone_in_training_where_it_is_asked_to(size):
    network, image = awakened(AffineVoxelMorph(len(size), **SMALL)), pair(size)
    network.run_levels(1)
    both = network(image)
    estimate = network.train().estimate(image)
    assert torch.equal(estimate.ddf, network.affine(image)) and not torch.equal(both, estimate.ddf)
    assert not estimate.velocity.any()


def test_parameters_reach_voxelmorph_and_widths_the_affine_network():
    network = build("affine_voxelmorph", 2, **SMALL, half_resolution=True, integration_steps=3)
    assert network.deformable.integration_steps == 3 and network.affine.last.in_features == 8


@pytest.mark.parametrize("options", [{"widths": (1, 4)}, {"widths": (2,)}, {"hidden": 0}])
def test_widths_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="widths, hidden: expected 2 input channels"):
        AffineNetwork(2, **options)


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ValueError, match=r"levels: expected 1 \(the affine network alone\) or 2 \(both\), got 3"):
        AffineVoxelMorph(2, **SMALL).run_levels(3)
