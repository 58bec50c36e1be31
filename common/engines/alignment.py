# SPDX-License-Identifier: Apache-2.0
"""Rigid and affine alignment of two images in physical space, by elastix, or by ITK where that is not installed."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import numpy as np

from ..checks import known_name
from ..io.images import Image
from ..io.itk_geometry import LPS, set_geometry
from ..io.resampling import sampled_onto
from ..io.spacing import grid_of_spacing
from ..losses.mi import MI
from ..transforms.intensity import clip_percentiles, min_max
from .elastix import has_elastix

logger = logging.getLogger(__name__)

KINDS = ("rigid", "affine")
# Images are aligned on grids whose longest axis has about this many voxels: a linear map needs no finer ones.
VOXELS = 96
ITERATIONS, SAMPLES, SEED = 150, 2048, 0
# An alignment is kept where the mutual information rises by at least this, in nats.
GAIN = 0.005


def align(
    moving: Image, fixed: Image, kind: str = "affine", mask: Image | None = None, backend: str | None = None
) -> np.ndarray:
    """Find the rigid or affine map that aligns two images, by Mattes' mutual information, coarse to fine.

    Args:
        moving: image in the space of fixed, overlapping with it.
        fixed: image of as many axes.
        kind: "rigid" or "affine" (which starts from the rigid one).
        mask: label map of fixed; only its voxels above 0 are looked at.
        backend: "elastix" or "itk"; None takes elastix where it is installed.

    Returns:
        (4, 4) in mm, RAS: from points of fixed to points of moving. Of 2D images a map within their plane.

    Raises:
        ValueError: for an unknown kind.
        RuntimeError: where the registration fails; its own words are in the message.
    """
    known_name("affine", kind, KINDS)
    frame = _frame(fixed)
    coarse = [_coarse(image) for image in (moving, fixed)]
    inputs = [_itk_image(image, frame, image.array.numpy()) for image in coarse]
    inside = None
    if mask is not None:
        values, _ = sampled_onto(mask._replace(array=(mask.array > 0).float()), coarse[1])
        inside = _itk_image(coarse[1], frame, (values >= 0.5).numpy().astype(np.uint8))
    backend = backend or ("elastix" if has_elastix() else "itk")
    logger.info("Aligning moving to fixed, %s, by %s.", kind, backend)
    try:
        found = (_elastix if backend == "elastix" else _itk)(inputs[0], inputs[1], kind, inside)
    except RuntimeError as error:
        raise RuntimeError(
            f"affine: the {kind} alignment by {backend} failed: {' '.join(str(error).split())[-300:]}. The images may "
            "share too little: pass --affine none, or a transform as --initial_transform."
        ) from error
    return frame @ LPS @ found @ LPS @ np.linalg.inv(frame)


def mutual_information(moving: Image, fixed: Image, placement: np.ndarray) -> float:
    """Mutual information of two images where both have voxels, after a linear map.

    Args:
        moving: image.
        fixed: image.
        placement: (4, 4) in mm, RAS, from points of fixed to points of moving.

    Returns:
        In nats; 0 where they share nothing.
    """
    other, own = _coarse(moving), _coarse(fixed)
    seen, inside = sampled_onto(other._replace(affine=np.linalg.inv(placement) @ other.affine), own)
    if int(inside.sum()) < 2:
        return 0.0
    values = [image[inside][None, None, None] for image in (seen, own.array)]
    return -float(MI()(*values).mean())


def between_centres(moving: Image, fixed: Image) -> np.ndarray:
    """The translation from the centre of fixed's field of view to that of moving's; of 2D images within their plane.

    Args:
        moving: image.
        fixed: image.

    Returns:
        (4, 4) in mm, RAS.
    """
    centres = [image.affine[:3, :3] @ ((np.array([*image.array.shape, 1][:3]) - 1) / 2) + image.affine[:3, 3]
               for image in (moving, fixed)]  # fmt: skip
    shift = centres[0] - centres[1]
    if fixed.array.dim() == 2:
        normal = _frame(fixed)[:3, 2]
        shift = shift - normal * (normal @ shift)
    placement = np.eye(4)
    placement[:3, 3] = shift
    return placement


def better_start(moving: Image, fixed: Image) -> np.ndarray:
    """Where the headers place moving, or, where that shows more in common, its centre on that of fixed.

    Args:
        moving: image.
        fixed: image.

    Returns:
        (4, 4) in mm, RAS, from points of fixed to points of moving.
    """
    centred = between_centres(moving, fixed)
    if np.abs(centred[:3, 3]).max() < 0.5 * min(fixed.spacing):
        return np.eye(4)
    found = [mutual_information(moving, fixed, placement) for placement in (np.eye(4), centred)]
    if found[1] < found[0] + GAIN:
        return np.eye(4)
    logger.info(
        "Centres aligned: moving is translated by %s mm (RAS), since the images are more alike so (mutual information "
        "%.3f, by their headers %.3f).", np.round(-centred[:3, 3], 2).tolist(), found[1], found[0],
    )  # fmt: skip
    return centred


def aligned_if_better(moving: Image, fixed: Image, mask: Image | None = None) -> np.ndarray:
    """As ``align``, affine, but the identity where that fails or does not make the images more alike.

    Args:
        moving: image in the space of fixed.
        fixed: image.
        mask: label map of fixed.

    Returns:
        (4, 4) in mm, RAS.
    """
    before = mutual_information(moving, fixed, np.eye(4))
    try:
        found = align(moving, fixed, "affine", mask)
    except RuntimeError as error:
        logger.warning("%s Going on without it.", error)
        return np.eye(4)
    after = mutual_information(moving, fixed, found)
    kept = after >= before + GAIN
    logger.info(
        "Affine alignment: mutual information %.3f before, %.3f after; %s.", before, after,
        "it is kept" if kept else "it is left out",
    )  # fmt: skip
    return found if kept else np.eye(4)


def _frame(fixed: Image) -> np.ndarray:
    """Coordinates along the axes of fixed, (4, 4): its plane is then z = constant, whatever its tilt."""
    frame = np.eye(4)
    axes = fixed.affine[:3, :3] / np.linalg.norm(fixed.affine[:3, :3], axis=0)
    frame[:3, :3] = axes
    if fixed.array.dim() == 2:
        frame[:3, 2] = np.cross(axes[:, 0], axes[:, 1])
    return frame


def _coarse(image: Image) -> Image:
    """The image in [0, 1], between its percentiles, on its own axes with larger voxels."""
    extents = [n * mm for n, mm in zip(image.array.shape, image.spacing, strict=True)]
    target = max(extents) / VOXELS
    grid = grid_of_spacing(image, [max(mm, min(target, extent / 2)) for mm, extent in
                                   zip(image.spacing, extents, strict=True)])  # fmt: skip
    scaled = min_max(clip_percentiles(image.array.float()[None]))[0]
    values, _ = sampled_onto(image._replace(array=scaled), grid)
    return grid._replace(array=values)


def _itk_image(image: Image, frame: np.ndarray, values: np.ndarray) -> Any:
    import itk

    result = itk.image_from_array(np.ascontiguousarray(values.T))
    set_geometry(result, np.linalg.inv(frame) @ image.affine)
    return result


def _matrix(transform: Any) -> np.ndarray:
    import itk

    matrix, linear = np.eye(4), itk.array_from_matrix(transform.GetMatrix())
    matrix[: len(linear), : len(linear)] = linear
    matrix[: len(linear), 3] = list(transform.GetOffset())
    return matrix


def _elastix(moving: Any, fixed: Any, kind: str, mask: Any) -> np.ndarray:
    import itk

    dims = fixed.GetImageDimension()
    shortest = min(fixed.GetLargestPossibleRegion().GetSize())
    parameters = itk.ParameterObject.New()
    for name in KINDS[: KINDS.index(kind) + 1]:
        stage = parameters.GetDefaultParameterMap(name, 3 if shortest >= 32 else 1)
        changes = {
            "AutomaticTransformInitialization": "false", "MaximumNumberOfIterations": str(ITERATIONS),
            "NumberOfSpatialSamples": str(SAMPLES), "RandomSeed": str(SEED), "WriteResultImage": "false",
            "RequiredRatioOfValidSamples": "0.05",
            "Interpolator": "LinearInterpolator", "ImageSampler": "RandomCoordinate",
        }  # fmt: skip
        for key, value in changes.items():
            stage[key] = (value,)
        parameters.AddParameterMap(stage)
    options = {} if mask is None else {"fixed_mask": mask}
    with tempfile.TemporaryDirectory() as folder:
        _, result = itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, log_to_console=False, output_directory=folder, **options
        )
    whole = np.eye(4)
    for number in range(result.GetNumberOfParameterMaps()):
        whole = _matrix(_linear(result.GetParameterMap(number), dims)) @ whole  # the first stage acts first
    return whole


def _linear(parameters: Any, dims: int) -> Any:
    """A stage's result as a transform of ITK."""
    import itk

    euler = {2: itk.Euler2DTransform, 3: itk.Euler3DTransform}[dims]
    transform = (
        euler[itk.D] if parameters["Transform"][0] == "EulerTransform" else itk.AffineTransform[itk.D, dims]
    ).New()
    transform.SetCenter([float(value) for value in parameters["CenterOfRotationPoint"]])
    values = [float(value) for value in parameters["TransformParameters"]]
    array = itk.OptimizerParameters[itk.D](len(values))
    for index, value in enumerate(values):
        array.SetElement(index, value)
    transform.SetParameters(array)
    return transform


def _itk(moving: Any, fixed: Any, kind: str, mask: Any) -> np.ndarray:
    import itk

    dims = fixed.GetImageDimension()
    size, spacing = (
        np.array(list(values)) for values in (fixed.GetLargestPossibleRegion().GetSize(), fixed.GetSpacing())
    )
    centre = np.array(list(fixed.GetOrigin())) + itk.array_from_matrix(fixed.GetDirection()) @ (
        (size - 1) / 2 * spacing
    )
    whole: Any = None
    for name in KINDS[: KINDS.index(kind) + 1]:
        if name == "rigid":
            transform = {2: itk.Euler2DTransform, 3: itk.Euler3DTransform}[dims][itk.D].New()
        else:
            transform = itk.AffineTransform[itk.D, dims].New()
        transform.SetIdentity()
        transform.SetCenter(centre.tolist())
        if whole is not None:
            transform.SetMatrix(whole.GetMatrix())
            transform.SetTranslation(whole.GetTranslation())
        whole = _itk_stage(moving, fixed, transform, mask)
    return _matrix(whole)


def _itk_stage(moving: Any, fixed: Any, transform: Any, mask: Any) -> Any:
    import itk

    kind = type(fixed)
    dims = fixed.GetImageDimension()
    metric = itk.MattesMutualInformationImageToImageMetricv4[kind, kind].New()
    metric.SetNumberOfHistogramBins(32)
    if mask is not None:
        spatial = itk.ImageMaskSpatialObject[dims].New()
        spatial.SetImage(mask)
        spatial.Update()
        metric.SetFixedImageMask(spatial)
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New(metric=metric)
    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New(
        number_of_iterations=ITERATIONS, learning_rate=1.0, minimum_step_length=1e-4, relaxation_factor=0.6
    )
    optimizer.SetScalesEstimator(scales)
    levels = 3 if min(fixed.GetLargestPossibleRegion().GetSize()) >= 32 else 1
    registration = itk.ImageRegistrationMethodv4[kind, kind].New(
        fixed_image=fixed, moving_image=moving, metric=metric, optimizer=optimizer, initial_transform=transform
    )
    registration.SetNumberOfLevels(levels)
    registration.SetShrinkFactorsPerLevel([2**level for level in range(levels - 1, -1, -1)])
    registration.SetSmoothingSigmasPerLevel([float(level) for level in range(levels - 1, -1, -1)])
    registration.InPlaceOn()
    registration.Update()
    return transform
