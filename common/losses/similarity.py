# SPDX-License-Identifier: Apache-2.0
"""Image similarities as residual maps, and their sums, so that any weight map can multiply any of them."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..checks import known_name, positive
from .adaptive import AdaptiveMultiScaleNCC, MultiScaleNCC
from .gaussian import GaussianLNCC
from .lncc import LNCC
from .mi import MI
from .mind import MIND
from .pairs import paired
from .sums import SimilaritySum

EXAMPLE = '{"mse": 1.0, "lncc": {"weight": 0.03, "window": 9}}'


class SquaredError(nn.Module):
    """Squared error (w - f)^2, averaged over the channels; the mean of the map is the MSE."""

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            Map (B, 1, *S).

        Raises:
            ValueError: where the shapes differ.
        """
        warped, fixed = paired(warped, fixed)
        return (warped - fixed).square().mean(dim=1, keepdim=True)


class AbsoluteError(nn.Module):
    """Absolute error |w - f|, averaged over the channels; the mean of the map is the MAE."""

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            Map (B, 1, *S).

        Raises:
            ValueError: where the shapes differ.
        """
        warped, fixed = paired(warped, fixed)
        return (warped - fixed).abs().mean(dim=1, keepdim=True)


class Tukey(nn.Module):
    """Tukey's biweight: quadratic for small residuals, constant beyond c scales.

    rho(r) = (c s)^2 / 3 * (1 - (1 - min(|r| / (c s), 1)^2)^3), with s = MAD(r) / 0.6745 of each image pair (its
    channels together), not below `scale_floor` and detached: the scale is a property of the noise, not a quantity to
    minimise. The floor is what holds where most of an image is background and the MAD is 0.
    Departure: the customary rho is c^2/6 (…) of r/s; ours is 2 s^2 times that, so that inliers cost r^2 as in
    `SquaredError` and the smoothness weight keeps its meaning.

    Reference:
        Belagiannis et al., Robust Optimization for Deep Regression, ICCV 2015, Eqs. 3-6; c = 4.6851 (95 %
        efficiency on Gaussian noise) as in the AdaCS paper's table of robust losses.
    """

    def __init__(self, c: float = 4.6851, scale_floor: float = 0.01) -> None:
        """Choose the cut-off.

        Args:
            c: cut-off in scales.
            scale_floor: least scale in intensity units (0.01 is 1 % of [0, 1]).

        Raises:
            ValueError: for a value not above 0.
        """
        super().__init__()
        self.c = positive("c", c)
        self.scale_floor = positive("scale_floor", scale_floor)

    def scale(self, residual: Tensor) -> Tensor:
        """Robust standard deviation of each residual image, detached.

        Args:
            residual: (B, C, *S).

        Returns:
            (B, 1, …, 1).
        """
        values = residual.detach().flatten(1)
        deviation = (values - values.median(dim=1, keepdim=True).values).abs().median(dim=1).values
        scale = (deviation / 0.6745).clamp(min=self.scale_floor)
        return scale.view(-1, *(1 for _ in residual.shape[1:]))

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            Map (B, 1, *S).

        Raises:
            ValueError: where the shapes differ.
        """
        warped, fixed = paired(warped, fixed)
        residual = warped - fixed
        cutoff = (self.c * self.scale(residual)).square()
        ratio = (residual.square() / cutoff).clamp(max=1)
        # (1 - (1 - q)^3) / 3 multiplied out: the closed form would cancel for small residuals.
        return (cutoff * ratio * (1 - ratio + ratio.square() / 3)).mean(dim=1, keepdim=True)


class GlobalNCC(nn.Module):
    """Global normalised cross-correlation, the correlation coefficient of two whole images, as 1 - z_w(x) z_f(x).

    z = (I - mean) / sqrt(var + eps) of each image and channel; a constant image has z = 0, so its map is 1. The mean of
    the map is 1 - NCC. ICON and GradICON call this NCC; VoxelMorph, TransMorph and LapIRN so call `LNCC`.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        """Choose the floor.

        Args:
            eps: added to the variance, in squared intensity.

        Raises:
            ValueError: where it is not above 0.
        """
        super().__init__()
        self.eps = positive("eps", eps)

    def _standardised(self, image: Tensor) -> Tensor:
        axes = tuple(range(2, image.ndim))
        centred = image - image.mean(dim=axes, keepdim=True)
        return centred * (centred.square().mean(dim=axes, keepdim=True) + self.eps).rsqrt()

    def forward(self, warped: Tensor, fixed: Tensor) -> Tensor:
        """Compare two images.

        Args:
            warped: (B, C, *S).
            fixed: the same shape.

        Returns:
            Map (B, 1, *S).

        Raises:
            ValueError: where the shapes differ.
        """
        warped, fixed = paired(warped, fixed)
        return (1 - self._standardised(warped) * self._standardised(fixed)).mean(dim=1, keepdim=True)


SIMILARITIES: dict[str, type[nn.Module]] = {
    "mse": SquaredError,
    "mae": AbsoluteError,
    "tukey": Tukey,
    "lncc": LNCC,
    "global_ncc": GlobalNCC,
    "mi": MI,
    "mind": MIND,
    "lncc_gaussian": GaussianLNCC,
    "global_ncc_adaptive": AdaptiveMultiScaleNCC,
    "global_ncc_multiscale": MultiScaleNCC,
}


def build_similarity(name: str | Mapping[str, Any] | Sequence[Mapping[str, Any]], **options: Any) -> nn.Module:
    """Build a similarity by name, or a weighted sum of several.

    Args:
        name: a key of `SIMILARITIES` ("mse"); or a sum, each with its weight, or with its weight (1 where left out) and
            options: ``{"mse": 1.0, "lncc": {"weight": 0.03, "window": 9}}``; or, where one occurs twice, a list:
            ``[{"name": "lncc", "window": 5}, {"name": "lncc", "weight": 0.5}]``. A sum may come as text, as the
            command line gives it.
        options: the arguments of a single similarity's class (`window` of lncc, `bins` of mi …).

    Returns:
        (warped, fixed) -> residual map, see the classes; one similarity of weight 1 is itself, not a sum.

    Raises:
        ValueError: an unknown name, with the known ones and the nearest; a bare "ncc", which names two of them; a sum
            that is not of the form above; an option that the similarity does not have.
    """
    if isinstance(name, str) and name.lstrip()[:1] in ("{", "["):
        name = _parsed(name)
    if isinstance(name, str):
        return _single(name, options)
    if options:
        raise ValueError(
            f"similarity: options {', '.join(options)} stand beside the sum {name!r}, where it is not known whose they "
            f"are; write them into it, e.g. {EXAMPLE}"
        )
    terms = _terms(name)
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    return SimilaritySum([similarity for similarity, _ in terms], [weight for _, weight in terms])


def _single(name: str, options: Mapping[str, Any]) -> nn.Module:
    if name == "ncc":
        raise ValueError(
            "similarity: 'ncc' names two things. Take lncc, the local squared one in a window (what VoxelMorph, "
            "TransMorph and LapIRN call NCC; window 9), or global_ncc, the correlation coefficient of the whole images "
            "(what ICON and GradICON call NCC)."
        )
    kind = SIMILARITIES[known_name("similarity", name, SIMILARITIES)]
    # Those without a constructor of their own take what nn.Module does: nothing that has a name.
    known = [
        key for key, value in inspect.signature(kind).parameters.items() if value.kind is value.POSITIONAL_OR_KEYWORD
    ]
    for option in options:
        if not known:
            raise ValueError(f"similarity: {name} takes no options, got {option!r}; leave it out")
        known_name(f"option of the similarity {name}", option, known)
    return kind(**options)


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"similarity: expected a name or a sum such as {EXAMPLE}, got {text!r} ({error})") from error


def _terms(spec: Any) -> list[tuple[nn.Module, float]]:
    """Each similarity of a sum and its weight."""
    wrong = ValueError(
        f"similarity: expected a name, a sum such as {EXAMPLE}, or a list such as "
        f'[{{"name": "mse"}}, {{"name": "lncc", "weight": 0.03}}], got {spec!r}'
    )
    if isinstance(spec, Mapping):
        spec = [
            {"name": name, **(term if isinstance(term, Mapping) else {"weight": term})} for name, term in spec.items()
        ]
    if not isinstance(spec, Sequence) or not spec:
        raise wrong
    terms = []
    for term in spec:
        if not isinstance(term, Mapping) or not isinstance(term.get("name"), str):
            raise wrong
        options = {key: value for key, value in term.items() if key not in ("name", "weight")}
        similarity, weight = _single(term["name"], options), term.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(
                f"similarity: expected a weight above 0 for {term['name']}, got {weight!r}; e.g. {EXAMPLE}"
            )
        terms.append((similarity, float(weight)))
    return terms
