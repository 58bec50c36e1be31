# SPDX-License-Identifier: Apache-2.0
"""The Swin transformer as an encoder of images in 2D and 3D. TorchScript-compatible."""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import WindowAttention
from .checkpointing import checkpointed
from .conditional_norm import layer_norm, mapping
from .convolution import weights_channels_last

# Order of the neighbours that the published code merges.
NEIGHBOURS = {
    2: [[0, 0], [1, 0], [0, 1], [1, 1]],
    3: [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]],
}


class DropPath(nn.Module):
    """In training, leave a residual branch out of some samples and scale it in the others (stochastic depth).

    Args:
        rate: probability of leaving it out, below 1.

    Reference:
        Huang et al., ECCV 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = torch.empty([x.shape[0], 1, 1], dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (kept / keep)


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Both norms share the mapping network of a condition.

    Shape: (B, L, C), grid, (B, 1) -> (B, L, C).

    Args:
        channels: C.
        heads: of the attention.
        window: as ``WindowAttention``.
        shifted: as ``WindowAttention``.
        sees_padding: as ``WindowAttention``.
        mlp_ratio: channels in the middle of the MLP, as a multiple of C.
        drop_path: see ``DropPath``.
        conditional: of ``conditional_norm.FORMS``; None ignores the condition.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        window: tuple[int, ...],
        shifted: bool,
        sees_padding: bool,
        mlp_ratio: float,
        drop_path: float,
        conditional: Optional[str] = None,
    ) -> None:
        super().__init__()
        self.mapping = mapping(conditional, channels)
        self.norm1, self.norm2 = layer_norm(conditional, channels), layer_norm(conditional, channels)
        self.attention = WindowAttention(channels, heads, window, shifted, sees_padding)
        middle = int(mlp_ratio * channels)
        self.mlp = nn.Sequential(nn.Linear(channels, middle), nn.GELU(), nn.Linear(middle, channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: list[int], code: Tensor) -> Tensor:
        latent = self.mapping(code)
        x = x + self.drop_path(self.attention(self.norm1(x, latent), grid))
        return x + self.drop_path(self.mlp(self.norm2(x, latent)))


class PatchMerging(nn.Module):
    """Halve a grid: the 2^d C channels of 2^d neighbours, normalised, become 2 C.

    Odd axes are padded with zeros at their end.

    Shape: (B, *grid, C), (B, 1) -> (B, *ceil(grid/2), 2 C).

    Args:
        spatial_dims: 2 or 3.
        channels: C.
        conditional: as ``SwinBlock``.
    """

    def __init__(self, spatial_dims: int, channels: int, conditional: Optional[str] = None) -> None:
        super().__init__()
        self.mapping = mapping(conditional, 2**spatial_dims * channels)
        self.norm = layer_norm(conditional, 2**spatial_dims * channels)
        self.reduction = nn.Linear(2**spatial_dims * channels, 2 * channels, bias=False)
        self.neighbours = NEIGHBOURS[spatial_dims]

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        padding, shape = [0, 0], [x.shape[0]]
        for axis in range(x.dim() - 2, 0, -1):
            padding += [0, x.shape[axis] % 2]
        x = F.pad(x, padding)
        for size in x.shape[1:-1]:
            shape += [size // 2, 2]
        x = x.view(shape + [x.shape[-1]])
        parts: list[Tensor] = []
        for neighbour in self.neighbours:
            part = x
            for axis in range(len(neighbour)):
                part = part.select(axis + 2, neighbour[axis])
            parts.append(part)
        return self.reduction(self.norm(torch.cat(parts, dim=-1), self.mapping(code)))


class _Kept(nn.Module):
    """Stands where the last stage has nothing to merge."""

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return x


class SwinTransformer(nn.Module):
    """Features of an image on grids of a quarter, an eighth, … of its size.

    Images whose size is no multiple of the patch are padded with zeros at their end.

    Shape: (B, in_channels, *S), (B, 1) -> list of (B, 2^i channels, *ceil(ceil(S/patch)/2^i)), normalised.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        channels: of the first stage; each further one has twice as many.
        depths: blocks of each stage; every second one has shifted windows.
        heads: of each stage.
        window: tokens of a window along each axis, of all stages.
        patch: voxels of a token along each axis.
        mlp_ratio: as ``SwinBlock``.
        drop_path: of the last block; it grows linearly from 0.
        sees_padding: as ``WindowAttention``.
        conditional: as ``SwinBlock``. The norms behind the patches and the stages take no condition (the paper's text
            has every norm conditional, the released code these plain).
        checkpointing: in training, compute what lies within blocks anew for the backward pass, instead of keeping it.

    Raises:
        ValueError: for a window or heads of another length, an odd number of channels, heads that do not divide the
            channels of their stage.

    Reference:
        Liu et al., Swin Transformer, ICCV 2021; conditional norms: Chen et al., Spatially-varying Regularization with
        Conditional Transformer, 2023.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: tuple[int, ...],
        patch: int = 4,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.3,
        sees_padding: bool = False,
        conditional: Optional[str] = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check(spatial_dims, channels, depths, heads, window)
        self.patch, self.spatial_dims, self.checkpointing = patch, spatial_dims, checkpointing
        layer = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.embedding = layer(in_channels, channels, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(channels)
        widths = [channels * 2**stage for stage in range(len(depths))]
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(width, many, window, bool(block % 2), sees_padding, mlp_ratio, next(rates), conditional)
                for block in range(depth)
            )
            for width, depth, many in zip(widths, depths, heads, strict=True)
        )
        merging = [PatchMerging(spatial_dims, width, conditional) for width in widths[:-1]]
        self.merging = nn.ModuleList([*merging, _Kept()])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in widths])
        weights_channels_last(self)

    def forward(self, image: Tensor, code: Tensor) -> list[Tensor]:
        padding: list[int] = []
        for axis in range(image.dim() - 1, 1, -1):
            padding += [0, -image.shape[axis] % self.patch]
        x = self.norm(self.embedding(F.pad(image, padding)).movedim(1, -1))
        features: list[Tensor] = []
        for blocks, norm, merge in zip(self.stages, self.norms, self.merging):
            shape = x.shape
            tokens = x.flatten(1, -2)
            for block in blocks:  # type: ignore[attr-defined]
                if torch.jit.is_scripting():
                    tokens = block(tokens, shape[1:-1], code)
                else:
                    tokens = checkpointed(self.checkpointing, block, tokens, shape[1:-1], code)
            features.append(norm(tokens).view(shape).movedim(-1, 1))
            x = merge(tokens.view(shape), code)
        return features


def _check(
    spatial_dims: int, channels: int, depths: Sequence[int], heads: Sequence[int], window: Sequence[int]
) -> None:
    if len(window) != spatial_dims or min(window) < 1:
        raise ValueError(f"window: expected {spatial_dims} numbers from 1, one an axis, got {list(window)}.")
    if len(depths) != len(heads) or channels % 2:
        raise ValueError(
            "channels, depths, heads: expected an even number, and as many heads as depths, one a stage, got "
            f"{channels}, {tuple(depths)} and {tuple(heads)}."
        )
