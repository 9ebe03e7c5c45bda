"""The five exposure sites of the chest X-rays, with only normal images to learn from."""

from pathlib import Path

from asterion_sim.prepare_chest import chest_file, write_sites
from asterion_sim.prepare_common import read_arrays


def prepare(data: Path, out: Path) -> list[Path]:
    """Write the five sites for anomaly detection.

    The exposure groups are five equal groups of the *normal* training images; the test part
    holds normal images and pneumonia.

    Args:
        data: the folder of data sets; ``chest-xray-28`` is read.
        out: where the sites' folders go.

    Returns:
        The five folders, from the darkest.

    Raises:
        FileProblemError: the data set is missing.
    """
    arrays = read_arrays(chest_file(data))
    normal = arrays["train_labels"] == 0
    kept = {key: arrays[f"train_{key}"][normal] for key in ("images", "labels")}
    arrays |= {f"train_{key}": values for key, values in kept.items()}
    return write_sites(arrays, out, task="anomaly")
