"""Drawn bodies: a trunk with a rind, organs and lesions, in 2D or 3D, with their truth.

Brightness is that of a magnitude image: 0 in air, at most about :data:`BRIGHTEST`, no noise. Each
channel is another contrast: tissues have other brightnesses in it, the same at every site of a
plan. Sizes follow the image, so that a patch of any shape holds a whole body.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Image, Mask
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream

Array = npt.NDArray[np.float32]

BRIGHTEST = 1000.0
RIND = 0.9
"""Where the rind (skin and fat) ends, as a share of the body's radius."""

TEXTURE = 0.04
"""Deviation of the tissue's own grain, as a share of its brightness."""

FEWEST_ORGANS = 3
SMALLEST_LESION_PIXELS = 1.6
LESION_CONTRAST = 0.45
"""Brightness that a lesion adds or takes, as a share of :data:`BRIGHTEST`."""

LESION_RATE = 0.7
"""Mean number of lesions of an image beside the first; where organs are classes, of all."""


@dataclass(frozen=True, slots=True)
class Tissues:
    """How bright tissues are, and where organs lie, for a whole plan.

    Attributes:
        rind: brightness in each channel, float32 (C,).
        trunk: likewise.
        organs: likewise for each organ, float32 (O, C).
        lesion_sign: whether a lesion is brighter (1) or darker (-1) in each channel, (C,).
    """

    rind: Array
    trunk: Array
    organs: Array
    lesion_sign: Array


def tissues_of(plan: Plan) -> Tissues:
    """Tissues of a plan, drawn from its seed; quick to make, and the same for every image."""
    segmented = len(plan.data.classes) - 2 if plan.task == "segmentation" else 0
    return _tissues(plan.seed, len(plan.data.channels), max(FEWEST_ORGANS, segmented))


@lru_cache(maxsize=64)
def _tissues(seed: int, num_channels: int, num_organs: int) -> Tissues:
    draws = stream(seed, round_=0, site="", purpose="tissues")
    # Organs stand out from the trunk, which is between the dark and the bright ones.
    levels = np.linspace(0.15, 0.85, num_organs + 1)
    levels = np.delete(levels, (num_organs + 1) // 2)
    organs = np.stack([draws.permutation(levels) for _ in range(num_channels)], axis=1)
    sign = draws.choice([-1.0, 1.0], num_channels)
    sign[0] = 1.0
    return Tissues(
        rind=(BRIGHTEST * draws.uniform(0.8, 1.0, num_channels)).astype(np.float32),
        trunk=(BRIGHTEST * draws.uniform(0.46, 0.54, num_channels)).astype(np.float32),
        organs=(BRIGHTEST * organs).astype(np.float32),
        lesion_sign=sign.astype(np.float32),
    )


def draw_phantom(
    plan: Plan, shape: tuple[int, ...], label: int, draws: np.random.Generator
) -> tuple[Image, Mask]:
    """Draw one body, without noise.

    Segmentation: the last class is lesions, those before it are organs; of one foreground class,
    at least one lesion is there. Classification: class 0 has no lesion, the others have lesions
    of a kind of their own (bright, dark, long and bright, long and dark, then smaller ones).
    Anomaly: label 1 has a bright lesion.

    Args:
        plan: its task, channels, classes and seed.
        shape: 2 or 3 axes, at least 8 pixels each.
        label: class of the image; ignored for segmentation.
        draws: where everything random comes from.

    Returns:
        float32 ``(C, *shape)``; int16 ``shape``: class numbers for segmentation, else 1 on
        lesions.
    """
    tissues = tissues_of(plan)
    image = np.zeros((len(plan.data.channels), *shape), np.float32)
    mask = np.zeros(shape, np.int16)
    organ_classes = len(plan.data.classes) - 2 if plan.task == "segmentation" else 0
    _draw_body(image, mask, tissues, organ_classes, draws)
    if plan.task == "segmentation":
        value = len(plan.data.classes) - 1
        count = int(draws.poisson(LESION_RATE)) + (organ_classes == 0)
        kinds = [0] * min(count, 4)
    else:
        value = 1
        kinds = [label - 1] * (1 + int(draws.random() < LESION_RATE / 2)) if label else []
    for kind in kinds:
        _draw_lesion(image, mask, kind, value, tissues.lesion_sign, draws)
    return image, mask


def _draw_body(
    image: Image, mask: Mask, tissues: Tissues, organ_classes: int, draws: np.random.Generator
) -> None:
    shape = mask.shape
    grid = _unit_grid(shape)
    sharpness = min(shape) / 2  # a rim is about one pixel wide
    centre = draws.uniform(-0.04, 0.04, len(shape))
    size = draws.uniform(0.8, 0.92, len(shape))
    radius = np.sqrt(sum(((x - c) / s) ** 2 for x, c, s in zip(grid, centre, size, strict=True)))
    grain = 1 + TEXTURE * _grain(grid, draws)
    body, inside = _cover(radius, sharpness), _cover(radius / RIND, sharpness)
    for channel, rind, trunk in zip(image, tissues.rind, tissues.trunk, strict=True):
        channel += body * rind + inside * (trunk * grain - rind)
    for number, brightness in enumerate(tissues.organs):
        cover = _organ(grid, number, len(tissues.organs), centre, sharpness, draws)
        for channel, value in zip(image, brightness, strict=True):
            channel += cover * (value * grain - channel)
        if number < organ_classes:
            mask[cover > 0.5] = number + 1


def _organ(
    grid: tuple[Array, ...],
    number: int,
    count: int,
    centre: npt.NDArray[np.float64],
    sharpness: float,
    draws: np.random.Generator,
) -> Array:
    """Share of each pixel that is organ ``number``: an ellipsoid at its place on a ring."""
    angle = 2 * math.pi * number / count + draws.normal(0, 0.1)
    ring = 0.42 * draws.uniform(0.9, 1.1)
    place = np.zeros(len(grid))
    place[:2] = centre[:2] + ring * np.array([math.cos(angle), math.sin(angle)])
    # Neighbours on the ring must not meet, however many there are.
    room = min(0.27, 0.85 * 0.42 * math.sin(math.pi / max(count, 2)))
    wide, narrow = room * draws.uniform(0.85, 1.0), room * draws.uniform(0.55, 0.8)
    turn = draws.uniform(0, math.pi)
    x, y = grid[0] - place[0], grid[1] - place[1]
    along = (x * math.cos(turn) + y * math.sin(turn)) / wide
    aside = (y * math.cos(turn) - x * math.sin(turn)) / narrow
    squares = along**2 + aside**2
    if len(grid) == 3:
        squares = squares + (grid[2] - centre[2]) ** 2 / (2 * room) ** 2
    return _cover(np.sqrt(squares), sharpness * narrow)


def _draw_lesion(
    image: Image,
    mask: Mask,
    kind: int,
    value: int,
    sign: Array,
    draws: np.random.Generator,
) -> None:
    """Overlapping balls: two of them a lump, or three in a row for the long kinds."""
    shape = np.array(mask.shape)
    dark, long = kind % 2, kind // 2 % 2
    wanted = min(shape) * draws.uniform(0.06, 0.1) * 0.75 ** (kind // 4)
    radius = max(SMALLEST_LESION_PIXELS, wanted / (1.3 if long else 1))
    direction = draws.standard_normal(len(shape))
    direction /= np.linalg.norm(direction)
    spot = draws.standard_normal(len(shape))
    spot *= 0.5 * draws.random() ** (1 / len(shape)) / np.linalg.norm(spot)
    middle = (shape - 1) / 2 + spot * shape / 2
    steps = (-1.2, 0.0, 1.2) if long else (0.0, draws.uniform(0.3, 0.7))
    centres = [middle + step * radius * direction for step in steps]
    reach = radius * (2.2 if long else 1.7) + 2
    window = tuple(
        slice(max(0, math.floor(c - reach)), min(n, math.ceil(c + reach) + 1))
        for c, n in zip(middle, mask.shape, strict=True)
    )
    axes = np.ogrid[window]
    squares = [
        sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) for centre in centres
    ]
    nearest = np.sqrt(np.minimum.reduce(squares)) / radius
    cover = _cover(nearest.astype(np.float32), radius)
    change = LESION_CONTRAST * BRIGHTEST * draws.uniform(0.8, 1.2) * (-1 if dark else 1)
    for channel, towards in zip(image, sign, strict=True):
        part = channel[window]
        part += cover * np.float32(change * towards)
        np.maximum(part, 0, out=part)
    mask[window][cover > 0.5] = value


@lru_cache(maxsize=16)
def _unit_grid(shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Coordinates from -1 to 1 along each axis, as arrays that broadcast to the shape."""
    axes = [((2 * np.arange(n) - (n - 1)) / n).astype(np.float32) for n in shape]
    return tuple(np.ix_(*axes))


def _cover(radius: Array, sharpness: float) -> Array:
    """Share of a pixel inside radius 1: straight from 1 to 0 over about one pixel."""
    return np.asarray(np.clip((1 - radius) * np.float32(sharpness) + np.float32(0.5), 0, 1))


def _grain(grid: tuple[Array, ...], draws: np.random.Generator) -> Array:
    """A smooth random pattern of mean 0 and deviation about 1: four plane waves."""
    total = np.zeros(np.broadcast_shapes(*(x.shape for x in grid)), np.float32)
    for _ in range(4):
        waves = draws.uniform(-12, 12, len(grid))
        phase = sum((w * x for w, x in zip(waves, grid, strict=True)), draws.uniform(0, 6.28))
        total += np.cos(phase, dtype=np.float32)
    return total * np.float32(1 / math.sqrt(2))
