"""Proofs of single calls: who is believed, for what, and for how long; and the gate that asks."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as ec_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.papers import provisioned

from asterion_server import control_gate, control_proof
from asterion_server.control_gate import ControlGate, proven_account
from asterion_server.control_proof import (
    LIFE_SECONDS,
    SKEW_SECONDS,
    Accounts,
    accounts_of,
    coordinator_prover,
    operator_prover,
    read_proof,
)
from asterion_server.initialise import init_coordinator
from asterion_server.keys import Provisioned
from asterion_shared.errors import FileProblemError, ProofRefusedError, UserInputError
from asterion_shared.operator_keys import make_operator_key

PATH, BODY = "/v1/control/start-run", b"a run"


def add_operator(made: Provisioned, name: str, keys: Path) -> Path:
    """Enrol an operator; the path of the private key."""
    private, public, _ = make_operator_key(keys, name)
    made.operators.mkdir(exist_ok=True)
    (made.operators / f"{name}.pem").write_bytes(public.read_bytes())
    return private


@pytest.fixture
def made(tmp_path: Path) -> Provisioned:
    return provisioned(tmp_path / "center", ["127.0.0.1"], ["north"])


@pytest.fixture
def key(made: Provisioned, tmp_path: Path) -> Path:
    return add_operator(made, "ada", tmp_path)


def accounts(made: Provisioned) -> Accounts:
    """Of a process that has run for long."""
    return replace(accounts_of(made), started=0.0)


def ada(made: Provisioned, key: Path) -> str:
    return operator_prover("ada", key, made.root_certificate)(PATH, BODY)


def refused(proof: str, known: Accounts, now: float | None = None) -> str:
    with pytest.raises(ProofRefusedError) as caught:
        read_proof(proof, known, time.time() if now is None else now)
    return caught.value.code


def test_an_operator_and_the_coordinator_itself_are_believed(made: Provisioned, key: Path) -> None:
    claims = read_proof(ada(made, key), accounts(made), time.time())
    assert (claims.account, claims.path) == ("operator:ada", PATH)
    assert claims.body_sha256 == hashlib.sha256(BODY).hexdigest()
    own = read_proof(coordinator_prover(made)(PATH, BODY), accounts(made), time.time())
    assert own.account == "coordinator"
    assert own.nonce != claims.nonce


def test_a_key_a_name_or_a_secret_that_is_not_known_is_refused(
    made: Provisioned, key: Path, tmp_path: Path
) -> None:
    known = accounts(made)
    eve = add_operator(made, "eve", tmp_path)
    (made.operators / "eve.pem").unlink()
    root = made.root_certificate
    assert refused(operator_prover("eve", eve, root)(PATH, BODY), known) == "not_accepted"
    assert refused(operator_prover("ada", eve, root)(PATH, BODY), known) == "not_accepted"
    strange = replace(known, secret=b"another secret")
    assert refused(coordinator_prover(made)(PATH, BODY), strange) == "not_accepted"


def test_an_operator_whose_file_is_removed_is_shut_out_at_once(
    made: Provisioned, key: Path
) -> None:
    proof, known = ada(made, key), accounts(made)
    read_proof(proof, known, time.time())
    (made.operators / "ada.pem").unlink()
    assert refused(proof, known) == "not_accepted"
    other = ec_key(SECP256R1()).public_key()
    pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (made.operators / "ada.pem").write_bytes(pem)
    assert refused(proof, known) == "not_accepted"


def test_a_proof_for_another_coordinator_is_refused(
    made: Provisioned, key: Path, tmp_path: Path
) -> None:
    other = init_coordinator(tmp_path / "other", ["127.0.0.1"])
    proof = operator_prover("ada", key, other.root_certificate)(PATH, BODY)
    assert refused(proof, accounts(made)) == "not_accepted"


def test_a_proof_ends_and_one_from_ahead_is_refused(made: Provisioned, key: Path) -> None:
    known, now = accounts(made), time.time()
    proof, own = ada(made, key), coordinator_prover(made)(PATH, BODY)
    read_proof(proof, known, now + LIFE_SECONDS - 1)
    assert refused(proof, known, now + LIFE_SECONDS + 1) == "expired"
    read_proof(proof, known, now - SKEW_SECONDS + 1)
    assert refused(proof, known, now - SKEW_SECONDS - 1) == "expired"
    assert refused(own, known, now - 1) == "expired"


def test_a_proof_that_an_earlier_process_may_have_taken_is_refused(
    made: Provisioned, key: Path
) -> None:
    now = time.time()
    young = replace(accounts(made), started=now - SKEW_SECONDS / 2)
    assert refused(ada(made, key), young) == "expired"
    assert read_proof(coordinator_prover(made)(PATH, BODY), young, time.time())
    assert refused(coordinator_prover(made)(PATH, BODY), replace(young, started=now + 60))


def _with(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(text: bytes) -> bytes:
        claims = json.loads(text)
        change(claims)
        return json.dumps(claims).encode()

    return changed


@pytest.mark.parametrize(
    "change",
    [
        _with(lambda c: c.update(path="/v1/control/stop-run")),
        _with(lambda c: c.update(account="coordinator")),
        _with(lambda c: c.update(account="operator:../operators/ada")),
        _with(lambda c: c.update(issued_ms=c["issued_ms"] + 1)),
        lambda text: text + b" ",
    ],
)
def test_a_changed_claim_is_refused(
    made: Provisioned, key: Path, change: Callable[[bytes], bytes]
) -> None:
    text, _, signature = ada(made, key).partition(".")
    whole = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    proof = f"{base64.urlsafe_b64encode(change(whole)).decode()}.{signature}"
    assert refused(proof, accounts(made)) == "not_accepted"


@pytest.mark.parametrize(
    "change",
    [
        _with(lambda c: c.update(format=2)),
        _with(lambda c: c.update(issued_ms=10**18)),
        _with(lambda c: c.update(issued_ms=1.5)),
        _with(lambda c: c.update(issued_ms=True)),
        _with(lambda c: c.update(nonce="x")),
        _with(lambda c: c.update(audience="\u00e9")),
        _with(lambda c: c.update(more=1)),
        _with(lambda c: c.pop("nonce")),
        lambda text: b"[" * 100_000,
        lambda text: b"[]",
        lambda text: b"\xff",
    ],
)
def test_what_is_no_proof_is_malformed_even_with_a_right_signature(
    made: Provisioned, change: Callable[[bytes], bytes]
) -> None:
    secret = made.secret.read_bytes()
    text = coordinator_prover(made)(PATH, BODY).partition(".")[0]
    changed = change(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    mac = hmac.digest(secret, control_proof._DOMAIN + changed, "sha256")
    proof = ".".join(base64.urlsafe_b64encode(x).decode() for x in (changed, mac))
    assert refused(proof, accounts(made)) == "malformed"


@pytest.mark.parametrize("proof", ["", ".", "a", "a.b.c", "\u00fc.\u00fc", "e30.e30"])
def test_what_is_no_proof_at_all_is_malformed(made: Provisioned, proof: str) -> None:
    assert refused(proof, accounts(made)) == "malformed"


def test_a_wrong_name_or_key_is_named_when_proofs_are_made(
    made: Provisioned, key: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserInputError, match="operator's name is 'Ada/'"):
        operator_prover("Ada/", key, made.root_certificate)
    with pytest.raises(FileProblemError, match="is not an Ed25519 key"):
        operator_prover("ada", made.private_key, made.root_certificate)
    with pytest.raises(FileProblemError, match="no such file"):
        operator_prover("ada", tmp_path / "none", made.root_certificate)
    with pytest.raises(FileProblemError, match="is not a certificate"):
        operator_prover("ada", key, key)


def test_keys_that_others_can_read_are_refused(made: Provisioned, key: Path) -> None:
    key.chmod(0o640)
    with pytest.raises(FileProblemError, match="chmod 600"):
        ada(made, key)
    made.secret.chmod(0o644)
    for use in (coordinator_prover, accounts_of):
        with pytest.raises(FileProblemError, match="chmod 600"):
            use(made)


class Behind:
    """An ASGI application that notes what reaches it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, str | None]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        self.calls.append((scope["path"], body, proven_account.get()))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Caller:
    """Calls a gate as uvicorn does."""

    def __init__(self, made: Provisioned) -> None:
        self.behind = Behind()
        self.audit = made.folder / "logs" / control_gate.AUDIT_FILE
        self._gate = ControlGate(self.behind, accounts_of(made), self.audit)

    def __call__(
        self,
        path: str,
        *proofs: str,
        body: bytes = BODY,
        query: bytes = b"",
        client: tuple[str, int] | None = ("127.0.0.1", 1),
    ) -> tuple[int, str]:
        parts = [body[:2], body[2:]]
        told: list[Any] = []
        scope = {
            "type": "http", "path": path, "query_string": query, "client": client,
            "headers": [(b"authorization", f"Bearer {proof}".encode()) for proof in proofs],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: Any) -> None:
            told.append(message)

        asyncio.run(self._gate(scope, receive, send))
        content = told[1]["body"]
        return told[0]["status"], json.loads(content)["code"] if content else ""

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture
def call(made: Provisioned) -> Caller:
    return Caller(made)


def test_a_proven_call_passes_once_with_its_body_and_its_account(
    made: Provisioned, call: Caller
) -> None:
    proof = coordinator_prover(made)(PATH, BODY)
    assert call(PATH, proof) == (204, "")
    assert call.behind.calls == [(PATH, BODY, "coordinator")]
    assert call(PATH, proof) == (401, "replayed")
    assert len(call.behind.calls) == 1
    assert proven_account.get() is None
    assert [(x["account"], x["call"], x["status"], x["code"]) for x in call.lines()] == [
        ("coordinator", "start-run", 204, ""), (None, "start-run", 401, "replayed"),
    ]  # fmt: skip


def test_a_body_that_comes_too_slowly_does_not_bring_a_used_proof_back(
    made: Provisioned, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = coordinator_prover(made)(PATH, BODY)
    assert call(PATH, proof) == (204, "")
    clock, read = time.time, control_gate.read_proof
    late = clock() + control_proof.LIFE_SECONDS + 1

    def read_in_time(*given: Any) -> Any:
        found = read(*given)
        monkeypatch.setattr(control_gate.time, "time", lambda: late)  # when the body is here
        return found

    monkeypatch.setattr(control_gate, "read_proof", read_in_time)
    assert call(PATH, proof) == (401, "expired")
    assert len(call.behind.calls) == 1


def test_a_call_behind_another_on_one_connection_has_not_its_account(
    made: Provisioned, call: Caller
) -> None:
    proven_account.set("operator:ada")  # as in the context that the second one is served in
    try:
        assert call("/v1/fleet/pull-messages") == (204, "")
    finally:
        proven_account.set(None)
    assert [account for _, _, account in call.behind.calls] == [None]


def test_a_proof_is_for_one_path_and_one_body(made: Provisioned, call: Caller) -> None:
    prove = coordinator_prover(made)
    assert call("/v1/control/stop-run", prove(PATH, BODY)) == (401, "other_call")
    assert call(PATH, prove(PATH, BODY), body=b"another run") == (401, "other_call")
    assert call(PATH, prove(PATH, BODY), query=b"x=1") == (401, "other_call")
    assert call(PATH) == (401, "no_proof")
    assert call(PATH, prove(PATH, BODY), prove(PATH, BODY)) == (401, "malformed")
    assert call.behind.calls == []


def test_too_large_a_body_is_refused(
    made: Provisioned, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_gate, "MOST_BODY_BYTES", 4)
    assert call(PATH, coordinator_prover(made)(PATH, BODY)) == (413, "too_large")
    assert call.behind.calls == []


@pytest.mark.parametrize(
    "path", ["/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc", "/", "/v1/control",
             "//v1/control/start-run", "/v1/fleet", "/v1/other/x"],
)  # fmt: skip
def test_what_is_neither_sites_nor_operators_nor_ours_is_not_there(
    made: Provisioned, call: Caller, path: str
) -> None:
    assert call(path, coordinator_prover(made)(path, BODY)) == (404, "not_found")
    assert call.behind.calls == []


def test_the_task_interface_is_for_this_machine_alone(call: Caller) -> None:
    path = "/v1/runtime/acquire-task"
    assert call(path, client=("192.0.2.7", 1)) == (404, "not_found")
    assert call(path, client=None) == (404, "not_found")
    assert call("/v1/fleet/pull-messages", client=("192.0.2.7", 1)) == (204, "")
    assert call("/health", client=("192.0.2.7", 1)) == (204, "")
    assert call(path) == (204, "")
    assert call(path, client=("::1", 1)) == (204, "")


def test_refused_calls_do_not_fill_the_disk_and_are_counted(
    made: Provisioned, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_gate, "MOST_REFUSALS", 2)
    for _ in range(5):
        assert call(PATH) == (401, "no_proof")
    assert len(call.lines()) == 2
    assert call(PATH, coordinator_prover(made)(PATH, BODY)) == (204, "")
    assert [line["unwritten"] for line in call.lines()] == [0, 0, 3]


def test_our_own_looks_are_not_written_and_a_strangers_words_neither(
    made: Provisioned, call: Caller
) -> None:
    looks = "/v1/control/list-runs"
    assert call("/v1/control/mueller_anna") == (401, "no_proof")
    assert [line["call"] for line in call.lines()] == ["other"]
    assert call(looks, coordinator_prover(made)(looks, BODY)) == (204, "")
    assert len(call.lines()) == 1
