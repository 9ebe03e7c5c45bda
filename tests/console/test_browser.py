"""The console in Debian's Chromium: how pages look and are used, and a real federation behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from tests.conftest import Ran
from tests.consent.conftest import new_clinic
from tests.console.chromium import (
    DESKTOP,
    MISSING,
    PHONE,
    chromium,
    dark,
    is_there,
    resize,
    sign_in,
)
from tests.console.conftest import SITES, served
from tests.console.examples import (
    COMMAND,
    PASSWORD,
    clinic_console,
    everything,
    going_on,
    plan_of,
    round_of,
)
from tests.console.predicted import LONG, LUMPS, store_predictions
from tests.link.loopback import free_port
from tests.live.conftest import running_federation

from asterion_client.console.console import site_console
from asterion_server.console.console import operator_console
from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.run_folder import RunFolder
from asterion_shared.console.people import set_person
from asterion_shared.console.web import web_application
from asterion_shared.plan_file import plan_to_toml
from asterion_sim.local_federation import signed_here

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_there(), reason=MISSING)]

PAGES = ("/", "/sites", "/releases", "/launch", "/runs/deep-field", "/runs/sources-2",
         "/runs/disk-gone", "/runs/many", "/nowhere")  # fmt: skip
PREDICTIONS = ("/predictions", f"/predictions/{LUMPS}", f"/predictions/{quote(LONG)}",
               f"/predictions/{quote(LONG)}/case/1", f"/predictions/{LUMPS}/case/7",
               "/predictions/broken-off")  # fmt: skip
LOW_CONTRAST = """
const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const behind = (one) => {
  for (let at = one; at; at = at.parentElement) {
    const found = parse(getComputedStyle(at).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const low = [];
for (const one of document.querySelectorAll("body *")) {
  const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !one.getClientRects().length || one.closest("svg, title")) continue;
  const ink = light(parse(getComputedStyle(one).color)), ground = light(behind(one));
  const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  if (ratio < 4.5) low.push(`${one.tagName} ${one.className} ${one.textContent.trim()} ${ratio}`);
}
return low;
"""
BEYOND = """
const beyond = [];
for (const one of document.querySelectorAll("main *, header *, .console-bar *")) {
  if (one.closest("pre, thead, .chart, .scroll") && innerWidth > 640) continue;
  if (one.closest("pre, thead, svg, .skip")) continue;
  const box = one.getBoundingClientRect();
  if (box.width > 0 && (box.right > innerWidth + 1 || box.left < -1))
    beyond.push(`${one.tagName} ${one.className} ${one.textContent.trim().slice(0, 30)}`);
}
return beyond;
"""


TORN = """
const torn = [];
for (const one of document.querySelectorAll(".status")) {
  const text = one.firstChild, range = document.createRange();
  for (const word of text.textContent.matchAll(/[^\\s-]+/g)) {
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    if (range.getClientRects().length > 1) torn.push(word[0]);
  }
}
return torn;
"""
"""Words of badges that are broken over two lines."""

NARROW = """
return [...document.querySelectorAll('.rows th[scope="row"]')].filter(
  (one) => one.getBoundingClientRect().width < 0.9 * one.parentElement.clientWidth
).map((one) => one.textContent)"""
"""Names of stacked rows that do not get the whole width."""

LEFT = """
return [...document.querySelectorAll(".rows td a")].filter((one) =>
  one.getBoundingClientRect().left < one.closest("td").getBoundingClientRect().left + 60
).map((one) => one.textContent)"""
"""Links of stacked rows that stand under their names instead of beside them."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a console with runs in every state, one of them with fifty sites."""
    made = everything(tmp_path_factory.mktemp("full") / "centre", free_port(), SITES)
    many = [f"observatory-of-a-long-name-{number:02d}" for number in range(50)]
    rounds = [round_of(n, many, dict.fromkeys(many[:8], "unreachable")) for n in range(4)]
    going_on(made, plan_of("many"), "many", many, rounds)
    console = operator_console(made)
    with served(web_application(console), console.settings.port) as url:
        yield url


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a site's console, with predictions."""
    work = tmp_path_factory.mktemp("site")
    clinic = new_clinic(work)
    clinic_console(clinic)
    store_predictions(work, clinic.folder / "predictions", steps=2)
    clinic.toml.write_text(f'{clinic.toml.read_text()}predictions = "predictions"\n')
    console = site_console(clinic.toml)
    with served(web_application(console), console.settings.port) as url:
        yield url


def quiet(browser: Chrome) -> None:
    """No page loaded anything from elsewhere, and no rule of the policy was broken."""
    said = [line["message"] for line in browser.get_log("browser")]
    absent = ("/nowhere", "/predictions/broken-off")
    assert [words for words in said if not any(path in words for path in absent)] == []


def until(browser: Chrome, holds: Callable[[Chrome], object], seconds: float = 60) -> None:
    WebDriverWait(browser, seconds, poll_frequency=0.2).until(holds)


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("is_dark", [False, True])
def test_every_page_fits_and_can_be_read(
    browser: Chrome, full: str, width: int, is_dark: bool
) -> None:
    browser.delete_all_cookies()
    resize(browser, width)
    dark(browser, is_dark)
    browser.get(f"{full}/sign-in")
    assert browser.execute_script(LOW_CONTRAST) == []
    look_at(browser, full, PAGES)


def test_long_names_leave_badges_and_links_in_their_place(browser: Chrome, tmp_path: Path) -> None:
    long = [f"university-hospital-{i:02d}-department-of-radiology-and-neuro" for i in range(3)]
    console = operator_console(everything(tmp_path / "centre", free_port(), long))
    with served(web_application(console), console.settings.port) as url:
        browser.delete_all_cookies()
        resize(browser, DESKTOP)
        sign_in(browser, url, "anna", PASSWORD)
        for width in (DESKTOP, PHONE):
            resize(browser, width)
            for path in ("/sites", "/", "/runs/deep-field"):
                browser.get(url + path)
                assert browser.execute_script(TORN) == [], (width, path)
                if width == PHONE:
                    assert browser.execute_script(NARROW) == [], path
                    assert browser.execute_script(LEFT) == [], path


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("is_dark", [False, True])
def test_predictions_fit_and_can_be_read(
    browser: Chrome, site: str, width: int, is_dark: bool
) -> None:
    browser.delete_all_cookies()
    resize(browser, width)
    dark(browser, is_dark)
    look_at(browser, site, PREDICTIONS)
    browser.get(f"{site}/predictions/{LUMPS}/case/1")
    assert browser.execute_script("return document.images[0].naturalWidth") > 400
    press(browser, By.LINK_TEXT, "More certain")
    until(browser, lambda b: b.title.startswith("Case 2 of 7"))
    press(browser, By.LINK_TEXT, "Open it alone")
    until(browser, lambda b: b.current_url.endswith("/case/2/picture.png"))
    quiet(browser)


def look_at(browser: Chrome, url: str, pages: tuple[str, ...]) -> None:
    """Each page can be read and is no wider than the screen, and the policy is kept."""
    sign_in(browser, url, "anna", PASSWORD)
    for path in pages:
        browser.get(url + path)
        for summary in browser.find_elements(By.TAG_NAME, "summary"):
            summary.click()
        assert browser.execute_script(LOW_CONTRAST) == [], path
        assert browser.execute_script(BEYOND) == [], path
        wide = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, path
    quiet(browser)


def test_with_the_keyboard_alone(browser: Chrome, full: str) -> None:
    browser.delete_all_cookies()
    resize(browser, DESKTOP)
    browser.get(f"{full}/sign-in")
    assert browser.switch_to.active_element.get_attribute("id") == "name"
    browser.switch_to.active_element.send_keys("anna", Keys.TAB)
    browser.switch_to.active_element.send_keys(PASSWORD, Keys.ENTER)
    until(browser, lambda b: b.title.startswith("Runs"))
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "Skip to the content"
    skip.send_keys(Keys.ENTER)
    until(browser, lambda b: b.switch_to.active_element.get_attribute("id") == "main")
    browser.switch_to.active_element.send_keys(Keys.TAB, Keys.TAB)
    for _ in range(12):
        focused = browser.switch_to.active_element
        outline = browser.execute_script(
            "return getComputedStyle(document.activeElement).outlineStyle"
        )
        assert outline != "none", focused.get_attribute("outerHTML")
        if focused.tag_name == "a" and "/runs/" in str(focused.get_attribute("href")):
            break
        focused.send_keys(Keys.TAB)
    focused.send_keys(Keys.ENTER)
    until(browser, lambda b: "/runs/" in b.current_url)


def in_text(browser: Chrome, words: str) -> bool:
    # In one step: a live page replaces its parts, also between finding one and reading it.
    return words in browser.execute_script("return document.body ? document.body.innerText : ''")


def with_console(center: Path, port: int) -> Provisioned:
    """Give a coordinator a console before it starts."""
    path = center / "coordinator.toml"
    path.write_text(f"{path.read_text()}\n[console]\nport = {port}\n")
    made = open_provisioned(center)
    assert made.console_people is not None
    set_person(made.console_people, "anna", "acts", PASSWORD, COMMAND)
    return made


def press(browser: Chrome, by: str, what: str) -> None:
    """Click on what may not be there yet, or may be replaced at this moment."""

    def pressed(one: Chrome) -> bool:
        one.find_element(by, what).click()
        return True

    gone = (NoSuchElementException, StaleElementReferenceException)
    WebDriverWait(browser, 60, 0.2, ignored_exceptions=gone).until(pressed)


def approve_at(browser: Chrome, url: str) -> None:
    """Review and approve at a site's console the plan that its operator launched."""
    resize(browser, PHONE)
    sign_in(browser, url, "maria", PASSWORD)
    until(browser, lambda b: in_text(b, "1 plan waits for a person"))
    press(browser, By.LINK_TEXT, "1 plan waits for a person")
    press(browser, By.LINK_TEXT, "by-hand")
    until(browser, lambda b: b.current_url.endswith("/plans/by-hand"))
    for path in ("/plans/by-hand", "/", "/egress", "/budget", "/data", "/history"):
        browser.get(url + path)
        assert browser.execute_script(BEYOND) == [], path
        assert browser.execute_script(LOW_CONTRAST) == [], path
    browser.get(f"{url}/egress")
    assert in_text(browser, "a refusal")
    browser.get(f"{url}/plans/by-hand")
    press(browser, By.ID, "act-plans-by-hand-approve")
    until(browser, lambda b: in_text(b, "Run by-hand is approved"))
    quiet(browser)


def test_a_run_of_a_real_federation(
    tmp_path: Path, browser: Chrome, asterion: Callable[..., Ran]
) -> None:
    """Launched, watched without a reload, stopped and resumed in the browser alone."""
    port, center = free_port(), tmp_path / "live" / "center"

    site_port, north = free_port(), tmp_path / "live" / "sites" / "north"

    def before_start(way: int) -> int:
        with_console(center, port)
        toml = north / "site.toml"
        text = toml.read_text().replace('approval = "auto"', 'approval = "person"')
        toml.write_text(f"{text}\n[console]\nport = {site_port}\n")
        set_person(north / "console-people.json", "maria", "acts", PASSWORD, COMMAND)
        return way

    plan = plan_of("by-hand", 6, task="classification", model={"name": "logistic"},
                   data={"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
                   local={"amount": 200, "learning_rate": 0.01})  # fmt: skip
    (tmp_path / "live").mkdir()
    plan_file, signature_file = tmp_path / "plan.toml", tmp_path / "plan.signature"
    url = f"http://127.0.0.1:{port}"
    limits = dict.fromkeys(("north", "south", "west"), 8.0)
    with running_federation(tmp_path / "live", limits, before_start, carrier="link") as federation:
        plan_file.write_text(plan_to_toml(plan))
        signature_file.write_text(signed_here(center, plan, "by-hand").model_dump_json())
        browser.delete_all_cookies()
        resize(browser, PHONE)
        sign_in(browser, url, "anna", PASSWORD)
        browser.get(f"{url}/sites")
        until(browser, lambda b: in_text(b, "3 of 3 connected"))
        browser.get(f"{url}/launch")
        browser.find_element(By.ID, "plan").send_keys(str(plan_file))
        browser.find_element(By.ID, "signature").send_keys(str(signature_file))
        press(browser, By.CSS_SELECTOR, "main button")
        until(browser, lambda b: b.title.startswith("The plan is right"), 120)
        press(browser, By.ID, "act-launch-go")
        until(browser, lambda b: b.current_url.endswith("/runs/by-hand"))
        browser.execute_script("window.kept = true")
        until(browser, lambda b: not in_text(b, "no round is finished yet"), 120)
        assert browser.execute_script("return window.kept"), "the page was loaded anew"
        until(browser, lambda b: in_text(b, "of 6 rounds so far"), 60)
        press(browser, By.ID, "stop-first")
        press(browser, By.ID, "act-runs-by-hand-stop")
        until(browser, lambda b: in_text(b, "is stopped. Its finished rounds are kept."))
        until(browser, lambda b: in_text(b, "stopped after"))
        assert in_text(browser, "is stopped. Its finished rounds are kept."), "an update took it"
        resize(browser, DESKTOP)
        press(browser, By.ID, "act-runs-by-hand-resume")
        until(browser, lambda b: in_text(b, "6 of 6 rounds finished"), 180)
        assert browser.execute_script(BEYOND) == []
        press(browser, By.LINK_TEXT, "Open the report")
        until(browser, lambda b: "6 of 6 rounds finished" in b.title)
        quiet(browser)
        approve_at(browser, f"http://127.0.0.1:{site_port}")
        link = federation.child("center", "asterion_server.link_server")
        console = federation.child("center", "asterion_server.console.console")
        console.kill()
        until(browser, lambda b: "is started again" in federation.log("center"), 30)
        assert link.is_running()
    folder = RunFolder(center / "runs" / "by-hand")
    assert folder.read_signature() is not None
    for side in (center, north / "state"):
        ran = asterion("audit", "verify", side / "audit")
        assert ran.code == 0, ran.said
    told = b"".join(path.read_bytes() for path in (north / "state/audit").glob("*.jsonl"))
    assert b'"person":"maria"' in told
    trail = b"".join(path.read_bytes() for path in sorted((center / "audit").glob("*.jsonl")))
    assert [
        act for act in (b"launch", b"stop", b"resume") if b'"act":"%s"' % act not in trail
    ] == []
