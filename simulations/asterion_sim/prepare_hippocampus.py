"""Four sites of hippocampus volumes (Medical Segmentation Decathlon), by intensity scale."""

import csv
from pathlib import Path

from asterion_sim.prepare_common import copy_file, source_file, write_csv, write_site

LABELS = {"0": "background", "1": "anterior", "2": "posterior"}


def prepare(data: Path, out: Path) -> list[Path]:
    """Write one folder a site, with the data set's own split.

    Args:
        data: the folder of data sets; ``hippocampus-mr`` is read.
        out: where the sites' folders go.

    Returns:
        The four folders, sorted.

    Raises:
        FileProblemError: a file of the data set is missing.
    """
    root = source_file(data, "hippocampus-mr")
    split = source_file(data, "hippocampus-mr/split.csv")
    records: dict[str, list[tuple[str, str]]] = {}
    with split.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            records.setdefault(row["site"], []).append((row["file"], row["split"]))
    return [_write(root / site, out / site, site, files) for site, files in sorted(records.items())]


def _write(source: Path, folder: Path, site: str, files: list[tuple[str, str]]) -> Path:
    rows = []
    for name, split in sorted(files):
        for part in ("images", "labels"):
            copy_file(source_file(source, f"{part}/{name}"), folder / part / name)
        rows.append((f"images/{name}", f"labels/{name}", name.removesuffix(".nii.gz"), split))
    write_csv(folder / "manifest.csv", ("path", "label", "group", "split"), rows)
    settings = {"format": "nifti", "manifest": "manifest.csv", "labels": LABELS}
    return write_site(folder, name=site, task="segmentation", data=settings)
