"""From a stored image to the plan's grid and range, by MONAI dictionary transforms."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import NormalizeIntensityd
from monai.transforms.spatial.dictionary import Spacingd
from monai.transforms.transform import MapTransform

from asterion_client.data.raw_image import RawImage, UnreadableFileError
from asterion_shared.errors import MissingExtraError
from asterion_shared.plan import DataContract, Normalisation

SAME_SPACING = 1e-3
"""Spacings that differ by less than this share are the same grid."""

Prepared = tuple[npt.NDArray[np.float32], npt.NDArray[np.int16] | None]


def prepare(raw: RawImage, mask: npt.NDArray[np.int16] | None, contract: DataContract) -> Prepared:
    """Bring an image and its mask to the plan's grid and normalise the image.

    Args:
        raw: the image as stored.
        mask: class numbers on the stored grid, or None.
        contract: names the target spacing and the normalisation.

    Returns:
        Image float32 ``(C, *spatial)``, finite; mask int16 ``spatial`` or None. Bad pixels have
        the value of the local sky, the median of the good ones, and class 0.

    Raises:
        UnreadableFileError: no good pixel, other channels than the plan's, or the plan gives a
            pixel size and the file does not say its own in that unit.
    """
    if raw.image.shape[0] != len(contract.channels):
        msg = f"it has {raw.image.shape[0]} channels; the plan has {len(contract.channels)}"
        raise UnreadableFileError(msg)
    good = np.isfinite(raw.image)
    if not good.any():
        msg = "it has no pixel with a finite value"
        raise UnreadableFileError(msg)
    image = raw.image
    if not good.all():
        image = np.where(good, image, np.median(image[good])).astype(np.float32)
        if mask is not None:
            mask = np.where(good.all(axis=0), mask, 0).astype(np.int16)
    affine = torch.diag(torch.tensor([*raw.spacing, *[1.0] * (4 - len(raw.spacing))])).double()
    item: dict[Hashable, Any] = {"image": MetaTensor(torch.from_numpy(image.copy()), affine)}
    if mask is not None:
        item["mask"] = MetaTensor(torch.from_numpy(mask[np.newaxis].astype(np.float32)), affine)
    done = _pipeline(target_spacing(raw, contract), contract)(item)
    out: npt.NDArray[np.float32] = np.asarray(done["image"], np.float32)
    if mask is None:
        return out, None
    return out, np.rint(np.asarray(done["mask"][0])).astype(np.int16)


def normalise(image: npt.NDArray[np.float32], kind: Normalisation) -> npt.NDArray[np.float32]:
    """Normalise an image, finite, shape ``(C, *spatial)``, as a plan's ``data.normalisation``."""
    steps = _normalisation(kind)
    return np.asarray(Compose(steps)({"image": torch.from_numpy(image)})["image"], np.float32)


def target_spacing(raw: RawImage, contract: DataContract) -> tuple[float, ...] | None:
    """Spacing to resample to, or None when the stored grid is the plan's.

    Raises:
        UnreadableFileError: the file does not say its pixel size in the plan's unit.
    """
    if contract.spacing_mm is not None:
        wanted, unit = contract.spacing_mm, "mm"
    elif contract.pixel_scale_arcsec is not None:
        wanted, unit = (contract.pixel_scale_arcsec,) * len(raw.spacing), "arcsec"
    else:
        return None
    if raw.unit != unit:
        msg = f"the plan resamples to {wanted} {unit} and the file does not give a size in {unit}"
        raise UnreadableFileError(msg)
    same = np.allclose(raw.spacing, wanted, rtol=SAME_SPACING)
    return None if same else wanted


def _pipeline(spacing: tuple[float, ...] | None, contract: DataContract) -> Compose:
    steps: list[Any] = []
    if spacing is not None:
        modes = ("bilinear", "nearest")
        for key, mode in zip(("image", "mask"), modes, strict=True):
            steps.append(Spacingd(key, pixdim=spacing, mode=mode, allow_missing_keys=True))
    return Compose(steps + _normalisation(contract.normalisation))


def _normalisation(kind: Normalisation) -> list[Any]:
    match kind:
        case "standardise":
            return [NormalizeIntensityd("image")]
        case "asinh":
            return [AsinhStretchd(("image",))]
        case "zscale":
            return [ZscaleStretchd(("image",))]
        case "none":
            return []


class AsinhStretchd(MapTransform):
    """asinh((x - sky) / noise), where sky is the median and noise 1.4826 times the median
    absolute deviation: linear in the noise, logarithmic in the sources (Lupton et al. 1999).
    A constant image becomes 0.
    """  # noqa: D205

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stretch the image of each key."""
        done = dict(data)
        for key in self.key_iterator(done):
            image = done[key]
            sky = image.median()
            noise = 1.4826 * (image - sky).abs().median()
            done[key] = torch.asinh((image - sky) / (noise if noise > 0 else 1.0))
        return done


class ZscaleStretchd(MapTransform):
    """Map IRAF's zscale interval (astropy.visualization) to [-1, 1], clipped."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Stretch the image of each key."""
        try:
            from astropy.visualization import ZScaleInterval
        except ImportError:
            raise MissingExtraError(package="astropy", extra="astro") from None
        done = dict(data)
        for key in self.key_iterator(done):
            image = done[key]
            low, high = ZScaleInterval().get_limits(np.asarray(image))
            width = high - low if high > low else 1.0
            done[key] = ((image - low) / width * 2 - 1).clamp(-1, 1)
        return done
