"""Sources that were found against a catalogue of what is there: completeness and purity."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from asterion_client.data.raw_image import RawImage
from asterion_client.predict.fits_maps import Sky
from asterion_client.predict.sky_catalogue import Sources
from asterion_shared.errors import FileProblemError

Numbers = npt.NDArray[np.float64]

RA_NAMES = ("ra", "raj2000", "ra_icrs", "alpha_j2000", "ra_deg", "_ra")
DEC_NAMES = ("dec", "dej2000", "de_icrs", "delta_j2000", "dec_deg", "_de", "decj2000")
FLUX_NAMES = ("flux", "flux_auto", "flux_total")
MAGNITUDE_NAMES = ("mag", "mag_auto", "magnitude")

DEFAULT_ARCSEC, DEFAULT_PIXELS = 1.0, 2.0
"""A match is this near, whichever is wider, where nobody sets a radius."""

QUARTERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A catalogue to compare with.

    Attributes:
        ra, dec: ICRS degrees, shape (N,).
        flux: any unit, shape (N,); None where it has neither a flux nor a magnitude.
    """

    ra: Numbers
    dec: Numbers
    flux: Numbers | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """One image against a reference.

    Attributes:
        radius_arcsec: how near a match had to be.
        flux: of our sources, ``(N,)``; ``hit``: whether each has a match.
        reference_flux: of the reference's sources on good pixels of this image, ``(M,)``, NaN where
            unknown; ``found``: whether each was found.
    """

    radius_arcsec: float
    flux: Numbers
    hit: npt.NDArray[np.bool_]
    reference_flux: Numbers
    found: npt.NDArray[np.bool_]


def read_reference(path: Path) -> Reference:
    """Read a CSV, or the first table of a FITS file, with right ascension and declination.

    Names of columns in any case: ``ra`` and ``dec`` in degrees, and ``flux`` or ``mag`` if there is
    one; the usual names of VizieR and SExtractor are known.

    Raises:
        FileProblemError: it cannot be read, lacks a column, or a position is no number.
    """
    fix = "give a CSV or a FITS table with the columns ra and dec in degrees"
    try:
        columns = _csv_columns(path) if path.suffix.lower() == ".csv" else _fits_columns(path)
        ra, dec = _column(columns, RA_NAMES), _column(columns, DEC_NAMES)
        flux, magnitude = _column(columns, FLUX_NAMES), _column(columns, MAGNITUDE_NAMES)
    except FileNotFoundError:
        raise FileProblemError(path, "no such file", "check the path") from None
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        what = f"is no catalogue that can be read ({type(error).__name__})"
        raise FileProblemError(path, what, fix) from None
    if ra is None or dec is None:
        raise FileProblemError(path, f"has the columns {', '.join(columns)}", fix)
    if not (np.isfinite(ra).all() and (np.abs(dec) <= 90).all()):
        what = "has a source without a position, as a catalogue of an image without WCS has"
        raise FileProblemError(path, what, fix)
    if flux is None and magnitude is not None:
        flux = 10.0 ** (-0.4 * magnitude)
    return Reference(ra=ra, dec=dec, flux=flux)


def _csv_columns(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def _fits_columns(path: Path) -> dict[str, Numbers]:
    from astropy.io import fits

    with fits.open(path) as hdus:
        table = next(hdu for hdu in [*hdus, None] if hdu is None or hasattr(hdu, "columns"))
        if table is None:
            return {}
        kinds = "iuf"
        return {
            name: np.asarray(table.data[name], np.float64)
            for name in table.columns.names
            if table.data[name].dtype.kind in kinds and table.data[name].ndim == 1
        }


def _column(columns: Mapping[str, object], names: tuple[str, ...]) -> Numbers | None:
    for wanted in names:
        for name, values in columns.items():
            if name.strip().lower() == wanted:
                texts = (
                    [math.nan if v == "" else v for v in values]
                    if isinstance(values, list)
                    else values
                )
                return np.asarray(texts, np.float64)
    return None


def match_image(
    sources: Sources, reference: Reference, raw: RawImage, sky: Sky, radius_arcsec: float | None
) -> Matched | None:
    """Match the sources of one image, each with at most one, the nearest pairs first.

    Args:
        sources: of the image; the first channel's flux counts.
        reference: those that lie on a good pixel of the image count.
        raw: the image, NaN at bad pixels.
        sky: its world coordinates.
        radius_arcsec: > 0; None: 1 arcsec or 2 pixels, whichever is wider.

    Returns:
        None for an image without world coordinates.
    """
    if sky.world is None:
        return None
    pixel = math.sqrt(sky.pixel_arcsec2)
    radius = radius_arcsec or max(DEFAULT_ARCSEC, DEFAULT_PIXELS * pixel)
    inside = _on_good_pixels(reference, raw, sky)
    ra, dec = reference.ra[inside], reference.dec[inside]
    flux = np.full(len(ra), np.nan) if reference.flux is None else reference.flux[inside]
    hit, found = nearest_pairs((sources.ra, sources.dec), (ra, dec), radius)
    return Matched(
        radius_arcsec=radius,
        flux=sources.flux[:, 0],
        hit=hit,
        reference_flux=flux,
        found=found,
    )


def _on_good_pixels(reference: Reference, raw: RawImage, sky: Sky) -> npt.NDArray[np.bool_]:
    from astropy.coordinates import SkyCoord

    if sky.world is None or not len(reference.ra):
        return np.zeros(len(reference.ra), np.bool_)
    places = SkyCoord(reference.ra, reference.dec, unit="deg", frame="icrs")
    # The inverse of a distortion is found by iteration, which fails far outside; one image's
    # surroundings are enough.
    height, width = raw.image.shape[1:]
    middle = sky.world.pixel_to_world((width - 1) / 2, (height - 1) / 2)
    corner = sky.world.pixel_to_world(-0.5, -0.5)
    near = np.asarray(places.separation(middle.icrs) <= 1.5 * middle.separation(corner))
    inside = np.zeros(len(near), np.bool_)
    if near.any():
        x, y = (np.rint(v) for v in sky.world.world_to_pixel(places[near]))
        on = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        good = np.asarray(np.isfinite(raw.image).all(axis=0))
        on[on] = good[y[on].astype(int), x[on].astype(int)]
        inside[near] = on
    return inside


def nearest_pairs(
    ours: tuple[Numbers, Numbers], theirs: tuple[Numbers, Numbers], radius_arcsec: float
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of ours and of theirs have a partner, each at most one, the nearest pairs first.

    Args:
        ours: right ascension and declination in degrees, (N,) each.
        theirs: the same, (M,).
        radius_arcsec: > 0, and small against the sky.
    """
    hit, found = np.zeros(len(ours[0]), np.bool_), np.zeros(len(theirs[0]), np.bool_)
    if not len(hit) or not len(found):
        return hit, found
    chord = 2 * math.sin(math.radians(radius_arcsec / 3600) / 2)
    one, other = KDTree(_unit_vectors(*ours)), KDTree(_unit_vectors(*theirs))
    pairs = one.sparse_distance_matrix(other, chord, output_type="ndarray")
    for pair in np.sort(pairs, order=["v", "i", "j"]):
        if not hit[pair["i"]] and not found[pair["j"]]:
            hit[pair["i"]] = found[pair["j"]] = True
    return hit, found


def _unit_vectors(ra: Numbers, dec: Numbers) -> Numbers:
    along, up = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(up) * np.cos(along), np.cos(up) * np.sin(along), np.sin(up)], axis=1)


def summarise_matches(matches: Mapping[str, Matched], num_without: int) -> dict[str, Any]:
    """Completeness and purity of each image and of all, also by quarter of flux, faintest first.

    Completeness: the share of the reference's sources that were found. Purity: the share of ours
    that the reference has. None where nothing can be divided. The quarters are those of each
    image, since the images of two instruments have fluxes in two units; sources of unknown flux
    are in none.

    Args:
        matches: by image.
        num_without: images without world coordinates, which are left out.
    """
    rows: list[dict[str, Any]] = [
        {"file": name, **_of_image(matched)} for name, matched in matches.items()
    ]
    return {
        "images_without_coordinates": num_without,
        "completeness": _added([row["completeness"] for row in rows]),
        "purity": _added([row["purity"] for row in rows]),
        "completeness_by_flux": _added_quarters([row["completeness_by_flux"] for row in rows]),
        "purity_by_flux": _added_quarters([row["purity_by_flux"] for row in rows]),
        "images": rows,
    }


def _of_image(matched: Matched) -> dict[str, Any]:
    return {
        "radius_arcsec": round(matched.radius_arcsec, 6),
        "completeness": _share(matched.found),
        "purity": _share(matched.hit),
        "completeness_by_flux": _by_quarter(matched.reference_flux, matched.found),
        "purity_by_flux": _by_quarter(matched.flux, matched.hit),
    }


def _share(flags: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return _counted(int(flags.sum()), len(flags))


def _counted(count: int, of: int) -> dict[str, Any]:
    return {"count": count, "of": of, "share": count / of if of else None}


def _added(shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return _counted(sum(s["count"] for s in shares), sum(s["of"] for s in shares))


def _by_quarter(flux: Numbers, flags: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """By rank, so that the quarters are of one size; four, or none without a known flux."""
    known = np.flatnonzero(np.isfinite(flux))
    ranked = known[np.argsort(flux[known], kind="stable")]
    if not len(ranked):
        return []
    return [
        {"quarter": number, **_range(flux[part]), **_share(flags[part])}
        for number, part in enumerate(np.array_split(ranked, QUARTERS), start=1)
    ]


def _range(flux: Numbers) -> dict[str, Any]:
    ends = (float(flux[0]), float(flux[-1])) if len(flux) else (None, None)
    return dict(zip(("flux_from", "flux_to"), ends, strict=True))


def _added_quarters(images: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    known = [quarters for quarters in images if quarters]
    return [
        {"quarter": number, **_added(parts)}
        for number, parts in enumerate(zip(*known, strict=True), start=1)
    ]
