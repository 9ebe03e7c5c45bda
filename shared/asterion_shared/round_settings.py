"""The ``[rounds]`` section of a plan, and which plans may carry late reports over."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from asterion_shared.settings_files import Rule, Settings, rule

MOST_DEADLINE_SECONDS = 7 * 86400
Late = Literal["wait", "quorum", "carry_over"]

_UNWEIGHTED = ("Krum", "MultiKrum", "FedMedian", "FedTrimmedAvg")
"""Stock strategies that do not look at an update's weight."""


class RoundSettings(Settings):
    """How many rounds, with whom, for how long."""

    count: Annotated[int, Field(ge=1, le=100_000)] = 5
    sites_per_round: Annotated[int, Field(ge=1)] | None = None
    """Sites asked in a round; absent: all."""

    quorum: Annotated[int, Field(ge=1)] = 1
    """Fewest reports of the round itself for it to count."""

    deadline_seconds: Annotated[float, Field(gt=0, le=MOST_DEADLINE_SECONDS)] | None = None
    """The one deadline of a round; ``late`` says what happens then. Absent: made from the times
    that the sites took in this run, told before each round and stored in the result."""

    late: Late = "quorum"
    """What the deadline does with sites that have not answered. ``quorum``: the round closes
    without them. ``wait``: nothing; the round closes when every site has answered or refused, and
    says whom it waits for. ``carry_over``: the round closes, and a report that comes later is
    folded in the round in which it comes, weighted down by its age."""

    staleness_exponent: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Of ``carry_over``: a report that is s rounds old weighs ``(1 + s) ** -staleness_exponent``
    of what it would (Xie, Koyejo and Gupta 2019, the polynomial of FedAsync)."""

    most_stale: Annotated[int, Field(ge=1, le=1000)] = 2
    """Of ``carry_over``: the most rounds a report may be old; older ones are not used."""

    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Every how many rounds the model is evaluated at the sites; the last one always is."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda r: r.sites_per_round is None or r.quorum <= r.sites_per_round,
            lambda r: (
                f"quorum is {r.quorum} and sites_per_round is {r.sites_per_round}; "
                "lower the quorum or ask more sites"
            ),
        ),
        rule(
            lambda r: r.late == "carry_over" or (r.staleness_exponent, r.most_stale) == (0.5, 2),
            lambda r: (
                f"staleness_exponent or most_stale is given and late is {r.late!r}; they are for "
                "'carry_over' only: set it, or remove them"
            ),
        ),
    )


def _carries(plan: Any) -> bool:
    return bool(plan.rounds.late == "carry_over")


LATE_RULES: tuple[Rule, ...] = (
    rule(
        lambda p: not _carries(p) or p.privacy is None or p.privacy.noise == "site",
        lambda p: (
            f"rounds.late is 'carry_over' and privacy.noise is {p.privacy.noise!r}; the noise is "
            "sized for one report of a site in the sum that it was asked for, and a late one would "
            "enter another: set rounds.late = 'quorum' or 'wait'"
        ),
    ),
    rule(
        lambda p: not _carries(p) or p.secure_sum is None,
        lambda p: (
            "rounds.late is 'carry_over' and secure_sum is given; a late site's vector is masked "
            "for the sum of its own round and opens in no other: set rounds.late = 'quorum' or "
            "'wait'"
        ),
    ),
    rule(
        lambda p: not _carries(p) or p.algorithm.flower_strategy not in _UNWEIGHTED,
        lambda p: (
            f"rounds.late is 'carry_over' and algorithm.flower_strategy is "
            f"{p.algorithm.flower_strategy!r}, which does not weigh updates; an old one would "
            "count as much as a new one: set rounds.late = 'quorum' or 'wait'"
        ),
    ),
    rule(
        lambda p: not _carries(p) or p.algorithm.fold == "mean",
        lambda p: (
            f"rounds.late is 'carry_over' and algorithm.fold is {p.algorithm.fold!r}, which counts "
            "every report once; an old one would count like a new one: set rounds.late = 'quorum' "
            "or 'wait'"
        ),
    ),
)
"""Rules of :class:`asterion_shared.plan.Plan` about late reports."""
