"""A site whose data are full of markers, and the plans that are carried out on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from astropy.io import fits
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from tests.leaks.markers import CELLS, PIXELS, TEXTS

from asterion_shared.operator_keys import make_operator_key
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate
from asterion_shared.signed_plan import PlanSignature, read_operator_key, sign_plan
from asterion_sim.local_federation import CONSENT, OPERATOR

NUM_IMAGES, NUM_BROKEN = 36, 3
LABELS = {f"{TEXTS['label']}0": "well", f"{TEXTS['label']}1": "ill"}


def plan_of(kind: str, **other: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "leaks",
        "task": "classification",
        "data": {"classes": ["well", "ill"], "patch_size": [16, 16]},
        "model": {"name": "residual", "widths": [4]},
        "rounds": {"count": 1, "deadline_seconds": 60.0},
        "local": {"amount": 2, "batch_size": 4},
    }
    if kind == "table":
        values |= {"data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
                   "model": {"name": "logistic"}}  # fmt: skip
    return validate(Plan, values | other, "plan")


def refused_plans(kind: str) -> dict[tuple[str, str], Plan]:
    """Plans that a site with hardly any budget refuses, by code and stage of the refusal."""
    wild = {"amount": 30, "batch_size": 4, "learning_rate": 10.0,
            "optimiser": "sgd", "momentum": 0.99}  # fmt: skip
    pulled = {"name": "fedprox", "mu": 100.0}
    privacy = {"protects": "record", "noise": "site", "clip_norm": 1.0, "noise_multiplier": 2.0,
               "sampling_rate": 0.2, "epsilon_limit": 20.0}  # fmt: skip
    scaled = {"scale": {"a": [10.0, 10.0], "b": [3.0, 2.0]}} if kind == "table" else {}
    data = plan_of(kind).data.model_dump(exclude_unset=True) | scaled
    return {
        ("unsigned_plan", "receiving"): plan_of(kind, name="unsigned"),
        ("diverged", "training"): plan_of(kind, name="wild", local=wild, algorithm=pulled),
        ("budget_spent", "sending"): plan_of(kind, name="costly", data=data, privacy=privacy),
    }


def pixels(number: int) -> np.ndarray:
    image = np.random.default_rng(number).integers(0, 500, (16, 16)).astype(np.uint16)
    image[3, 4:8] = PIXELS
    return image


def write_dicom(path: Path, number: int) -> None:
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    uid = f"{TEXTS['uid']}.{number}"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid
    data.SeriesInstanceUID = data.StudyInstanceUID = data.FrameOfReferenceUID = uid
    data.PatientName, data.PatientID = f"{TEXTS['patient']}^A", f"{TEXTS['patient']}{number}"
    data.PatientBirthDate, data.StudyDate = TEXTS["birth"], TEXTS["study day"]
    data.Modality, data.Rows, data.Columns = "CT", 16, 16
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelSpacing, data.SliceThickness = [0.5, 0.75], 9
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    data.RescaleSlope, data.RescaleIntercept = 2, -1000
    data.PixelData = pixels(number).tobytes()
    data.save_as(path, enforce_file_format=True)


def write_fits(path: Path, number: int) -> None:
    header = fits.Header()
    header["OBSERVER"], header["OBJECT"] = TEXTS["observer"], TEXTS["target"]
    header["RA"], header["DEC"] = float(TEXTS["position"]), -float(TEXTS["position"])
    header["DATE-OBS"] = "2019-07-13"
    fits.PrimaryHDU(pixels(number).astype(np.float32), header).writeto(path)


def write_site(folder: Path, kind: str, name: str = "north") -> Path:
    """A site with data of a kind; the path of its settings, which name no coordinator."""
    data = folder / TEXTS["folder"]
    data.mkdir(parents=True)
    names = "".join(f'"{ours}" = "{theirs}"\n' for ours, theirs in LABELS.items())
    text = (
        f'name = "{name}"\ntask = "classification"\n[data]\nformat = "{kind}"\n'
        f'folder = "{TEXTS["folder"]}"\nmax_bad_fraction = 0.3\n'
    )
    if kind == "table":
        columns = [f"{TEXTS['column']}{i}" for i in range(2)]
        rows = [",".join([*columns, "house", "who"])]
        for n in range(NUM_IMAGES + NUM_BROKEN):
            cells = [*map(str, CELLS)] if n % 5 == 0 else [f"{n}.5", f"{n % 7}.25"]
            cells = [f"not{TEXTS['patient']}", "?"] if n >= NUM_IMAGES else cells
            group = f"{TEXTS['manifest']}{n}"
            rows.append(",".join([*cells, f"{TEXTS['label']}{n % 2}", group]))
        (data / f"{TEXTS['file']}.csv").write_text("\n".join(rows) + "\n")
        text += 'label_column = "house"\ngroup_column = "who"\n[data.columns]\n'
        text += "".join(f'"{own}" = "{ours}"\n' for own, ours in zip(columns, "ab", strict=True))
    else:
        write, ending = (write_dicom, "dcm") if kind == "dicom" else (write_fits, "fits")
        lines = ["path,label,group,split"]
        for n in range(NUM_IMAGES + NUM_BROKEN):
            path = data / f"{TEXTS['file']}{n}.{ending}"
            write(path, n)
            if n >= NUM_IMAGES:
                path.write_bytes(path.read_bytes()[: 300 + 100 * (n - NUM_IMAGES)])
            lines.append(f"{path.name},{TEXTS['label']}{n % 2},{TEXTS['manifest']}{n},")
        (data / "list.csv").write_text("\n".join(lines) + "\n")
        text += 'manifest = "list.csv"\n'
    (folder / "site.toml").write_text(f"{text}[data.labels]\n{names}")
    return folder / "site.toml"


def consenting(folder: Path, kind: str) -> Path:
    """A site without a connection that runs what an operator signs; its settings' path."""
    path = write_site(folder, kind)
    with path.open("a") as file:
        file.write(CONSENT)
    _, public, _ = make_operator_key(folder.parent / "operator", OPERATOR)
    (folder / "operators").mkdir()
    (folder / "operators" / public.name).write_bytes(public.read_bytes())
    return path


def signed_for(folder: Path, plan: Plan, run: str) -> PlanSignature:
    """The signature of the operator of :func:`consenting`."""
    key = folder.parent / "operator" / f"{OPERATOR}.key"
    return sign_plan(plan, run, OPERATOR, read_operator_key(key))
