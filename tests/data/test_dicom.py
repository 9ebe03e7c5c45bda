"""DICOM: slices in the order of their places, multi-frame files, what is refused by name."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from asterion_client.data.dicom import read_dicom, slice_files
from asterion_client.data.raw_image import UnreadableFileError

FIXTURES = Path(__file__).parents[1] / "fixtures"
AXIAL = (1, 0, 0, 0, 1, 0)
VOLUME = np.random.default_rng(1).integers(0, 2000, (5, 4, 6)).astype(np.uint16)
"""Slices from feet to head, rows from front to back, columns from right to left."""


def in_ras(volume: np.ndarray) -> np.ndarray:
    """What a volume of axial slices looks like with its axes to the left, front and head."""
    return volume.transpose(2, 1, 0)[::-1, ::-1]


def blank(shape: tuple[int, ...], series: str = "1.2.3") -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.FrameOfReferenceUID = "1.2.9", "1.2.8"
    data.SeriesInstanceUID = series
    data.PatientName, data.PatientID = "Secret^Person", "HN-4711"
    data.PatientBirthDate, data.PatientSex = "19500101", "O"
    data.StudyID, data.StudyDate, data.StudyTime = "1", "20200101", "120000"
    data.AccessionNumber, data.ReferringPhysicianName = "", ""
    data.Modality = "CT"
    data.Rows, data.Columns = shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelSpacing = [0.5, 0.75]  # between rows, between columns
    data.SliceThickness = 9
    data.RescaleSlope, data.RescaleIntercept = 2, -1000
    return data


def store_series(
    folder: Path,
    volume: np.ndarray = VOLUME,
    *,
    distance: float = 2.5,
    orientation: tuple[float, ...] = AXIAL,
    seed: int = 1,
) -> list[Dataset]:
    """Write one file a slice, in names of random order."""
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    names = list(range(len(volume)))
    np.random.default_rng(seed).shuffle(names)
    slices = []
    for index, (pixels, name) in enumerate(zip(volume, names, strict=True)):
        data = blank(volume.shape)
        data.InstanceNumber = name + 1
        data.ImageOrientationPatient = list(orientation)
        data.ImagePositionPatient = list(np.array([-20, 30, 100]) + normal * index * distance)
        data.PixelData = pixels.tobytes()
        data.save_as(folder / f"{name}.dcm", enforce_file_format=True)
        slices.append(data)
    return slices


def change(path: Path, **values: object) -> None:
    data = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            del data[name]
        else:
            setattr(data, name, value)
    data.save_as(path)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_slices_come_in_the_order_of_their_places_whatever_their_names(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("d") / "s"
    store_series(folder, seed=seed)
    raw = read_dicom(folder, 3)
    np.testing.assert_array_equal(raw.image[0], in_ras(VOLUME.astype(np.float32) * 2 - 1000))


def test_the_distance_comes_from_places_not_from_the_thickness(tmp_path: Path) -> None:
    store_series(tmp_path / "s", distance=2.5)
    raw = read_dicom(tmp_path / "s", 3)
    assert raw.unit == "mm"
    assert raw.spacing == pytest.approx((0.75, 0.5, 2.5))


def test_places_are_taken_along_a_tilted_normal(tmp_path: Path) -> None:
    tilt = np.deg2rad(20)
    orientation = (1, 0, 0, 0, np.cos(tilt), np.sin(tilt))
    store_series(tmp_path / "s", distance=3, orientation=orientation)
    raw = read_dicom(tmp_path / "s", 3)
    assert raw.spacing == pytest.approx((0.75, 0.5, 3), rel=1e-4)
    np.testing.assert_array_equal(raw.image[0], in_ras(VOLUME.astype(np.float32) * 2 - 1000))


def test_sagittal_slices_have_the_same_axes_as_axial_ones(tmp_path: Path) -> None:
    # rows run to the back, columns to the feet; the normal points to the right
    store_series(tmp_path / "s", orientation=(0, 1, 0, 0, 0, -1))
    raw = read_dicom(tmp_path / "s", 3)
    assert raw.spacing == pytest.approx((2.5, 0.75, 0.5))
    expected = (VOLUME.astype(np.float32) * 2 - 1000).transpose(0, 2, 1)[:, ::-1, ::-1]
    np.testing.assert_array_equal(raw.image[0], expected)


@pytest.mark.parametrize("gone", [1, 3])
def test_a_missing_slice_is_refused(tmp_path: Path, gone: int) -> None:
    slices = store_series(tmp_path / "s")
    (tmp_path / "s" / f"{slices[gone].InstanceNumber - 1}.dcm").unlink()
    with pytest.raises(UnreadableFileError, match=r"2\.5 to 5 mm"):
        read_dicom(tmp_path / "s", 3)


def test_a_double_slice_two_series_and_a_scout_are_refused(tmp_path: Path) -> None:
    store_series(tmp_path / "a")
    (tmp_path / "a" / "again.dcm").write_bytes((tmp_path / "a" / "0.dcm").read_bytes())
    with pytest.raises(UnreadableFileError, match="double"):
        read_dicom(tmp_path / "a", 3)
    store_series(tmp_path / "b")
    change(tmp_path / "b" / "0.dcm", SeriesInstanceUID="1.2.4")
    with pytest.raises(UnreadableFileError, match="more than one series"):
        read_dicom(tmp_path / "b", 3)
    store_series(tmp_path / "c")
    change(tmp_path / "c" / "0.dcm", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    with pytest.raises(UnreadableFileError, match="several orientations"):
        read_dicom(tmp_path / "c", 3)
    store_series(tmp_path / "d")
    change(tmp_path / "d" / "0.dcm", ImagePositionPatient=None)
    with pytest.raises(UnreadableFileError, match="no position"):
        read_dicom(tmp_path / "d", 3)


def test_files_without_an_ending_belong_to_the_series(tmp_path: Path) -> None:
    store_series(tmp_path / "s")
    for path in list((tmp_path / "s").iterdir()):
        path.rename(path.with_suffix(""))
    (tmp_path / "s" / "README").write_text("not an image")
    (tmp_path / "s" / "notes.txt").write_text("not an image")
    assert len(slice_files(tmp_path / "s")) == 5
    assert read_dicom(tmp_path / "s", 3).image.shape == (1, 6, 4, 5)


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path: Path) -> None:
    slices = store_series(tmp_path / "s")
    name = tmp_path / "s" / f"{slices[2].InstanceNumber - 1}.dcm"
    change(name, RescaleSlope=3, RescaleIntercept=7)
    expected = VOLUME.astype(np.float32) * 2 - 1000
    expected[2] = VOLUME[2].astype(np.float32) * 3 + 7
    np.testing.assert_array_equal(read_dicom(tmp_path / "s", 3).image[0], in_ras(expected))


def test_where_small_is_white_the_picture_is_inverted(tmp_path: Path) -> None:
    store_series(tmp_path, VOLUME[:1])
    change(tmp_path / "0.dcm", PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    raw = read_dicom(tmp_path / "0.dcm", 2)
    np.testing.assert_array_equal(raw.image[0], (4095.0 - VOLUME[0]) * 2 - 1000)


def multi_frame(path: Path, order: list[int]) -> Path:
    """An enhanced CT: frames in the given order, their places and slopes in groups."""
    data = blank(VOLUME.shape)
    for name in ("PixelSpacing", "RescaleSlope", "RescaleIntercept", "SliceThickness"):
        del data[name]
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    shared, measures, turned = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 9
    turned.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([turned])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in order:
        group, placed, rescale = Dataset(), Dataset(), Dataset()
        placed.ImagePositionPatient = [-20, 30, 100 + 2.5 * index]
        rescale.RescaleSlope, rescale.RescaleIntercept = index + 1, -5
        group.PlanePositionSequence = Sequence([placed])
        group.PixelValueTransformationSequence = Sequence([rescale])
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    data.NumberOfFrames = len(order)
    data.PixelData = VOLUME[order].tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_frames_come_in_the_order_of_their_places(tmp_path: Path, order: list[int]) -> None:
    raw = read_dicom(multi_frame(tmp_path / "a.dcm", order), 3)
    slopes = np.arange(1, 6, dtype=np.float32)[:, np.newaxis, np.newaxis]
    np.testing.assert_array_equal(raw.image[0], in_ras(VOLUME * slopes - 5))
    assert raw.spacing == pytest.approx((0.75, 0.5, 2.5))


def test_a_missing_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"2\.5 to 5 mm"):
        read_dicom(multi_frame(tmp_path / "a.dcm", [0, 1, 3, 4]), 3)


def test_frames_without_places_have_no_size_in_mm(tmp_path: Path) -> None:
    data = blank(VOLUME.shape)
    data.NumberOfFrames = len(VOLUME)
    data.PixelData = VOLUME.tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    raw = read_dicom(tmp_path / "a.dcm", 3)
    assert raw.image.shape == (1, 5, 4, 6)
    assert (raw.unit, raw.spacing) == ("", (1, 1, 1))


def test_a_transfer_syntax_without_decoder_is_refused_by_name(tmp_path: Path) -> None:
    store_series(tmp_path, VOLUME[:1])
    data = pydicom.dcmread(tmp_path / "0.dcm")
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8rubbish!"])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "0.dcm")
    with pytest.raises(UnreadableFileError, match="JPEG-LS Lossless"):
        read_dicom(tmp_path / "0.dcm", 2)


def test_a_run_length_encoded_picture_is_read(tmp_path: Path) -> None:
    store_series(tmp_path, VOLUME[:1])
    data = pydicom.dcmread(tmp_path / "0.dcm")
    data.compress(pydicom.uid.RLELossless)
    data.save_as(tmp_path / "0.dcm")
    raw = read_dicom(tmp_path / "0.dcm", 2)
    np.testing.assert_array_equal(raw.image[0], VOLUME[0] * 2.0 - 1000)


def test_a_structure_set_is_refused_by_name(tmp_path: Path) -> None:
    data = blank((1, 1))
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableFileError, match="RTSTRUCT"):
        read_dicom(tmp_path / "a.dcm", 3)


def test_colour_and_headers_without_pixels_are_refused(tmp_path: Path) -> None:
    store_series(tmp_path, VOLUME[:1])
    change(tmp_path / "0.dcm", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    with pytest.raises(UnreadableFileError, match="colour"):
        read_dicom(tmp_path / "0.dcm", 2)
    store_series(tmp_path, VOLUME[:1])
    change(tmp_path / "0.dcm", PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(UnreadableFileError, match="colour"):
        read_dicom(tmp_path / "0.dcm", 2)
    store_series(tmp_path, VOLUME[:1])
    change(tmp_path / "0.dcm", PixelData=None)
    with pytest.raises(UnreadableFileError, match="decoded"):
        read_dicom(tmp_path / "0.dcm", 2)


def test_a_series_for_a_flat_plan_is_refused(tmp_path: Path) -> None:
    store_series(tmp_path / "s")
    with pytest.raises(UnreadableFileError):
        read_dicom(tmp_path / "s", 2)


@pytest.mark.parametrize("kept", [0, 100, 132, 400, -50])
def test_a_truncated_file_is_unreadable(tmp_path: Path, kept: int) -> None:
    store_series(tmp_path, np.repeat(VOLUME, 9, axis=1)[:1])
    path = tmp_path / "0.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnreadableFileError):
        read_dicom(path, 2)


def test_no_message_holds_what_a_patient_could_be_known_by(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    store_series(tmp_path / "s")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(tmp_path / "s" / "1.dcm", PatientBirthDate="not a date", SeriesInstanceUID="5.5")
    caplog.clear()
    capfd.readouterr()
    with pytest.raises(UnreadableFileError) as caught:
        read_dicom(tmp_path / "s", 3)
    told = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert [s for s in ("Secret", "4711", "not a date", "1.2.3") if s in told] == []


def test_a_real_slice_is_in_hounsfield_units() -> None:
    raw = read_dicom(FIXTURES / "CT_small.dcm", 2)
    data = pydicom.dcmread(FIXTURES / "CT_small.dcm")
    np.testing.assert_array_equal(
        raw.image[0], data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    )
    assert raw.spacing == pytest.approx(tuple(data.PixelSpacing))
    assert raw.unit == "mm"
    assert read_dicom(FIXTURES / "MR_small.dcm", 2).image.shape == (1, 64, 64)


def test_a_header_value_of_the_wrong_kind_is_an_unreadable_file(tmp_path: Path) -> None:
    stored = bytearray((FIXTURES / "CT_small.dcm").read_bytes())
    at = stored.index(b"\x28\x00\x30\x00DS") + 8  # the value of PixelSpacing
    stored[at : at + 2] = b"xx"
    path = tmp_path / "a.dcm"
    path.write_bytes(stored)
    with pytest.raises(UnreadableFileError, match="of the wrong kind") as caught:
        read_dicom(path, 2)
    assert "xx" not in str(caught.value)
