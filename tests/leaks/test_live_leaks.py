"""Real processes, real TLS: nothing of a site's data is in what a coordinator or a log has.

Three sites on the link, one on stock Flower, are started by the commands that a person types. Runs
end well, are refused in every stage, wait for a person; somebody withdraws, and a second process
fails to start. Then every file of the coordinator, every file of each site's state, what their
processes and listings say, and the plain text of all that the sites sent is searched.
"""

import base64
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.conftest import Ran
from tests.leaks.markers import TEXTS, files_below, found_in
from tests.leaks.planted import plan_of, refused_plans, write_site
from tests.live.conftest import ASTERION, Federation, free_port, wait_for

from asterion_client.approvals import FOLDER, WAITING
from asterion_shared.carrier import Carrier
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.result import Result, read_result
from asterion_sim.local_federation import CONSENT, enrol_on_this_machine

pytestmark = pytest.mark.live

KINDS = {"ward": "dicom", "dome": "fits", "clinic": "table"}
PERSON = CONSENT.replace('approval = "auto"', 'approval = "person"')
HERE = Path(__file__).parent


class Houses:
    """A federation whose sites' data are full of markers."""

    def __init__(
        self, root: Path, names: Sequence[str], carrier: Carrier, asterion: Callable[..., Ran]
    ) -> None:
        self.asterion, self.root, self.ports = asterion, root, {name: free_port() for name in names}
        self.heard = root / "heard"
        self.heard.mkdir()
        for name in names:
            path = write_site(self.folder(name), KINDS[name], name)
            with path.open("a") as file:
                file.write(PERSON if name == "clinic" and carrier == "link" else "")
                file.write("[privacy]\nepsilon_limit = 1e-4\n")
        made = enrol_on_this_machine(
            root / "center", [self.toml(name) for name in names], port=free_port(),
            listen="127.0.0.1", carrier=carrier,
        )  # fmt: skip
        self.federation = Federation(root, made)
        for name in names:
            text = self.toml(name).read_text()
            health = f"[connection]\nhealth_port = {self.ports[name]}\n"
            self.toml(name).write_text(text.replace("[connection]\n", health))

    def folder(self, name: str) -> Path:
        return self.root / TEXTS["home"] / name

    def toml(self, name: str) -> Path:
        return self.folder(name) / "site.toml"

    def state(self, name: str) -> Path:
        return self.folder(name) / "state"

    def start(self) -> None:
        self.federation.start("center", "server", "start", str(self.root / "center"))
        for name in self.ports:
            self.federation.start(name, "site", "start", str(self.toml(name)), "--wait", "90")
        for name in self.ports:
            wait_for(
                lambda name=name: "waiting for orders" in self.federation.log(name),  # type: ignore[misc]
                90,
                f"site {name}",
            )

    def ran(self, plan: Plan, sites: Sequence[str], *, key: bool = True) -> Result:
        """Launch a plan and wait for its end."""
        path, center = self.root / f"{plan.name}.toml", self.root / "center"
        path.write_text(plan_to_toml(plan))
        words = [w for site in sites for w in ("--site", site)]
        if key:
            words += ["--key", str(self.root / "center-operator" / "local.key")]
        self.said("server", "launch", str(path), "--folder", str(center), "--json", *words)
        return read_result(center / "runs" / plan.name / "result.json")

    def refused(self, plan: Plan, sites: Sequence[str], **given: bool) -> set[tuple[str, str]]:
        """Codes and stages with which the sites refuse a plan."""
        result = self.ran(plan, sites, **given)
        assert result.status == "quorum_lost"
        told = [o for r in result.rounds for o in r.outcomes.values()]
        assert {o.outcome for o in told if o.code} <= {"refused", "failed"}
        return {(o.code, o.stage) for o in told if o.code}

    def said(self, *words: str) -> str:
        """What a command says, for whoever reads it."""
        return self.asterion(*words).said

    def health(self, name: str) -> bytes:
        address = f"http://127.0.0.1:{self.ports[name]}/health"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.read()

    def sent(self) -> list[tuple[str, bytes]]:
        """What all of the sites gave to their carrier, in plain text."""
        lines = [x for path in self.heard.iterdir() for x in path.read_bytes().splitlines()]
        pairs = [line.split(b" ", 1) for line in lines]
        return [(f"sent {name.decode()}", base64.b64decode(text)) for name, text in pairs]

    def places(self) -> list[tuple[str, bytes]]:
        """All that a third party may come to see."""
        found = [*self.sent(), *files_below(self.root / "center")]
        for name in self.ports:
            state = files_below(self.state(name))
            # The one file that is for the eyes of the site's own people: pictures, and names.
            found += [(f"{name} {f}", content) for f, content in state if f != "report.html"]
            toml = str(self.toml(name))
            for words in ("egress", "plans", "withdrawals"):
                said = self.said("site", words, toml, "--json")
                found.append((f"{name} {words}", said.encode()))
        return found


def begun(
    root: Path, names: Sequence[str], carrier: Carrier, asterion: Callable[..., Ran]
) -> Iterator[Houses]:
    houses = Houses(root, names, carrier, asterion)
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("LEAKS_HEARD", str(houses.heard))
        try:
            houses.start()
            yield houses
        finally:
            houses.federation.stop()


@pytest.fixture
def link(tmp_path: Path, asterion: Callable[..., Ran]) -> Iterator[Houses]:
    yield from begun(tmp_path, ["ward", "dome", "clinic"], "link", asterion)


@pytest.fixture
def flower(tmp_path: Path, asterion: Callable[..., Ran]) -> Iterator[Houses]:
    yield from begun(tmp_path, ["clinic"], "flower", asterion)


def nothing_stands_in(houses: Houses) -> None:
    assert found_in(houses.places()) == set()
    for name in houses.ports:
        # A site may name its own folder to its own terminal, and nothing else of these.
        spoken = [("terminal", houses.federation.log(name).encode())]
        assert {marker for marker, _, _ in found_in(spoken)} <= {"home"}


def test_nothing_of_the_data_leaves_over_the_link(link: Houses) -> None:
    images = ["ward", "dome"]
    done = link.ran(plan_of("dicom", name="good"), images)
    assert (done.status, done.rounds[1].answered) == ("finished", ("dome", "ward"))
    for problem, plan in refused_plans("dicom").items():
        signed = problem[0] != "unsigned_plan"
        assert link.refused(plan, images, key=signed) == {problem}
    strange = {"classes": ["cat", "dog"], "patch_size": [16, 16]}
    told = link.refused(plan_of("dicom", name="strange", data=strange), images)
    assert told == {("label_outside_classes", "reading data")}

    plan = plan_of("table", name="asked")
    assert link.refused(plan, ["clinic"]) == {("approval_missing", "receiving")}
    assert {name for name, _ in files_below(link.state("clinic") / WAITING)} >= {"asked.json"}
    link.said("site", "approve", str(link.toml("clinic")), "asked", "--reviewed", plan.sha256)
    assert {name for name, _ in files_below(link.state("clinic") / FOLDER)} >= {"asked.json"}
    assert link.ran(plan, ["clinic"]).status == "finished"

    page = link.state("ward") / "runs" / "good" / "report.html"
    shown = re.search(rf"{TEXTS['file']}(\d+)", page.read_text())
    assert shown is not None
    group = f"{TEXTS['manifest']}{shown[1]}"
    assert "1 withdrawn" in link.said("site", "withdraw", str(link.toml("ward")), group)
    assert link.ran(plan_of("dicom", name="later"), images).status == "finished"
    for name in (group, f"{TEXTS['file']}{shown[1]}", f"{TEXTS['patient']}{shown[1]}"):
        pattern = re.compile(rf"{name}(?!\d)".encode())
        after = files_below(link.state("ward"))
        assert [place for place, content in after if pattern.search(content)] == []

    second = link.toml("dome").with_name("second.toml")
    second.write_text(re.sub("health_port.*", "", link.toml("dome").read_text()))
    done = subprocess.run(
        [*ASTERION, "site", "start", str(second)], capture_output=True, timeout=120, check=False
    )
    assert b"another process of this site runs on it" in done.stderr
    assert "cannot start" in (link.state("dome") / "logs" / "runner.log").read_text()

    sent = {place for place, _ in link.sent()}
    assert sent >= {"sent record", "sent Attend", "sent Submit"}
    nothing_stands_in(link)
    assert found_in([("health", link.health(name)) for name in link.ports]) == set()


def test_nothing_of_the_data_leaves_over_stock_flower(flower: Houses) -> None:
    assert flower.ran(plan_of("table", name="good"), ["clinic"]).status == "finished"
    strange = plan_of("table").data.model_copy(update={"classes": ("cat", "dog")})
    told = flower.refused(plan_of("table", name="strange", data=strange.model_dump()), ["clinic"])
    assert told == {("label_outside_classes", "reading data")}
    assert {place for place, _ in flower.sent()} >= {"sent push"}
    nothing_stands_in(flower)
