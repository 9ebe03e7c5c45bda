"""What a report or a terminal shows when there are more sites than a person reads."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asterion_shared.absences import MOST_NAMED_SITES, ranges
from asterion_shared.reports.metric_words import in_time
from asterion_shared.result import RoundResult

_NAMED_OF_MANY = 3
_MOST_RANGES = 4


@dataclass(frozen=True, slots=True)
class Group:
    """Sites that stand together in a table.

    Attributes:
        words: what they have in common, in a word or two; empty when they are all there are.
        sites: their names, in the order of the table.
    """

    words: str
    sites: tuple[str, ...]


@dataclass(slots=True)
class Part:
    """A site's part in the training rounds: in how many it was asked, answered, was clipped.

    A report that was carried over counts as an answer of the round that folded it.
    """

    asked: int = 0
    answered: int = 0
    clipped: int = 0


def pick_sites(names: Sequence[str], values: Mapping[str, float | None], most: int) -> list[Group]:
    """The sites that a table shows: all, or the lowest, the middle and the highest.

    Args:
        names: every site, sorted.
        values: what they are compared by; None, or no entry, where a site has none.
        most: most sites to show, at least 3; a third of it for each of the three groups.

    Returns:
        One group when all sites are shown, or when none or only a few have a value (then these,
        or the first by name); else three, each rising.

    >>> [(g.words, g.sites) for g in pick_sites("abcdefg", dict(zip("abcdefg", range(7))), 3)]
    [('lowest', ('a',)), ('median', ('d',)), ('highest', ('g',))]
    """
    if len(names) <= most:
        return [Group("", tuple(names))]
    third = most // 3
    ranked = sorted((value, n) for n in names if (value := values.get(n)) is not None)
    known = tuple(name for _, name in ranked)
    if not known:
        return [Group("by name", tuple(names[:most]))]
    if len(known) <= most:
        return [Group("measured", known)]
    middle = (len(known) - third) // 2
    return [
        Group("lowest", known[:third]),
        Group("median", known[middle : middle + third]),
        Group("highest", known[-third:]),
    ]


def parts_of_sites(rounds: Iterable[RoundResult]) -> dict[str, Part]:
    """Each site's part in the training rounds; no entry for a site that was never asked to."""
    parts: dict[str, Part] = {}
    for round_ in rounds:
        if round_.round > 0:
            for site, outcome in round_.outcomes.items():
                part = parts.setdefault(site, Part())
                part.asked += 1
                part.answered += outcome.outcome in ("answered", "carried")
                part.clipped += outcome.clipped
    return parts


def name_few(names: Sequence[str]) -> str:
    """Names in a sentence; of many only the first and how many more there are.

    >>> name_few(["a", "b"]), name_few([str(i) for i in range(900)])
    ('a, b', '0, 1, 2 and 897 more')
    """
    if len(names) <= MOST_NAMED_SITES:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED_OF_MANY])} and {len(names) - _NAMED_OF_MANY:,} more"


def missing_words(missing: Mapping[str, str]) -> str:
    """Who was missing in a round and why; of many sites, how many for each reason.

    >>> missing_words({"north": "no_data", "south": "late"})
    'north (no data), south (late)'
    >>> missing_words({f"s{i}": "late" for i in range(8)} | {"t": "no_data"})
    '8 late (s0, s1, s2 and 5 more), 1 no data (t)'
    """
    if len(missing) <= _NAMED_OF_MANY:
        return ", ".join(f"{site} ({why.replace('_', ' ')})" for site, why in missing.items())
    sites: dict[str, list[str]] = {}
    for site, why in missing.items():
        sites.setdefault(why, []).append(site)
    return ", ".join(
        f"{len(names):,} {why.replace('_', ' ')} ({name_few(names)})"
        for why, names in sorted(sites.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def late_words(round_: RoundResult) -> str:
    """Who was waited for, and whose report of which earlier round was carried over; else empty.

    For example ``waited for north (6 min), carried over: south (of round 2)``.
    """
    waits, carried = round_.waited_for, round_.carried
    parts = []
    if len(waits) > _NAMED_OF_MANY:
        longest = in_time(max(waits.values()))
        parts.append(f"waited for {name_few(list(waits))} (at most {longest})")
    elif waits:
        named = ", ".join(f"{site} ({in_time(seconds)})" for site, seconds in waits.items())
        parts.append(f"waited for {named}")
    if len(carried) > _NAMED_OF_MANY:
        parts.append(f"carried over: {name_few(list(carried))}")
    elif carried:
        named = ", ".join(f"{site} (of round {number})" for site, number in carried.items())
        parts.append(f"carried over: {named}")
    return ", ".join(parts)


def round_span(numbers: Iterable[int]) -> str:
    """Round numbers for a table; scattered ones are counted.

    >>> round_span([0, 1, 2, 5]), round_span(range(2, 40, 2))
    ('start, 1-2, 5', '19 rounds from 2 to 38')
    """
    known = set(numbers)
    later = sorted(known - {0})
    text = ranges(later)
    if text.count(",") >= _MOST_RANGES:
        text = f"{len(later)} rounds from {later[0]} to {later[-1]}"
    return ", ".join(filter(None, ["start" if 0 in known else "", text]))


def evenly(count: int, most: int) -> list[int]:
    """Indices of at most ``most`` (at least 2) of ``count`` entries, with the first and the last.

    >>> evenly(3, 5), evenly(101, 3)
    ([0, 1, 2], [0, 50, 100])
    """
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]
