"""The coordinator's own SuperLink, a real process over TLS: who may use which interface."""

import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import (
    GetLoginDetailsRequest,
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from tests.flower.test_control_proof import add_operator
from tests.live.conftest import ASTERION, free_port, wait_for
from tests.papers import BARE, papers_of, provisioned

from asterion_client.site_keys import init_site
from asterion_server import control_proof
from asterion_server.control_gate import AUDIT_FILE
from asterion_server.control_proof import coordinator_prover, operator_prover
from asterion_server.enrol import enrol, revoke
from asterion_server.flower_server_compat import Control
from asterion_server.keys import Provisioned
from asterion_shared.bundle import bundle
from asterion_shared.child_process import flower_environment
from asterion_shared.enrolment_files import read_request

pytestmark = pytest.mark.live


@dataclass(frozen=True)
class Center:
    made: Provisioned
    ada: Path
    log: Path

    def client(self) -> httpx.Client:
        trusted = ssl.create_default_context(cafile=str(self.made.root_certificate))
        return httpx.Client(base_url=f"https://{self.made.address}", verify=trusted)

    def audit(self) -> str:
        return (self.made.folder / "logs" / AUDIT_FILE).read_text()


@contextmanager
def running(made: Provisioned, log: Path) -> Iterator[None]:
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*ASTERION, "server", "start", str(made.folder)], stdout=out, stderr=out
        )
    try:
        wait_for(lambda: "listens on" in log.read_text() or process.poll() is not None, 90, "start")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def center(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Center]:
    root = tmp_path_factory.mktemp("accounts")
    made = provisioned(
        root / "center", ["127.0.0.1"], ["north"], port=free_port(), listen="127.0.0.1",
        carrier="flower",
    )  # fmt: skip
    found = Center(made, add_operator(made, "ada", root), root / "center.log")
    with running(made, found.log):
        prove = operator_prover("ada", found.ada, made.root_certificate)
        until = time.monotonic() + 2 * control_proof.SKEW_SECONDS
        while status_with(found, prove) == 401:  # an earlier SuperLink might have taken it
            assert time.monotonic() < until
            time.sleep(0.5)
        yield found
    assert "Traceback" not in (made.folder / "logs" / "superlink.log").read_text()


def status_with(center: Center, prove: Callable[[str, bytes], str]) -> int:
    """What a list of the nodes is answered with."""
    path, body = "/v1/control/list-nodes", ListNodesRequest().SerializeToString()
    with center.client() as client:
        return post(client, path, body, prove(path, body)).status_code


def post(client: httpx.Client, path: str, body: bytes, proof: str = "") -> httpx.Response:
    headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    if proof:
        headers["authorization"] = f"Bearer {proof}"
    return client.post(path, content=body, headers=headers)


def test_an_operator_enrols_starts_lists_and_stops(center: Center, tmp_path: Path) -> None:
    made = center.made
    prove = operator_prover("ada", center.ada, made.root_certificate)
    with closing(Control(made.address, made.root_certificate, prove)) as control:
        assert [node.name for node in control.nodes()] == ["north"]
        run = control.start(bundle(), {"run": "of-ada"})
        found = control.run(run)
        assert found is not None
        assert found.name == "of-ada"
        control.stop(run)
    lines = center.audit()
    for call in ("list-nodes", "start-run", "list-runs"):
        assert f'"account": "operator:ada", "call": "{call}", "status": 200' in lines


CALLS: dict[str, Any] = {
    "start-run": StartRunRequest(),
    "stop-run": StopRunRequest(run_id=1),
    "list-runs": ListRunsRequest(),
    "list-nodes": ListNodesRequest(),
    "stream-logs": StreamLogsRequest(run_id=1),
    "register-node": RegisterNodeRequest(public_key=b"x", name="evil"),
    "unregister-node": UnregisterNodeRequest(node_id=1),
    "get-login-details": GetLoginDetailsRequest(),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_call_is_refused_without_a_proof_and_with_a_wrong_one(
    center: Center, call: str, tmp_path: Path
) -> None:
    made = center.made
    path, body = f"/v1/control/{call}", CALLS[call].SerializeToString()
    eve = add_operator(made, "eve", tmp_path)
    (made.operators / "eve.pem").unlink()
    wrong = operator_prover("ada", eve, made.root_certificate)
    gone = operator_prover("eve", eve, made.root_certificate)
    with center.client() as client:
        assert post(client, path, body).json() == {"detail": "refused", "code": "no_proof"}
        for proof in (wrong(path, body), gone(path, body)):
            answer = post(client, path, body, proof)
            assert (answer.status_code, answer.json()["code"]) == (401, "not_accepted")
        with closing(Control(made.address, made.root_certificate, coordinator_prover(made))) as own:
            assert [node.name for node in own.nodes()] == ["north"]


def test_a_proof_is_refused_when_it_is_used_again_or_old(
    center: Center, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = operator_prover("ada", center.ada, center.made.root_certificate)
    path, body = "/v1/control/list-nodes", b""
    with center.client() as client:
        proof = prove(path, body)
        assert post(client, path, body, proof).status_code == 200
        assert post(client, path, body, proof).json()["code"] == "replayed"
        assert post(client, "/v1/control/list-runs", body, prove(path, body)).status_code == 401
        real = time.time_ns()
        for seconds in (-61, control_proof.SKEW_SECONDS + 2):
            shifted = real + seconds * 10**9
            monkeypatch.setattr(control_proof.time, "time_ns", lambda now=shifted: now)
            assert post(client, path, body, prove(path, body)).json()["code"] == "expired"


def test_a_removed_operator_is_shut_out_and_another_stays(center: Center, tmp_path: Path) -> None:
    made = center.made
    bob = operator_prover("bob", add_operator(made, "bob", tmp_path), made.root_certificate)
    assert status_with(center, bob) == 200
    (made.operators / "bob.pem").unlink()
    assert status_with(center, bob) == 401
    assert status_with(center, operator_prover("ada", center.ada, made.root_certificate)) == 200


def test_flowers_own_command_line_is_refused(center: Center, tmp_path: Path) -> None:
    made = center.made
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "center"\n[superlink.center]\naddress = "{made.address}"\n'
        f'root-certificates = "{made.root_certificate.resolve()}"\n'
    )
    (tmp_path / "key.pub").write_bytes(made.public_key("north").read_bytes())
    program = str(Path(sys.executable).with_name("flwr"))
    for words in (["ls", "center"], ["stop", "1", "center"], ["supernode", "list", "center"]):
        done = subprocess.run(
            [program, *words], capture_output=True, timeout=60, check=False,
            env=os.environ | flower_environment(tmp_path),
        )  # fmt: skip
        assert done.returncode != 0
        told = (done.stdout + done.stderr).decode()
        assert "401" in told or "uthenticat" in told, told
        assert "north" not in told


def test_the_task_interface_wants_the_secret(center: Center) -> None:
    def acquire(secret: bytes) -> int:
        method = "/flwr.proto.Runtime/AcquireTask"
        client = RuntimeHttpClient.from_server_address(
            server_address=center.made.address,
            insecure=False,
            root_certificates=center.made.root_certificate.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={method}),
            ],
        )
        # Of a kind that the coordinator's own SuperExec does not take.
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        try:
            client.AcquireTask(wanted)
        except httpx.HTTPStatusError as error:
            return error.response.status_code
        finally:
            client.close()
        return 200

    assert acquire(b"guessed") in (401, 403)
    assert acquire(center.made.secret.read_bytes()) == 200
    with center.client() as client:
        path = "/v1/runtime/acquire-task"
        assert post(client, path, AcquireTaskRequest().SerializeToString()).status_code >= 400


def test_a_control_call_that_passes_the_gate_unseen_is_refused_by_flower(center: Center) -> None:
    """Flower asks for itself whether the call was proven; without the gate nothing is."""
    made = center.made
    port = free_port()
    code = (
        "import sys; from asterion_server.flower_server_compat import serve_superlink;"
        "sys.argv[0] = 'flower-superlink'; serve_superlink(lambda app: app, lambda: False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--ssl-ca-certfile", str(made.root_certificate),
         "--ssl-certfile", str(made.certificate), "--ssl-keyfile", str(made.private_key),
         "--host", "127.0.0.1", "--port", str(port), "--isolation", "process"],
        env=os.environ | flower_environment(made.folder / "second"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{port}", False, made.root_certificate.read_bytes(), []
        )

        def status() -> int:
            try:
                client.ListNodes(ListNodesRequest())
            except httpx.HTTPStatusError as error:
                return error.response.status_code
            except httpx.TransportError:
                return 0
            return 200

        wait_for(lambda: status() != 0, 60, "a SuperLink")
        assert status() == 401
        client.close()
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/docs/oauth2-redirect"])
def test_the_list_of_calls_is_hidden(center: Center, path: str) -> None:
    with center.client() as client:
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert client.get("/health").status_code == 200


def test_no_refused_call_left_anything_behind(center: Center) -> None:
    made = center.made
    with closing(Control(made.address, made.root_certificate, coordinator_prover(made))) as control:
        assert [node.name for node in control.nodes()] == ["north"]
        assert {run.name for run in control.runs()} <= {"of-ada"}
    assert '"code": "no_proof"' in center.audit()
    assert '"code": "not_accepted"' in center.audit()


def test_enrolments_and_revocations_count_while_it_runs(center: Center) -> None:
    made = center.made
    toml = papers_of(made, "west") / "site.toml"
    toml.parent.mkdir()
    toml.write_text(BARE.format(name="west"))

    def known(control: Control) -> set[str]:
        return {node.name for node in control.nodes()}

    with closing(Control(made.address, made.root_certificate, coordinator_prover(made))) as control:
        enrol(made.folder, [read_request(init_site(toml)[0])], lambda *_: True)
        wait_for(lambda: known(control) == {"north", "west"}, 10, "west at the SuperLink")
        revoke(made.folder, "west")
        began = time.monotonic()
        wait_for(lambda: known(control) == {"north"}, 10, "west shut out")
        assert time.monotonic() - began < 5  # a second, on a machine that does nothing else
