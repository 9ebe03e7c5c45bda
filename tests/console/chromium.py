"""Debian's Chromium without a screen, driven by Selenium."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

MISSING = "chromium and chromium-driver are not installed: apt install chromium chromium-driver"
DESKTOP, PHONE = 1280, 390
DECODED = (
    "const done = arguments[0];"
    "Promise.all([...document.images].map((one) => one.decode())).then(() => done());"
)
ANSWERED = "return window.asked === undefined && document.readyState === 'complete'"


def is_there() -> bool:
    """Whether both programs are installed."""
    return all(map(shutil.which, ("chromium", "chromedriver")))


@contextmanager
def chromium(width: int = DESKTOP, height: int = 900) -> Iterator[Chrome]:
    """A browser with a page of this width, whatever its window is; it speaks to nobody else."""
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for word in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage",
                 "--disable-background-networking", "--ignore-certificate-errors",
                 *(["--no-sandbox"] if os.geteuid() == 0 else [])):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(str(shutil.which("chromedriver"))))
    try:
        resize(driver, width, height)
        yield driver
    finally:
        driver.quit()


def resize(driver: Chrome, width: int, height: int = 900) -> None:
    """Give the page another size."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
    })  # fmt: skip


def dark(driver: Chrome, wanted: bool) -> None:
    """Prefer a dark page, or a light one."""
    value = "dark" if wanted else "light"
    features = [{"name": "prefers-color-scheme", "value": value}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def sign_in(driver: Chrome, url: str, name: str, password: str) -> None:
    """Through the form, as a person does; returns when the page that answers is there."""
    driver.get(f"{url}/sign-in")
    driver.find_element(By.ID, "name").send_keys(name)
    driver.find_element(By.ID, "password").send_keys(password)
    driver.execute_script("window.asked = true")
    driver.find_element(By.CSS_SELECTOR, "main button").click()
    # A click may return before its answer, which then comes over the page that is opened next.
    WebDriverWait(driver, 60).until(lambda one: one.execute_script(ANSWERED))


def picture(driver: Chrome, path: Path, most_height: int = 2400) -> None:
    """A picture of the whole page, up to a height."""
    # Pictures in the page may be there and not yet decoded, and then have no height.
    driver.execute_async_script(DECODED)
    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    height = min(int(size["height"]), most_height)
    clip = {"x": 0, "y": 0, "width": size["width"], "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    path.write_bytes(base64.b64decode(shot["data"]))
