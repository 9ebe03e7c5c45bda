"""The launch page: a plan comes as a file, is checked, and is launched from what was checked."""

import json
import secrets
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterion_server.app import RUN_NAME
from asterion_server.keys import Provisioned
from asterion_server.run_folder import RunFolder
from asterion_shared.console.pages import Upload, Visit
from asterion_shared.errors import (
    AsterionError,
    OrderRefusedError,
    Problem,
    SettingsError,
    UserInputError,
)
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.settings_files import validate
from asterion_shared.signed_plan import PlanSignature, check_signature, read_operator_keys

CHECK_SECONDS = 120.0
"""How long the network of a plan may take to be built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchDraft:
    """A plan that was checked and may be launched.

    Attributes:
        token: of the form that launches it.
        plan: to be launched.
        signature: an operator's; None when none came.
        run: its name.
        sites: that shall take part.
        wait_seconds: for sites at the start.
    """

    token: str
    plan: Plan
    signature: PlanSignature | None
    run: str
    sites: tuple[str, ...]
    wait_seconds: float


def launch_form(made: Provisioned) -> dict[str, Any]:
    """What the template ``launch.html.j2`` shows."""
    return {"sites": sorted(made.settings.sites)}


def checked(made: Provisioned, visit: Visit) -> dict[str, Any]:
    """What ``launch_check.html.j2`` shows of the files that came; a plan without problem is kept.

    Raises:
        UserInputError: no plan came, or a field is wrong.
    """
    visit.session.kept.pop("launch", None)
    plan, problems = _plan(visit.uploads.get("plan"))
    if plan is None:
        return _told(problems, [])
    run = visit.said("run") or plan.name
    signature, unsigned = _signature(visit.uploads.get("signature"))
    problems += [*unsigned, *_launch_problems(made, plan, run), *_init_problems(plan)]
    sites = tuple(sorted(visit.form.get("site", [])))
    if not sites:
        problems.append(Problem(where="sites", what="none is chosen", fix="choose some"))
    warnings = _signature_warnings(made, plan, run, signature)
    stated = None
    if not problems:  # it takes seconds
        stated, problems = _network_problems(plan)
    if problems:
        return _told(problems, warnings)
    draft = LaunchDraft(
        token=secrets.token_urlsafe(16),
        plan=plan,
        signature=signature,
        run=run,
        sites=sites,
        wait_seconds=_wait_seconds(visit.said("wait")),
    )
    visit.session.kept["launch"] = draft
    return _told([], warnings) | {
        "plan": plan,
        "run": run,
        "chosen": sites,
        "token": draft.token,
        "privacy": stated,
        "signed_by": signature.operator if signature else "",
        "toml": plan_to_toml(plan),
    }


def _told(problems: list[Problem], warnings: list[str]) -> dict[str, Any]:
    rows = [(p.where, p.what, p.fix) for p in problems]
    return {"problems": problems, "body": rows, "warnings": warnings, "plan": None}


def draft_of(visit: Visit) -> LaunchDraft:
    """The plan that this session has checked, and that the form is about.

    Raises:
        UserInputError: it was checked elsewhere, or another one since.
    """
    draft = visit.session.kept.get("launch")
    if not isinstance(draft, LaunchDraft) or draft.token != visit.said("token"):
        msg = "another plan was checked since, or none; check it again"
        raise UserInputError(msg)
    return draft


def _plan(upload: Upload | None) -> tuple[Plan | None, list[Problem]]:
    if upload is None:
        return None, [Problem(where="plan", what="no file came", fix="choose the plan's file")]
    try:
        values = tomllib.loads(upload.content.decode())
    except UnicodeDecodeError:
        return None, [Problem(where="plan", what="is not text", fix="save it as UTF-8")]
    except tomllib.TOMLDecodeError as error:
        return None, [Problem(where="plan", what=f"is not TOML: {error}", fix="mend that line")]
    try:
        return validate(Plan, values, "the plan"), []
    except SettingsError as error:
        return None, list(error.problems)


def _signature(upload: Upload | None) -> tuple[PlanSignature | None, list[Problem]]:
    if upload is None:
        return None, []
    fix = "sign the plan again: asterion operator sign PLAN --key KEY"
    try:
        values = json.loads(upload.content)
    except ValueError:
        return None, [Problem(where="signature", what="is not JSON", fix=fix)]
    if not isinstance(values, dict):
        return None, [Problem(where="signature", what="is not a signature", fix=fix)]
    try:
        return validate(PlanSignature, values, "the signature"), []
    except SettingsError as error:
        return None, list(error.problems)


def _launch_problems(made: Provisioned, plan: Plan, run: str) -> Iterator[Problem]:
    if RUN_NAME.fullmatch(run) is None:
        fix = "use lower-case letters, digits, '_', '.', '-'"
        yield Problem(where="name of the run", what=f"is {run[:70]!r}", fix=fix)
        return
    folder = RunFolder(made.runs / run)
    if folder.plan_file.exists() and folder.read_plan() != plan:
        what = f"run {run!r} exists with another plan"
        yield Problem(where="name of the run", what=what, fix="choose another name")


def _init_problems(plan: Plan) -> Iterator[Problem]:
    if plan.init is not None:
        fix = "launch it at the coordinator: asterion server launch PLAN"
        yield Problem(where="init", what="the plan begins from a file of weights", fix=fix)


def _network_problems(plan: Plan) -> tuple[dict[str, Any] | None, list[Problem]]:
    """What ``asterion plan check`` says of the network and of privacy, in a process of its own.

    A network that takes too much memory or time takes the console's pages with it otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.toml"
        write_atomically(file, plan_to_toml(plan).encode())
        words = ["-m", "asterion_shared.command_line", "plan", "check", "--json", str(file)]
        try:
            ran = subprocess.run(
                [sys.executable, *words], capture_output=True, timeout=CHECK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            what = f"its network was not built in {CHECK_SECONDS:.0f} s"
            return None, [Problem(where="model", what=what, fix="choose a smaller one")]
    if ran.returncode == 0:
        stated: dict[str, Any] | None = json.loads(ran.stdout)["privacy"]
        return stated, []
    lines = ran.stderr.decode(errors="replace").replace(str(file), "the plan").strip()
    what, _, fix = lines.removeprefix("error: ").rpartition("; ")
    return None, [Problem(where="plan", what=what or lines[-300:], fix=fix)]


def _signature_warnings(
    made: Provisioned, plan: Plan, run: str, signature: PlanSignature | None
) -> list[str]:
    """Why sites would refuse the plan as it is signed, as far as it is known here."""
    if signature is None:
        signed = RunFolder(made.runs / run).signature_file
        if RUN_NAME.fullmatch(run) is not None and signed.exists():
            return []
        return ["Nobody has signed the plan. Sites refuse it (unsigned_plan); sign it with: "
                f"asterion operator sign PLAN --key KEY --run {run}"]  # fmt: skip
    names = tuple(sorted(path.stem for path in made.operators.glob("*.pem")))
    try:
        check_signature(
            signature, plan, run, read_operator_keys(made.operators, names), time.time()
        )
    except OrderRefusedError as error:
        return [f"Sites would refuse the signature ({error.code}): {error}"]
    except AsterionError as error:
        return [f"The signature cannot be checked here: {error}"]
    return []


def _wait_seconds(said: str) -> float:
    try:
        found = float(said or "30")
    except ValueError:
        found = -1.0
    if not 0 <= found <= 86_400:
        msg = f"the seconds to wait are {said[:20]!r}; give a number from 0 to 86400"
        raise UserInputError(msg)
    return found
