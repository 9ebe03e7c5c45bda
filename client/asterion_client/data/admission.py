"""Which records may be in a data set.

Those that name a protocol of the site's, that are past their embargo, and whose patient has not
withdrawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from asterion_client.consent_settings import EmbargoSettings
from asterion_client.data.embargo import under_embargo
from asterion_client.data.records import Record
from asterion_client.settings import SiteDataSettings, SiteSettings
from asterion_client.withdrawals import Withdrawals, read_withdrawals
from asterion_shared.errors import Problem, SettingsError

SEPARATOR = ";"
"""Between the consents of one record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a site lets into its data sets, at one moment.

    Attributes:
        settings: the ``[data]`` section.
        protocols: a record needs one of them; empty: it needs none.
        embargo: of FITS files; None: there is none.
        withdrawals: who has withdrawn.
        now: UTC.
    """

    settings: SiteDataSettings
    protocols: frozenset[str]
    embargo: EmbargoSettings | None
    withdrawals: Withdrawals
    now: datetime

    def may_stay(self, record: Record) -> bool:
        """Whether a record may go on in a data set that it was in."""
        return self.has_consent(record) and not self.withdrawals.has(record.group)

    def has_consent(self, record: Record) -> bool:
        """Whether a record names one of the protocols, if there are some."""
        if not self.protocols:
            return True
        named = (record.consent or "").split(SEPARATOR)
        return not self.protocols.isdisjoint(name.strip() for name in named)

    def may_enter(self, record: Record) -> bool:
        """Whether a record may be in a new data set.

        Raises:
            MissingExtraError: the reader of FITS is not installed.
        """
        return self.may_stay(record) and not self.is_embargoed(record)

    def is_embargoed(self, record: Record) -> bool:
        """Whether a record's file is still under embargo.

        Raises:
            MissingExtraError: the reader of FITS is not installed.
        """
        embargo = self.embargo
        return embargo is not None and under_embargo(record.path, embargo, self.settings, self.now)


def admission_of(
    settings: SiteSettings,
    folder: Path,
    records: Sequence[Record],
    now: datetime | None = None,
) -> Admission:
    """What a site admits now.

    Args:
        settings: the site's; without ``[consent]`` only who has withdrawn is left out.
        folder: where ``site.toml`` lies.
        records: that the site has.
        now: UTC; None: the clock's.

    Raises:
        SettingsError: protocols are asked for, and the records do not say theirs.
        FileProblemError: the file of withdrawals is damaged, or others can read it.
    """
    consent = settings.consent
    protocols = () if consent is None else consent.protocols
    silent = sum(r.consent is None and not r.problem for r in records)
    if protocols and silent:
        source = "site.toml"
        raise SettingsError(source, [_no_column(settings.data, silent, len(records))])
    return Admission(
        settings=settings.data,
        protocols=frozenset(protocols),
        embargo=None if consent is None else consent.embargo,
        withdrawals=read_withdrawals(folder / settings.state_folder),
        now=now or datetime.now(UTC),
    )


def _no_column(data: SiteDataSettings, silent: int, count: int) -> Problem:
    fix = f"name data.manifest, a CSV with the columns path and {data.consent_column}"
    if data.format == "npz":
        fix = "store an array 'consent' beside the images"
    elif data.format == "table":
        fix = f"add the column {data.consent_column!r}, or name yours in data.consent_column"
    elif data.manifest is not None:
        fix = f"add the column {data.consent_column!r} to it, or name yours in data.consent_column"
    what = f"{silent} of {count} records have no column of consents to look at"
    return Problem(where="consent.protocols", what=what, fix=fix)
