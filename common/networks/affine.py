# SPDX-License-Identifier: Apache-2.0
"""An affine network, and VoxelMorph behind it."""

from typing import Any, ClassVar, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spatial.affine import affine_ddf
from ..spatial.fields import compose
from ..spatial.warp import warp
from .contract import Estimate, check_pair, pair_image, refuse_condition
from .convolution import convolution, convolve, weights_channels_last
from .icon import halve
from .voxelmorph import VoxelMorph

WIDTHS = (2, 16, 32, 64, 128, 256, 512)
HIDDEN = 300


class AffineNetwork(nn.Module):
    """Convolutions and average pools, a mean over what is left, two dense layers: an affine map of the unit cube.

    x -> c + (I + A) x' + t about the centre c, x' = x − c. The last layer starts at 0, so that an untrained network is
    the identity. Any size is taken. 1,728,330 parameters in 2D, 4,873,368 in 3D.

    Departure: layers start so that a signal keeps its size through their ReLUs. Where PyTorch's start leaves a
    thousandth of it, as the ICON code has it, the deeper layers can die in the first epoch, on thin outlines always.

    Args:
        spatial_dims: 2 or 3.
        widths: channels, from the two images on; each but the first follows a convolution and a pool by 2.
        hidden: width of the dense layer between.

    Raises:
        ValueError: for a number out of range.

    Reference:
        Greer et al., ICON, ICCV 2021 (ConvolutionalMatrixNet of its code); Tian et al., GradICON, CVPR 2023, Table 3,
        whose affine network is not described.
    """

    def __init__(self, spatial_dims: int, widths: tuple[int, ...] = WIDTHS, hidden: int = HIDDEN) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if len(widths) < 2 or widths[0] != 2 or min(widths) < 1 or hidden < 1:
            raise ValueError(
                f"widths, hidden: expected 2 input channels, further widths and a width above 0, got {tuple(widths)} "
                f"and {hidden}; the published ones are {WIDTHS} and {HIDDEN}."
            )
        self.spatial_dims = spatial_dims
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.convolutions = nn.ModuleList([convolution(spatial_dims, before, after) for before, after in pairs])
        self.dense = nn.Linear(widths[-1], hidden)
        self.last = nn.Linear(hidden, spatial_dims * (spatial_dims + 1))
        for layer in [*self.convolutions, self.dense]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """The map as a displacement, float32.

        Args:
            image: cat(moving, fixed), (B, 2, *S).

        Returns:
            (B, d, *S) in voxels.
        """
        x = image
        for layer in self.convolutions:
            x = halve(convolve(F.relu(x), layer.weight, layer.bias))
        x = self.last(F.relu(self.dense(x.flatten(2).mean(dim=2)))).float()
        change = x.reshape(x.shape[0], self.spatial_dims, self.spatial_dims + 1)
        matrix = change[:, :, : self.spatial_dims] + torch.eye(self.spatial_dims, device=x.device)
        return affine_ddf(matrix, change[:, :, self.spatial_dims], image.shape[2:])


class AffineVoxelMorph(nn.Module):
    """VoxelMorph on a moving image that an affine network has aligned; one map in the end.

    With a of the affine network and u of VoxelMorph on (moving ∘ (id + a), fixed) the map is (id + a) ∘ (id + u); only
    the velocity of u is regularised. The affine network is trained first, alone, then stays as it is (see
    ``engines.adaptation``), as the two networks that the paper trained one after the other.

    Args:
        spatial_dims: 2 or 3.
        widths: of the affine network.
        hidden: of the affine network.
        voxelmorph: of ``VoxelMorph``.

    Attributes:
        levels: the affine network and VoxelMorph.

    Raises:
        ValueError: as the two networks.

    Reference:
        Tian et al., GradICON, CVPR 2023, A.3.2.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["levels"]

    def __init__(
        self, spatial_dims: int, widths: tuple[int, ...] = WIDTHS, hidden: int = HIDDEN, **voxelmorph: Any
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.affine = AffineNetwork(spatial_dims, tuple(widths), hidden)
        self.deformable = VoxelMorph(spatial_dims, **voxelmorph)
        self.running = 2
        weights_channels_last(self)

    @property
    def levels(self) -> list[nn.Module]:
        """The two networks in their order."""
        return [self.affine, self.deformable]

    @torch.jit.unused
    def run_levels(self, number: int) -> None:
        """Have the affine network run alone in training mode; in eval mode both run.

        Args:
            number: 1 for the affine network, 2 for both.

        Raises:
            ValueError: for another number.
        """
        if number not in (1, 2):
            raise ValueError(f"levels: expected 1 (the affine network alone) or 2 (both), got {number!r}.")
        self.running = int(number)

    def forward(self, image: Tensor, fixed: Optional[Tensor] = None, condition: Optional[Tensor] = None) -> Tensor:
        """Displacement that pulls moving onto fixed.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1]; or moving alone, (B, 1, *S), when ``fixed`` is given.
            fixed: (B, 1, *S), optional.
            condition: must be None: this network takes none.

        Returns:
            ddf (B, d, *S) in voxels.

        Raises:
            ValueError: for another number of channels or axes, or a condition.
        """
        return self.estimate(pair_image(image, fixed), condition).ddf

    def estimate(self, image: Tensor, condition: Optional[Tensor] = None) -> Estimate:
        """As ``forward``, with VoxelMorph's velocity, which training regularises.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1].
            condition: must be None.

        Returns:
            The displacement of both, and that velocity; 0 where the affine network runs alone.
        """
        refuse_condition(condition, "affine_voxelmorph")
        check_pair(image, self.spatial_dims)
        before = self.affine(image)
        if self.training and self.running == 1:
            return Estimate(before, torch.zeros_like(before))
        warped = warp(image[:, :1], before, padding="border")
        found = self.deformable.estimate(torch.cat([warped, image[:, 1:]], dim=1))
        return Estimate(compose(before, found.ddf), found.velocity)
