"""The site's pages of local predictions: the review queue, pictures, and what they never open."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.consent.conftest import Clinic, new_clinic
from tests.console.conftest import Browser
from tests.console.examples import clinic_console
from tests.console.predicted import LONG, store_predictions
from tests.console.test_site_console import text_of

from asterion_client.console.console import site_console
from asterion_client.console.prediction_files import (
    BrokenFolderError,
    prediction_folders,
    read_inside,
)
from asterion_client.console.predictions_page import CASES_A_PAGE, SHOWN_FIRST
from asterion_shared.console.web import Console
from asterion_shared.errors import SettingsError

PNG = b"\x89PNG\r\n\x1a\n"
COUNT = 7
HEAD = "rank,file,call,uncertainty,disagreement,measured_by,why\n"
SUMMARY = {
    "format": 1, "made": "2026-01-02T03:04:05+00:00", "signer_checked": True,
    "release": {"name": "seen", "version": 3, "maturity": "research", "sha256": "a" * 64},
    "task": "classification", "classes": ["well", "ill"], "temperature": 1.5,
    "thresholds": {"youden": 0.25}, "uncertainty": {"how": "itself alone"},
    "called_by": "the threshold youden", "notes": ["look twice"], "predicted": 1, "skipped": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of predictions that tests only look at."""
    work = tmp_path_factory.mktemp("predicted")
    store_predictions(work, work / "predictions", count=COUNT, steps=2)
    return work / "predictions"


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    found = new_clinic(tmp_path)
    clinic_console(found)
    return found


@pytest.fixture
def anna(clinic: Clinic, visit: Callable[[Console], Browser]) -> Browser:
    browser = visit(site_console(clinic.toml))
    assert browser.sign_in().status_code == 200
    return browser


def shows(clinic: Clinic, place: Path | str) -> None:
    """Have the console show a folder; it reads the setting anew."""
    clinic.toml.write_text(f"{clinic.toml.read_text()}predictions = {str(place)!r}\n")


def store(place: Path, name: str, review: str = HEAD, **changes: object) -> Path:
    folder = place / name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | changes))
    (folder / "review.csv").write_text(review)
    return folder


def test_how_to_switch_it_on(anna: Browser, clinic: Clinic) -> None:
    page = text_of(anna.get("/predictions"))
    assert "This console shows no predictions" in page
    assert "asterion site predict RELEASE FOLDER --out predictions/NAME" in page
    assert anna.client.get("/predictions/any").status_code == 404
    shows(clinic, "predictions")
    assert "is not there" in text_of(anna.get("/predictions"))
    (clinic.folder / "predictions").mkdir()
    assert "None yet" in text_of(anna.get("/predictions"))


def test_a_folder_its_queue_and_its_cases(anna: Browser, clinic: Clinic, made: Path) -> None:
    shows(clinic, made)
    page = anna.get("/predictions")
    assert LONG.replace("&", "&amp;") in page
    assert "broken-off it has no summary.json" in text_of(page)
    link = re.search(r'<th[^>]*><a href="(/predictions/[^"]+)"', page)
    assert link is not None
    folder = link[1]
    page = anna.get(folder)
    assert f"{COUNT} cases predicted with seen version 3 (research); 1 skipped." in text_of(page)
    assert "broken.nii: broken.nii is not a readable NIfTI file" in text_of(page)
    order = [float(u) for u in re.findall(r'data-name="uncertainty">([\d.]+)<', page)]
    assert len(order) == COUNT
    assert order == sorted(order, reverse=True)
    files = re.findall(r"images/phantom_\d+\.nii\.gz", page)
    review = (made / LONG / "review.csv").read_text()
    assert files == re.findall(r"images/phantom_\d+\.nii\.gz", review)
    assert page.count("<img") == SHOWN_FIRST
    for rank in (1, COUNT):
        case = anna.get(f"{folder}/case/{rank}")
        assert files[rank - 1] in case
        assert "lump" in text_of(case)
        (source,) = re.findall(r'<img src="([^"]+)"', case)
        answer = anna.client.get(source)
        assert answer.content.startswith(PNG)
        drawn = made / LONG / "pictures" / f"{files[rank - 1].removesuffix('.nii.gz')}.png"
        assert answer.content == drawn.read_bytes()
        headers = answer.headers
        assert headers["Content-Type"] == "image/png"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("sandbox;")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for path in (
        "case/0",
        f"case/{COUNT + 1}",
        "case/x",
        "case/%2b1",
        "page/2",
        "page/0",
        "case/1/explanation.png",
        "case/1/mask.png",
        "masks",
        "case/1/..%2fx.png",
    ):
        assert anna.client.get(f"{folder}/{path}").status_code == 404, path
    answer = anna.client.get("/predictions/broken-off")
    assert answer.status_code == 404
    assert "it goes on, or was broken off" in text_of(answer.text)


def test_who_has_not_signed_in_sees_no_picture(anna: Browser, clinic: Clinic, made: Path) -> None:
    shows(clinic, made)
    folder = prediction_folders(made)
    path = f"/predictions/{LONG}/case/1/picture.png"
    assert LONG in folder
    assert anna.client.get(path).content.startswith(PNG)
    anna.client.cookies.clear()
    for one in (path, "/predictions", f"/predictions/{LONG}", f"/predictions/{LONG}/case/1"):
        answer = anna.client.get(one, follow_redirects=False)
        assert answer.status_code == 303, one
        assert answer.headers["Location"] == "/sign-in"
        assert b"phantom" not in answer.content


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "pictures/../../secret.png",
        "link.png",
        "down/secret.png",
        "/etc/hostname",
        "pipe",
        "",
        "x\0y",
        "text.png",
    ],
)
def test_no_picture_outside_of_the_folder(
    anna: Browser, clinic: Clinic, tmp_path: Path, path: str
) -> None:
    place = tmp_path / "predictions"
    shows(clinic, place)
    folder = store(place, "one", f"{HEAD}1,a.nii,ill,0.5,,single,near\n")
    (place / "secret.png").write_bytes(PNG + b"mueller")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.png").write_bytes(PNG + b"mueller")
    (folder / "pictures").mkdir()
    (folder / "link.png").symlink_to(place / "secret.png")
    (folder / "down").symlink_to(tmp_path / "elsewhere")
    (folder / "text.png").write_bytes(b"<script>mueller</script>")
    os.mkfifo(folder / "pipe")
    (folder / "here.png").write_bytes(PNG)
    (folder / "pictures.csv").write_text("file,shown,reference,picture\na.nii,x,no,here.png\n")
    assert anna.client.get("/predictions/one/case/1/picture.png").content == PNG
    (folder / "pictures.csv").write_text(f"file,shown,reference,picture\na.nii,x,no,{path}\n")
    answer = anna.client.get("/predictions/one/case/1/picture.png")
    assert answer.status_code == 404
    assert b"mueller" not in answer.content


def test_no_folder_outside_of_the_place(anna: Browser, clinic: Clinic, tmp_path: Path) -> None:
    place = tmp_path / "predictions"
    shows(clinic, place)
    store(place, "one")
    store(tmp_path, "outside")
    store(place, ".hidden")
    (place / "link").symlink_to(tmp_path / "outside")
    (place / "file").write_text("x")
    (place / os.fsdecode(b"bytes-\xff")).mkdir()
    page = text_of(anna.get("/predictions"))
    assert re.search(r"\bone seen version 3", page)
    assert "its name is no UTF-8" in page
    assert "link" not in page
    assert "hidden" not in page
    for path in ("%2e%2e", "..%2foutside", "link", "file", ".hidden", "bytes-%ff", "two", "%00"):
        assert anna.client.get(f"/predictions/{path}").status_code == 404, path
    assert anna.client.get("/predictions/one").status_code == 200


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_inside(tmp_path, "a", 5) == b"12345"
    with pytest.raises(BrokenFolderError, match="no plain one of at most 4"):
        read_inside(tmp_path, "a", 4)
    os.mkfifo(tmp_path / "pipe")
    for path in ("pipe", str(tmp_path / "a"), ""):
        with pytest.raises(BrokenFolderError):
            read_inside(tmp_path, path, 5)


@pytest.mark.parametrize(
    ("file", "content"),
    [("summary.json", "{"), ("summary.json", "[" * 100_000), ("summary.json", '{"format": 2}'),
     ("review.csv", "no,such\n1,mueller\n"), ("review.csv", f'{HEAD}1,a\n'),
     ("review.csv", b"\xff\xfe"), ("pictures.csv", "file\nmueller\n"),
     ("explanations.csv", 'file,picture,class,flagged\n"mueller')],
)  # fmt: skip
def test_a_broken_folder_says_so(
    anna: Browser, clinic: Clinic, tmp_path: Path, file: str, content: str | bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    place = tmp_path / "predictions"
    shows(clinic, place)
    folder = store(place, "one", f"{HEAD}1,a.nii,ill,0.5,,single,near\n")
    with caplog.at_level(logging.DEBUG):
        assert "look twice" in anna.get("/predictions/one")
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        answer = anna.client.get("/predictions/one")
    assert answer.status_code == 404
    assert f"its {file}" in text_of(answer.text)
    assert "mueller" not in answer.text + caplog.text
    assert "a page failed" not in caplog.text
    assert anna.client.get("/predictions").status_code == 200


def test_a_folder_without_its_queue(anna: Browser, clinic: Clinic, tmp_path: Path) -> None:
    shows(clinic, tmp_path / "predictions")
    (store(tmp_path / "predictions", "one") / "review.csv").unlink()
    answer = anna.client.get("/predictions/one")
    assert answer.status_code == 404
    assert "its review.csv is missing or cannot be read" in text_of(answer.text)


@pytest.mark.parametrize(("call", "disagreement"), [("ill", ""), ("", "0.02")])
def test_a_column_that_no_case_fills_is_not_there(
    anna: Browser, clinic: Clinic, tmp_path: Path, call: str, disagreement: str
) -> None:
    shows(clinic, tmp_path / "predictions")
    rows = [f"1,a.nii,{call},0.99996,{disagreement},x,near", "2,b.nii,,0.5,,x,far"]
    store(tmp_path / "predictions", "one", HEAD + "\n".join(rows) + "\n")
    page = anna.get("/predictions/one")
    head = re.findall(r'role="columnheader"[^>]*>([^<]+)<', page)
    filled = ["call", "uncertainty"] if call else ["uncertainty", "disagreement"]
    assert head == ["case", "file", *filled, "why", "drawn"]
    assert re.findall(r'data-name="uncertainty">([^<]*)<', page) == ["1.000", "0.500"]


def test_scores_and_sides_of_a_case(anna: Browser, clinic: Clinic, tmp_path: Path) -> None:
    place = tmp_path / "predictions"
    shows(clinic, place)
    rows = [f"{n},<b>row#{n},ill,,,single,score {n}" for n in range(1, CASES_A_PAGE + 2)]
    folder = store(place, "one", HEAD + "\n".join(rows) + "\n")
    (folder / "predictions.csv").write_text(
        "file,call,p_well,p_ill,at_or_above_youden,uncertainty\n<b>row#2,ill,0.25,0.75,yes,\n"
    )
    page = anna.get("/predictions/one")
    assert "thresholds youden 0.25" in text_of(page)
    assert "cases 1 to 100 of 101" in page
    assert "&lt;b&gt;row#100<" in page
    assert "row#101" not in page
    assert "cases 101 to 101 of 101" in anna.get("/predictions/one/page/2")
    case = text_of(anna.get("/predictions/one/case/2"))
    assert "probability of ill 0.75" in case
    assert "threshold youden at or above" in case
    assert "uncertainty not known" in case
    assert "No picture was drawn" in case


@pytest.mark.parametrize("flagged", ["yes", "no"])
def test_where_a_classifier_looked(
    anna: Browser, clinic: Clinic, tmp_path: Path, flagged: str
) -> None:
    shows(clinic, tmp_path / "predictions")
    rows = "1,a.nii,ill,0.5,,single,near\n2,b.nii,well,0.4,,single,far\n"
    folder = store(tmp_path / "predictions", "one", HEAD + rows)
    (folder / "explanations").mkdir()
    (folder / "explanations/a.png").write_bytes(PNG + b"map")
    (folder / "explanations.csv").write_text(
        f"file,class,correlation_with_random_weights,flagged,picture\na.nii,ill,0.1,{flagged},explanations/a.png\n"
    )
    page = anna.get("/predictions/one/case/1")
    assert "Seen here: where the classifier looked for ill." in text_of(page)
    assert ("it shows nothing learnt" in page) == (flagged == "yes")
    answer = anna.client.get("/predictions/one/case/1/explanation.png")
    assert (answer.status_code, answer.content) == (200, PNG + b"map")
    assert anna.client.get("/predictions/one/case/2/explanation.png").status_code == 404


def test_sizes_of_a_case_can_be_read(anna: Browser, clinic: Clinic, tmp_path: Path) -> None:
    shows(clinic, tmp_path / "predictions")
    folder = store(tmp_path / "predictions", "one", f"{HEAD}1,a.nii,,0.5,,single,near\n")
    sizes = ("1815.25,mm3", "7.5,arcsec2", ",")
    rows = [f"a.nii,part,12345,{size},0.878\n" for size in sizes]
    head = "file,class,points,size,unit,mean_probability\n"
    (folder / "segments.csv").write_text(head + "".join(rows))
    page = anna.get("/predictions/one/case/1")
    assert re.findall(r'data-name="size"[^>]*>([^<]*)<', page) == [
        "1,815 mm\u00b3", "7.5 arcsec\u00b2", "",
    ]  # fmt: skip


def test_the_setting_is_of_the_site_alone(clinic: Clinic) -> None:
    text = clinic.toml.read_text()
    clinic.toml.write_text(f"{text}prediction = 'x'\n")
    with pytest.raises(SettingsError, match="prediction"):
        site_console(clinic.toml)
