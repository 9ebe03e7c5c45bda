"""A hostile operator submits code of their own; the sites run none of it, and say so.

The coordinator's SuperExec starts no foreign bundle (``test_live_privacy``), so Flower's own stands
in its place here: the operator owns that machine. What the sites do is theirs.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.flower.conftest import bundle_with
from tests.live.conftest import SITES, Federation, plan_of, running_federation, wait_for

from asterion_server.control_proof import coordinator_prover
from asterion_server.flower_server_compat import Control
from asterion_server.run_folder import Launch, RunFolder
from asterion_shared.child_process import flower_environment
from asterion_shared.files import write_atomically
from asterion_shared.result import read_result

pytestmark = pytest.mark.live

OWN_MODULE = "own_module"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    limits = dict.fromkeys(SITES, 100.0)
    with running_federation(tmp_path_factory.mktemp("foreign"), limits) as running:
        yield running


@contextmanager
def flowers_own_superexec(federation: Federation) -> Iterator[None]:
    """Flower's SuperExec, which starts whatever is submitted, in the place of ours."""
    made = federation.made
    ours = federation.child("center", "asterion_server.superexec")
    ours.suspend()
    told = federation.root / "stock.log"
    with told.open("wb") as log:
        stock = subprocess.Popen(
            [str(Path(sys.executable).with_name("flower-superexec")),
             "--root-certificates", str(made.root_certificate),
             "--runtime-api-address", made.address,
             "--superexec-auth-secret-file", str(made.secret)],
            env=os.environ
            | flower_environment(made.folder.resolve() / "flower")
            | {"ASTERION_COORDINATOR": str(made.folder.resolve())},
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        # By then what ours had asked for is answered: it must not get the task and sleep on it.
        wait_for(lambda: "Starting Flower SuperExec" in told.read_text(), 90, "a SuperExec")
        yield
    finally:
        stock.terminate()
        stock.wait(30)
        ours.resume()


def submit(federation: Federation, name: str, bundle: bytes) -> RunFolder:
    """Have the coordinator's own round loop go on under a foreign bundle; wait for its end."""
    made, plan = federation.made, plan_of(name, 1)
    folder = RunFolder(made.runs / name)
    write_atomically(folder.plan_file, plan.canonical().encode())
    wanted = Launch(sites=tuple(SITES), wait_seconds=30.0, plan_folder=str(made.folder))
    folder.write_launch(wanted)
    prove = coordinator_prover(made)
    with closing(Control(made.address, made.root_certificate, prove)) as control:
        control.start(bundle, {"run": name})
        wait_for(lambda: folder.has_ended, 240, f"the end of run {name}")
    return folder


def code_that_writes(trace: Path) -> str:
    """A client app that leaves a trace when it is imported, and another when it is asked."""
    return f"""\
from flwr.clientapp import ClientApp
open({str(trace)!r}, "a").write(__name__)
app = ClientApp()

@app.query()
def query(message, context):
    open({str(trace)!r}, "a").write("asked")
"""


def hostile_bundles(trace: Path) -> dict[str, bytes]:
    code = code_that_writes(trace)
    own = bundle_with({f"{OWN_MODULE}.py": code}, clientapp=f"{OWN_MODULE}:app")
    files = dict.fromkeys(("asterion_client/__init__.py", "asterion_client/app.py"), code)
    return {"own-code": own, "shadow": bundle_with(files)}


@pytest.mark.parametrize("name", ["own-code", "shadow"])
def test_no_site_runs_what_an_operator_sends(federation: Federation, name: str) -> None:
    trace = federation.root / "it-ran"
    before = federation.launch(plan_of(f"before-{name}", 1))
    assert before.end() == (0, "")
    runners = {site: federation.child(site, "asterion_client.runner").pid for site in SITES}

    with flowers_own_superexec(federation):
        folder = submit(federation, f"hostile-{name}", hostile_bundles(trace)[name])

    # The refusal is a normal answer: the coordinator knows who refused, and why.
    result = read_result(folder.result)
    assert result.status == "quorum_lost"
    for site in SITES:
        assert f"site {site} missing at the start (foreign bundle)" in result.headline
    for site in SITES:
        state = federation.root / "sites" / site / "state"
        assert "foreign_bundle" in (state / "logs" / "runner.log").read_text()
        assert [p for p in (state / "flower").rglob("*") if p.suffix in (".py", ".fab")] == []
        assert not (state / "flower" / "apps").exists()
    assert not trace.exists()

    # The same processes go on with honest work, and so does one that starts anew.
    assert runners == {s: federation.child(s, "asterion_client.runner").pid for s in SITES}
    federation.child("west", "asterion_client.runner").kill()
    after = federation.launch(plan_of(f"after-{name}", 2))
    assert after.end() == (0, "")
    assert read_result(after.folder / "result.json").status == "finished"
    assert not trace.exists()


@pytest.mark.parametrize("name", ["own-code", "shadow"])
def test_under_flowers_own_way_the_same_bundle_runs(tmp_path: Path, name: str) -> None:
    """Or the test above could not fail: installed as stock Flower does, it leaves its trace."""
    trace = tmp_path / "it-ran"
    (tmp_path / "bundle.fab").write_bytes(hostile_bundles(trace)[name])
    code = (
        "import sys; from pathlib import Path; from flwr.cli.install import install_from_fab;"
        "from flwr.cli.config_utils import get_fab_metadata; import hashlib;"
        "from flwr.clientapp.utils import get_load_client_app_fn;"
        "fab = Path(sys.argv[1]).read_bytes(); install_from_fab(fab, skip_prompt=True);"
        "load = get_load_client_app_fn(default_app_ref='', app_path=None, multi_app=True);"
        "load(*get_fab_metadata(fab), hashlib.sha256(fab).hexdigest())"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bundle.fab")],
        env=os.environ | flower_environment(tmp_path / "home"), check=True, timeout=60,
    )  # fmt: skip
    assert trace.exists()
