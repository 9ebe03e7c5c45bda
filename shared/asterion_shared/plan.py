"""The plan: what a whole run is. Frozen, validated, with a canonical form and a SHA-256.

A plan says nothing about any one site (that is ``site.toml``) and nothing about the machine.
The same file drives a hospital federation and a simulation.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from asterion_shared.algorithm_settings import AlgorithmSettings, Label
from asterion_shared.evaluation_settings import EvaluationSettings
from asterion_shared.fold_rules import FOLD_RULES, QuarantineSettings
from asterion_shared.privacy.plan_rules import (
    PRIVACY_RULES,
    SECURE_SUM_RULES,
    numeric_features,
)
from asterion_shared.privacy.settings import PrivacySettings, SecureSumSettings
from asterion_shared.round_settings import LATE_RULES, RoundSettings
from asterion_shared.settings_files import Positive, Rule, Settings, read_toml, rule, validate
from asterion_shared.transport_settings import TRANSPORT_RULES, TransportSettings

_CODES = re.compile(r"-?\d+(\.\d+)?(\|-?\d+(\.\d+)?)*")
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=4096)]
Normalisation = Literal["standardise", "asinh", "zscale", "none"]
TaskName = Literal["segmentation", "classification", "anomaly"]
"""The tasks; each is a module of :mod:`asterion_shared.tasks` with the same five names."""

MODELS: dict[str, tuple[str, ...]] = {
    "segmentation": ("unet", "small_unet"),
    "classification": ("residual", "densenet121", "cnn", "logistic", "mlp"),
    "anomaly": ("conv_autoencoder",),
}
"""The networks a plan may name, by task."""

TABLE_MODELS = ("logistic", "mlp")
"""The networks that take rows of a table; they take images too, flattened."""


class DataContract(Settings):
    """What every site's data are turned into before training."""

    kind: Literal["image", "table"] = "image"
    """Images (NIfTI, DICOM, FITS, npz) or rows of a table (CSV)."""

    dimensions: Literal[2, 3] = 2
    """Spatial dimensions of an image; ignored for tables."""

    channels: tuple[Label, ...] = ("grey",)
    """Names of the image channels or spectral bands, in order."""

    features: tuple[Label, ...] = ()
    """Names of the table's columns, in order. A site may lack some; they are then missing."""

    categorical: tuple[Label, ...] = ()
    """Those of ``features`` that are codes, with their numbers after '=' (``cp=1|2|3|4``)."""

    scale: dict[Label, tuple[float, Positive]] = Field(default_factory=dict)
    """Mean and deviation of numeric features by name, such as ``age = [50, 15]``; published
    figures and not the sites'. A feature without is standardised by each site's own rows."""

    classes: tuple[Label, ...] = ("background", "object")
    """Names of the classes, in order of their number. The first is background or normal."""

    spacing_mm: tuple[Positive, ...] | None = None
    """Voxel or pixel size that medical images are resampled to, of volumes from left to right,
    back to front and foot to head; absent: the stored grid."""

    pixel_scale_arcsec: Positive | None = None
    """Pixel size that sky images are resampled to; absent: the stored grid."""

    patch_size: tuple[Size, ...] = (64, 64)
    """Size in pixels of a training patch; also the window that slides in prediction."""

    normalisation: Normalisation = "standardise"
    """Per image and local to the site: mean 0 and deviation 1; asinh of the sky-subtracted
    image in units of its noise; the zscale interval mapped to [-1, 1]; or nothing."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda d: d.kind == "image" or bool(d.features),
            lambda d: "kind is 'table' and features is empty; name the columns in features",
        ),
        rule(
            lambda d: d.kind == "table" or not d.features,
            lambda d: "kind is 'image' and features is given; remove features or set kind='table'",
        ),
        rule(
            lambda d: {c.partition("=")[0] for c in d.categorical} <= set(d.features),
            lambda d: f"categorical is {d.categorical}; each must be one of features",
        ),
        rule(
            lambda d: all(_CODES.fullmatch(c.partition("=")[2]) for c in d.categorical),
            lambda d: f"categorical is {d.categorical}; write numbers after '=': 'cp=1|2|3'",
        ),
        rule(
            lambda d: set(d.scale) <= numeric_features(d),
            lambda d: f"scale names {', '.join(d.scale)}; each must be a numeric one of features",
        ),
        rule(
            lambda d: d.kind == "table" or len(d.patch_size) == d.dimensions,
            lambda d: (
                f"patch_size has {len(d.patch_size)} numbers and dimensions is "
                f"{d.dimensions}; give one number a dimension"
            ),
        ),
        rule(
            lambda d: d.spacing_mm is None or len(d.spacing_mm) == d.dimensions,
            lambda d: (
                f"spacing_mm has {len(d.spacing_mm)} numbers and dimensions is "
                f"{d.dimensions}; give one number a dimension"
            ),
        ),
        rule(
            lambda d: d.spacing_mm is None or d.pixel_scale_arcsec is None,
            lambda d: "spacing_mm and pixel_scale_arcsec are both given; keep the one that applies",
        ),
        rule(
            lambda d: d.kind == "table" or len(d.channels) >= 1,
            lambda d: "channels is empty; name at least one",
        ),
        rule(
            lambda d: len(set(d.classes)) == len(d.classes) >= 2,
            lambda d: f"classes is {d.classes}; give at least 2 names, all different",
        ),
        rule(
            lambda d: all(len(set(n)) == len(n) for n in (d.channels, d.features)),
            lambda d: "a channel or feature is named twice; make the names differ",
        ),
    )


class ModelSettings(Settings):
    """Which network, and how large."""

    name: Label
    """A name of the catalogue (``asterion plan new TASK`` shows it)."""

    widths: tuple[Size, ...] = (12, 24, 48)
    """Feature channels of each level, or units of each hidden layer."""

    code_size: Annotated[int, Field(ge=1, le=4096)] = 10
    """Length of an autoencoder's code; ignored by other networks."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of features dropped in training."""


class InitSettings(Settings):
    """A pre-trained start instead of a random one."""

    file: str
    """A safetensors file at the coordinator, relative to the plan."""

    sha256: Sha256
    """Its SHA-256, so that the plan's hash says which weights were meant."""


class ParameterPolicy(Settings):
    """What happens to tensors that are not plain shared weights."""

    batch_norm_statistics: Literal["keep", "share", "forbid"] = "keep"
    """Running means and variances: each site keeps its own, they are averaged, or a network
    that has them is refused. Integer counters are never sent or averaged."""

    keep: tuple[Label, ...] = ()
    """Names (with ``*``) of weights that every site keeps for itself, such as ``head.*``."""


class LocalSettings(Settings):
    """What a site does in one round."""

    unit: Literal["steps", "epochs"] = "steps"
    """Whether ``amount`` counts optimiser steps or passes over the site's examples."""

    amount: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 8
    shuffle: bool = True
    """Whether each pass takes the examples in a new random order, or as they are stored."""

    optimiser: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """SGD only."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    augment: tuple[Literal["flip", "rotate90"], ...] = ()
    """Random mirror images and quarter turns of training patches."""

    dice_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the soft Dice loss beside cross-entropy (segmentation); 0 leaves it out."""

    patches_per_image: Annotated[int, Field(ge=1, le=4096)] = 1
    """Patches drawn from an image in one pass (segmentation and anomaly)."""

    seconds_limit: Positive | None = None
    """Most seconds of training a round; a site that stops early sends the work it did."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: s.momentum == 0 or s.optimiser == "sgd",
            lambda s: (
                f"momentum is {s.momentum} and optimiser is {s.optimiser!r}; "
                "momentum is for sgd only"
            ),
        ),
    )


class Plan(Settings):
    """What a run is: task, data, model, algorithm, rounds, seed."""

    name: Name
    """Short name of the run: lower-case letters, digits, ``_ . -``."""

    task: TaskName
    kind: Literal["train", "evaluate", "count"] = "train"
    """Train; evaluate a given model at every site without training; or only count examples."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Root of every random stream that an adversary may know."""

    data: DataContract = DataContract()
    model: ModelSettings
    init: InitSettings | None = None
    parameters: ParameterPolicy = ParameterPolicy()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    local: LocalSettings = LocalSettings()
    rounds: RoundSettings = RoundSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    transport: TransportSettings = TransportSettings()
    privacy: PrivacySettings | None = None
    """Differential privacy; absent: updates leave the sites as they are."""

    secure_sum: SecureSumSettings | None = None
    """Secure sums of updates and metrics; absent: the coordinator sees each site's."""

    quarantine: QuarantineSettings | None = None
    """Which reports are suspicious and what becomes of them; absent: none is looked at."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda p: p.model.name in MODELS[p.task],
            lambda p: (
                f"model.name is {p.model.name!r} and task is {p.task!r}; "
                f"model.name must be one of {', '.join(MODELS[p.task])}"
            ),
        ),
        rule(
            lambda p: p.data.kind == "image" or p.model.name in TABLE_MODELS,
            lambda p: (
                f"model.name is {p.model.name!r} and data.kind is 'table'; "
                f"tables take {' or '.join(TABLE_MODELS)}"
            ),
        ),
        rule(
            lambda p: p.kind != "evaluate" or p.init is not None,
            lambda p: "kind is 'evaluate' and [init] is missing; name the model and its sha256",
        ),
        rule(
            lambda p: p.task != "anomaly" or len(p.data.classes) == 2,
            lambda p: (
                f"task is 'anomaly' and data.classes has {len(p.data.classes)} names; "
                "give 2: normal and anomalous"
            ),
        ),
        rule(
            lambda p: p.data.kind == "image" or not p.local.augment,
            lambda p: "local.augment is given and data.kind is 'table'; remove local.augment",
        ),
        *PRIVACY_RULES,
        *SECURE_SUM_RULES,
        *TRANSPORT_RULES,
        *LATE_RULES,
        *FOLD_RULES,
    )

    def canonical(self) -> str:
        """The plan as JSON with sorted keys and no blanks: equal plans, equal text."""
        values = self.model_dump(mode="json")
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical form, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def read_plan(path: Path) -> Plan:
    """Read a plan from a TOML file.

    Raises:
        FileProblemError: the file cannot be read or is not TOML.
        SettingsError: lists every problem of the plan.
    """
    return validate(Plan, read_toml(path), str(path))


def parse_plan(text: str, source: str = "plan") -> Plan:
    """Read a plan from its canonical JSON.

    Raises:
        SettingsError: lists every problem of the plan.
    """
    values: Any = json.loads(text)
    return validate(Plan, values, source)
