"""Drawn images: discs and rods, or galaxies, with the mask of what was drawn."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_shared.cases import Image, Mask
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream

Float = npt.NDArray[np.float64]

EDGE_SHARPNESS = 8.0
"""How fast a medical object's brightness falls at its rim, per radius."""

DISC, ROD = 1.0, 3.5
"""Length over width of the two shapes that classes take in turn."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One object: its light, and the pixels that are it.

    Attributes:
        light: float64, the image's shape without channels; about 1 inside, more at a core.
        inside: bool, same shape.
    """

    light: Float
    inside: npt.NDArray[np.bool_]


def make_scene(
    plan: Plan, label: int, prior: tuple[float, ...], draws: np.random.Generator
) -> tuple[Image, Mask]:
    """Draw one image without the site's blur and noise.

    Args:
        plan: its task, classes, channels and patch size.
        label: class of the image (classification), or 1 for an anomaly.
        prior: share of each class at the site, shape (K,).
        draws: where everything random comes from.

    Returns:
        Signal, float32 ``(C, *patch_size)``, 0 is nothing; and mask, int16 ``patch_size``: class
        numbers for segmentation, else 1 on the anomaly or on the object.
    """
    shape, num_classes = plan.data.patch_size, len(plan.data.classes)
    signal = np.zeros((len(plan.data.channels), *shape))
    mask = np.zeros(shape, np.int16)
    for kind, value in _contents(plan, label, prior, draws):
        drawn = _draw(shape, kind, _is_sky(plan), draws)
        colours = _colours(plan)[kind % (num_classes + 1)]
        signal += colours.reshape(-1, *[1] * len(shape)) * drawn.light
        if value:
            mask[drawn.inside] = value
    return signal.astype(np.float32), mask


def see(signal: Image, blur_pixels: float, noise: float, draws: np.random.Generator) -> Image:
    """Blur by a Gaussian (the edges wrap round) and add Gaussian noise.

    Args:
        signal: float32 ``(C, *spatial)``.
        blur_pixels: deviation of the point-spread, >= 0.
        noise: deviation of the noise, in the signal's unit, >= 0.
        draws: where the noise comes from.

    Returns:
        float32, same shape.
    """
    spatial = signal.shape[1:]
    axes = tuple(range(1, signal.ndim))
    waves = np.meshgrid(*[np.fft.fftfreq(n) for n in spatial], indexing="ij")
    passed = np.exp(-2 * (np.pi * blur_pixels) ** 2 * sum(w**2 for w in waves))
    blurred = np.fft.ifftn(np.fft.fftn(signal, axes=axes) * passed, axes=axes).real
    return (blurred + noise * draws.standard_normal(signal.shape)).astype(np.float32)


def _contents(
    plan: Plan, label: int, prior: tuple[float, ...], draws: np.random.Generator
) -> list[tuple[int, int]]:
    """What to draw: pairs of a kind of object and its value in the mask."""
    match plan.task:
        case "segmentation":
            shares = np.array(prior[1:]) / sum(prior[1:])
            count = 1 + int(draws.integers(1, 4))
            kinds = draws.choice(len(shares), size=count, p=shares)
            return [(int(kind), int(kind) + 1) for kind in kinds]
        case "classification":
            return [(label, 1)]
        case "anomaly":
            # One object: a short code can learn where it is, and nothing else.
            return [(0, 0), (1, 1)] if label else [(0, 0)]


def _draw(shape: tuple[int, ...], kind: int, sky: bool, draws: np.random.Generator) -> Drawn:
    """An object of a kind: even kinds are round, odd ones long; higher kinds are smaller."""
    elongation = ROD if kind % 2 else DISC
    radius = min(shape) * draws.uniform(0.1, 0.16) / (1 + kind // 2) / np.sqrt(elongation)
    reach = min(radius * elongation, min(shape) / 2.5)
    centre = [draws.uniform(reach, n - 1 - reach) for n in shape]
    direction = draws.standard_normal(len(shape))
    direction /= np.linalg.norm(direction)
    offsets = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1) - centre
    along = offsets @ direction
    aside_squared = np.maximum((offsets**2).sum(axis=-1) - along**2, 0)
    distance = np.sqrt((along / (radius * elongation)) ** 2 + aside_squared / radius**2)
    brightness = draws.uniform(0.8, 1.2)
    if not sky:
        rim = np.clip(EDGE_SHARPNESS * (distance - 1), -50, 50)
        return Drawn(brightness / (1 + np.exp(rim)), distance < 1)
    # Sersic 1968: I(r) = I_e exp(-b (r^(1/n) - 1)), b about 2n - 1/3; round ones are ellipticals.
    index = 1.0 if kind % 2 else 2.5
    scaled = np.maximum(distance, 0.2) ** (1 / index)
    return Drawn(brightness * np.exp(-(2 * index - 1 / 3) * (scaled - 1)), distance < 1)


def _colours(plan: Plan) -> Float:
    """Brightness of each kind of object in each channel, shape (K + 1, C); of the whole plan."""
    draws = stream(plan.seed, round_=0, site="", purpose="colours")
    return draws.uniform(0.6, 1.0, (len(plan.data.classes) + 1, len(plan.data.channels)))


def _is_sky(plan: Plan) -> bool:
    """Whether the plan speaks of the sky."""
    data = plan.data
    return data.pixel_scale_arcsec is not None or data.normalisation in ("asinh", "zscale")
