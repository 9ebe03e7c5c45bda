"""From a stored image to the plan's grid and range, by MONAI dictionary transforms."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import NormalizeIntensityd
from monai.transforms.spatial.dictionary import Resized
from monai.transforms.transform import MapTransform
from scipy.ndimage import gaussian_filter
from torch import Tensor

from asterion_client.data.raw_image import RawImage, UnreadableFileError
from asterion_shared.cases import Image, Mask
from asterion_shared.errors import MissingExtraError
from asterion_shared.plan import DataContract, Normalisation

UNKNOWN = -1
"""Mask value of a bad pixel: neither the loss nor a metric counts it."""

_SMOOTH = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image and its mask on the plan's grid.

    Attributes:
        image: float32 ``(C, *spatial)``, finite, normalised.
        mask: class numbers, ``spatial``, -1 at bad pixels; None without a mask.
        native_mask: the same on the stored grid; None when that is the plan's grid.
    """

    image: Image
    mask: Mask | None
    native_mask: Mask | None


def prepare(raw: RawImage, mask: Mask | None, contract: DataContract) -> Prepared:
    """Bring an image and its mask to the plan's grid and normalise the image.

    Args:
        raw: the image as stored; bad pixels are NaN and get the value of the local sky, the
            median of the good ones of their channel.
        mask: class numbers on the stored grid, or None.
        contract: names the target spacing and the normalisation.

    Raises:
        UnreadableFileError: a channel without a good pixel, other channels than the plan's, or
            the plan gives a pixel size and the file does not say its own in that unit.
    """
    if raw.image.shape[0] != len(contract.channels):
        msg = f"it has {raw.image.shape[0]} channels; the plan has {len(contract.channels)}"
        raise UnreadableFileError(msg)
    good = np.isfinite(raw.image)
    if mask is not None and not good.all():
        mask = np.where(good.all(axis=0), mask, UNKNOWN).astype(np.int16)
    item = {"image": torch.from_numpy(_filled(raw.image, good))}
    if mask is not None:
        item["mask"] = torch.from_numpy(mask[np.newaxis].astype(np.float32))
    shape = working_shape(raw, contract)
    resampled = shape if shape != raw.image.shape[1:] else None
    done: Any = _pipeline(resampled, contract.normalisation)(item)
    image = np.asarray(done["image"], np.float32)
    if mask is None:
        return Prepared(image, None, None)
    working = np.asarray(done["mask"][0]).astype(np.int16)
    return Prepared(image, working, None if resampled is None else mask)


def normalise(image: Image, kind: Normalisation) -> Image:
    """Normalise an image, finite, shape ``(C, *spatial)``, each channel by itself."""
    done: Any = _pipeline(None, kind)({"image": torch.from_numpy(image)})
    return np.asarray(done["image"], np.float32)


def working_shape(raw: RawImage, contract: DataContract) -> tuple[int, ...]:
    """Shape of the plan's grid over the extent of the stored one.

    Both grids cover the same extent, edge to edge, so that prediction comes back to the stored
    grid by stretching alone. The voxel size is therefore the plan's up to the rounding of the
    shape.

    Raises:
        UnreadableFileError: the file does not say its pixel size in the plan's unit.
    """
    stored = raw.image.shape[1:]
    if contract.spacing_mm is not None:
        wanted, unit = contract.spacing_mm, "mm"
    elif contract.pixel_scale_arcsec is not None:
        wanted, unit = (contract.pixel_scale_arcsec,) * len(stored), "arcsec"
    else:
        return stored
    if raw.unit != unit:
        msg = f"the plan resamples to {wanted} {unit} and the file does not give a size in {unit}"
        raise UnreadableFileError(msg)
    triples = zip(stored, raw.spacing, wanted, strict=True)
    return tuple(max(1, round(n * have / want)) for n, have, want in triples)


def _filled(image: Image, good: npt.NDArray[np.bool_]) -> Image:
    filled = image.copy()
    for channel, known in zip(filled, good, strict=True):
        if not known.any():
            msg = "a channel has no pixel with a finite value"
            raise UnreadableFileError(msg)
        if not known.all():
            channel[~known] = np.median(channel[known])
    return filled


@lru_cache(maxsize=64)  # a site's images have few shapes, and building costs as much as running
def _pipeline(shape: tuple[int, ...] | None, kind: Normalisation) -> Compose:
    steps: list[Any] = []
    if shape is not None:
        steps = [
            AntiAliasd(("image",), shape),
            Resized("image", shape, mode=_SMOOTH[len(shape)]),
            Resized("mask", shape, mode="nearest-exact", allow_missing_keys=True),
        ]
    match kind:
        case "standardise":
            steps.append(NormalizeIntensityd("image", channel_wise=True))
        case "asinh":
            steps.append(AsinhStretchd(("image",)))
        case "zscale":
            steps.append(ZscaleStretchd(("image",)))
        case "none":
            pass
    return Compose(steps)


class AntiAliasd(MapTransform):
    """Blur before shrinking, by half the pixels that fall into one; the rim is continued.

    MONAI's own ``anti_aliasing`` blurs against zeros, which darkens the rim by up to a sixth.
    """

    def __init__(self, keys: KeysCollection, shape: tuple[int, ...]) -> None:
        super().__init__(keys)
        self._shape = shape

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Blur the image of each key along the axes that will shrink."""
        done = dict(data)
        for key in self.key_iterator(done):
            image = np.asarray(done[key], np.float32)
            shrink = np.array(image.shape[1:]) / np.array(self._shape)
            sigma = (0.0, *np.maximum((shrink - 1) / 2, 0))
            done[key] = torch.from_numpy(gaussian_filter(image, sigma, mode="nearest"))
        return done


class AsinhStretchd(MapTransform):
    """asinh((x - sky) / noise), channel by channel; a constant channel becomes 0.

    Sky is the median and noise 1.4826 times the median absolute deviation (the deviation itself
    where more than half of the pixels are equal): linear in the noise, logarithmic in the sources
    (Lupton et al. 1999).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stretch the image of each key."""
        done = dict(data)
        for key in self.key_iterator(done):
            done[key] = torch.stack([_asinh(channel) for channel in done[key]])
        return done


class ZscaleStretchd(MapTransform):
    """Map IRAF's zscale interval (astropy.visualization) to [-1, 1], clipped, by channel."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stretch the image of each key."""
        done = dict(data)
        for key in self.key_iterator(done):
            done[key] = torch.stack([_zscale(channel) for channel in done[key]])
        return done


def _asinh(channel: Tensor) -> Tensor:
    above = channel - channel.median()
    noise = 1.4826 * above.abs().median()
    if noise == 0:
        noise = above.square().mean().sqrt()
    stretched: Tensor = torch.asinh(above / (noise if noise > 0 else 1.0))
    return stretched


def _zscale(channel: Tensor) -> Tensor:
    try:
        from astropy.visualization import ZScaleInterval
    except ImportError:
        raise MissingExtraError(package="astropy", extra="astro") from None
    low, high = ZScaleInterval().get_limits(np.asarray(channel))
    width = high - low if high > low else 1.0
    stretched: Tensor = ((channel - low) / width * 2 - 1).clamp(-1, 1)
    return stretched
