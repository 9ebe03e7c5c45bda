"""Masks of DICOM images as DICOM segmentations (highdicom)."""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_client.data.dicom import slice_files
from asterion_client.data.dicom_file import Dataset, guarded_header
from asterion_client.data.dicom_seg import SEGMENTATION
from asterion_client.data.raw_image import UnreadableFileError
from asterion_shared.errors import MissingExtraError
from asterion_shared.files import write_atomically

NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""Without these nothing can refer to an image."""

EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
         "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName")  # fmt: skip
"""What the standard lets stand empty, and a file may lack."""

SERIES_NUMBER = 9900
"""Of the series that a segmentation makes; beyond those of scanners."""


@dataclass(frozen=True, slots=True)
class Author:
    """What a segmentation says of the model that made it.

    Attributes:
        name: of the release.
        version: of the release.
        software: version of the program.
    """

    name: str
    version: str
    software: str


def refuse_segmentation(path: Path) -> None:
    """Refuse what is a mask already.

    Raises:
        UnreadableFileError: not DICOM, or a segmentation.
        MissingExtraError: pydicom is not installed.
    """
    first = slice_files(path)[:1] if path.is_dir() else [path]
    with guarded_header(path.name):
        for header in _headers(first):
            if str(header.get("SOPClassUID", "")) == SEGMENTATION:
                msg = f"{path.name} is a segmentation and no image"
                raise UnreadableFileError(msg)


def write_segmentation(
    path: Path,
    mask: npt.NDArray[np.int16],
    source: Path,
    order: Sequence[int],
    classes: Sequence[str],
    author: Author,
) -> None:
    """Write a mask as a DICOM segmentation that refers to the slices it was made from.

    Patient, study and frame of reference are those of the image, so that a viewer lays it over
    it. Segment N is class N of the plan. Slices without any are left out.

    Args:
        path: ends in ``.dcm``; replaced atomically.
        mask: class numbers ``(slices, rows, columns)``, the slices in the order of their places.
        source: the image's file, or its folder.
        order: which stored frame each slice is.
        classes: names; the first is background and no segment.
        author: the model.

    Raises:
        UnreadableFileError: the image lacks what a segmentation must refer to.
        MissingExtraError: highdicom is not installed.
        DiskProblemError: the file cannot be written.
    """
    stored = np.empty(mask.shape, np.uint8)
    stored[list(order)] = mask
    with guarded_header(source.name):
        images = _headers(slice_files(source) if source.is_dir() else [source])
        for image in images:
            _complete(image, source.name)
        if len(images) > 1 and len(images) != len(stored):
            msg = f"{source.name}: several of its files hold several frames; store them apart"
            raise UnreadableFileError(msg)
        made = _segmentation(images, stored, classes, author)
        buffer = io.BytesIO()
        made.save_as(buffer)
    write_atomically(path, buffer.getvalue())


def _headers(files: Sequence[Path]) -> list[Dataset]:
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError(package="pydicom", extra="medical") from None
    from pydicom.errors import InvalidDicomError

    try:
        return [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    except InvalidDicomError:
        msg = f"{files[0].name} or one of its series is not a readable DICOM file"
        raise UnreadableFileError(msg) from None


def _complete(image: Dataset, name: str) -> None:
    missing = [key for key in NEEDED if not image.get(key)]
    if missing:
        msg = f"{name} has no {missing[0]}, so that no DICOM segmentation can refer to it"
        raise UnreadableFileError(msg)
    for key in EMPTY:
        if key not in image:
            setattr(image, key, "")


def _segmentation(
    images: Sequence[Dataset], mask: npt.NDArray[np.uint8], classes: Sequence[str], author: Author
) -> Any:
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError(package="highdicom", extra="medical") from None
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)  # it quotes headers
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=author.name,
        family=codes.DCM.ArtificialIntelligence,
        version=author.version,
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            # The plan names its classes in words; a code of our own claims no more than that.
            segmented_property_type=highdicom.sr.CodedConcept(
                value=f"class-{number}", scheme_designator="99ASTERION", meaning=name
            ),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes)
        if number > 0
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote header values
        return highdicom.seg.Segmentation(
            source_images=list(images),
            pixel_array=mask,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="Asterion",
            manufacturer_model_name=author.name,
            software_versions=author.software,
            device_serial_number=author.version,
            content_label="PREDICTION",
            series_description=f"prediction of {author.name}"[:64],
            omit_empty_frames=bool(mask.any()),
        )
