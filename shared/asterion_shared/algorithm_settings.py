"""The ``[algorithm]`` of a plan: how local work becomes a global model."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from asterion_shared.settings_files import Positive, Rule, Settings, rule

Label = Annotated[str, StringConstraints(min_length=1, max_length=64)]
FoldName = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum"]

KRUM = ("krum", "multi_krum")


class AlgorithmSettings(Settings):
    """How local work becomes a global model."""

    name: Literal["fedavg", "fedprox"] = "fedavg"
    mu: Annotated[float, Field(ge=0, le=100)] = 0.0
    """FedProx: strength of the pull towards the global weights; 0 is FedAvg bit for bit."""

    weighting: Literal["examples", "uniform"] = "examples"
    """Weight of a site in the mean: its examples (then sites are selected uniformly), or the
    same for all (then, as in the FedProx paper, sites are selected by size)."""

    max_weight: Annotated[int, Field(ge=1)] | None = None
    """Most examples a site may weigh; absent: no cap."""

    clip_norm: Positive | None = None
    """Largest Euclidean length of a site's update; the coordinator shortens a longer one to it
    before the fold, so that one site cannot pull the model as far as it likes. Absent: none."""

    central_learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Share of the mean update that is applied."""

    fold: FoldName = "mean"
    """How the sites' updates become one: the weighted mean, or a fold that holds when a site is
    wrong. Those count every site once, whatever its examples: the median or the trimmed mean of
    each weight by itself, or, of whole updates, the one (krum) or the mean of those (multi_krum)
    that lie nearest to others."""

    trim_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of the updates that trimmed_mean leaves out at each end, rounded down."""

    num_malicious: Annotated[int, Field(ge=0)] = 0
    """Sites that may be wrong in a round, for krum and multi_krum."""

    num_kept: Annotated[int, Field(ge=1)] | None = None
    """Updates that multi_krum averages; absent: all but num_malicious + 2 of those that came."""

    flower_strategy: Literal["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "Krum",
                             "MultiKrum", "FedMedian", "FedTrimmedAvg"] | None = None  # fmt: skip
    """A stock Flower strategy that does the centre's step instead of ours."""

    flower_arguments: dict[Label, int | float | bool] = Field(default_factory=dict)
    """Its arguments, such as ``eta = 0.01``."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda a: a.mu == 0 or a.name == "fedprox",
            lambda a: f"mu is {a.mu} and name is {a.name!r}; set name = 'fedprox' or mu = 0",
        ),
        rule(
            lambda a: not a.flower_arguments or a.flower_strategy is not None,
            lambda a: "flower_arguments is given without flower_strategy; name the strategy",
        ),
        rule(
            lambda a: a.flower_strategy is None or a.central_learning_rate == 1.0,
            lambda a: (
                "central_learning_rate is not used by a Flower strategy; "
                "put the strategy's own into flower_arguments"
            ),
        ),
        rule(
            lambda a: a.max_weight is None or a.weighting == "examples",
            lambda a: "max_weight caps examples and weighting is 'uniform'; remove one of them",
        ),
        rule(
            lambda a: a.fold == "mean" or a.flower_strategy is None,
            lambda a: (
                f"fold is {a.fold!r} and flower_strategy is {a.flower_strategy!r}; both do the "
                "centre's step: remove one of them"
            ),
        ),
        rule(
            lambda a: a.fold == "mean" or (a.weighting == "examples" and a.max_weight is None),
            lambda a: (
                f"fold is {a.fold!r}, which counts every site once; remove max_weight and "
                "weighting = 'uniform', under which a site may be drawn twice"
            ),
        ),
        rule(
            lambda a: (a.trim_fraction > 0) == (a.fold == "trimmed_mean"),
            lambda a: (
                f"trim_fraction is {a.trim_fraction} and fold is {a.fold!r}; give trim_fraction "
                "above 0 with fold = 'trimmed_mean' and with no other"
            ),
        ),
        rule(
            lambda a: a.num_malicious == 0 or a.fold in KRUM,
            lambda a: (
                f"num_malicious is {a.num_malicious} and fold is {a.fold!r}; it is for krum and "
                "multi_krum"
            ),
        ),
        rule(
            lambda a: a.num_kept is None or a.fold == "multi_krum",
            lambda a: f"num_kept is {a.num_kept} and fold is {a.fold!r}; it is for multi_krum",
        ),
    )
