"""How a site stands with its coordinator: what an operator sees of it between two rounds."""

from typing import ClassVar, Literal

from asterion_shared import __version__
from asterion_shared.plan import Name
from asterion_shared.result import Count, UtcTime
from asterion_shared.settings_files import Rule, Settings, rule

SiteState = Literal["registered", "away", "connected", "configured", "training"]
"""From enrolled to at work; a carrier tells those that it knows.

``registered``: it is enrolled and was never heard of. ``away``: it was heard of and has no session
now. ``connected``: it has a session, and more is not known. ``configured``: it has a session, its
settings hold and its data are read. ``training``: it has an order in work.
"""


class SiteStanding(Settings):
    """One site, as its coordinator knows it now."""

    name: Name
    state: SiteState
    since: UtcTime | None = None
    """When it came into this state; None where nobody noted it."""

    run: str = ""
    """Of a site that is training: the run its order belongs to."""

    round: Count | None = None
    """Likewise: the round."""

    version: str = ""
    """Of its program, as it said itself when it last came; empty where nobody noted it."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: s.state == "training" or (not s.run and s.round is None),
            lambda s: f"state is {s.state!r} and run or round is given; they are of 'training'",
        ),
    )


def in_words(standing: SiteStanding) -> str:
    """One line for a terminal; it names a version that is not this program's.

    >>> in_words(SiteStanding(name="north", state="away", since="2026-01-02T14:02:11Z"))
    'site north: away, since 14:02 UTC (2026-01-02)'
    >>> in_words(SiteStanding(name="south", state="training", run="outcome", round=3))
    'site south: training, round 3 of run outcome'
    >>> in_words(SiteStanding(name="west", state="configured", version="0.0.9"))
    'site west: configured, waits for orders, by Asterion 0.0.9'
    """
    said = {
        "registered": "registered, never heard of",
        "away": "away",
        "connected": "connected",
        "configured": "configured, waits for orders",
        "training": "training",
    }[standing.state]
    if standing.round is not None:
        said += f", round {standing.round} of run {standing.run}"
    since = "" if standing.since is None else f", since {clock(standing.since)}"
    other = standing.version and standing.version != __version__
    version = f", by Asterion {standing.version}" if other else ""
    return f"site {standing.name}: {said}{since}{version}"


def clock(moment: UtcTime) -> str:
    """A moment to the minute.

    >>> clock("2026-01-02T14:02:11Z")
    '14:02 UTC (2026-01-02)'
    """
    day, _, time = moment.partition("T")
    return f"{time[:5]} UTC ({day})"
