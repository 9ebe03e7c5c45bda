"""Which charges count for one unit, brought under one neighbouring relation.

Three rules join charges that are not alike; each can only overstate the loss:

1. Under one neighbouring relation charges are composed as they are.
2. Where a unit has charges of both relations, those for "with or without one" are turned into
   "one exchanged for another". An exchange is a removal and an addition, so the sensitivity
   doubles (triangle inequality). Amplification by sampling is given up: the bound for a unit that
   was surely drawn holds for a mixture over whether it was (joint quasi-convexity of the
   divergence). The other way there is no bound.
3. A release that protects the whole site also tells something of each person in it. Adding,
   removing or exchanging a person exchanges the site's data for others, so its charge, turned
   by rule 2, counts for every person under either relation.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from asterion_shared.privacy.charges import Charge, GaussianCharge, Relation

EpsilonOf = Callable[[Sequence[Charge], float], float]
"""Epsilon of charges of one relation, composed, at a delta; infinite where there is no bound."""

Totals = Counter[Charge]
"""Charges by what they are (with ``times`` 1), and how often each was made."""


def renyi_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon by Renyi divergences alone: an upper bound that is quick for many charges."""
    # Here, because its libraries take seconds to import.
    from asterion_shared.privacy.accounting import rdp_epsilon

    return rdp_epsilon(charges, delta)


def accounted_epsilon(charges: Sequence[Charge], delta: float) -> float:
    """Epsilon by the accountants that every part of Asterion uses, the smaller figure."""
    from asterion_shared.privacy.accounting import spent

    return spent(charges, delta).epsilon


def totals_of(charges: Iterable[Charge]) -> Totals:
    """Charges added up, equal ones together."""
    totals: Totals = Counter()
    for charge in charges:
        totals[charge.model_copy(update={"times": 1})] += charge.times
    return totals


def charges_of(totals: Totals) -> tuple[Charge, ...]:
    """The charges of totals, in an order that depends on nothing but them."""
    charges = (charge.model_copy(update={"times": n}) for charge, n in totals.items())
    return tuple(sorted(charges, key=lambda charge: charge.model_dump_json()))


def compose(own: Totals, of_site: Totals) -> tuple[Charge, ...]:
    """Every charge that counts for a unit, under one relation.

    Args:
        own: of the releases whose data held it; empty: the result is empty.
        of_site: of the releases that protect the whole site; empty for the site itself.
    """
    if not own:
        return ()
    mixed = len({charge.relation for charge in own}) > 1
    parts: Totals = Counter()
    for charge, times in own.items():
        parts[as_exchange(charge) if mixed else charge] += times
    relation = next(iter(parts)).relation
    for charge, times in of_site.items():
        parts[_seen_by_person(charge, relation)] += times
    return charges_of(parts)


def as_exchange(charge: Charge) -> Charge:
    """A charge under "one exchanged for another" (rule 2)."""
    if charge.relation == "replace_one":
        return charge
    if isinstance(charge, GaussianCharge):
        doubled = {"noise_multiplier": charge.noise_multiplier / 2, "sampling_rate": 1.0}
        return charge.model_copy(update={"relation": "replace_one", **doubled})
    twice = {"relation": "replace_one", "l2_sensitivity": 2 * charge.l2_sensitivity}
    return charge.model_copy(update=twice)


def _seen_by_person(charge: Charge, relation: Relation) -> Charge:
    """A charge of the whole site as it counts for a person in it (rule 3)."""
    exchange = as_exchange(charge).model_copy(update={"relation": relation})
    # A sampled exchange is not a sampled addition; without sampling the two are alike.
    unsampled = {"sampling_rate": 1.0} if isinstance(exchange, GaussianCharge) else {}
    return exchange.model_copy(update=unsampled)


def largest(data_sets: Iterable[int]) -> list[int]:
    """The sets of data sets, as bits, that are not empty and within no other.

    Who was in more data sets has lost at least as much, so the others need no accounting.
    """
    kept: list[int] = []
    for bits in sorted(set(data_sets) - {0}, key=int.bit_count, reverse=True):
        if all(bits & ~other for other in kept):
            kept.append(bits)
    return kept
