"""Tiles of five instruments' sky fields; half of the test tiles carry a drawn cosmic-ray hit."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_shared.randomness import stream
from asterion_sim.prepare_common import source_file, write_arrays, write_site
from asterion_sim.prepare_sky import SITES
from asterion_sim.sky_field import read_sky_field

TILE = 32
"""Side of a tile, pixels."""

TRAIN_STRIDE = 16
"""Training tiles overlap by half; test tiles do not overlap."""

TEST_FRACTION = 0.25
TRACK_LENGTH = (6.0, 16.0)
"""Shortest and longest track, pixels."""

TRACK_PEAK_RMS = (80.0, 400.0)
"""Faintest and brightest track, in units of the field's sky noise (log-uniform between)."""

SEED = 21

Float = npt.NDArray[np.float32]


def prepare(data: Path, out: Path) -> list[Path]:
    """Write one folder an instrument.

    A field is cut across its longer side: the first part is for training (every tile counts as
    normal), the last quarter is the test, and one tile between them is not used.

    Args:
        data: the folder of data sets; ``sky-fields`` is read.
        out: where the sites' folders go.

    Returns:
        The five folders, in the order of :data:`asterion_sim.prepare_sky.SITES`.

    Raises:
        FileProblemError: a field is missing.
        MissingExtraError: astropy is not installed.
    """
    return [
        _write(source_file(data, f"sky-fields/{site}.fits"), out / site, site) for site in SITES
    ]


def _write(source: Path, folder: Path, site: str) -> Path:
    field = read_sky_field(source)
    # Lay the longer side along the columns; a tile may be turned, so nothing is lost.
    image = field.image if field.image.shape[1] >= field.image.shape[0] else field.image.T
    border = round((1 - TEST_FRACTION) * image.shape[1])
    train = cut_tiles(image[:, : border - TILE], TRAIN_STRIDE)
    test = cut_tiles(image[:, border:], TILE)
    masks = np.zeros((len(train) + len(test), TILE, TILE), np.uint8)
    draws = stream(SEED, round_=0, site=site, purpose="cosmic rays")
    hit = np.sort(draws.permutation(len(test))[: len(test) // 2])
    for number in hit:
        added = draw_track(draws, field.sky_rms)
        test[number] += added
        masks[len(train) + number] = added > field.sky_rms
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "images": np.concatenate([train, test]),
        "labels": np.asarray(masks.any(axis=(1, 2)), np.int64),
        "masks": masks,
        "split": np.repeat(["train", "test"], [len(train), len(test)]),
    }
    write_arrays(folder / "tiles.npz", arrays)
    settings = {"format": "npz", "labels": {"0": "normal", "1": "cosmic_ray"}}
    return write_site(folder, name=site, task="anomaly", data=settings)


def cut_tiles(image: Float, stride: int) -> Float:
    """Every whole tile on a grid.

    Args:
        image: float32, shape (H, W), at least one tile wide and high.
        stride: distance between the corners of neighbouring tiles, pixels.

    Returns:
        float32, shape (N, 32, 32); a copy.
    """
    views = np.lib.stride_tricks.sliding_window_view(image, (TILE, TILE))[::stride, ::stride]
    return np.array(views.reshape(-1, TILE, TILE), np.float32)


def draw_track(draws: np.random.Generator, sky_rms: float) -> Float:
    """The light that one cosmic ray leaves in a tile.

    A straight track, about one pixel wide (a hit is not blurred by the telescope), of even
    brightness, wholly inside the tile.

    Args:
        draws: where its place, angle, length and brightness come from.
        sky_rms: deviation of the sky noise, in the image's unit, > 0.

    Returns:
        float32, shape (32, 32), >= 0, in the image's unit.
    """
    length = draws.uniform(*TRACK_LENGTH)
    angle = draws.uniform(0, np.pi)
    along = np.array([np.sin(angle), np.cos(angle)])
    reach = np.abs(along) * length / 2 + 1
    centre = draws.uniform(reach, TILE - 1 - reach)
    offsets = np.moveaxis(np.indices((TILE, TILE)), 0, -1) - centre
    beyond = np.maximum(np.abs(offsets @ along) - length / 2, 0)
    aside = offsets @ np.array([along[1], -along[0]])
    low, high = np.log(TRACK_PEAK_RMS)
    peak = np.exp(draws.uniform(low, high)) * sky_rms
    profile = np.exp(-0.5 * (beyond**2 + aside**2) / 0.5**2)
    return np.where(profile > 0.01, peak * profile, 0).astype(np.float32)
