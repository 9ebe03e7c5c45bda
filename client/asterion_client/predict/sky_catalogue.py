"""From the mask of a sky image to a catalogue of its sources."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from scipy import ndimage

from asterion_client.predict.fits_maps import Sky, positions, write_hdus

Numbers = npt.NDArray[np.float64]
_TOUCHING = np.ones((3, 3), np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The sources of one image; every array has one entry a source, shape ``(N,)``.

    Attributes:
        class_number: of the plan, from 1 on.
        x, y: centroid weighted by the probability, in pixels: column and row, the centre of the
            first pixel being 0.
        ra, dec: ICRS, degrees; NaN without world coordinates.
        num_pixels: area.
        area_arcsec2: NaN without world coordinates.
        flux: sum over the source's pixels, in the stored unit, shape ``(N, C)``; NaN pixels are
            left out.
        probability: mean over its pixels, of its class.
    """

    class_number: npt.NDArray[np.int64]
    x: Numbers
    y: Numbers
    ra: Numbers
    dec: Numbers
    num_pixels: npt.NDArray[np.int64]
    area_arcsec2: Numbers
    flux: Numbers
    probability: Numbers

    def __len__(self) -> int:
        return len(self.x)


def find_sources(
    mask: npt.NDArray[np.int16],
    probabilities: npt.NDArray[np.float32],
    image: npt.NDArray[np.float32],
    sky: Sky,
    smallest_pixels: int = 1,
) -> Sources:
    """Group the pixels of each class that touch, at corners too, into sources.

    Args:
        mask: class numbers ``(rows, columns)``.
        probabilities: ``(K, rows, columns)``.
        image: as stored, ``(C, rows, columns)``, NaN at bad pixels.
        sky: its world coordinates.
        smallest_pixels: sources of fewer pixels are left out.

    Returns:
        Sorted by class, then by row; empty when nothing is found.
    """
    parts = [
        _of_class(number, mask, probabilities, image) for number in range(1, len(probabilities))
    ]
    joined = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    kept = joined[3] >= smallest_pixels
    numbers, x, y, num_pixels, flux, probability = (column[kept] for column in joined)
    ra, dec = positions(sky, x, y)
    return Sources(
        class_number=numbers.astype(np.int64),
        x=x,
        y=y,
        ra=ra,
        dec=dec,
        num_pixels=num_pixels.astype(np.int64),
        area_arcsec2=num_pixels * sky.pixel_arcsec2,
        flux=flux,
        probability=probability,
    )


def _of_class(
    number: int,
    mask: npt.NDArray[np.int16],
    probabilities: npt.NDArray[np.float32],
    image: npt.NDArray[np.float32],
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers, Numbers]:
    grouped: Any = ndimage.label(mask == number, structure=_TOUCHING)
    labels, count = grouped
    index = np.arange(1, count + 1)
    inside = labels > 0
    own = labels[inside]
    rows, columns = (axis.astype(np.float64) for axis in np.nonzero(inside))
    chance = probabilities[number][inside].astype(np.float64)

    def summed(values: Numbers) -> Numbers:
        return np.asarray(np.bincount(own, values, minlength=count + 1)[index], np.float64)

    num_pixels, weight = summed(np.ones_like(chance)), summed(chance)
    flux = [summed(np.nan_to_num(c[inside].astype(np.float64), nan=0.0)) for c in image]
    return (
        np.full(count, float(number)),
        summed(chance * columns) / weight,
        summed(chance * rows) / weight,
        num_pixels,
        np.stack(flux, axis=1).reshape(count, len(image)),
        weight / num_pixels,
    )


def write_catalogue(
    path: Path, sources: Sources, classes: tuple[str, ...], channels: tuple[str, ...]
) -> None:
    """Write sources as a FITS binary table.

    Args:
        path: replaced atomically.
        sources: of one image; may be empty.
        classes: names of the plan's classes.
        channels: names of the image's channels; each has a column of fluxes.

    Raises:
        DiskProblemError: the file cannot be written.
    """
    names = np.array([classes[number] for number in sources.class_number], dtype="U64")
    columns = [
        fits.Column("ID", "J", array=np.arange(1, len(sources) + 1)),
        fits.Column("CLASS", "64A", array=names),
        fits.Column("RA", "D", unit="deg", array=sources.ra),
        fits.Column("DEC", "D", unit="deg", array=sources.dec),
        fits.Column("X", "D", unit="pix", array=sources.x),
        fits.Column("Y", "D", unit="pix", array=sources.y),
        fits.Column("NPIX", "J", unit="pix", array=sources.num_pixels),
        fits.Column("AREA", "D", unit="arcsec2", array=sources.area_arcsec2),
        *(
            fits.Column(f"FLUX_{name}", "D", array=sources.flux[:, index])
            for index, name in enumerate(channels)
        ),
        fits.Column("PROB", "D", array=sources.probability),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SOURCES")
    table.header["RADESYS"] = ("ICRS", "of RA and DEC")
    table.header["COMMENT"] = "X and Y count from 0 at the centre of the first pixel."
    table.header["COMMENT"] = "FLUX is the sum over a source's pixels, nothing subtracted."
    write_hdus(path, fits.HDUList([fits.PrimaryHDU(), table]))
