"""The pictures of the consoles' guide: ``python -m tests.console.take_pictures docs/pictures``."""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from tests.console.chromium import DESKTOP, PHONE, chromium, dark, picture, resize, sign_in
from tests.console.conftest import SITES, served
from tests.console.examples import PASSWORD, everything
from tests.link.loopback import free_port

from asterion_server.console.console import operator_console
from asterion_server.run_folder import RunFolder
from asterion_shared.console.web import web_application

PAGES = (
    ("runs", "/", DESKTOP, False),
    ("run", "/runs/deep-field", DESKTOP, False),
    ("run-phone", "/runs/deep-field", PHONE, True),
    ("sites", "/sites", DESKTOP, False),
    ("launch", "/launch", DESKTOP, True),
)
"""Name, path, width in pixels, whether the page is dark."""


def small(png: bytes) -> bytes:
    """The same picture with a palette."""
    out, shot = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    shot.quantize(160, Image.Quantize.MAXCOVERAGE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main(folder: Path) -> None:
    """Write ``console-NAME.png`` of each page, of generated data."""
    with tempfile.TemporaryDirectory() as work:
        made = everything(Path(work) / "centre", free_port(), SITES)
        console = operator_console(made)
        app, port = web_application(console), console.settings.port
        running = RunFolder(made.runs / "deep-field").carried_out_here()
        with running, served(app, port) as url, chromium() as browser:
            sign_in(browser, url, "anna", PASSWORD)
            for name, path, width, is_dark in PAGES:
                resize(browser, width, 600)
                dark(browser, is_dark)
                browser.get(url + path)
                file = folder / f"console-{name}.png"
                picture(browser, file, 1900)
                file.write_bytes(small(file.read_bytes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
