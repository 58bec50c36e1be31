# SPDX-License-Identifier: Apache-2.0
"""The heart of the cardiac phantom: anatomy of a short-axis stack, its contraction, and its MR signal.

Lengths are in reference pixels of 1.5625 mm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float64]


class _Group(NamedTuple):
    """How a diagnosis looks: radii and walls in reference pixels, ratios of ES to ED."""

    endo: float
    wall: float
    ratio: float
    septal: float
    infarct: float
    rv_size: float
    rv_squeeze: float


GROUPS = {
    "NOR": _Group(16.0, 5.5, 0.67, 0.0, 0.0, 1.05, 0.90),
    "DCM": _Group(20.0, 5.3, 0.82, 0.0, 0.0, 1.05, 0.60),
    "HCM": _Group(15.0, 7.4, 0.62, 0.3, 0.0, 0.95, 0.90),
    "MINF": _Group(18.0, 5.4, 0.70, 0.0, 0.22, 1.00, 0.80),
    "RV": _Group(16.0, 5.5, 0.68, 0.0, 0.0, 1.30, 0.50),
}


class _Patient(NamedTuple):
    """One heart and one body; angles in radians, positions relative to the image's centre."""

    form: _Group
    centre: Array  # (2,) of the LV at mid level
    tilt: Array  # (2,) shift of the LV from base to apex
    bulk: Array  # (2,) shift of the LV from ED to ES
    harmonics: Array  # (3, 2): amplitude and phase of the contour's harmonics 2, 3, 4
    rv_angle: float
    infarct_angle: float
    twist: Array  # (2,) at base and apex
    breathing: Array  # (2, 3, 4): per component three waves of amplitude, two wave numbers, phase
    papillary: Array  # (2, 2): angle, size
    vessels: Array  # (n, 4): position, radius, level
    body: Array  # (4, 2): amplitude and phase of the body outline's harmonics 1..4
    fat: float
    es_atrium: bool  # the valve plane has moved through the most basal slice
    es_outflow: bool  # the most basal slice has lost a sector of myocardium
    es_past_apex: bool  # the most apical slice no longer meets the heart


def draw_patient(group: str, rng: Generator) -> _Patient:
    """Draw size, pose, shape and motion of one patient.

    Args:
        group: diagnosis, a key of ``GROUPS``.
        rng: advanced by the draws.

    Returns:
        The patient.
    """
    form = GROUPS[group]
    size = rng.normal(1.0, 0.05)
    form = form._replace(endo=form.endo * size, wall=form.wall * rng.normal(1, 0.06),
                         ratio=float(np.clip(form.ratio + rng.normal(0, 0.035), 0.55, 0.93)),
                         rv_size=form.rv_size * rng.normal(1, 0.06))  # fmt: skip
    rv_angle = np.pi + rng.normal(0.15, 0.25)
    event = rng.random()
    waves = np.stack([rng.normal(0, 0.35, (2, 3)), *rng.uniform(-1, 1, (2, 2, 3)) * 2 * np.pi / 130,
                      rng.uniform(0, 2 * np.pi, (2, 3))], axis=-1)  # fmt: skip
    n = 90
    vessels = np.stack(
        [rng.uniform(-75, 75, n), rng.uniform(-65, 45, n), 0.5 + rng.exponential(0.5, n), rng.random(n)], 1
    )
    return _Patient(
        form, np.array([6.0, 0.0]) + rng.normal(0, [5.0, 4.0]), rng.normal([7, 4], 2.0), rng.normal(0, 1.0, 2),
        np.stack([rng.normal(0, [0.035, 0.02, 0.012]), rng.uniform(0, 2 * np.pi, 3)], 1),
        rv_angle, rng.uniform(0, 2 * np.pi), np.array([-1, 1]) * np.radians(rng.normal([3.5, 8.0], 1.5)), waves,
        np.stack([rv_angle + np.pi + np.array([-0.85, 0.95]) + rng.normal(0, 0.12, 2), rng.normal(0.19, 0.025, 2)], 1),
        vessels, np.stack([rng.normal(0, [0.03, 0.05, 0.025, 0.02]), rng.uniform(0, 2 * np.pi, 4)], 1),
        rng.uniform(5, 11), event < 0.25, 0.25 <= event < 0.5, 0.7 <= event < 0.88,
    )  # fmt: skip


def _near(angle: Array, centre: float, width: float) -> Array:
    """A smooth periodic bump of height one (von Mises form), ``width`` in radians."""
    return np.exp((np.cos(angle - centre) - 1) / width**2)


def _inside(distance: Array, blur: float) -> Array:
    """Membership of a region from its signed distance (negative inside); ``blur`` is the width of the edge."""
    t = np.clip(0.5 - distance / blur, 0, 1)
    return t * t * (3 - 2 * t)


def polar(points: Array, centre: Array) -> tuple[Array, Array]:
    """Radius and angle of in-plane points around a centre.

    Args:
        points: (2, ...) in reference pixels.
        centre: (2, ...), likewise.

    Returns:
        Radius in reference pixels, and angle in radians.
    """
    offset = points - centre
    return np.hypot(offset[0], offset[1]), np.arctan2(offset[1], offset[0])


def _centre(patient: _Patient, level: Array) -> Array:
    """LV centre (2, 1, 1, Z) at the levels (1, 1, Z), 0 the base and 1 the apex."""
    return patient.centre[:, None, None, None] + patient.tilt[:, None, None, None] * (level - 0.5)


def _contours(patient: _Patient, angle: Array, level: Array) -> tuple[Array, Array]:
    """ED endocardial and epicardial radius at an angle and level."""
    form = patient.form
    harmonic = sum(a * np.cos(k * angle + p) for k, (a, p) in enumerate(patient.harmonics, start=2))
    endo = form.endo * (1 - 0.62 * level**2.2) * (1 + harmonic)
    wall = form.wall * (1 - 0.2 * level**2) * (1 + form.septal * _near(angle, patient.rv_angle, 0.8))
    return endo, endo + wall


def _contract(points: Array, patient: _Patient, level: Array) -> Array:
    """ES position to ED position for the left ventricle and what it drags along.

    Radial: blood scales, the wall keeps its area up to the in-plane gain by longitudinal shortening
    (R² - R_en² = k (r² - r_en²)), outside the displacement decays. Twist and bulk shift decay likewise.
    """
    form, ed_centre = patient.form, _centre(patient, level)
    radius, angle = polar(points, ed_centre + patient.bulk[:, None, None, None])
    twist = patient.twist[0] + (patient.twist[1] - patient.twist[0]) * level
    outer = form.ratio * form.endo + form.wall * 1.2
    fading = np.exp(-0.5 * (np.maximum(radius - outer, 0) / 14) ** 2)
    angle = angle + twist * fading
    endo, epi = _contours(patient, angle, level)
    ratio = form.ratio - 0.06 * level + form.infarct * _near(angle, patient.infarct_angle, 0.7)
    es_endo, gain = np.minimum(ratio, 0.97) * endo, 0.90
    es_epi = np.sqrt(es_endo**2 + (epi**2 - endo**2) / gain)
    in_wall = np.sqrt(np.maximum(endo**2 + gain * (radius**2 - es_endo**2), 0))
    outside = radius + (epi - es_epi) * np.exp(-0.5 * (np.maximum(radius - es_epi, 0) / 14) ** 2)
    ed_radius = np.where(radius < es_endo, radius * endo / es_endo, np.where(radius < es_epi, in_wall, outside))
    shift = patient.bulk[:, None, None, None] * (1 - fading)
    return ed_centre + shift + ed_radius * np.stack([np.cos(angle), np.sin(angle)])


def true_displacement(points: Array, patient: _Patient, level: Array, unit: float) -> Array:
    """Backward displacement of the ES grid: ES(x) shows ED(x + displacement).

    Args:
        points: (2, X, Y, Z), the grid's points in reference pixels.
        patient: whose motion it is.
        level: (1, 1, Z), 0 at the base and 1 at the apex.
        unit: voxels a reference pixel.

    Returns:
        (2, X, Y, Z) in reference pixels.
    """
    waves = patient.breathing[:, :, :, None, None, None]
    phase = waves[:, :, 1] * points[0] + waves[:, :, 2] * points[1] + waves[:, :, 3] + level
    moved = points + (waves[:, :, 0] * np.sin(phase)).sum(1)
    # The RV widens (backwards in time) about its septal side; the gate keeps the septum to the LV's own motion.
    direction = np.array([np.cos(patient.rv_angle), np.sin(patient.rv_angle)])
    _, epi = _contours(patient, np.full_like(level, patient.rv_angle), level)
    anchor = _centre(patient, level) + direction[:, None, None, None] * 0.85 * epi
    offset = moved - anchor
    reach, _ = polar(moved, anchor)
    depth = np.tensordot(direction, offset, 1)
    amount = patient.form.rv_squeeze * np.exp(-0.5 * (reach / 17) ** 2) / (1 + np.exp(-(depth - 4) / 3))
    moved = moved + amount * offset
    displacement = _contract(moved, patient, level) - points
    return gaussian_filter(displacement, (0, 1.3 * unit, 1.3 * unit, 0))  # rounds the kinks at the two contours


def _blend(image: Array, value: Array | float, member: Array) -> Array:
    return image + member * (value - image)


def _chest(points: Array, patient: _Patient, level: Array, blur: float, extent: Array, texture: Array) -> Array:
    """Everything around the heart: fat, muscle, lungs with vessels, liver, stomach, spine and aorta."""
    x, y = points
    radius, angle = polar(points / extent[:, None, None, None], np.zeros((2, 1, 1, 1)))
    outline = 0.95 + sum(a * np.cos(k * angle + p) for k, (a, p) in enumerate(patient.body, start=1))
    depth = (radius - outline) * extent.mean()
    thickness = patient.fat * (1 + 0.35 * np.cos(2 * angle + patient.body[1, 1]))
    image = 0.02 + 0.78 * _inside(depth, blur)
    image = _blend(image, 0.30 + 0.03 * texture, _inside(depth + thickness, blur))
    ribs = np.cos(17 * angle + patient.body[2, 1])
    image = _blend(image, 0.62, _inside(np.abs(depth + thickness + 4) - 1.4 * ribs, 1.5 * blur) * (ribs > 0))
    lung = _inside(depth + thickness + 7 + 1.5 * np.cos(5 * angle), blur)
    image = _blend(image, 0.07, lung)
    for px, py, size, where in patient.vessels:  # each in its own window, twelve pixels beyond any displacement
        i, j = np.abs(x[:, 0, 0] - px) < 15, np.abs(y[0, :, 0] - py) < 15
        part = np.ix_(i, j, np.arange(x.shape[2]))
        disc = _inside(np.hypot(x[part] - px, y[part] - py) - size, 2 * blur)
        image[part] = _blend(image[part], 0.5, lung[part] * disc * np.exp(-(((level - where) / 0.25) ** 2)))
    dome = 27 - 16 * level + 0.006 * (x + 25 - 20 * level) ** 2 + 2 * np.sin(x / 9 + patient.body[0, 1])
    image = _blend(image, 0.34 + 0.03 * texture, lung * _inside(dome - y, blur))
    stomach = np.hypot((x - 30) / 1.5, y - 50 + 6 * level) - 11 - 5 * level + texture
    image = _blend(image, 0.60 + 0.10 * texture, lung * _inside(stomach, 2 * blur))
    image = _blend(image, 0.75, lung * _inside(np.abs(stomach - 2.5) - 1.2, 2 * blur))
    for px, py, size, value in ((-8.0, 58.0, 9.0, 0.42), (12.0, 47.0, 6.5, 0.85), (-24.0, 40.0, 4.5, 0.6)):
        image = _blend(image, 0.12, _inside(np.hypot(x - px, y - py) - size - 1.3, blur))
        image = _blend(image, value, _inside(np.hypot(x - px, y - py) - size, blur))
    return image


def _right_ventricle(points: Array, patient: _Patient, level: Array, epi: Array, angle: Array) -> Array:
    """Distance to the outline that the LV cuts into a crescent: an ellipse, lobed, that ends before the apex."""
    form = patient.form
    along = np.array([np.cos(patient.rv_angle), np.sin(patient.rv_angle)])
    offset = points - _centre(patient, level)
    u = np.tensordot(along, offset, 1) - 0.78 * epi.mean((0, 1)) * (1 - 0.25 * level**2)
    v = np.tensordot(np.array([-along[1], along[0]]), offset, 1) + 2.0
    reach = form.rv_size * (1.05 - 0.95 * level**2.5) * (form.endo * 0.9 + form.wall)
    return (np.hypot(u / (0.95 * reach), v / (1.2 * reach)) - 1) * 1.07 * reach + 0.6 * np.sin(7 * angle)


def paint(
    points: Array, patient: _Patient, level: Array, blur: float, extent: Array, texture: Array, es: bool
) -> tuple[Array, NDArray[np.uint8]]:
    """Signal and label at material positions.

    Args:
        points: (2, X, Y, Z) in reference pixels.
        patient: what is painted.
        level: (1, 1, Z), 0 at the base and 1 at the apex.
        blur: width of edges in reference pixels.
        extent: (2,), half the image's size in reference pixels.
        texture: see ``smooth_texture``.
        es: add what ED has no counterpart of.

    Returns:
        Signal in [0, 1], and label.
    """
    image = _chest(points, patient, level, blur, extent, texture)
    radius, angle = polar(points, _centre(patient, level))
    endo, epi = _contours(patient, angle, level)
    rv_distance = _right_ventricle(points, patient, level, epi, angle)
    rv_cavity = np.maximum(rv_distance, epi - radius)
    heart = np.minimum(rv_distance - 1.7, radius - epi)
    grooves = 3.5 * _near(angle, patient.rv_angle + 0.8, 0.5) + 3 * _near(angle, patient.rv_angle - 1.0, 0.4)
    fat = heart - 0.4 - np.sin(3 * angle + patient.harmonics[1, 1]) - grooves
    image = _blend(image, 0.62 + 0.06 * texture, _inside(fat, 2 * blur))
    image = _blend(image, 0.24, _inside(heart, blur))
    blood = (0.80 if es else 0.86) + 0.035 * texture
    image = _blend(image, blood - 0.06 - 0.05 * np.abs(texture), _inside(rv_cavity + 0.4, 1.5 * blur))
    image = _blend(image, (0.25 if es else 0.23) + 0.02 * texture, _inside(radius - epi, blur))
    trabeculae = 0.35 * level * (1 + np.sin(11 * angle + patient.harmonics[0, 1] + 2 * es)) * (2.0 if es else 1.0)
    image = _blend(image, blood, _inside(radius - endo + trabeculae, blur))
    for place, size in patient.papillary:
        tip = 0.70 * endo
        gap = np.sqrt(np.maximum(radius**2 + tip**2 - 2 * radius * tip * np.cos(angle - place), 0))
        thick = size * endo * (1.4 if es else 1.0) * np.maximum(1 - ((level - 0.45) / 0.38) ** 4, 0)
        image = _blend(image, 0.27, (thick > 0) * _inside(gap - thick, 1.4 * blur))
    label = np.where(rv_cavity < 0, 1, np.where(radius < endo, 3, np.where(radius < epi, 2, 0)))
    if es:
        image, label = _through_plane(image, label, patient, level, blur, radius - epi, angle, texture)
    return np.clip(image, 0, 1), label.astype(np.uint8)


def _through_plane(
    image: Array, label: NDArray, patient: _Patient, level: Array, blur: float, outside: Array, angle: Array,
    texture: Array,
) -> tuple[Array, NDArray]:  # fmt: skip
    """ES slices that meet other anatomy than their ED slice did: atrium or outflow tract at the base, no heart at apex.

    A stack of fewer than three slices is all mid-ventricular and stays as it is.
    """
    base, apex = (level == level.min(), level == level.max()) if level.size > 2 else (level < 0, level < 0)
    if patient.es_atrium:
        image = np.where(base, _blend(image, 0.76 + 0.035 * texture, _inside(outside + 1.5, 2 * blur)), image)
        label = np.where(base & (label > 1), 0, label)
    if patient.es_outflow:
        sector = base & (_near(angle, patient.rv_angle + 0.5, 0.35) > 0.5) & (outside < 0)
        image, label = np.where(sector, 0.72 + 0.035 * texture, image), np.where(sector & (label == 2), 0, label)
    if patient.es_past_apex:
        image = np.where(apex, _blend(image, 0.4 + 0.05 * texture, 0.8 * _inside(outside, 4 * blur)), image)
        label = np.where(apex, 0, label)
    return image, label
