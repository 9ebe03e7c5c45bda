"""The operator's page of releases: what is in use, and releasing, promoting and rolling back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.console.conftest import Browser
from tests.console.examples import COMMAND, PASSWORD
from tests.console.test_operator_acts import acts_on_record
from tests.link.loopback import free_port
from tests.release.conftest import small_plan
from tests.release.runs import RUN, add_run, coordinator_with_run

from asterion_server.keys import Provisioned, open_provisioned
from asterion_server.release_registry import Registry
from asterion_shared.console.people import set_person

Browse = Callable[[Provisioned], Browser]
GATE = "[gate]\nworst_site_at_least = 0.9\n"


@pytest.fixture
def centre(tmp_path: Path) -> Provisioned:
    """A coordinator with a run that has ended, and with a console."""
    made = coordinator_with_run(tmp_path)
    path = made.folder / "coordinator.toml"
    path.write_text(f"{path.read_text()}\n[console]\nport = {free_port()}\n")
    made = open_provisioned(made.folder)
    assert made.console_people is not None
    for name, role in (("anna", "acts"), ("otto", "looks")):
        set_person(made.console_people, name, role, PASSWORD, COMMAND)  # type: ignore[arg-type]
    return made


def signed_in(browse: Browse, made: Provisioned, name: str = "anna") -> Browser:
    browser = browse(made)
    assert browser.sign_in(name).status_code == 200
    return browser


def test_from_a_run_to_the_version_in_use_and_back(centre: Provisioned, browse: Browse) -> None:
    anna = signed_in(browse, centre)
    page = anna.get("/releases")
    assert "Nothing was released yet." in page
    assert f"{RUN}, last model: Dice 0.820" in page
    assert f"{RUN}, best model, of round 2: Dice 0.860" in page
    assert "<code>coordinator/releases</code>" in page
    assert "Coordinator coordinator" not in page
    said = anna.post("/releases/make", "/releases", run=RUN, chosen="best").text
    assert "cells version 1 is released." in said
    assert "Dice 0.860" in said
    assert f"{RUN}, last model" in said
    assert f"{RUN}, best model" not in said
    add_run(centre, small_plan(rounds={"count": 3}), "cells-again")
    assert (
        "cells version 2 is released."
        in anna.post("/releases/make", "/releases", run="cells-again").text
    )
    for version in ("1", "2"):
        answer = anna.post("/releases/promote", "/releases", model="cells", version=version)
        assert f"cells version {version} is the one in use" in answer.text
    page = anna.get("/releases")
    assert "Go back to version 1" in page
    assert ">maturity</th>" in page
    assert (
        "cells version 1 is the one in use again"
        in anna.post("/releases/rollback", "/releases", model="cells").text
    )
    page = anna.post("/releases/make", "/releases", run=RUN).text
    assert f"{RUN}, " not in page
    assert "cells-again, last model" not in page
    assert "Every model of a run" not in page
    page = anna.post("/releases/make", "/releases", run="cells-again", chosen="best").text
    assert "Every model of a run that has ended is released." in page
    model = Registry(centre.releases).model("cells")
    assert model.current == 1
    who: dict[str, Any] = {"person": "anna"}
    assert acts_on_record(centre) == [
        who | {"run": RUN, "act": "make_release", "chosen": "best", "despite": 0},
        who | {"run": "cells-again", "act": "make_release", "chosen": "final", "despite": 0},
        who | {"run": RUN, "act": "promote", "model": "cells", "version": 1},
        who | {"run": "cells-again", "act": "promote", "model": "cells", "version": 2},
        who | {"run": "cells-again", "act": "roll_back", "model": "cells", "version": 2},
        who | {"run": RUN, "act": "make_release", "chosen": "final", "despite": 0},
        who | {"run": "cells-again", "act": "make_release", "chosen": "best", "despite": 0},
    ]


def test_what_the_gate_holds_back_is_released_with_a_reason_alone(
    centre: Provisioned, browse: Browse
) -> None:
    (centre.folder / "release.toml").write_text(GATE)
    anna = signed_in(browse, centre)
    page = anna.get("/releases")
    assert "the gate holds it back" in page
    assert "worst site" in page
    refused = anna.post("/releases/make", "/releases", run=RUN)
    assert refused.status_code == 400
    assert "held back" in refused.text
    assert Registry(centre.releases).models() == {}
    reason = "for the meeting of the ethics board"
    said = anna.post("/releases/make", "/releases", run=RUN, despite=reason).text
    assert "cells version 1 is released." in said
    assert "Version 1 was held back" in said
    assert "Use version 1" not in said
    refused = anna.post("/releases/promote", "/releases", model="cells", version="1")
    assert refused.status_code == 400
    assert [act["despite"] for act in acts_on_record(centre) if "despite" in act] == [0, 1]
    trail = b"".join(path.read_bytes() for path in centre.audit.glob("*.jsonl"))
    assert reason.encode() not in trail


def test_the_gate_speaks_of_each_model_by_itself(centre: Provisioned, browse: Browse) -> None:
    (centre.folder / "release.toml").write_text("[gate]\nworst_site_at_least = 0.79\n")
    page = signed_in(browse, centre).get("/releases")
    last, best = page.split("best model, of round 2")
    assert ("the gate holds it back" in last, "the gate holds it back" in best) == (True, False)


def test_who_only_looks_and_what_is_wrong(centre: Provisioned, browse: Browse) -> None:
    otto = signed_in(browse, centre, "otto")
    page = otto.get("/releases")
    assert RUN in page
    assert "/releases/make" not in page
    for path in ("make", "promote", "rollback"):
        assert otto.post(f"/releases/{path}", "/releases", run=RUN).status_code == 403
    otto.client.cookies.clear()
    anna = otto
    assert anna.sign_in().status_code == 200
    for path, form, words in (
        ("make", {"run": "../../etc"}, "there is no run"),
        ("make", {"run": RUN, "chosen": "--help"}, "is not one of"),
        ("promote", {"model": "cells", "version": "1"}, "was released"),
        ("promote", {"model": "cells", "version": "one"}, "is no number"),
        ("rollback", {"model": "none"}, "was released"),
    ):
        answer = anna.post(f"/releases/{path}", "/releases", **form)
        assert answer.status_code == 400
        assert words in answer.text, answer.text
    (centre.folder / "release.toml").write_text("[gate]\nworst_sight = 1\n")
    assert "worst_sight" in anna.get("/releases")
    centre.releases.mkdir()
    (centre.releases / "registry.jsonl").write_text('{"event": "other"}\n')
    assert "is none of a registry" in anna.client.get("/releases").text
