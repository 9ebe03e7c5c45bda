"""Nothing of a site's data stands in what leaves it, or in what its processes say.

Markers are planted in pixels, headers, names and columns, a run goes over the real link and over
Flower's messages, and every byte that went out, every line of the log and every file at the
coordinator is searched for them.
"""

import io
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from astropy.io import fits
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from tests.leaks.markers import CELLS, NUMBERS, PIXELS, TEXTS, files_below, forms, found_in
from tests.link.loopback import Loopback, eventually, linked

from asterion_client import app as site_app
from asterion_client import egress, link_runner, link_session
from asterion_client.flower_client_compat import order_message
from asterion_client.link_runner import LinkRunner
from asterion_client.settings import read_site_settings
from asterion_client.site_log import without_foreign_text
from asterion_server.in_process_grid import InProcessGrid, InProcessSite
from asterion_server.live_cohort import LiveCohort
from asterion_server.rounds import run_rounds
from asterion_shared.flower_messages import encode_order, encode_report
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.result import Result
from asterion_shared.settings_files import validate

NUM_IMAGES, NUM_BROKEN = 36, 3
LABELS = {f"{TEXTS['label']}0": "well", f"{TEXTS['label']}1": "ill"}
LOG = logging.getLogger("asterion.site")


def plan_of(kind: str, **other: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "leaks",
        "task": "classification",
        "data": {"classes": ["well", "ill"], "patch_size": [16, 16]},
        "model": {"name": "residual", "widths": [4]},
        "rounds": {"count": 2, "deadline_seconds": 60.0},
        "local": {"amount": 2, "batch_size": 4},
    }
    if kind == "table":
        values |= {"data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
                   "model": {"name": "logistic"}}  # fmt: skip
    return validate(Plan, values | other, "plan")


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


def write_site(folder: Path, kind: str) -> None:
    data = folder / TEXTS["folder"]
    data.mkdir(parents=True)
    names = "".join(f'"{ours}" = "{theirs}"\n' for ours, theirs in LABELS.items())
    text = (
        f'name = "north"\ntask = "classification"\n[data]\nformat = "{kind}"\n'
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


@dataclass
class Overheard:
    """Every byte that went out, by the call that sent it, and what the site's process said."""

    sent: list[tuple[str, bytes]] = field(default_factory=list)
    said: io.StringIO = field(default_factory=io.StringIO)

    def places(self) -> list[tuple[str, bytes]]:
        return [*self.sent, ("log", self.said.getvalue().encode())]


@pytest.fixture
def overheard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Overheard]:
    heard, pack = Overheard(), link_runner.pack

    def packing(content: RecordDict, *given: Any, **named: Any) -> Any:
        heard.sent.append(("record", recorddict_to_proto(content).SerializeToString()))
        return pack(content, *given, **named)

    class Stub(link_session.service.LinkStub):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel)
            for name in ("Attend", "Offer", "Download", "Submit", "Upload"):
                setattr(self, name, self._listening(name, getattr(self, name)))

        def _listening(self, name: str, call: Any) -> Any:
            def listened(request: Any, **given: Any) -> Any:
                if name == "Upload":
                    return call((self._heard(name, chunk) for chunk in request), **given)
                return call(self._heard(name, request), **given)

            return listened

        def _heard(self, name: str, message: Any) -> Any:
            heard.sent.append((name, message.SerializeToString()))
            return message

    monkeypatch.setattr(link_runner, "pack", packing)
    monkeypatch.setattr(link_session.service, "LinkStub", Stub)
    handler = logging.StreamHandler(heard.said)
    handler.addFilter(without_foreign_text)
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", logging.DEBUG)
    root.addHandler(handler)
    yield heard
    root.removeHandler(handler)


@contextmanager
def site_on(link: Loopback, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A site's own process on the link, here as a thread."""
    kit = link.made.kit("north")
    for path in kit.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
            (folder / path.name).chmod(0o600)
    with (folder / "site.toml").open("a") as file:
        file.write((folder / "connection.toml").read_text())
    patch.setenv(site_app.SITE_VARIABLE, str(folder / "site.toml"))
    runner, stop = LinkRunner(read_site_settings(folder / "site.toml"), folder), threading.Event()
    thread = threading.Thread(target=runner.serve, args=(stop,))
    thread.start()
    try:
        eventually(lambda: runner.session.standing.connected, 20)
        yield
    finally:
        stop.set()
        thread.join(20)
        runner._lock.close()


def run_on_link(root: Path, kind: str, patch: pytest.MonkeyPatch) -> Result:
    write_site(root / "hospital", kind)
    with linked(root, ("north",)) as link, site_on(link, root / "hospital", patch):
        cohort = LiveCohort(link.grid("leaks"))
        return run_rounds(
            plan_of(kind), cohort, root / "center" / "runs" / "leaks", run="leaks",
            expected_sites=["north"], carrier="link",
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["dicom", "fits", "table"])
def test_nothing_of_the_data_leaves_over_the_link(
    kind: str, tmp_path: Path, overheard: Overheard, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_on_link(tmp_path, kind, monkeypatch)
    assert result.status == "finished"
    assert result.rounds[1].outcomes["north"].num_bad_files == NUM_BROKEN
    assert {name for name, _ in overheard.sent} >= {"record", "Attend", "Submit"}
    hospital = tmp_path / "hospital"
    # The markers are really in the data, else the search below would find nothing either way.
    planted = {marker for marker, _, _ in found_in(files_below(hospital / TEXTS["folder"]))}
    assert planted >= {"dicom": {"patient", "birth", "study day", "uid", "pixels"},
                       "fits": {"observer", "position", "target", "pixels"},
                       "table": {"patient", "column", "manifest", "label"}}[kind]  # fmt: skip
    told = [("status", (hospital / "state/status.json").read_bytes())]
    told += files_below(hospital / "state/egress")
    assert found_in([*overheard.places(), *told, *files_below(tmp_path / "center")]) == set()


def flower_replies(folder: Path, contents: list[tuple[RecordDict, str]]) -> list[bytes]:
    """What the app answers over Flower's own messages, as bytes."""
    # The app remembers the last round of each node, so every test has one of its own.
    context = Context(1, hash(folder), {"site-toml": str(folder / "site.toml")}, RecordDict(), {})
    replies = []
    for content, kind in contents:
        message = order_message(content, kind, 1, 1)
        reply = site_app.app(message, context).content
        replies.append(recorddict_to_proto(reply).SerializeToString())
    return replies


def failing_orders(plan: Plan) -> dict[str, Order]:
    """Orders that fail in each stage, by the code of the refusal."""
    other = validate(Plan, {"name": "x", "task": "anomaly", "data": {"classes": ["a", "b"]},
                            "model": {"name": "conv_autoencoder"}}, "plan")  # fmt: skip
    classes = plan.data.model_copy(update={"classes": ("cat", "dog")})
    weights = np.zeros(3, np.float32)
    return {
        "wrong_task": Order(run="a", plan=other, round=0, phase="count"),
        "label_outside_classes": Order(
            run="b", plan=plan.model_copy(update={"data": classes}), round=0, phase="count"
        ),
        "layout_mismatch": Order(
            run="c", plan=plan, round=1, phase="train", weights=weights, layout_sha256="0" * 64
        ),
    }


@pytest.mark.parametrize("kind", ["dicom", "fits", "table"])
def test_refusals_of_every_stage_hold_nothing_of_the_data(
    kind: str, tmp_path: Path, overheard: Overheard
) -> None:
    folder = tmp_path / "hospital"
    write_site(folder, kind)
    orders = failing_orders(plan_of(kind))
    messages = {"count": "query", "train": "train"}
    contents = [(encode_order(o, "north"), messages[o.phase]) for o in orders.values()]
    replies = flower_replies(folder, contents)
    for code, answer in zip(orders, replies, strict=True):
        assert code.encode() in answer
    gone = Order(run="d", plan=plan_of(kind), round=0, phase="count")
    (folder / TEXTS["folder"]).rename(tmp_path / "elsewhere")
    replies += flower_replies(folder, [(encode_order(gone, "north"), "query")])
    assert b"refusal" in replies[-1]
    overheard.sent += [("reply", content) for content in replies]
    assert overheard.said.getvalue().count("order") >= len(replies)
    assert found_in([*overheard.places(), *files_below(folder / "state" / "egress")]) == set()


def test_a_run_over_flower_s_messages_holds_nothing_of_the_data(
    tmp_path: Path, overheard: Overheard
) -> None:
    write_site(tmp_path / "hospital", "table")
    heard: list[bytes] = []

    def listening(message: Message, context: Context) -> Message:
        reply = site_app.app(message, context)
        heard.append(recorddict_to_proto(reply.content).SerializeToString())
        return reply

    site = InProcessSite("north", listening, {  # type: ignore[arg-type]
        "site-toml": str(tmp_path / "hospital/site.toml")
    })  # fmt: skip
    result = run_rounds(
        plan_of("table"), LiveCohort(InProcessGrid({10: site})), tmp_path / "center", run="leaks",
        expected_sites=["north"], carrier="flower",
    )  # fmt: skip
    assert result.status == "finished"
    assert len(heard) == 4
    overheard.sent += [("reply", content) for content in heard]
    assert found_in([*overheard.places(), *files_below(tmp_path / "center")]) == set()


@pytest.mark.parametrize("marker", sorted([*TEXTS, *NUMBERS]))
def test_a_marker_that_leaks_is_found_in_a_record_and_in_the_log(
    marker: str, tmp_path: Path, overheard: Overheard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one of its forms, past all checks: the search above could fail."""
    write_site(tmp_path, "table")
    for form, needle in forms()[marker].items():

        def leaking(report: Report, needle: bytes = needle) -> RecordDict:
            content = encode_report(report)
            content["report"]["manifest_sha256"] = b"\x01" + needle  # type: ignore[index]
            return content

        monkeypatch.setattr(egress, "encode_report", leaking)
        order = Order(run=f"r{form}", plan=plan_of("table"), round=0, phase="count")
        (reply,) = flower_replies(tmp_path, [(encode_order(order, "north"), "query")])
        assert (marker, form, "reply") in found_in([("reply", reply)])
        if marker in TEXTS and form == "utf-8":
            LOG.warning("cannot read %s", TEXTS[marker])
            assert (marker, form, "log") in found_in(overheard.places())


LOUD = """
import logging, sys, threading, warnings
from asterion_client.site_log import keep_log_clean
keep_log_clean()
warnings.warn("Invalid value for OBSERVER: {text}")
logging.getLogger("pydicom").warning("PatientName is %s", "{text}")
try:
    raise KeyError("{text}")
except KeyError:
    logging.getLogger("nibabel").exception("failed with {text}")
    logging.getLogger("asterion.site").exception("failed")
thread = threading.Thread(target=lambda: int("{text}"))
thread.start(); thread.join()
raise OSError(2, "no such file", "/data/{text}/scan.dcm")
"""


def test_what_readers_warn_of_does_not_reach_the_log_of_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOUD.format(text=TEXTS["patient"])], capture_output=True, check=False
    )
    said = done.stdout + done.stderr
    assert found_in([("log", said)]) == set()
    for word in (b"UserWarning", b"pydicom", b"nibabel", b"ValueError", b"FileNotFoundError"):
        assert word in said
    assert done.returncode == 1
