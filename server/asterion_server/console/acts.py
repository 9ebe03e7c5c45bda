"""What an operator does at the console: each act is on record with the person before it is done."""

import json
import subprocess
import sys

from asterion_server.app import RUN_NAME
from asterion_server.console.launch_page import LaunchDraft, draft_of
from asterion_server.keys import Provisioned
from asterion_server.launch import resume, stop, submit
from asterion_server.quarantine_decisions import decide, one_report, quarantine_of
from asterion_server.quarantine_files import Verdict
from asterion_server.release_registry import Registry
from asterion_server.round_audit import coordinator_trail
from asterion_server.run_folder import RunFolder
from asterion_shared.audit_records import Fact
from asterion_shared.console.pages import Answer, Goto, Visit
from asterion_shared.errors import UserInputError


def record(made: Provisioned, visit: Visit, act: str, run: str, **facts: Fact) -> None:
    """Write down who does what, before it is done.

    Raises:
        AsterionError: as :meth:`asterion_shared.audit.AuditTrail.append`; then nothing is done.
    """
    told: dict[str, Fact] = {"person": visit.session.name, "act": act, **facts}
    coordinator_trail(made.folder).append("console", run=run, facts=told)


def launch_draft(made: Provisioned, visit: Visit) -> Answer:
    """Launch the plan that this session has checked."""
    draft = draft_of(visit)
    _launch(made, visit, draft)
    visit.session.kept.pop("launch", None)
    return Goto(f"/runs/{draft.run}", f"Run {draft.run} is launched.")


def _launch(made: Provisioned, visit: Visit, draft: LaunchDraft) -> None:
    operator = None if draft.signature is None else draft.signature.operator
    sha256 = draft.plan.sha256
    record(made, visit, "launch", draft.run, plan_sha256=sha256, operator=operator)
    begun = submit(
        made,
        draft.plan,
        run=draft.run,
        sites=draft.sites,
        plan_folder=made.folder,
        wait_seconds=draft.wait_seconds,
        signature=draft.signature,
    )
    if not begun:
        msg = f"run {draft.run!r} goes on already, or has finished; choose another name"
        raise UserInputError(msg)


def stop_run(made: Provisioned, visit: Visit, run: str) -> Answer:
    """End a run after what it is doing now."""
    record(made, visit, "stop", run)
    stop(made, run)
    return Goto(f"/runs/{run}", f"Run {run} is stopped. Its finished rounds are kept.")


def resume_run(made: Provisioned, visit: Visit, run: str) -> Answer:
    """Have a run that ended early go on."""
    record(made, visit, "resume", run)
    if resume(made, run):
        return Goto(f"/runs/{run}", f"Run {run} goes on from its last finished round.")
    return Goto(f"/runs/{run}", f"Run {run} needs no resuming: it goes on, or has finished.")


def decide_report(made: Provisioned, visit: Visit, run: str, verdict: Verdict) -> Answer:
    """Release a quarantined report into the next round, or drop it."""
    site, number = visit.said("site"), visit.said("round")
    if not number.isdecimal():
        msg = f"the round is {number[:20]!r}, which is no number"
        raise UserInputError(msg)
    report = one_report(quarantine_of(made, run), run, site, int(number))
    record(made, visit, verdict, run, site=report.site, of_round=report.round,
           update_sha256=report.update_sha256)  # fmt: skip
    decide(made, run, report.site, report.round, verdict)
    done = "goes into the next round" if verdict == "release" else "is dropped"
    return Goto(f"/runs/{run}", f"The report of {site} of round {report.round} {done}.")


def make_release(made: Provisioned, visit: Visit) -> Answer:
    """Release a run's model as research."""
    run, chosen, despite = visit.said("run"), visit.said("chosen") or "final", visit.said("despite")
    if RUN_NAME.fullmatch(run) is None or not RunFolder(made.runs / run).launch_file.exists():
        msg = f"there is no run {run[:70]!r}"
        raise UserInputError(msg)
    record(made, visit, "make_release", run, chosen=chosen[:20], despite=int(bool(despite)))
    told = _carried_out(made, "release", run, "--json", f"--model={chosen}", f"--despite={despite}")
    facts = json.loads(told)["facts"]
    return Goto("/releases", f"{facts['name']} version {facts['version']} is released.")


def promote(made: Provisioned, visit: Visit) -> Answer:
    """Make a version of a model the one in use, after it was verified."""
    name, version = visit.said("model"), visit.said("version")
    if not version.isdecimal():
        msg = f"the version is {version[:20]!r}, which is no number"
        raise UserInputError(msg)
    wanted = Registry(made.releases).model(name).version(int(version))
    record(made, visit, "promote", wanted.run, model=name, version=wanted.version)
    return Goto("/releases", _carried_out(made, "releases", "promote", name, str(wanted.version)))


def roll_back(made: Provisioned, visit: Visit) -> Answer:
    """Go back to the version of a model that was in use before."""
    model = Registry(made.releases).model(visit.said("model"))
    run = "" if model.current is None else model.version(model.current).run
    record(made, visit, "roll_back", run, model=model.name, version=model.current)
    return Goto("/releases", _carried_out(made, "releases", "rollback", model.name))


def _carried_out(made: Provisioned, *words: str) -> str:
    """What a command on the releases printed; in a process of its own, for it loads torch.

    Raises:
        UserInputError: it ended otherwise than well, with its words.
    """
    asterion = [sys.executable, "-m", "asterion_shared.command_line", "server"]
    done = subprocess.run(  # our own command line, no shell
        [*asterion, *words, "--folder", str(made.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserInputError(done.stderr.strip().removeprefix("error: "))
    return done.stdout.strip()
