"""An operator's signature: what it binds, and each way in which it does not hold."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from asterion_shared.errors import (
    FileProblemError,
    OrderRefusedError,
    SettingsError,
    UserInputError,
)
from asterion_shared.fingerprints import fingerprint
from asterion_shared.operator_keys import make_operator_key
from asterion_shared.plan import Plan
from asterion_shared.signed_plan import (
    PlanSignature,
    check_signature,
    read_operator_key,
    read_operator_keys,
    read_signature,
    sign_plan,
)

NOW = 1_800_000_000.0
KEY = Ed25519PrivateKey.generate()
PLAN = Plan.model_validate(
    {"name": "r", "task": "classification", "model": {"name": "logistic"}}
    | {"data": {"kind": "table", "features": ["a"], "classes": ["x", "y"]}}
)
OTHER = PLAN.model_copy(update={"seed": 2})


def code_of(signature: PlanSignature | None, plan: Plan = PLAN, run: str = "r",
            now: float = NOW) -> str:  # fmt: skip
    try:
        check_signature(signature, plan, run, {"anna": KEY.public_key()}, now)
    except OrderRefusedError as error:
        return error.code
    return ""


def test_what_was_signed_may_run_until_it_ends() -> None:
    signed = sign_plan(PLAN, "r", "anna", KEY, now=NOW, days=2)
    assert code_of(signed) == ""
    assert code_of(signed, now=NOW + 2 * 86_400) == ""
    assert code_of(signed, now=NOW + 2 * 86_400 + 1) == "signature_ended"
    assert code_of(signed, now=NOW - 3600) == ""
    assert code_of(signed, now=NOW - 3601) == "signature_ended"


def test_each_way_not_to_hold_has_its_code() -> None:
    signed = sign_plan(PLAN, "r", "anna", KEY, now=NOW)
    assert code_of(None) == "unsigned_plan"
    assert code_of(sign_plan(PLAN, "r", "bert", KEY, now=NOW)) == "unknown_operator"
    forged = sign_plan(PLAN, "r", "anna", Ed25519PrivateKey.generate(), now=NOW)
    assert code_of(forged) == "signature_invalid"
    assert code_of(signed, OTHER) == "plan_altered"
    assert code_of(signed, run="r-again") == "plan_altered"


@given(
    st.sampled_from(["operator", "run", "plan_sha256", "signed_at", "ends_at", "signature"]),
    st.integers(0, 2**31),
)
def test_no_field_can_be_changed(field: str, by: int) -> None:
    signed = sign_plan(PLAN, "r", "anna", KEY, now=NOW)
    value = getattr(signed, field)
    if isinstance(value, int):
        changed: object = value + 1 + by
    else:
        place = by % len(value)
        changed = value[:place] + ("b" if value[place] != "b" else "c") + value[place + 1 :]
    other = signed.model_copy(update={field: changed})
    keys = {"anna": KEY.public_key(), other.operator: KEY.public_key()}
    with pytest.raises(OrderRefusedError) as caught:
        check_signature(other, PLAN, other.run, keys, NOW)
    assert caught.value.code == "signature_invalid"


def test_an_operators_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    private, public, words = make_operator_key(tmp_path, "anna")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert words == fingerprint(public.read_text())
    assert len(words) == 39
    signed = sign_plan(PLAN, "r", "anna", read_operator_key(private), now=NOW)
    check_signature(signed, PLAN, "r", read_operator_keys(tmp_path, ("anna",)), NOW)
    with pytest.raises(UserInputError, match="is there"):
        make_operator_key(tmp_path, "anna")
    with pytest.raises(UserInputError, match="lower-case"):
        make_operator_key(tmp_path, "../anna")
    private.chmod(0o640)
    with pytest.raises(FileProblemError, match="chmod 600"):
        read_operator_key(private)


def test_files_that_are_no_keys_are_named(tmp_path: Path) -> None:
    (tmp_path / "anna.pem").write_text("no key")
    (tmp_path / "anna.key").write_text("no key")
    (tmp_path / "anna.key").chmod(0o600)
    for names, words in (("anna",), "not a public key"), (("bert",), "no such file"):
        with pytest.raises(FileProblemError, match=words):
            read_operator_keys(tmp_path, names)
    with pytest.raises(FileProblemError, match="not a private key"):
        read_operator_key(tmp_path / "anna.key")


def test_a_signatures_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "signature"
    signed = sign_plan(PLAN, "r", "anna", KEY, now=NOW)
    path.write_text(signed.model_dump_json())
    assert read_signature(path) == signed
    for text in "{", "[]":
        path.write_text(text)
        with pytest.raises(FileProblemError):
            read_signature(path)
    path.write_text(signed.model_dump_json().replace('"run"', '"more":1,"run"'))
    with pytest.raises(SettingsError, match="more"):
        read_signature(path)


@pytest.mark.parametrize(("run", "operator"), [("My run", "anna"), ("r", "Anna")])
def test_names_that_cannot_be_signed_are_told(run: str, operator: str) -> None:
    with pytest.raises(SettingsError, match="the signature"):
        sign_plan(PLAN, run, operator, KEY)
