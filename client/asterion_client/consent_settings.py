"""``[consent]`` of ``site.toml``: what a site agrees to. What is not named here is refused."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from asterion_shared.algorithm_settings import Label
from asterion_shared.evaluation_settings import Attribute
from asterion_shared.plan import Name
from asterion_shared.settings_files import Positive, Settings

HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"


def _with_time(hours: str) -> str:
    begin, _, end = hours.partition("-")
    if begin == end:
        msg = "ends when it begins; for any time leave the hours out"
        raise ValueError(msg)
    return hours


Hours = tuple[Annotated[str, Field(pattern=HOURS), AfterValidator(_with_time)], ...]
Kind = Literal["count", "evaluate", "train"]
Noise = Literal["none", "site", "shares", "centre"]


class EmbargoSettings(Settings):
    """Observations that still belong to their programme: they are in no run."""

    days: dict[Label, Annotated[int, Field(ge=0, le=100_000)]] = Field(default_factory=dict)
    """Proprietary period by programme, in days after the observation; ``"*"`` is for every
    other. A programme that is not named, with no ``"*"``, stays under embargo for ever."""

    programme_key: Label = "PROPOSID"
    """FITS header key of the programme."""

    date_key: Label = "DATE-OBS"
    """FITS header key of the observation's date; a file without one is under embargo."""


class ConsentSettings(Settings):
    """What a site agrees to. Nothing that a coordinator sends can change it."""

    operators: tuple[Name, ...] = ()
    """Whose signed plans may run here; nobody's when empty."""

    operator_keys: str = "operators"
    """Folder with the operators' public keys, ``NAME.pem``, relative to ``site.toml``."""

    kinds: tuple[Kind, ...] = ("count", "evaluate", "train")
    """What a plan may ask for."""

    models: tuple[Label, ...] | None = None
    """Networks that may be trained; absent: any of the catalogue."""

    noise: tuple[Noise, ...] = ("site", "shares", "centre")
    """Who may add the noise of differential privacy; ``"none"`` admits plans without any."""

    largest_epsilon: Positive = 8.0
    """Most epsilon of one plan over all of its rounds; ``[privacy]`` bounds all plans together."""

    smallest_cohort: Annotated[int, Field(ge=1)] = 2
    """Fewest sites whose reports make a round: of the plan's ``rounds.quorum``."""

    secure_sum: Literal["required", "allowed"] = "allowed"
    """Whether only plans with a secure sum may run."""

    plans_a_day: Annotated[int, Field(ge=1)] = 10
    """New runs of a day (UTC)."""

    rounds_a_day: Annotated[int, Field(ge=1)] = 10_000
    """Rounds of a day (UTC), of all runs together."""

    bytes_a_day: Annotated[int, Field(ge=1_000_000)] = 50_000_000_000
    """Bytes that orders bring and reports take in a day (UTC). On the link, an order that would
    pass it is not fetched, nor one that would store more than this beside the others in work."""

    device_hours_a_day: Annotated[float, Field(gt=0, le=24)] = 24.0
    """Hours of work on orders in a day (UTC)."""

    hours: Hours = ()
    """When work may begin, local time, such as ``["19:00-07:00"]``; empty: at any time."""

    busy_percent: Annotated[float, Field(gt=0, le=100)] | None = None
    """Work waits for its next chance while other programs use more of this machine's processors
    than so many percent; absent: it does not look."""

    approval: Literal["person", "auto"] = "person"
    """Whether a person here has to approve each plan, or what fits the lines above may run."""

    approval_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """After so many days an approval ends."""

    subgroups: tuple[Attribute, ...] = ()
    """Attributes by which the headline metric of the held-out cases may be told apart, such as
    ``["sex", "scanner"]``, where a plan's ``evaluation.subgroups`` asks for them; others that a
    plan asks for are not told. See ``data.subgroup_keys``."""

    protocols: tuple[Label, ...] = ()
    """Consents or study protocols: only records whose ``consent`` column in the manifest (or in
    the table, see ``data.consent_column``) names one of these are used; empty: the column is not
    looked at."""

    embargo: EmbargoSettings | None = None
    """For FITS; absent: there is none."""
