# SPDX-License-Identifier: Apache-2.0
"""The solver in millimetres: equal to voxels where they are 1 mm, and the same map for another sampling."""

import pytest
import torch
import torch.nn.functional as F

from common.engines.pairwise import PairwiseRegistration
from common.losses.similarity import SquaredError
from common.losses.smoothness import Diffusion


def body(shape, shift=(0.0, 0.0), centre=(0.5, 0.5)):
    """A blob on the unit square, sampled with any number of voxels; ``shift`` in units of its sides."""
    axes = [(torch.arange(n) + 0.5) / n for n in shape]
    x, y = torch.meshgrid(*axes, indexing="ij")
    first = ((x - centre[0] - shift[0]) / 0.2) ** 2 + ((y - centre[1] - shift[1]) / 0.15) ** 2
    second = ((x - 0.3 - shift[0]) / 0.1) ** 2 + ((y - 0.7 - shift[1]) / 0.1) ** 2
    return (torch.exp(-first) + 0.7 * torch.exp(-second))[None, None]


def pair(shape, shift=(0.05, -0.04)):
    return torch.cat([body(shape, shift), body(shape)], dim=1)


def test_voxels_of_a_millimetre_are_voxels():
    image, options = pair((24, 20)), {"levels": (2, 1), "steps": (6, 6)}
    plain = PairwiseRegistration(SquaredError(), **options).register(image)
    in_mm = PairwiseRegistration(SquaredError(), spacing=(1.0, 1.0), **options).register(image)
    inner = (slice(None), slice(None), slice(6, 18), slice(5, 15))  # in flat corners Adam follows the rounding
    torch.testing.assert_close(in_mm[inner], plain[inner], atol=2e-2, rtol=0)


def test_another_sampling_gives_the_same_map():
    """48 x 40 voxels of 1 mm, and of 2 x 1 mm: the levels are those of the object."""
    found = []
    for shape, spacing in (((48, 40), (1.0, 1.0)), ((24, 40), (2.0, 1.0)), ((96, 80), (0.5, 0.5))):
        solver = PairwiseRegistration(SquaredError(), levels=(4, 2), steps=(40, 20), spacing=spacing)
        ddf = solver.register(pair(shape)) * torch.tensor(spacing).reshape(1, 2, 1, 1)
        found.append(F.interpolate(ddf, size=(24, 20), mode="bilinear"))
    inner = (slice(None), slice(None), slice(6, 18), slice(5, 15))
    expected = torch.tensor([0.05 * 48, -0.04 * 40]).reshape(1, 2, 1, 1)
    for field in found:
        assert (field[inner] - expected).norm(dim=1).mean() < 0.5
        assert (field[inner] - found[0][inner]).norm(dim=1).mean() < 0.25


def test_a_mask_says_what_counts():
    image = pair((32, 32))
    image[:, 1:, :, 20:] = image[:, 1:, :, 20:].flip(2)  # nonsense on one side
    mask = torch.ones(1, 1, 32, 32)
    mask[..., 18:] = 0
    solver = PairwiseRegistration(SquaredError(), levels=(2, 1), steps=(40, 30))
    expected = torch.tensor([0.05 * 32, -0.04 * 32]).reshape(1, 2, 1, 1)
    errors = [(solver.register(image, mask=chosen) - expected)[..., 10:22, 10:16].norm(dim=1).mean()
              for chosen in (None, mask)]  # fmt: skip
    assert errors[1] < 0.8 * errors[0]
    torch.testing.assert_close(
        solver.register(image, mask=torch.ones(1, 1, 32, 32)), solver.register(image), atol=5e-2, rtol=0
    )


def test_diffusion_in_lengths_is_that_of_the_same_map_in_voxels():
    """u(x) = a x along the first axis, in mm on voxels of 3 x 0.5 mm: (a)² / (d d)."""
    field = torch.zeros(1, 2, 6, 8)
    field[0, 0] = 0.1 * torch.arange(6.0)[:, None]
    assert Diffusion()(field, spacing=(3.0, 0.5)) == pytest.approx(0.1**2 / 4)
    field[0, 0] = 0.1 * torch.arange(8.0)[None]  # 0.3 mm over 0.5 mm
    assert Diffusion()(field, spacing=(3.0, 0.5)) == pytest.approx(0.6**2 / 4)


def test_bad_input():
    image = pair((16, 16))
    for spacing in ((1.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="spacing: expected numbers above 0"):
            PairwiseRegistration(SquaredError(), spacing=spacing)
    with pytest.raises(ValueError, match="spacing: expected 2 numbers"):
        PairwiseRegistration(SquaredError(), spacing=(1.0, 1.0, 1.0)).register(image)
    for mask in (torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 8)):
        with pytest.raises(ValueError, match=r"mask: expected a map \(1, 1, 16, 16\)"):
            PairwiseRegistration(SquaredError()).register(image, mask=mask)
