"""Who was missing, waited for or carried over in a run, in the words of its headline."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from asterion_shared.reports.metric_words import in_time

if TYPE_CHECKING:
    from asterion_shared.result import Result, RoundResult

MOST_NAMED_SITES = 5
"""Sites that a sentence names one by one; of more it tells how many there are."""


def absences(result: "Result") -> list[str]:
    """``site north missing in rounds 3-5 (unreachable)`` for each site, sorted by name.

    After those who were missing come those who were waited for and those whose report was carried
    over. Of more than :data:`MOST_NAMED_SITES` sites only their number and the reasons are told.
    """
    by_site: dict[str, dict[str, list[int]]] = {}
    for round_ in result.rounds:
        for site, reason in round_.missing.items():
            by_site.setdefault(site, {}).setdefault(reason, []).append(round_.round)
    asked = {site for round_ in result.rounds for site in round_.asked}
    if not asked:
        return ["no site was asked"]
    everyone = f"{len(asked.union(s.name for s in result.sites)):,} sites"
    if len(by_site) > MOST_NAMED_SITES:
        counts = Counter(reason for reasons in by_site.values() for reason in reasons)
        why = ", ".join(
            f"{count:,} {reason.replace('_', ' ')}"
            for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        )
        sentences = [f"{len(by_site):,} of {everyone} missing in one round or more ({why})"]
    else:
        sentences = [
            f"site {site} missing "
            + " and ".join(
                f"{round_words(rounds)} ({reason.replace('_', ' ')})"
                for reason, rounds in reasons.items()
            )
            for site, reasons in sorted(by_site.items())
        ]
    never = [s.name for s in result.sites if s.name not in asked]
    if len(never) > MOST_NAMED_SITES:
        sentences.append(f"{len(never):,} of {everyone} were never asked")
    else:
        sentences += [f"site {name} was never asked" for name in never]
    return [*(sentences or ["no site was missing"]), *_waited_for(result), *_carried(result)]


def _waited_for(result: "Result") -> list[str]:
    """``site north waited for in round 2 (6 min beyond the deadline)``."""
    late = [(r.round, site, seconds) for r in result.rounds for site, seconds in
            r.waited_for.items()]  # fmt: skip
    by_site: dict[str, list[tuple[int, float]]] = {}
    for number, site, seconds in late:
        by_site.setdefault(site, []).append((number, seconds))
    if len(by_site) > MOST_NAMED_SITES:
        longest = in_time(max(seconds for _, _, seconds in late))
        return [f"{len(by_site):,} sites waited for, at most {longest} beyond a deadline"]
    sentences = []
    for site, waits in sorted(by_site.items()):
        most = "at most " if len(waits) > 1 else ""
        longest = in_time(max(seconds for _, seconds in waits))
        when = round_words(number for number, _ in waits)
        sentences.append(f"site {site} waited for {when} ({most}{longest} beyond the deadline)")
    return sentences


def _carried(result: "Result") -> list[str]:
    """``site north carried over into round 3 (made for round 2)``."""
    by_site: dict[str, list[tuple[int, int]]] = {}
    for round_ in result.rounds:
        for site, made_for in round_.carried.items():
            by_site.setdefault(site, []).append((round_.round, made_for))
    if len(by_site) > MOST_NAMED_SITES:
        return [f"reports of {len(by_site):,} sites carried over into a later round"]
    return [
        f"site {site} carried over into {_rounds(number for number, _ in pairs)} "
        f"(made for {_rounds(made_for for _, made_for in pairs)})"
        for site, pairs in sorted(by_site.items())
    ]


def _rounds(numbers: Iterable[int]) -> str:
    known = set(numbers)
    return f"{'rounds' if len(known) > 1 else 'round'} {ranges(known)}"


def quarantine_sentences(rounds: Iterable["RoundResult"]) -> list[str]:
    """Reports that are in the model although they were suspicious: by the plan, by a person."""
    folded: dict[str, list[int]] = {}
    sentences: list[str] = []
    for one in rounds:
        for site, outcome in one.outcomes.items():
            if outcome.outcome in ("answered", "carried") and outcome.suspicious_layers:
                folded.setdefault(site, []).append(one.round)
        sentences += [
            f"report of site {site} of {round_words(numbers).removeprefix('in ')} released and "
            f"folded in round {one.round}"
            for site, numbers in one.released.items()
        ]
    if len(folded) > MOST_NAMED_SITES:
        return [*sentences, f"{len(folded):,} sites suspicious and folded in one round or more"]
    named = (f"site {s} suspicious and folded {round_words(n)}" for s, n in sorted(folded.items()))
    return [*sentences, *named]


def round_words(numbers: Iterable[int]) -> str:
    """Round numbers in words; round 0 is what comes before training.

    >>> round_words([0, 1, 2]), round_words([3])
    ('at the start and in rounds 1-2', 'in round 3')
    """
    known = sorted(set(numbers))
    later = [number for number in known if number > 0]
    parts = ["at the start"] if 0 in known else []
    if later:
        parts.append(f"in {'rounds' if len(later) > 1 else 'round'} {ranges(later)}")
    return " and ".join(parts)


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges.

    >>> ranges([1, 3, 4, 5])
    '1, 3-5'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
