"""Radio galaxies of the MiraBest set as four redshift bands: Fanaroff-Riley class I against II."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_sim.prepare_common import read_arrays, source_file, write_arrays, write_site

SITES = ("redshift_1", "redshift_2", "redshift_3", "redshift_4")
EDGES = (0.12, 0.18, 0.25)
TEST_FRACTION = 0.2
SIDE = 64
LABELS = {"1": "fr1", "2": "fr2"}


def prepare(data: Path, out: Path) -> list[Path]:
    """Write one folder a redshift band, from the nearest.

    Hybrid sources are left out. Images are cut to their central 128 pixels and averaged two by
    two to 64. A fifth of each class of each band, by a hash of the source's position, is its test.

    Args:
        data: the folder of data sets; ``radio-galaxies`` is read.
        out: where the sites' folders go.

    Returns:
        The four folders.

    Raises:
        FileProblemError: the data set is missing.
    """
    arrays = read_arrays(source_file(data, "radio-galaxies/radio_galaxies_150.npz"))
    classes = arrays["code"].astype(np.int64) // 100
    bands = np.digitize(arrays["redshift"].astype(np.float64), EDGES)
    images = shrink(np.asarray(arrays["images"], np.uint8))
    test = _held_out(arrays["ra"], arrays["dec"], bands * 10 + classes)
    folders = []
    for number, site in enumerate(SITES):
        inside = (bands == number) & (classes < 3)
        sources = {
            "images": images[inside],
            "labels": classes[inside],
            "split": np.where(test[inside], "test", "train"),
        }
        write_arrays(out / site / "images.npz", sources)
        settings = {"format": "npz", "labels": LABELS}
        folders.append(write_site(out / site, name=site, task="classification", data=settings))
    return folders


def shrink(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Cut to the central 128 x 128 pixels and average two by two.

    Args:
        images: uint8, shape (N, H, W), H and W at least 128.

    Returns:
        uint8, shape (N, 64, 64), rounded.
    """
    top, left = ((size - 2 * SIDE) // 2 for size in images.shape[1:])
    centre = images[:, top : top + 2 * SIDE, left : left + 2 * SIDE].astype(np.float32)
    means = centre.reshape(len(images), SIDE, 2, SIDE, 2).mean(axis=(2, 4))
    small: npt.NDArray[np.uint8] = np.rint(means).astype(np.uint8)
    return small


def _held_out(
    ra: npt.NDArray[np.generic], dec: npt.NDArray[np.generic], strata: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which sources are tests: the first fifth of each stratum in the order of their hashes."""
    names = [f"{a:.5f} {d:.5f}" for a, d in zip(ra, dec, strict=True)]
    hashes = np.array([hashlib.sha256(name.encode()).hexdigest() for name in names])
    chosen = np.zeros(len(hashes), bool)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        ordered = members[np.argsort(hashes[members])]
        chosen[ordered[: round(TEST_FRACTION * len(members))]] = True
    return chosen
