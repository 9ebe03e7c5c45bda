"""Drawn sky: fields of stars and galaxies, single galaxies, and spectral cubes, with their truth.

Brightness is in electrons, before any noise, on a level sky. A star is a Moffat profile (Moffat
1969), a galaxy a Sersic profile (Sersic 1968); stars' fluxes follow a power law. Truth masks are
drawn on the noiseless image: a pixel is a source where its light is above
:data:`DETECTION_SIGMA` times the noise of the sky.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Image, Mask
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream

Plane = npt.NDArray[np.float32]

SKY_ELECTRONS = 100.0
"""Sky in each pixel; the deviation of its photon noise is the square root."""

SKY_NOISE = math.sqrt(SKY_ELECTRONS)
DETECTION_SIGMA = 2.0

STAR_FWHM_PIXELS = 2.0
"""Width of the instrument's own point-spread: the least that pixels can sample."""

MOFFAT_BETA = 3.0
PIXELS_PER_SOURCE = 350
"""A field of 64 x 64 pixels has 12 sources on average."""

PEAK_SIGMA = (6.0, 600.0)
"""Faintest and brightest peak of a star, in units of the sky noise."""

FLUX_SLOPE = 1.0
"""Number of stars brighter than F goes as F to the minus this (1.5 in flat, uniform space)."""

STAR_SHARE = 0.6

ELLIPTICAL, SPIRAL, EDGE_ON, RING, IRREGULAR = range(5)
"""Kinds of galaxies, in the order that classes take them; further kinds are spirals with more
arms."""

FIELD_KINDS = (ELLIPTICAL, EDGE_ON)
"""Kinds of the small galaxies of a field, where no arm is resolved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Galaxy:
    """One galaxy.

    Attributes:
        kind: :data:`ELLIPTICAL` and so on; above :data:`IRREGULAR` a spiral.
        row: where its centre is, pixels.
        column: likewise.
        radius: half-light radius along the long axis, pixels.
        axis_ratio: short over long axis, in (0, 1].
        angle: of the long axis from the columns, radians.
        surface: brightness at the half-light radius, electrons a pixel.
        phase: where its arms or clumps start, radians.
    """

    kind: int
    row: float
    column: float
    radius: float
    axis_ratio: float
    angle: float
    surface: float
    phase: float


def draw_field(
    plan: Plan, shape: tuple[int, ...], label: int, draws: np.random.Generator
) -> tuple[Image, Mask]:
    """Draw one image or cube of the sky, without noise.

    Segmentation: a field of stars and galaxies. Of one foreground class, all are it; of two, the
    first is the stars and the second the galaxies; of more, the galaxies' kinds take the others
    in turn. Classification: one galaxy of the label's kind in the middle, and faint stars.
    Anomaly: an elliptical galaxy; with label 1 also an arc around it or a trail across.

    Args:
        plan: its task, channels (bands) and classes.
        shape: 2 axes, or 3 with frequency or wavelength first, where each source is a line.
        label: class of the image; ignored for segmentation.
        draws: where everything random comes from.

    Returns:
        float32 ``(C, *shape)``, electrons; int16 ``shape``: class numbers for segmentation (at
        least one source is in it), else 1 on the anomaly or on the galaxy.
    """
    canvas = _Canvas(plan, shape, len(plan.data.classes) if plan.task == "segmentation" else 3)
    match plan.task:
        case "segmentation":
            _fill_field(canvas, draws)
        case "classification":
            _add_stars(canvas, draws, mean_count=1.0, class_=0)
            canvas.add_galaxy(_portrait(shape, label, draws), 1, draws)
        case "anomaly":
            _add_stars(canvas, draws, mean_count=1.0, class_=0)
            canvas.add_galaxy(_portrait(shape, ELLIPTICAL, draws), 0, draws)
            if label:
                add = _add_arc if draws.random() < 0.5 else _add_trail
                add(canvas, draws)
    return canvas.finish()


class _Canvas:
    """The light of each class in each band, while it is being drawn."""

    def __init__(self, plan: Plan, shape: tuple[int, ...], num_classes: int) -> None:
        self.shape = shape
        self.num_classes = num_classes
        self.colours = band_colours(plan)
        self.image = np.full((len(plan.data.channels), *shape), SKY_ELECTRONS, np.float32)
        # Class 0 is light that is in the image and no part of the truth.
        self.light = np.zeros((num_classes, *shape), np.float32)

    def add(self, stamp: Plane, corner: tuple[int, int], kind: int, class_: int,
            draws: np.random.Generator) -> None:  # fmt: skip
        """Add a source's light, cut at the rim; in a cube as a line of Gaussian profile."""
        rows = slice(corner[0], corner[0] + stamp.shape[0])
        columns = slice(corner[1], corner[1] + stamp.shape[1])
        light = stamp if len(self.shape) == 2 else _line(self.shape[0], draws) * stamp
        part = (..., rows, columns)
        self.light[class_][part] += light
        colour = self.colours[kind % len(self.colours)]
        for channel, share in zip(self.image, colour, strict=True):
            channel[part] += share * light

    def add_star(self, row: float, column: float, peak: float, class_: int,
                 draws: np.random.Generator) -> None:  # fmt: skip
        stamp, corner = moffat_stamp(self.shape[-2:], row, column, peak, STAR_FWHM_PIXELS)
        self.add(stamp, corner, 0, class_, draws)

    def add_galaxy(self, galaxy: Galaxy, class_: int, draws: np.random.Generator) -> None:
        stamp, corner = galaxy_stamp(self.shape[-2:], galaxy)
        self.add(stamp, corner, 1 + galaxy.kind, class_, draws)

    def finish(self) -> tuple[Image, Mask]:
        """The image, and at each pixel the class with the most light, where it is detected."""
        threshold = DETECTION_SIGMA * SKY_NOISE
        if self.num_classes == 2:
            return self.image, (self.light[1] > threshold).astype(np.int16)
        seen = self.light[1:].sum(axis=0) > threshold
        return self.image, np.where(seen, self.light[1:].argmax(axis=0) + 1, 0).astype(np.int16)


def _fill_field(canvas: _Canvas, draws: np.random.Generator) -> None:
    rows, columns = canvas.shape[-2:]
    mean = rows * columns / PIXELS_PER_SOURCE
    _add_stars(canvas, draws, mean_count=mean * STAR_SHARE, class_=1, at_least=1)
    galaxy_classes = canvas.num_classes - 2
    for _ in range(draws.poisson(mean * (1 - STAR_SHARE))):
        which = int(draws.integers(max(galaxy_classes, len(FIELD_KINDS))))
        kind = FIELD_KINDS[which] if galaxy_classes <= len(FIELD_KINDS) else which
        galaxy = Galaxy(
            kind=kind,
            row=draws.uniform(0, rows - 1),
            column=draws.uniform(0, columns - 1),
            radius=float(np.exp(draws.normal(math.log(2.5), 0.3))),
            axis_ratio=draws.uniform(0.25, 0.4) if kind == EDGE_ON else draws.uniform(0.6, 1.0),
            angle=draws.uniform(0, math.pi),
            surface=SKY_NOISE * float(np.exp(draws.uniform(math.log(2.0), math.log(20.0)))),
            phase=draws.uniform(0, 2 * math.pi),
        )
        canvas.add_galaxy(galaxy, 2 + which % galaxy_classes if galaxy_classes else 1, draws)


def _add_stars(
    canvas: _Canvas,
    draws: np.random.Generator,
    *,
    mean_count: float,
    class_: int,
    at_least: int = 0,
) -> None:
    count = max(at_least, int(draws.poisson(mean_count)))
    rows, columns = canvas.shape[-2:]
    peaks = SKY_NOISE * power_law(count, *PEAK_SIGMA, draws)
    for row, column, peak in zip(
        draws.uniform(0, rows - 1, count), draws.uniform(0, columns - 1, count), peaks, strict=True
    ):
        canvas.add_star(row, column, peak, class_, draws)


def _portrait(shape: tuple[int, ...], kind: int, draws: np.random.Generator) -> Galaxy:
    """A galaxy near the middle, a third of the image wide."""
    side = min(shape[-2:])
    flat = {EDGE_ON: (0.15, 0.25), ELLIPTICAL: (0.6, 0.95)}.get(kind, (0.75, 1.0))
    return Galaxy(
        kind=kind,
        row=(shape[-2] - 1) / 2 + draws.uniform(-0.05, 0.05) * side,
        column=(shape[-1] - 1) / 2 + draws.uniform(-0.05, 0.05) * side,
        radius=side * draws.uniform(0.13, 0.18),
        axis_ratio=draws.uniform(*flat),
        angle=draws.uniform(0, math.pi),
        surface=SKY_NOISE * draws.uniform(4.0, 8.0),
        phase=draws.uniform(0, 2 * math.pi),
    )


def _add_arc(canvas: _Canvas, draws: np.random.Generator) -> None:
    """A thin arc around the middle, as a lensed galaxy makes."""
    rows, columns = canvas.shape[-2:]
    down, right = _offsets(rows, columns, (rows - 1) / 2, (columns - 1) / 2)
    radius = np.hypot(down, right)
    mid, half = draws.uniform(-math.pi, math.pi), draws.uniform(0.5, 1.0)
    turn = np.abs((np.arctan2(down, right) - mid + math.pi) % (2 * math.pi) - math.pi)
    width = max(1.0, 0.025 * min(rows, columns))
    away = (radius - min(rows, columns) * draws.uniform(0.3, 0.4)) / width
    light = SKY_NOISE * draws.uniform(8.0, 15.0) * np.exp(-(away**2) / 2) * (turn < half)
    canvas.add(light.astype(np.float32), (0, 0), 1, 1, draws)


def _add_trail(canvas: _Canvas, draws: np.random.Generator) -> None:
    rows, columns = canvas.shape[-2:]
    light = trail(
        (rows, columns),
        centre=(draws.uniform(0.2, 0.8) * rows, draws.uniform(0.2, 0.8) * columns),
        angle=draws.uniform(0, math.pi),
        peak=SKY_NOISE * draws.uniform(8.0, 15.0),
        fwhm_pixels=STAR_FWHM_PIXELS,
    )
    canvas.add(light, (0, 0), 0, 1, draws)


def band_colours(plan: Plan) -> Plane:
    """Share of its light that each kind of source has in each band, float32 ``(8, C)``.

    Kind 0 is the stars, then the galaxies; the first band has all of it. Of the whole plan, so
    that sites see the same sky.
    """
    slopes = stream(plan.seed, round_=0, site="", purpose="colours").uniform(-0.5, 0.5, 8)
    bands = np.arange(len(plan.data.channels))
    return np.exp(slopes[:, np.newaxis] * bands).astype(np.float32)


def power_law(
    count: int, faintest: float, brightest: float, draws: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw from ``N(> F) ~ F ** -FLUX_SLOPE`` between two ends, shape (count,)."""
    low, high = faintest**-FLUX_SLOPE, brightest**-FLUX_SLOPE
    return np.asarray(draws.uniform(high, low, count) ** (-1 / FLUX_SLOPE))


def moffat_stamp(
    shape: Sequence[int], row: float, column: float, peak: float, fwhm_pixels: float
) -> tuple[Plane, tuple[int, int]]:
    """A point source, as far as 6 times its width, cut at the image's rim.

    Args:
        shape: rows and columns of the image.
        row: position of the peak, pixels; it may lie outside.
        column: likewise.
        peak: value at the peak.
        fwhm_pixels: full width at half maximum.

    Returns:
        float32 stamp, and the row and column of the image where its first pixel belongs.
    """
    core = fwhm_pixels / (2 * math.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    down, right, corner = _window(shape, row, column, 6 * fwhm_pixels)
    stamp = peak * (1 + (down**2 + right**2) / np.float32(core**2)) ** -MOFFAT_BETA
    return stamp.astype(np.float32), corner


def galaxy_stamp(shape: Sequence[int], galaxy: Galaxy) -> tuple[Plane, tuple[int, int]]:
    """A galaxy as far as 5 half-light radii; returns as :func:`moffat_stamp`.

    The profile is softened by the instrument's point-spread at the centre, where a Sersic profile
    of high index has a cusp.
    """
    down, right, corner = _window(shape, galaxy.row, galaxy.column, 5 * galaxy.radius)
    cos, sin = math.cos(galaxy.angle), math.sin(galaxy.angle)
    along = right * cos + down * sin
    aside = (down * cos - right * sin) / galaxy.axis_ratio
    soft = (STAR_FWHM_PIXELS / 2.355) ** 2
    radius = np.sqrt(along**2 + aside**2 + np.float32(soft)) / galaxy.radius
    if galaxy.kind == ELLIPTICAL:
        return galaxy.surface * sersic(radius, 4.0), corner
    disc = sersic(radius, 1.0)
    if galaxy.kind == EDGE_ON:
        return galaxy.surface * disc, corner
    angle = np.arctan2(aside, along)
    if galaxy.kind == RING:
        ring = np.exp(-((radius - 1.3) ** 2) / 0.06)
        return (galaxy.surface * (0.3 * disc + 1.5 * ring)).astype(np.float32), corner
    if galaxy.kind == IRREGULAR:
        clumps = np.cos(3 * along / galaxy.radius + galaxy.phase) * np.cos(
            3 * aside / galaxy.radius + 2 * galaxy.phase
        )
        return (galaxy.surface * disc * (1 + 0.9 * clumps)).astype(np.float32), corner
    arms = 2 if galaxy.kind == SPIRAL else galaxy.kind - IRREGULAR + 2
    # Logarithmic arms with a pitch of about 20 degrees: theta = ln(r) / tan(pitch).
    wave = np.cos(arms * (angle - np.log(radius) / 0.36) + galaxy.phase)
    bulge = sersic(4 * radius, 2.0)
    return (galaxy.surface * (disc * (1 + 0.85 * wave) + bulge)).astype(np.float32), corner


def sersic(radius: npt.NDArray[np.floating], index: float) -> Plane:
    """``exp(-b (r ** (1 / n) - 1))`` with r in half-light radii; 1 at r = 1.

    b is 2 n - 1/3 + 4 / (405 n) (Ciotti & Bertin 1999), so that half of the light lies within.
    """
    b = 2 * index - 1 / 3 + 4 / (405 * index)
    return np.asarray(np.exp(-b * (radius ** (1 / index) - 1)), np.float32)


def trail(
    shape: Sequence[int],
    *,
    centre: tuple[float, float],
    angle: float,
    peak: float,
    fwhm_pixels: float,
    length_pixels: float = math.inf,
) -> Plane:
    """A straight track with a Gaussian cross-section, float32 of the shape given.

    Args:
        shape: rows and columns.
        centre: row and column of its middle.
        angle: from the columns, radians.
        peak: value on its axis.
        fwhm_pixels: width of the cross-section.
        length_pixels: from end to end; by default it crosses the image.
    """
    down, right = _offsets(shape[0], shape[1], *centre)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    aside = down * cos - right * sin
    light = peak * np.exp(-4 * math.log(2) * (aside / np.float32(fwhm_pixels)) ** 2)
    if math.isfinite(length_pixels):
        light = light * (np.abs(right * cos + down * sin) <= length_pixels / 2)
    return np.asarray(light, np.float32)


def _offsets(rows: int, columns: int, row: float, column: float) -> tuple[Plane, Plane]:
    """Distance down and right from a point, shapes (rows, 1) and (1, columns)."""
    down = np.arange(rows, dtype=np.float32)[:, np.newaxis] - np.float32(row)
    right = np.arange(columns, dtype=np.float32)[np.newaxis] - np.float32(column)
    return down, right


def _window(
    shape: Sequence[int], row: float, column: float, reach: float
) -> tuple[Plane, Plane, tuple[int, int]]:
    """Distances within a window around a point that lies in the image; and its corner."""
    top, left = max(0, math.floor(row - reach)), max(0, math.floor(column - reach))
    bottom = min(shape[0], math.ceil(row + reach) + 1)
    end = min(shape[1], math.ceil(column + reach) + 1)
    down, right = _offsets(max(0, bottom - top), max(0, end - left), row - top, column - left)
    return down, right, (top, left)


def _line(num_channels: int, draws: np.random.Generator) -> Plane:
    """A Gaussian line at a random frequency, shape (num_channels, 1, 1), 1 at its peak."""
    middle = draws.uniform(0.2, 0.8) * (num_channels - 1)
    width = max(1.0, 0.06 * num_channels)
    away = (np.arange(num_channels, dtype=np.float32) - middle) / width
    return np.exp(-(away**2) / 2).astype(np.float32)[:, np.newaxis, np.newaxis]
