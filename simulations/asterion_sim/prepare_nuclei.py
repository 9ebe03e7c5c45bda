"""Cell nuclei under five stains and microscopes: what is bright in one is dark in another."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_sim.prepare_common import read_arrays, source_file, write_arrays, write_site

SITES = ("brightfield", "fluo_360", "fluo_520", "fluo_small", "histology")
LABELS = {"0": "background", "1": "nucleus"}


def prepare(data: Path, out: Path) -> list[Path]:
    """Write one folder a stain and microscope, with the data set's own split.

    Crops are averaged two by two to 128 pixels; a pixel is nucleus where at least half of its
    four were. The group of a crop is the source image that it was cut from.

    Args:
        data: the folder of data sets; ``nuclei`` is read.
        out: where the sites' folders go.

    Returns:
        The five folders, in the order of :data:`SITES`.

    Raises:
        FileProblemError: a file of the data set is missing.
    """
    return [_write(source_file(data, f"nuclei/{site}.npz"), out / site, site) for site in SITES]


def halve(stack: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Average two by two pixels.

    Args:
        stack: shape (N, H, W), H and W even.

    Returns:
        float32, shape (N, H / 2, W / 2).
    """
    count, height, width = stack.shape
    values = stack.astype(np.float32).reshape(count, height // 2, 2, width // 2, 2)
    means: npt.NDArray[np.float32] = values.mean(axis=(2, 4))
    return means


def _write(source: Path, folder: Path, site: str) -> Path:
    arrays = read_arrays(source)
    write_arrays(
        folder / "images.npz",
        {
            "images": np.rint(halve(arrays["images"])).astype(np.uint8),
            "masks": (halve(arrays["instances"].astype(bool)) >= 0.5).astype(np.uint8),
            "group": arrays["source"],
            "split": np.where(arrays["is_test"].astype(bool), "test", "train"),
        },
    )
    settings = {"format": "npz", "labels": LABELS}
    return write_site(folder, name=site, task="segmentation", data=settings)
