# SPDX-License-Identifier: Apache-2.0
"""elastix as a solver: a linear stage, then a B-spline."""

from __future__ import annotations

import logging
import math
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import known_name, positive, whole
from ..losses.mi import MI
from ..losses.similarity import SIMILARITIES, GlobalNCC, SquaredError
from .pairwise import SHORT_LIVED
from .solvers import Solver, check_pair

logger = logging.getLogger(__name__)

# elastix's metric, and the weight of the bending energy against it: elastix's own default, 1, where the metric has no
# unit; a tenth for squared differences of intensities in [0, 1], which are smaller. Less folds the phantom's hearts.
METRICS: dict[type[nn.Module], tuple[str, float]] = {
    SquaredError: ("AdvancedMeanSquares", 0.1),
    GlobalNCC: ("AdvancedNormalizedCorrelation", 1.0),
    MI: ("AdvancedMattesMutualInformation", 1.0),
}
LINEAR = {"none": None, "rigid": "EulerTransform", "affine": "AffineTransform"}
SMALLEST_AXIS = 16  # voxels of the coarsest level: its shortest axis has no fewer


class Elastix(Solver):
    """Registers each pair with elastix: the solver "elastix".

    Stages: a linear transform, then a B-spline. Each minimises the method's similarity, as elastix computes it (mse:
    AdvancedMeanSquares, global_ncc: AdvancedNormalizedCorrelation, mi: AdvancedMattesMutualInformation), by adaptive
    stochastic gradient descent on random samples, coarse to fine; the B-spline adds ``bending_weight`` times
    TransformBendingEnergyPenalty. Every pixel counts as 1 apart, as everywhere here. Beyond its border the moving image
    has no samples.

    The parameters are this project's: elastix's own defaults for rigid, affine and B-spline registration but for the
    metric, ``grid_spacing`` and ``bending_weight``, which are given. They were not tuned on any data set.

    Reference:
        Klein et al., elastix, IEEE TMI 2010; Klein et al., IJCV 2009 (the optimiser).
    """

    name = "elastix"

    def __init__(
        self,
        similarity: nn.Module,
        linear: str = "affine",
        grid_spacing: float = 8.0,
        bending_weight: float | None = None,
        resolutions: int = 3,
        iterations: int = 256,
        samples: int = 2048,
        seed: int = 0,
    ) -> None:
        """Choose what elastix minimises, and how.

        Args:
            similarity: the method's, one of those above.
            linear: transform of the first stage, "rigid", "affine", or "none" to leave it out.
            grid_spacing: of the B-spline's control points at full resolution, in voxels.
            bending_weight: of the bending energy against the metric; None takes 0.1 for mse, else 1.
            resolutions: levels of each stage, each half as fine; fewer on images too small for them.
            iterations: steps of each level.
            samples: voxels that a step looks at.
            seed: of the samples.

        Raises:
            ValueError: for a similarity that elastix does not have, an unknown linear transform or a value out of its
                range.
            ImportError: if itk-elastix is not installed.
        """
        super().__init__()
        if type(similarity) not in METRICS:
            names = [name for name, kind in SIMILARITIES.items() if kind in METRICS]
            raise ValueError(
                f"similarity: elastix minimises one of {', '.join(names)}, got {_name_of(similarity)}; choose an "
                "objective with one of them, or --architecture pairwise, which takes any."
            )
        for key, value in (("resolutions", resolutions), ("iterations", iterations), ("samples", samples)):
            whole(key, value, 1)
        self.metric, usual_weight = METRICS[type(similarity)]
        self.bending_weight = usual_weight if bending_weight is None else float(bending_weight)
        if not 0 <= self.bending_weight < math.inf:
            raise ValueError(f"bending_weight: expected a number from 0, got {bending_weight!r}; e.g. {usual_weight}.")
        self.similarity, self.linear = similarity, known_name("linear", linear, LINEAR)
        self.grid_spacing = positive("grid_spacing", grid_spacing)
        self.resolutions, self.iterations, self.samples = int(resolutions), int(iterations), int(samples)
        self.seed = int(seed)
        _elastix()

    def register(self, image: Tensor) -> Tensor:
        """Register a batch of pairs, one after the other, on the CPU.

        Args:
            image: cat(moving, fixed), (B, 2, *S) in [0, 1], axes of at least 4 voxels.

        Returns:
            ddf, (B, d, *S) in voxels of the fixed image, float32 on the device of ``image``.

        Raises:
            ValueError: if the shape is not as above.
            RuntimeError: if elastix does not register a pair; its own words are in the message.
        """
        check_pair(image)
        if min(image.shape[2:]) < 4:
            raise ValueError(
                f"image: elastix expects axes of at least 4 voxels, got {tuple(image.shape)}; --architecture pairwise "
                "takes any size."
            )
        pairs = tqdm(image.detach().float().cpu().numpy(), "registering with elastix", **SHORT_LIVED)
        fields = [self._registered(moving, fixed) for moving, fixed in pairs]
        return torch.from_numpy(np.stack(fields)).to(image.device)

    def _registered(self, moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        """The ddf of one pair (*S), (d, *S)."""
        itk = _elastix()
        moving_image, fixed_image = (itk.image_view_from_array(np.ascontiguousarray(a)) for a in (moving, fixed))
        try:
            # Without number_of_threads: elastix crashes with 2.
            _, transform = itk.elastix_registration_method(
                fixed_image, moving_image, parameter_object=self._parameter_maps(fixed.shape), log_to_console=False
            )
            # transformix writes the field into a folder, the current one where none is named.
            with tempfile.TemporaryDirectory() as folder:
                field = itk.transformix_deformation_field(
                    moving_image, transform, log_to_console=False, output_directory=folder
                )
                vectors = itk.array_from_image(field)
        except RuntimeError as error:
            raise RuntimeError(
                f"elastix did not register a pair of {fixed.shape} voxels: {str(error).strip()}. Images without "
                "contrast, or moved far out of view, have nothing to register; try --architecture pairwise."
            ) from error
        # ITK's first axis is the array's last, and so is its first component.
        return np.ascontiguousarray(np.moveaxis(vectors[..., ::-1], -1, 0), dtype=np.float32)

    def _parameter_maps(self, shape: tuple[int, ...]) -> Any:
        """elastix's parameter object for images of a shape."""
        itk = _elastix()
        resolutions = max(1, min(self.resolutions, 1 + int(math.log2(max(1.0, min(shape) / SMALLEST_AXIS)))))
        stages = itk.ParameterObject.New()
        for kind in (self.linear, "bspline"):
            if kind == "none":
                continue
            stage = stages.GetDefaultParameterMap(kind, resolutions)
            for key, value in self._changes().items():
                stage[key] = (str(value),)
            if kind == "bspline":
                stage["FinalGridSpacingInPhysicalUnits"] = (str(self.grid_spacing),)
                stage["Metric"] = (self.metric, "TransformBendingEnergyPenalty")
                stage["Metric1Weight"] = (str(self.bending_weight),)
            stages.AddParameterMap(stage)
        return stages

    def _changes(self) -> dict[str, Any]:
        """What differs from elastix's defaults at every stage."""
        bins = {"NumberOfHistogramBins": self.similarity.bins} if isinstance(self.similarity, MI) else {}
        return {
            "Metric": self.metric,
            "MaximumNumberOfIterations": self.iterations,
            "NumberOfSpatialSamples": self.samples,
            "RandomSeed": self.seed,
            "WriteResultImage": "false",
            **bins,
        }


def _name_of(similarity: nn.Module) -> str:
    return {kind: name for name, kind in SIMILARITIES.items()}.get(type(similarity), repr(similarity))


def has_elastix() -> bool:
    """Whether itk-elastix is installed.

    Returns:
        True or False.
    """
    import itk

    return hasattr(itk, "elastix_registration_method")


def _elastix() -> Any:
    """The package itk with elastix in it."""
    import itk

    if not has_elastix():
        raise ImportError(
            'architecture: elastix is not installed; install it with: pip install "registration-bundles[elastix]"'
        )
    return itk
