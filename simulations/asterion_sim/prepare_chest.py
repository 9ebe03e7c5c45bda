"""Chest X-rays of PneumoniaMNIST as five sites of different exposure.

The set carries no hospital. Exposure is the mean pixel value; its edges come from the training
images, five equal groups, and the test images fall where the same edges put them.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_sim.prepare_common import read_arrays, source_file, write_arrays, write_site

SITES = ("exposure_1", "exposure_2", "exposure_3", "exposure_4", "exposure_5")
LABELS = {"0": "normal", "1": "pneumonia"}

Array = npt.NDArray[np.generic]


def prepare(data: Path, out: Path) -> list[Path]:
    """Write the five sites for classification, both classes in the training part.

    Args:
        data: the folder of data sets; ``chest-xray-28`` is read.
        out: where the sites' folders go.

    Returns:
        The five folders, from the darkest.

    Raises:
        FileProblemError: the data set is missing.
    """
    return write_sites(read_arrays(chest_file(data)), out, task="classification")


def chest_file(data: Path) -> Path:
    """The data set's file.

    Raises:
        FileProblemError: it is missing.
    """
    return source_file(data, "chest-xray-28/chest_xray_28.npz")


def write_sites(arrays: dict[str, Array], out: Path, *, task: str) -> list[Path]:
    """Group images by exposure and write one npz a site.

    Args:
        arrays: ``train_images`` uint8 (N, 28, 28), ``train_labels`` (N,) and the same of ``test``.
        out: where the sites' folders go.
        task: what the sites' settings say.
    """
    levels = {part: arrays[f"{part}_images"].mean(axis=(1, 2)) for part in ("train", "test")}
    edges = np.quantile(levels["train"], [0.2, 0.4, 0.6, 0.8])
    groups = {part: np.digitize(level, edges) for part, level in levels.items()}
    folders = []
    for number, site in enumerate(SITES):
        inside = {part: group == number for part, group in groups.items()}
        split = np.repeat(["train", "test"], [inside["train"].sum(), inside["test"].sum()])
        joined = {
            key: np.concatenate([arrays[f"{p}_{key}"][inside[p]] for p in ("train", "test")])
            for key in ("images", "labels")
        }
        write_arrays(out / site / "images.npz", {**joined, "split": split})
        settings = {"format": "npz", "labels": LABELS}
        folders.append(write_site(out / site, name=site, task=task, data=settings))
    return folders
