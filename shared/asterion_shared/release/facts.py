"""What a release says of itself: ``release.json``, ``signature.json``, ``calibration.json``.

A release is a folder in the layout of a MONAI bundle. ``release.json`` has the SHA-256 of every
other file, and ``signature.json`` a signature over it, so that nothing in the folder can be
changed, added or taken away unseen.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from asterion_shared.algorithm_settings import Label
from asterion_shared.plan import Name, Sha256, TaskName
from asterion_shared.result import Count, UtcTime
from asterion_shared.settings_files import Positive, Rule, Settings, rule

FACTS, SIGNATURE = "release.json", "signature.json"
"""The two files that no hash is kept of."""

PLAN = "plan.json"
MODEL = "models/model.safetensors"
ONNX = "models/model.onnx"
CALIBRATION = "calibration.json"

DOMAIN = b"asterion release signature 1\n"
"""Before the bytes that are signed, so that the signature holds for nothing else."""

Maturity = Literal["research", "evaluated", "approved"]
ReleasePath = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$", max_length=240
    ),
]
"""A file's path below the release's folder; it can neither leave it nor be hidden."""


class OnnxFacts(Settings):
    """Whether the network could be exported, and how far ONNX and torch are apart."""

    why_not: str = ""
    """Why there is no file; empty when there is one."""

    opset: Count = 0
    batch_sizes: tuple[Count, ...] = ()
    """Sizes of the random batches that both were given."""

    largest_difference: Annotated[float, Field(ge=0)] | None = None
    """Between an output of one and the other, absolute; None when there is no file."""

    tolerance: Positive | None = None
    """What the difference had to stay within."""


class ReleaseFacts(Settings):
    """``release.json``."""

    format: Literal[1] = 1
    name: Name
    """Of the model; versions are counted by it."""

    version: Annotated[int, Field(ge=1)]
    task: TaskName
    run: Name
    """The run that trained it."""

    plan_sha256: Sha256
    """Of ``plan.json`` as it stands, which is the plan's canonical form."""

    parent: Sha256 | Literal[""] = ""
    """SHA-256 of the model that the run began from; empty when it began from random weights."""

    rounds: Count
    """Rounds of training behind this model."""

    chosen: Literal["final", "best"] = "final"
    """Whether it is the run's last model, or the one with the best metric."""

    sites: Annotated[int, Field(ge=1)]
    """How many sites took part in training."""

    maturity: Maturity = "research"
    held_back: tuple[str, ...] = ()
    """What the release gate found; empty when it found nothing."""

    despite: str = ""
    """Why it was released all the same, in the words of whoever did."""

    created: UtcTime
    onnx: OnnxFacts
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the programs that trained it, by package."""

    built_with: dict[str, str] = Field(default_factory=dict)
    """Versions of the programs that made the release, by package."""

    code_sha256: dict[str, Sha256] = Field(default_factory=dict)
    """Hash of the code that made the release, by package."""

    files: dict[ReleasePath, Sha256]
    """SHA-256 of every other file but the signature's, by path."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda r: {PLAN, MODEL} <= r.files.keys(),
            lambda r: f"files lacks {PLAN} or {MODEL}; a release has both",
        ),
        rule(
            lambda r: not {FACTS, SIGNATURE} & r.files.keys(),
            lambda r: f"files names {FACTS} or {SIGNATURE}; neither can have a hash in it",
        ),
        rule(
            lambda r: r.files.get(PLAN) == r.plan_sha256,
            lambda r: (
                f"plan_sha256 is {r.plan_sha256[:12]} and {PLAN} has {r.files.get(PLAN, '')[:12]}; "
                "put in the plan of the run that trained the model"
            ),
        ),
        rule(
            lambda r: bool(r.onnx.why_not) != (ONNX in r.files),
            lambda r: f"onnx.why_not and {ONNX} are both there or both absent; give one",
        ),
        rule(
            lambda r: not r.held_back or (bool(r.despite) and r.maturity == "research"),
            lambda r: (
                "held_back is given without despite, or with a maturity above 'research'; "
                "say why it is released, as research"
            ),
        ),
    )


class ReleaseSignature(Settings):
    """``signature.json``."""

    format: Literal[1] = 1
    public_key: str
    """Ed25519, PEM. It says who signed only to those who know it from elsewhere."""

    signature: Annotated[str, Field(min_length=88, max_length=88)]
    """Ed25519 (RFC 8032) over :data:`DOMAIN` and the bytes of ``release.json``, base64."""


class Calibration(Settings):
    """``calibration.json``: how to read the network's outputs, fitted over the sites."""

    temperature: Positive = 1.0
    """The logits are divided by it before softmax."""

    thresholds: dict[Label, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Probability or score, before any temperature, from which a class is called, by class; or, of
    the second of two classes, by what it keeps (``false_alarm_rate``, ``youden``)."""
