"""Markers that are planted in a site's data, and the search for them in bytes."""

import base64
import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np

TEXTS = {
    "patient": "QuillhavenZ",
    "birth": "19310227",
    "study day": "20190713",
    "uid": "1.2.826.77.31415.9265",
    "observer": "ObserverKrabat",
    "position": "213.70733",
    "target": "TargetNGCqv77",
    "file": "skanVeryOwnName",
    "folder": "WardSevenFolder",
    "label": "LabelOfTheHouse",
    "column": "ColumnHaemoQX",
    "manifest": "GroupInManifestQ",
    "home": "HomeOfTheSiteZr",
}
"""``home`` is in the path of the site's own folder: a site may tell it to its own terminal."""

PIXELS = (7321, 1234, 30011, 911)
CELLS = (1357.25, 8642.5)
NUMBERS = {"pixels": PIXELS, "rescaled pixels": tuple(2 * p - 1000 for p in PIXELS), "row": CELLS}


def forms() -> dict[str, dict[str, bytes]]:
    """Each marker in the forms in which it could leave."""
    found: dict[str, dict[str, bytes]] = {}
    for name, text in TEXTS.items():
        plain = text.encode()
        found[name] = {
            "utf-8": plain,
            "utf-16-le": text.encode("utf-16-le"),
            "utf-16-be": text.encode("utf-16-be"),
            "latin-1": text.encode("latin-1"),
            "hex": plain.hex().encode(),
            "HEX": plain.hex().upper().encode(),
        }
        for shift in range(3):
            # The first and last digits of base64 depend on what stands beside the marker.
            coded = base64.b64encode(b"\0" * shift + plain + b"\0" * 3)
            found[name][f"base64 {shift}"] = coded[
                4 if shift else 0 : (shift + len(plain)) // 3 * 4
            ]
    for name, values in NUMBERS.items():
        kinds = ["<f4", ">f4", "<f8", ">f8"]
        kinds += ["<i2", ">i2"] if all(float(v).is_integer() for v in values) else []
        found[name] = {k: np.array(values).astype(k).tobytes() for k in kinds}
    return found


def found_in(places: Iterable[tuple[str, bytes]]) -> set[tuple[str, str, str]]:
    """Marker, form and place of every marker that stands somewhere."""
    known = forms()
    return {
        (marker, form, place)
        for place, content in places
        for marker, shapes in known.items()
        for form, needle in shapes.items()
        if needle in content
    }


def files_below(folder: Path) -> list[tuple[str, bytes]]:
    """Every file in a folder with its content, unpacked, and all of their names as a place."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = "\n".join(str(path.relative_to(folder)) for path in paths).encode()
    return [("names", names), *((path.name, _content(path)) for path in paths)]


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content
