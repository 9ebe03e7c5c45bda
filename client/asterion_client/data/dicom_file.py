"""One DICOM file: its pixels in their real unit, and where its frames lie."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import UnreadableFileError
from asterion_shared.errors import MissingExtraError

if TYPE_CHECKING:
    import pydicom

Dataset: TypeAlias = "pydicom.Dataset"

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


@dataclass(frozen=True, slots=True)
class Plane:
    """Where a frame lies in the patient's frame, LPS.

    Attributes:
        orientation: unit vectors along a row and along a column, shape (6,).
        position: centre of the first pixel, mm, shape (3,).
    """

    orientation: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit vector at right angles to the plane."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def place(self) -> float:
        """Place along the normal, mm."""
        return float(self.normal @ self.position)


@contextmanager
def guarded_header(name: str) -> Iterator[None]:
    """Turn what pydicom raises at odd header values into an unreadable file, and quote none.

    Values are parsed when they are first looked at, so this surrounds all use of a dataset.

    Raises:
        UnreadableFileError: a value is not what the standard says.
    """
    # Its warnings and log lines quote header values, which must reach no log.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        NotImplementedError,
        TypeError,
        ValueError,
    ) as error:
        msg = f"{name}: its header holds a value of the wrong kind ({type(error).__name__})"
        raise UnreadableFileError(msg) from None


def read_file(path: Path) -> Dataset:
    """Read a file's header and stored pixels.

    Raises:
        UnreadableFileError: not DICOM, or a structure set (contours are not read).
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise MissingExtraError(package="pydicom", extra="medical") from None
    try:
        with warnings.catch_warnings():
            # Its warnings quote header values, which must reach no log.
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path)
    except (InvalidDicomError, OSError, EOFError, ValueError, AttributeError, KeyError) as error:
        msg = f"{path.name} is not a readable DICOM file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None
    if str(data.get("SOPClassUID", "")) == STRUCTURE_SET:
        msg = f"{path.name} is an RTSTRUCT; contours are not read: convert it to DICOM SEG or NIfTI"
        raise UnreadableFileError(msg)
    return data


def header_text(path: Path, keyword: str) -> str:
    """What a file's header says of one attribute, without reading its pixels; empty for nothing.

    Raises:
        UnreadableFileError: not DICOM, or an odd value.
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise MissingExtraError(package="pydicom", extra="medical") from None
    try:
        with guarded_header(path.name):
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[keyword])
            return str(data.get(keyword, "") or "").strip()
    except (InvalidDicomError, OSError) as error:
        msg = f"{path.name} is not a readable DICOM file ({type(error).__name__})"
        raise UnreadableFileError(msg) from None


def pixels(data: Dataset, name: str) -> npt.NDArray[np.float32]:
    """Frames of a grey image in their real unit, ``(frames, rows, columns)``.

    Slope and intercept are applied, of each frame where it has its own, and pictures whose small
    values are white (MONOCHROME1) are inverted.

    Raises:
        UnreadableFileError: no pixels, colour, or a transfer syntax without a decoder here.
    """
    palette = data.get("PhotometricInterpretation") == "PALETTE COLOR"
    if int(data.get("SamplesPerPixel", 1)) != 1 or palette:
        msg = f"{name} is a colour image; only grey images are read"
        raise UnreadableFileError(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = np.asarray(data.pixel_array, np.float32)
    except (
        AttributeError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
        msg = (
            f"{name}: its pixels cannot be decoded (transfer syntax "
            f"{getattr(syntax, 'name', 'unknown')}, {type(error).__name__}); install a decoder, "
            "or store it uncompressed"
        )
        raise UnreadableFileError(msg) from None
    frames = stored if stored.ndim == 3 else stored[np.newaxis]
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        signed = int(data.get("PixelRepresentation", 0))
        frames = np.float32(-1 if signed else 2 ** int(data.BitsStored) - 1) - frames
    lines = [_rescale(data, index) for index in range(len(frames))]
    slopes, intercepts = np.array(lines, np.float32).T[:, :, np.newaxis, np.newaxis]
    rescaled: npt.NDArray[np.float32] = frames * slopes + intercepts
    return rescaled


def pixel_spacing(data: Dataset) -> tuple[float | None, float | None]:
    """Distance between rows and between columns, mm; None when the file does not say."""
    sources = [data, *(part for part in [group_item(data, 0, "PixelMeasuresSequence")] if part)]
    for tag in SPACING_TAGS:
        for source in sources:
            values = source.get(tag)
            if values is not None and len(values) == 2 and min(values) > 0:
                return float(values[0]), float(values[1])
    return None, None


def plane_of(data: Dataset, frame: int) -> Plane | None:
    """Where a frame lies; None when the file does not say."""
    placed, turned = (
        group_item(data, frame, name) or data
        for name in ("PlanePositionSequence", "PlaneOrientationSequence")
    )
    position = placed.get("ImagePositionPatient")
    orientation = turned.get("ImageOrientationPatient")
    if position is None or orientation is None or (len(position), len(orientation)) != (3, 6):
        return None
    if placed is data and int(data.get("NumberOfFrames", 1)) > 1:
        return None  # one position for many frames
    return Plane(np.array(orientation, np.float64), np.array(position, np.float64))


def group_item(data: Dataset, frame: int, name: str) -> Any:
    """The item of a functional group, the frame's own or the shared one; None without either."""
    own = data.get("PerFrameFunctionalGroupsSequence") or ()
    shared = data.get("SharedFunctionalGroupsSequence") or ()
    for group in (*own[frame : frame + 1], *shared[:1]):
        sequence = group.get(name)
        if sequence:
            return sequence[0]
    return None


def _rescale(data: Dataset, frame: int) -> tuple[float, float]:
    source = group_item(data, frame, "PixelValueTransformationSequence") or data
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    return (
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
    )
