"""The demo: a coordinator and its sites as separate processes on this machine, over TLS.

It types the commands that an operator and the sites would type, so what it shows is what they get.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import typer

from asterion_client.settings import read_site_settings
from asterion_shared.carrier import Carrier
from asterion_shared.errors import AsterionError, FileProblemError, UserInputError
from asterion_shared.plan import Plan, read_plan
from asterion_sim.demo_sites import make_demo_sites
from asterion_sim.local_federation import enrol_on_this_machine, operator_key
from asterion_sim.virtual_cohort import site_folders

ASTERION = (sys.executable, "-m", "asterion_shared.command_line")
DEMO_PLAN = Path(__file__).parent / "assets" / "demo_plan.toml"
START_SECONDS = 180.0
Say = Callable[[str], None]
OURS = "made-by-asterion-demo"
"""A marker file: only a folder that has it is emptied before a new demo."""


def run_demo(
    out: Path, data: Path | None, plan: Path | None, *, carrier: Carrier = "link", as_json: bool
) -> None:
    """Provision keys, start a coordinator and its sites, launch the plan, collect the reports.

    Args:
        out: folder of the demo; an earlier demo in it is replaced.
        data: folder whose sub-folders each have a ``site.toml``; None makes the Hubble sites.
        plan: the plan; None takes ``data/plan.toml``, or the Hubble plan without ``data``.
        carrier: of the messages, ``link`` or ``flower``.
        as_json: print the run's events as JSON lines instead of text.

    Raises:
        UserInputError: ``out`` is a folder that is not a demo's.
        AsterionError: a process could not be started, or the run failed.
    """
    _empty(out)
    say: Say = _silent if as_json else typer.echo
    plan = plan or (DEMO_PLAN if data is None else data / "plan.toml")
    wanted = read_plan(plan)
    originals = make_demo_sites(out / "observatories") if data is None else site_folders(data)
    sites = {read_site_settings(f / "site.toml").name: f for f in originals}
    port = _free_port()
    coordinator = out / "coordinator"
    say(f"keys for a coordinator and {len(sites)} sites: {coordinator}")
    settings = {
        name: _settle(folder, out / "sites" / name, wanted) for name, folder in sites.items()
    }
    enrol_on_this_machine(
        coordinator, list(settings.values()), port=port, listen="127.0.0.1", carrier=carrier
    )
    with (
        _process(["server", "start", str(coordinator)], out / "logs/coordinator.log") as center,
        _site_processes(settings, out / "logs", say, center),
    ):
        say("launching the plan; to see a site fail, kill one of the processes above\n")
        code = subprocess.run(
            [*ASTERION, "server", "launch", str(plan), "--folder", str(coordinator),
             "--key", str(operator_key(coordinator)), *(["--json"] if as_json else [])],
            check=False,
        ).returncode  # fmt: skip
    _collect(coordinator / "runs" / wanted.name, settings, wanted.name, out)
    if code:
        raise typer.Exit(code)
    say(f"\nresult   {out / 'result.json'}\nreport   {out / 'report.html'}")
    for name in settings:
        say(f"at site  {out / 'sites' / name / 'report.html'}")


def _silent(line: str) -> None:
    """Say nothing: another program reads the output."""


def _empty(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / OURS).exists():
        msg = f"{out} holds something else than a demo; choose another folder with --out"
        raise UserInputError(msg)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / OURS).touch()


def _settle(data: Path, home: Path, plan: Plan) -> Path:
    """Give a site its home, with its settings; the data stay in place.

    A site that says nothing of privacy allows what a private plan asks for: it is a rehearsal, and
    its ledger ends with it.
    """
    home.mkdir(parents=True)
    given = read_site_settings(data / "site.toml")
    text = (data / "site.toml").read_text(encoding="utf-8")
    if given.connection is not None:
        fix = "remove the section for the demo: it makes keys of its own"
        raise FileProblemError(data / "site.toml", "has a [connection]", fix)
    folder = (data / given.data.folder).resolve()
    lines = [line for line in text.splitlines() if not line.startswith("folder =")]
    at = lines.index("[data]") + 1
    lines.insert(at, f'folder = "{os.path.relpath(folder, home.resolve())}"')
    if plan.privacy is not None and given.privacy is None:
        allowed = f"epsilon_limit = {plan.privacy.epsilon_limit}\ndelta = {plan.privacy.delta}\n"
        lines += ["[privacy]", allowed]
    (home / "site.toml").write_text("\n".join(lines), encoding="utf-8")
    return home / "site.toml"


@contextmanager
def _process(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*ASTERION, *words], stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _site_processes(
    settings: dict[str, Path], logs: Path, say: Say, center: subprocess.Popen[bytes]
) -> Iterator[None]:
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(_process(["site", "start", str(path)], logs / f"{name}.log"))
            for name, path in settings.items()
        }
        for name, process in started.items():
            _wait_for(logs / f"{name}.log", process, center, name)
            say(f"site {name} is connected (process {process.pid})")
        yield


def _wait_for(
    log: Path, process: subprocess.Popen[bytes], center: subprocess.Popen[bytes], name: str
) -> None:
    """Wait until a site says that it is connected.

    Raises:
        AsterionError: it or the coordinator ended, or it did not connect in time.
    """
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        if b"waiting for orders" in log.read_bytes():
            return
        for what, one in (("the coordinator", center), (f"site {name}", process)):
            if one.poll() is not None:
                msg = f"{what} ended with code {one.returncode}; see the files in {log.parent}"
                raise AsterionError(msg)
        time.sleep(0.2)
    msg = f"site {name} did not connect within {START_SECONDS:.0f} s; see {log}"
    raise AsterionError(msg)


def _collect(run: Path, settings: dict[str, Path], name: str, out: Path) -> None:
    """Put the reports where a person looks first. A site's own comes from the site's folder."""
    for file in ("result.json", "report.html", "model.safetensors"):
        if (run / file).exists():
            shutil.copy(run / file, out / file)
    for path in settings.values():
        report = path.parent / "state/runs" / name / "report.html"
        if report.exists():
            shutil.copy(report, path.parent / "report.html")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
