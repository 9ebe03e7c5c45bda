"""Masks of DICOM images: segmentation objects as highdicom writes them, and NIfTI."""

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from asterion_client.data.dicom import read_dicom
from asterion_client.data.dicom_seg import read_dicom_with_mask
from asterion_client.data.raw_image import UnreadableFileError

SHAPE = (5, 8, 6)
AXIAL = (1, 0, 0, 0, 1, 0)


def store_series(folder: Path, distance: float = 2.5) -> list[pydicom.Dataset]:
    folder.mkdir()
    slices = []
    for index in range(SHAPE[0]):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.SOPClassUID = pydicom.uid.CTImageStorage
        data.SOPInstanceUID = pydicom.uid.generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.9", "1.2.3"
        data.FrameOfReferenceUID = "1.2.8"
        data.PatientName, data.PatientID, data.AccessionNumber = "", "", ""
        data.PatientBirthDate, data.PatientSex, data.ReferringPhysicianName = "", "", ""
        data.StudyID, data.StudyDate, data.StudyTime = "1", "20200101", "120000"
        data.Modality, data.InstanceNumber = "CT", index + 1
        data.Rows, data.Columns = SHAPE[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PixelSpacing, data.SliceThickness = [0.5, 0.75], distance
        data.ImageOrientationPatient = list(AXIAL)
        data.ImagePositionPatient = [-20, 30, 100 + index * distance]
        data.PixelData = np.full(SHAPE[1:], index, np.uint16).tobytes()
        data.save_as(folder / f"{9 - index}.dcm", enforce_file_format=True)
        slices.append(data)
    return slices


def store_mask(
    path: Path, slices: list[pydicom.Dataset], mask: np.ndarray, *, empty: bool = False
) -> Path:
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"part {number}",
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in (1, 2)
    ]
    segmentation = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=mask.astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=pydicom.uid.generate_uid(),
        series_number=2,
        sop_instance_uid=pydicom.uid.generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=not empty,
    )
    segmentation.save_as(path)
    return path


def drawn() -> np.ndarray:
    mask = np.zeros(SHAPE, np.int64)
    mask[1:3, 2:5, 1:3] = 1
    mask[2, 0:2, 4:6] = 2  # slices 0, 3 and 4 are empty
    return mask


def in_ras(volume: np.ndarray) -> np.ndarray:
    return volume.transpose(2, 1, 0)[::-1, ::-1]


@pytest.mark.parametrize("empty", [False, True])
def test_a_segmentation_comes_back_equal(tmp_path: Path, *, empty: bool) -> None:
    slices = store_series(tmp_path / "s")
    path = store_mask(tmp_path / "m.dcm", slices, drawn(), empty=empty)
    raw = read_dicom_with_mask(tmp_path / "s", path, 3)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.mask, in_ras(drawn()))
    np.testing.assert_array_equal(raw.image, read_dicom(tmp_path / "s", 3).image)


def test_the_folder_of_a_segmentation_stands_for_it(tmp_path: Path) -> None:
    slices = store_series(tmp_path / "s")
    (tmp_path / "m").mkdir()
    store_mask(tmp_path / "m" / "1.dcm", slices, drawn())
    raw = read_dicom_with_mask(tmp_path / "s", tmp_path / "m", 3)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.mask, in_ras(drawn()))
    store_mask(tmp_path / "m" / "2.dcm", slices, drawn())
    with pytest.raises(UnreadableFileError, match="2 DICOM files"):
        read_dicom_with_mask(tmp_path / "s", tmp_path / "m", 3)


def test_one_slice_has_a_flat_mask(tmp_path: Path) -> None:
    slices = store_series(tmp_path / "s")
    path = store_mask(tmp_path / "m.dcm", slices[2:3], drawn()[2:3])
    raw = read_dicom_with_mask(tmp_path / "s" / "7.dcm", path, 2)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.mask, drawn()[2])


def test_a_segmentation_of_another_series_is_refused(tmp_path: Path) -> None:
    store_series(tmp_path / "s", distance=2.5)
    others = store_series(tmp_path / "t", distance=4)
    path = store_mask(tmp_path / "m.dcm", others, drawn())
    with pytest.raises(UnreadableFileError, match="on no slice"):
        read_dicom_with_mask(tmp_path / "s", path, 3)


def test_an_image_is_no_mask(tmp_path: Path) -> None:
    store_series(tmp_path / "s")
    with pytest.raises(UnreadableFileError, match="not a DICOM segmentation"):
        read_dicom_with_mask(tmp_path / "s", tmp_path / "s" / "7.dcm", 3)


def test_a_nifti_mask_is_laid_on_the_series_by_its_orientation(tmp_path: Path) -> None:
    store_series(tmp_path / "s")
    # columns run to the left, rows to the back, slices to the head
    affine = np.diag([-0.75, -0.5, 2.5, 1])
    stored = nibabel.Nifti1Image(drawn().transpose(2, 1, 0).astype(np.uint8), affine)
    nibabel.save(stored, tmp_path / "m.nii.gz")
    raw = read_dicom_with_mask(tmp_path / "s", tmp_path / "m.nii.gz", 3)
    assert raw.mask is not None
    np.testing.assert_array_equal(raw.mask, in_ras(drawn()))


def test_a_flat_nifti_mask_is_refused(tmp_path: Path) -> None:
    store_series(tmp_path / "s")
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 8), np.uint8), np.eye(4)), tmp_path / "m.nii")
    with pytest.raises(UnreadableFileError, match="DICOM SEG"):
        read_dicom_with_mask(tmp_path / "s" / "7.dcm", tmp_path / "m.nii", 2)
