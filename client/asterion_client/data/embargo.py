"""Observations that still belong to their programme, by the headers of their FITS files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from asterion_client.consent_settings import EmbargoSettings
from asterion_client.data.fits import header_texts
from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.settings import SiteDataSettings

EVERY_OTHER = "*"


def under_embargo(
    path: Path, embargo: EmbargoSettings, settings: SiteDataSettings, now: datetime
) -> bool:
    """Whether a file may not be used yet.

    Where the file's first header and that of the image differ, the later date and the longer
    period count. A date without a time means the end of that day.

    Args:
        path: of the FITS file.
        embargo: the periods, and the keys to look at.
        settings: which extension is the image.
        now: UTC.

    Returns:
        True too for a file that cannot be read, has no date that can be read, or is of a programme
        without a period.

    Raises:
        MissingExtraError: astropy is not installed.
    """
    try:
        dates = [_moment(text) for text in header_texts(path, settings, embargo.date_key)]
        programmes = header_texts(path, settings, embargo.programme_key) or (EVERY_OTHER,)
    except (UnreadableFileError, ValueError, OverflowError):
        return True
    every_other = embargo.days.get(EVERY_OTHER)
    periods = [embargo.days.get(name, every_other) for name in programmes]
    known = [days for days in periods if days is not None]
    if not dates or len(known) < len(periods):
        return True
    try:
        return now < max(dates) + timedelta(days=max(known))
    except OverflowError:
        return True  # it ends after the year 9999


def _moment(text: str) -> datetime:
    """A date of a FITS header (standard 4.0, section 9.1.1), UTC.

    Raises:
        ValueError: it is none.
    """
    if "/" in text:  # DD/MM/YY, of the years 1900 to 1999
        day, month, year = (int(part) for part in text.split("/"))
        return datetime(1900 + year, month, day, tzinfo=UTC) + timedelta(days=1)
    moment = datetime.fromisoformat(text.removesuffix("Z"))
    if moment.tzinfo is not None:
        msg = "a date of a FITS header has no time zone"
        raise ValueError(msg)
    return moment.replace(tzinfo=UTC) + timedelta(days=0 if "T" in text else 1)
