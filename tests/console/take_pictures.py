"""The pictures of the consoles' guide: ``python -m tests.console.take_pictures docs/pictures``."""

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from tests.consent.conftest import new_clinic
from tests.console.chromium import DESKTOP, PHONE, chromium, dark, picture, resize, sign_in
from tests.console.conftest import SITES, served
from tests.console.examples import COMMAND, PASSWORD, clinic_console, everything
from tests.console.predicted import LUMPS, store_predictions
from tests.console.test_releases_page import GATE
from tests.link.loopback import free_port
from tests.release.conftest import small_plan
from tests.release.runs import RUN, add_run, coordinator_with_run

from asterion_client.check_machine import look_at_machine
from asterion_client.console.console import site_console
from asterion_client.settings import read_site_settings
from asterion_client.site_standing import SiteStatus, write_status
from asterion_client.site_vitals import write_vitals
from asterion_server.console.console import operator_console
from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.release_build import make_current, release
from asterion_server.release_settings import ReleaseSettings
from asterion_server.run_folder import RunFolder
from asterion_shared.console.people import set_person
from asterion_shared.console.web import Console, web_application

Pages = tuple[tuple[str, str, int, bool], ...]
"""Name, path, width in pixels, whether the page is dark."""

OPERATOR_PAGES: Pages = (
    ("runs", "/", DESKTOP, False),
    ("run", "/runs/deep-field", DESKTOP, False),
    ("run-phone", "/runs/deep-field", PHONE, True),
    ("sites", "/sites", DESKTOP, False),
    ("launch", "/launch", DESKTOP, True),
)
RELEASE_PAGES: Pages = (
    ("releases", "/releases", DESKTOP, False),
    ("releases-phone", "/releases", PHONE, True),
)
SITE_PAGES: Pages = (
    ("site", "/", DESKTOP, True),
    ("plan", "/plans/trial-1", DESKTOP, False),
    ("plans-phone", "/plans", PHONE, False),
    ("predictions", f"/predictions/{LUMPS}", DESKTOP, False),
    ("predictions-phone", f"/predictions/{LUMPS}", PHONE, True),
    ("prediction", f"/predictions/{LUMPS}/case/1", DESKTOP, True),
    ("prediction-phone", f"/predictions/{LUMPS}/case/1", PHONE, False),
)


OPENED = "document.querySelector('details').open = true"


def small(png: bytes) -> bytes:
    """The same picture with a palette."""
    out, shot = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    shot.quantize(160, Image.Quantize.MAXCOVERAGE).save(out, "PNG", optimize=True)
    return out.getvalue()


def take(pages: Pages, console: Console, folder: Path) -> None:
    """Write ``console-NAME.png`` of each page of a console."""
    with (
        served(web_application(console), console.settings.port) as url,
        chromium() as browser,
    ):
        sign_in(browser, url, "anna", PASSWORD)
        for name, path, width, is_dark in pages:
            resize(browser, width, 600)
            dark(browser, is_dark)
            browser.get(url + path)
            if path == "/releases":
                browser.execute_script(OPENED)
            file = folder / f"console-{name}.png"
            picture(browser, file, 1900)
            file.write_bytes(small(file.read_bytes()))


def released(folder: Path) -> Provisioned:
    """A coordinator with two versions of a model, of which one is in use, and runs to release."""
    plan = small_plan(rounds={"count": 3})
    made = coordinator_with_run(folder, plan)
    for run in ("cells-again", "cells-third"):
        add_run(made, plan, run)
    path = made.folder / "coordinator.toml"
    path.write_text(f"{path.read_text()}\n[console]\nport = {free_port()}\n")
    made = open_provisioned(made.folder)
    assert made.console_people is not None
    set_person(made.console_people, "anna", "acts", PASSWORD, COMMAND)
    for run in (RUN, "cells-again"):
        release(made, run, ReleaseSettings())
    make_current(made, "cells", 1)
    (made.folder / "release.toml").write_text(GATE)
    return made


def main(folder: Path) -> None:
    """Take all pictures, of generated data."""
    with tempfile.TemporaryDirectory() as work:
        made = everything(Path(work) / "centre", free_port(), SITES)
        with RunFolder(made.runs / "deep-field").carried_out_here():
            take(OPERATOR_PAGES, operator_console(made), folder)
        take(RELEASE_PAGES, operator_console(released(Path(work) / "released")), folder)
        clinic = new_clinic(Path(work))
        clinic_console(clinic)
        store_predictions(Path(work), clinic.folder / "predictions")
        clinic.toml.write_text(f'{clinic.toml.read_text()}predictions = "predictions"\n')
        settings = read_site_settings(clinic.toml)
        write_vitals(clinic.folder / "state", look_at_machine(settings, clinic.folder))
        write_status(clinic.folder / "state", SiteStatus(
            site="clinic", connected=True, last_contact=time.time(), refused="", working="",
            started=time.time(), written=time.time(),
        ))  # fmt: skip
        take(SITE_PAGES, site_console(clinic.toml), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
