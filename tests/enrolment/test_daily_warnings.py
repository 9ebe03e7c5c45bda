"""A daemon warns at its start and then once a day, and a problem ends no daemon."""

from collections.abc import Iterator

import pytest

from asterion_shared import daily_warnings
from asterion_shared.daily_warnings import DAY_SECONDS, DailyWarnings
from asterion_shared.errors import FileProblemError, Problem

SOON = Problem(where="site.pem", what="ends in 29 days", fix="renew it", fatal=False)
OVER = Problem(where="ca.pem", what="has ended", fix="renew it")


def test_each_problem_is_said_at_once_and_a_day_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [1000.0], []
    monkeypatch.setattr(daily_warnings.time, "monotonic", lambda: now[0])
    watch = DailyWarnings(lambda: [SOON, OVER], said.append)
    watch.look_if_due()
    assert said == [f"warning: {SOON}", f"problem: {OVER}"]
    now[0] += DAY_SECONDS - 1
    watch.look_if_due()
    assert len(said) == 2
    now[0] += 1
    watch.look_if_due()
    assert len(said) == 4


def test_a_file_that_cannot_be_read_is_said_too() -> None:
    broken = FileProblemError("site.pem", "cannot be read", "put it back")

    def look() -> Iterator[Problem]:
        yield SOON
        raise broken

    said: list[str] = []
    DailyWarnings(look, said.append).look_if_due()
    assert said[0] == f"warning: {SOON}"
    assert said[1].startswith("problem: site.pem: cannot be read")
