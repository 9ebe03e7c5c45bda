"""One record of an audit trail: its form, its bytes, its hash. ``docs/audit.md`` describes them."""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, StrictFloat, StrictInt, StrictStr, ValidationError

from asterion_shared.plan import Sha256
from asterion_shared.settings_files import Settings

FORMAT: Final = 1
DOMAIN = b"asterion audit record 1\n"
"""What is signed begins with this, so that no signature of another thing can pass for one."""

START = "0" * 64
"""``previous`` of the very first record."""

KINDS: dict[str, str] = {
    "begun": "the trail begins, with this key",
    "continued": "the trail goes on in a new file",
    "key_changed": "the next record is signed with this key",
    "plan_launched": "a run of a plan is carried out",
    "plan_seen": "a plan came for the first time",
    "approved": "a person approved a plan",
    "approval_withdrawn": "a person took an approval back",
    "orders": "an order is sent to these sites",
    "order": "an order came",
    "answers": "what the sites answered",
    "report": "a report leaves",
    "refusal": "a refusal leaves",
    "charge": "a release was charged",
    "release": "a model was written",
    "run_ended": "the run has ended",
    "enrolled": "a site was enrolled",
    "revoked": "a site was revoked",
    "operator_enrolled": "an operator's key was taken",
    "withdrawn": "data were withdrawn",
    "model_released": "a release of a model was made",
    "model_promoted": "a release is the one in use",
    "model_rolled_back": "an earlier release is the one in use again",
    "console": "a person does something at the console",
}
"""What a record may be about."""

Fact = StrictStr | StrictInt | StrictFloat | None
Name = Annotated[str, Field(pattern=r"^[ -~]{1,200}$")]


class Head(NamedTuple):
    """Where a trail ended: a record's number, and the SHA-256 of its line."""

    number: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.number}:{self.sha256}"


_HEAD = re.compile(r"(0|[1-9][0-9]{0,17}):([0-9a-f]{64})")


def head_of(text: str) -> Head | None:
    """A head from its text ``NUMBER:SHA256``; None where it is not one."""
    found = _HEAD.fullmatch(text)
    return None if found is None else Head(int(found[1]), found[2])


class Record(Settings):
    """One thing that happened, and the record before it."""

    format: Literal[1] = FORMAT
    number: Annotated[StrictInt, Field(ge=0)]
    """0, 1, 2, ... over all files of the trail."""

    at: Annotated[str, Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")]
    """By the clock of the side that wrote it, UTC."""

    side: Name
    """Whose trail it is: ``site:NAME`` or ``coordinator:NAME``."""

    kind: Name
    run: Annotated[str, Field(pattern=r"^[ -~]{0,200}$")] = ""
    round: Annotated[StrictInt, Field(ge=0)] | None = None
    facts: dict[Name, Fact] = Field(default_factory=dict)
    other: dict[Name, Annotated[str, Field(pattern=f"^{_HEAD.pattern}$")]] = Field(
        default_factory=dict
    )
    """Heads of other trails that came with what the record is about, by the side's name."""

    previous: Sha256


@dataclass(frozen=True, slots=True)
class Line:
    """A record as it stands in a file.

    Attributes:
        record: what it says.
        signature: of the record's canonical bytes.
        sha256: of the whole line, without its end.
    """

    record: Record
    signature: bytes
    sha256: str

    @property
    def head(self) -> Head:
        """The trail's head where this is its last record."""
        return Head(self.record.number, self.sha256)

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Whether the signature is this key's."""
        try:
            key.verify(self.signature, DOMAIN + canonical(self.record.model_dump()))
        except InvalidSignature:
            return False
        return True


def canonical(value: object) -> bytes:
    """JSON with sorted keys, no blanks, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def signed_line(record: Record, key: Ed25519PrivateKey) -> bytes:
    """A record's line, without its end."""
    plain = record.model_dump()
    signature = key.sign(DOMAIN + canonical(plain))
    return canonical({"record": plain, "signature": base64.b64encode(signature).decode()})


def read_line(line: bytes) -> Line | None:
    """The record of a line without its end; None where it is not one, byte for byte."""
    try:
        value = json.loads(line)
        record = Record.model_validate(value["record"])
        signature = base64.b64decode(value["signature"], validate=True)
        text = base64.b64encode(signature).decode()
        whole = {"record": record.model_dump(), "signature": text}
    except (ValueError, TypeError, KeyError, ValidationError, binascii.Error, RecursionError):
        return None
    # Nothing left out, nothing in another form: else one record could have two lines.
    return Line(record, signature, hash_of(line)) if line == canonical(whole) else None


def hash_of(line: bytes) -> str:
    """SHA-256 of a line without its end, 64 hex digits."""
    return hashlib.sha256(line).hexdigest()
