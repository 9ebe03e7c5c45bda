"""One data set as many virtual sites: who gets which example, and how unequal that makes them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from asterion_shared.errors import Problem, SettingsError
from asterion_shared.randomness import stream
from asterion_shared.settings_files import Rule, Settings, rule
from asterion_sim.split_counts import SiteCounts, counts_table
from asterion_sim.split_tables import Counts, apportion, classes_table, dirichlet_table, iid_table

Indices = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

_SOURCE = "the split"
_MOST_NAMED = 5
"""Sites that an error names one by one; it says how many more there are."""


class SplitSettings(Settings):
    """The ``[split]`` table of a scenario: how one data set becomes many sites.

    With ``column`` and another kind than ``column`` the examples are first parted by the column's
    values, the sites are shared out among the values, and each part is split by the kind.
    """

    kind: Literal["iid", "dirichlet", "classes", "column"] = "iid"
    """Shuffle and deal; draw each site's class proportions; give each site a few classes; or
    only part by a natural column."""

    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Dirichlet: concentration of each class. 0.1 leaves a site few classes; 100 gives all sites
    the pooled shares, more evenly than a shuffle does."""

    classes_per_site: Annotated[int, Field(ge=1)] | None = None
    """Classes: how many a site holds."""

    column: str = ""
    """A natural column, such as the scanner: parts with different values share no site."""

    quantity_sigma: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Deviation of the logarithm of the sites' sizes; 0: equal sizes."""

    fewest: Annotated[int, Field(ge=1)] = 1
    """Fewest units (examples; patients, where they stay whole) of a site."""

    floor: Annotated[int, Field(ge=0)] = 0
    """Iid, Dirichlet: fewest units of each class at each site; classes: of each that it holds."""

    floor_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Iid, Dirichlet: smallest share of each class at each site, in whole units rounded down."""

    allow_one_class: bool = False
    """Whether a site may hold a single class; otherwise such a split is refused."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: (s.alpha is None) == (s.kind != "dirichlet"),
            lambda s: (
                f"kind is {s.kind!r} and alpha is {s.alpha}; give alpha with 'dirichlet' only"
            ),
        ),
        rule(
            lambda s: (s.classes_per_site is None) == (s.kind != "classes"),
            lambda s: (
                f"kind is {s.kind!r} and classes_per_site is {s.classes_per_site}; "
                "'classes' needs classes_per_site, no other kind takes it"
            ),
        ),
        rule(
            lambda s: s.kind != "column" or s.column != "",
            lambda s: "kind is 'column' and column is empty; name the column",
        ),
        rule(
            lambda s: s.kind != "column" or s.quantity_sigma == s.floor == s.floor_share == 0,
            lambda s: (
                "kind is 'column' and quantity_sigma, floor or floor_share is given; a column's "
                "sites are as they are: remove them or choose another kind beside the column"
            ),
        ),
        rule(
            lambda s: s.floor_share == 0 or s.kind in ("iid", "dirichlet"),
            lambda s: f"kind is {s.kind!r} and floor_share is given; give floor instead",
        ),
        rule(
            lambda s: s.classes_per_site != 1 or s.allow_one_class,
            lambda s: (
                "classes_per_site is 1 and allow_one_class is false; give each site 2 classes, "
                "or set allow_one_class = true"
            ),
        ),
    )


def split_indices(
    settings: SplitSettings,
    labels: Indices | None,
    columns: Mapping[str, Column],
    num_sites: int | None,
    seed: int,
    *,
    groups: Column | None = None,
    num_examples: int | None = None,
) -> dict[str, Indices]:
    """Say which examples each virtual site gets.

    Every example goes to exactly one site. Without groups a unit is an example. With groups it is
    a whole group (a patient): a group is never parted, its class is its most frequent label (the
    lowest of several), and sizes, ``fewest`` and floors count groups.

    Args:
        settings: the scheme.
        labels: int64, shape (N,), any numbers; for segmentation the dominant foreground class, or
            None, and then only ``iid`` and ``column`` can be had.
        columns: natural columns by name, each of shape (N,), of numbers or text.
        num_sites: how many sites, >= 1; None with kind ``column``: a site for each value. Fewer
            sites than values join neighbouring values, in their order, into sites of similar size.
        seed: the plan's; the only source of randomness (purpose ``split``).
        groups: shape (N,), numbers or text; units that stay whole.
        num_examples: N, needed when neither labels nor groups nor a column say it.

    Returns:
        Sorted example numbers, int64, by site name: ``site_0001`` and so on. With a column, sites
        are in the order of its values. The same arguments give the same split.

    Raises:
        SettingsError: the data cannot be split so (with the counts and what would make it
            possible), or a site would hold a single class and that was not asked for.

    >>> labels = np.array([0, 0, 0, 1, 1, 1])
    >>> split_indices(SplitSettings(floor=1), labels, {}, 2, seed=1)["site_0001"].tolist()
    [0, 2, 4]
    """
    count = _num_examples(labels, columns, groups, num_examples)
    if labels is None and settings.kind in ("dirichlet", "classes"):
        what = f"is {settings.kind!r} and the examples have no class"
        raise _cannot(where="kind", what=what, fix="use 'iid' or 'column'")
    codes = (
        np.zeros(count, np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    )
    unit_of = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    classes = codes if groups is None else _majority(unit_of, codes)
    site_of_unit = np.empty(len(classes), np.int64)
    first = 0
    for number, (units, sites) in enumerate(_parts(settings, columns, unit_of, num_sites)):
        draws = stream(seed, round_=0, site="", purpose=f"split {number}")
        site_of_unit[units] = first + _deal(settings, classes[units], sites, draws)
        first += sites
    _check_fewest(settings, np.bincount(site_of_unit, minlength=first))
    split = _by_site(site_of_unit[unit_of], first)
    if labels is not None and not settings.allow_one_class:
        _refuse_one_class(counts_table(split, labels))
    return split


def _num_examples(
    labels: Indices | None,
    columns: Mapping[str, Column],
    groups: Column | None,
    num_examples: int | None,
) -> int:
    named = {"labels": labels, "groups": groups} | {f"column {n!r}": c for n, c in columns.items()}
    lengths = {name: len(array) for name, array in named.items() if array is not None}
    if num_examples is not None:
        lengths["num_examples"] = num_examples
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        what = f"the numbers of examples are {lengths}"
        raise _cannot(
            where="examples",
            what=what,
            fix="give one value for each example, of at least one example",
        )
    return next(iter(lengths.values()))


def _majority(unit_of: Indices, codes: Indices) -> Indices:
    """The most frequent class of each unit, the lowest of several; shape (units,)."""
    num_classes = int(codes.max()) + 1
    pairs, times = np.unique(unit_of * num_classes + codes, return_counts=True)
    units, classes = np.divmod(pairs, num_classes)
    order = np.lexsort((classes, -times, units))
    starts = np.unique(units[order], return_index=True)[1]
    chosen: Indices = classes[order][starts]
    return chosen


def _parts(
    settings: SplitSettings,
    columns: Mapping[str, Column],
    unit_of: Indices,
    num_sites: int | None,
) -> Iterator[tuple[Indices, int]]:
    """Units that are split among themselves, and among how many sites; in the sites' order."""
    num_units = int(unit_of.max()) + 1
    if num_sites is not None and num_sites < 1:
        raise _cannot(where="num_sites", what=f"is {num_sites}", fix="ask for at least 1 site")
    if num_sites is None and settings.kind != "column":
        raise _cannot(
            where="num_sites",
            what=f"is not given and kind is {settings.kind!r}",
            fix="say how many",
        )
    if not settings.column:
        yield np.arange(num_units), num_sites or 1
        return
    values = _unit_values(settings.column, columns, unit_of)
    sizes = np.bincount(values)
    if settings.kind == "column":
        group_of_value = _join_values(settings.column, sizes, num_sites or len(sizes))
        for units in _members(group_of_value[values], int(group_of_value[-1]) + 1):
            yield units, 1
        return
    each, left = divmod(num_sites or 0, len(sizes))
    if each == 0:
        what = f"is {num_sites} and column {settings.column!r} has {len(sizes)} values"
        raise _cannot(
            where="num_sites", what=what, fix="give each value a site, or use kind = 'column'"
        )
    more = np.argsort(-sizes, kind="stable")[:left]
    for value, units in enumerate(_members(values, len(sizes))):
        yield units, each + int(value in more)


def _unit_values(name: str, columns: Mapping[str, Column], unit_of: Indices) -> Indices:
    """The column's value of each unit as its number among the sorted values; shape (units,)."""
    if name not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise _cannot(
            where="column", what=f"is {name!r}, which the data do not have", fix=f"known: {known}"
        )
    column = np.asarray(columns[name])
    column = column.astype(str) if column.dtype == object else column
    missing = np.isnan(column) if column.dtype.kind == "f" else column == ""
    if number := int(np.count_nonzero(missing)):
        what = f"{name!r} has no value for {number} of {len(column)} examples"
        raise _cannot(
            where="column", what=what, fix="fill it in, leave them out, or choose another"
        )
    of_example = np.unique(column, return_inverse=True)[1]
    values = np.zeros(int(unit_of.max()) + 1, np.int64)
    values[unit_of] = of_example
    if torn := len(np.unique(unit_of[values[unit_of] != of_example])):
        what = f"{name!r} has several values within {torn} groups"
        raise _cannot(
            where="column", what=what, fix="a group stays whole: choose another column or no groups"
        )
    return values


def _join_values(name: str, sizes: Counts, num_sites: int) -> Indices:
    """Join neighbouring values into groups of similar size: the group of each value."""
    num_values = len(sizes)
    if num_sites > num_values:
        what = f"is {num_sites} and column {name!r} has {num_values} values"
        raise _cannot(
            where="num_sites", what=what, fix=f"ask for at most {num_values}, or add another kind"
        )
    groups = np.arange(num_sites)
    ends = np.cumsum(sizes)
    wanted = ends[-1] * (groups + 1) / num_sites
    # Number of values up to the end of each group: the nearest boundary, at least one value each.
    upto = np.searchsorted((ends[1:] + ends[:-1]) / 2, wanted, side="right") + 1
    upto = np.maximum.accumulate(np.maximum(upto, groups + 1) - groups) + groups
    upto = np.minimum(upto, num_values - num_sites + 1 + groups)
    group_of_value: Indices = np.searchsorted(upto, np.arange(num_values), side="right")
    return group_of_value


def _deal(
    settings: SplitSettings, classes: Indices, num_sites: int, draws: np.random.Generator
) -> Indices:
    """The site (0 .. num_sites - 1) of each unit of one part; shape (units,)."""
    if settings.kind == "column":
        return np.zeros(len(classes), np.int64)
    totals: Counts = np.bincount(classes)
    weights = np.exp(settings.quantity_sigma * draws.standard_normal(num_sites))
    table = _table(settings, totals, weights, draws)
    site_of = np.empty(len(classes), np.int64)
    shuffled = draws.permutation(len(classes))
    in_order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    site_of[in_order] = np.tile(np.arange(num_sites), table.shape[1]).repeat(table.T.ravel())
    return site_of


def _table(
    settings: SplitSettings,
    totals: Counts,
    weights: npt.NDArray[np.float64],
    draws: np.random.Generator,
) -> Counts:
    """Units of each class at each site, shape (num_sites, K)."""
    if settings.classes_per_site is not None:
        return _classes_table(settings, settings.classes_per_site, totals, weights, draws)
    present = totals > 0
    num_sites, num_units = len(weights), int(totals.sum())
    fewest = max(settings.fewest, settings.floor * int(present.sum()))
    if fewest * num_sites > num_units:
        what = f"{num_units} units for {num_sites} sites of at least {fewest}"
        raise _cannot(where="fewest, floor", what=what, fix="ask for fewer sites or lower them")
    if settings.floor_share * present.sum() > 1:
        what = f"{settings.floor_share} for each of {present.sum()} classes is more than a site"
        raise _cannot(where="floor_share", what=what, fix=f"give at most {1 / present.sum():.3g}")
    sizes = apportion(num_units, weights, fewest, draws)
    shares = np.floor(settings.floor_share * sizes).astype(np.int64)
    floors = np.maximum(settings.floor, shares)[:, None] * present
    for class_ in np.flatnonzero(floors.sum(axis=0) > totals):
        what = (
            f"class number {class_} has {totals[class_]} units, the floors of "
            f"{num_sites} sites take {floors[:, class_].sum()}"
        )
        raise _cannot(
            where="floor, floor_share", what=what, fix="ask for fewer sites or lower them"
        )
    if settings.alpha is not None:
        return dirichlet_table(totals, sizes, floors, settings.alpha, draws)
    rest = iid_table(totals - floors.sum(axis=0), sizes - floors.sum(axis=1), draws)
    table: Counts = floors + rest
    return table


def _classes_table(
    settings: SplitSettings,
    classes_per_site: int,
    totals: Counts,
    weights: npt.NDArray[np.float64],
    draws: np.random.Generator,
) -> Counts:
    present = np.flatnonzero(totals)
    if classes_per_site > len(present):
        what = f"is {classes_per_site} and there are {len(present)} classes"
        raise _cannot(where="classes_per_site", what=what, fix=f"give at most {len(present)}")
    table = np.zeros((len(weights), len(totals)), np.int64)
    floor = max(1, settings.floor)
    try:
        table[:, present] = classes_table(totals[present], weights, classes_per_site, floor, draws)
    except ValueError as error:
        what = f"{len(weights)} sites of {classes_per_site} classes: {error}"
        fix = "change num_sites, classes_per_site or floor, so that every class has a place"
        raise _cannot(where="classes_per_site", what=what, fix=fix) from None
    return table


def _by_site(site_of: Indices, num_sites: int) -> dict[str, Indices]:
    width = max(4, len(str(num_sites)))
    names = [f"site_{number:0{width}d}" for number in range(1, num_sites + 1)]
    return dict(zip(names, _members(site_of, num_sites), strict=True))


def _members(numbers: Indices, count: int) -> list[Indices]:
    """Where each of 0 .. count - 1 stands in ``numbers``, in increasing order."""
    ends = np.cumsum(np.bincount(numbers, minlength=count))
    return np.split(np.argsort(numbers, kind="stable"), ends[:-1])


def _check_fewest(settings: SplitSettings, units: Counts) -> None:
    few = np.flatnonzero(units < settings.fewest)
    if len(few):
        what = (
            f"is {settings.fewest} and {len(few)} of {len(units)} sites have fewer units, the "
            f"least {units.min()}"
        )
        raise _cannot(
            where="fewest", what=what, fix="ask for fewer sites, or lower fewest or quantity_sigma"
        )


def _refuse_one_class(counts: SiteCounts) -> None:
    alone = np.flatnonzero((counts.table > 0).sum(axis=1) == 1)
    if len(counts.classes) < 2 or len(alone) == 0:
        return
    fix = "set split.floor = 1 or raise alpha, or allow it with split.allow_one_class = true"
    problems = []
    for row in alone[:_MOST_NAMED]:
        class_ = int(np.argmax(counts.table[row]))
        what = f"all its {counts.table[row, class_]} examples are of class {counts.classes[class_]}"
        problems.append(Problem(where=counts.sites[row], what=what, fix=fix))
    if len(alone) > _MOST_NAMED:
        what = f"{len(alone) - _MOST_NAMED} more sites have a single class"
        problems.append(Problem(where=f"of {len(counts.sites)} sites", what=what, fix=fix))
    raise SettingsError(_SOURCE, problems)


def _cannot(*, where: str, what: str, fix: str) -> SettingsError:
    names = ", ".join(f"split.{name}" for name in where.split(", "))
    return SettingsError(_SOURCE, [Problem(where=names, what=what, fix=fix)])
