"""The ``[evaluation]`` section of a plan."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer

from asterion_shared.settings_files import Positive, Rule, Settings, rule

OTHER = "other"
"""The subgroup of the cases without a value that the plan lists."""

Attribute = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z_]{0,30}$")]
"""What cases are told apart by, such as ``sex`` or ``scanner``."""

Value = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9 ._+-]{0,29}[a-z0-9._+-])?$")]
"""One value of it, in lower case."""

Values = Annotated[tuple[Value, ...], Field(min_length=1, max_length=12)]


class EvaluationSettings(Settings):
    """How the metrics are formed. Edges are fixed here, before any data are seen."""

    score_bins: Annotated[int, Field(ge=10, le=100_000)] = 1000
    """Bins of the score histograms behind AUROC and AUPRC."""

    anomaly_score_range: tuple[Positive, Positive] = (1e-4, 1e2)
    """First and last edge of an anomaly score's logarithmic bins; others are counted apart."""

    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """False-alarm rate at which the sensitivity is stated."""

    subgroups: Annotated[dict[Attribute, Values], Field(max_length=6)] = Field(default_factory=dict)
    """Attributes and the values of each that the headline metric is told apart by, such as
    ``sex = ["female", "male"]``; every other case counts as ``other``. A site tells those that its
    ``consent.subgroups`` names."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda e: e.anomaly_score_range[0] < e.anomaly_score_range[1],
            lambda e: f"anomaly_score_range is {e.anomaly_score_range}; put the smaller first",
        ),
        rule(
            lambda e: all(OTHER not in values for values in e.subgroups.values()),
            lambda e: f"subgroups lists {OTHER!r}; remove it: it is every case without a value",
        ),
        rule(
            lambda e: all(len(set(values)) == len(values) for values in e.subgroups.values()),
            lambda e: "subgroups lists a value twice; make the values of an attribute differ",
        ),
        rule(
            lambda e: not any(name.endswith(("_edges", "_moved")) for name in e.subgroups),
            lambda e: "subgroups has a name that ends in '_edges' or '_moved'; use another name",
        ),
    )

    @model_serializer(mode="wrap")
    def _as_before(self, values_of: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without subgroups a plan has the text, and so the hash, that it had before they came."""
        found: dict[str, Any] = values_of(self)
        if not self.subgroups:
            found.pop("subgroups", None)
        return found
