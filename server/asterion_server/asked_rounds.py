"""How often each site was asked to train in a private run: written before the order leaves.

A checkpoint knows finished rounds only. An order whose round never finished may have been answered
all the same, and then the site released something; so each asking counts, also of a round that is
begun again. Except where the very same order again, by its SHA-256, releases nothing more:

* With noise at the site the answer is what is released. Where the carrier keeps answers, the site
  gives the same order the bytes that it stored before it sent them first; the same bytes twice
  tell no more than once. Over a carrier that does not, a site that restarted would train anew with
  fresh noise, so each asking counts.
* With noise at the centre the noised model is what is released, and that to whoever gets an order
  or the model's file. Both leave after the checkpoint that holds the model is stored. A round that
  is begun again has no such checkpoint: whatever was folded and noised before the crash was lost
  with the process and nobody has seen it.
* Under a secure sum each try has masks and shares of noise of its own, so each asking counts.

The same order has the same plan and the same weights. It follows a checkpoint, so the round before
it is released once.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from asterion_shared.errors import PrivacyProofError
from asterion_shared.files import append_lines
from asterion_shared.link.steps import reached
from asterion_shared.messages import Order, order_sha256


def asking_of(order: Order, *, repeats_answers: bool) -> str:
    """What identifies an asking: the hash of the order, or nothing where each one counts.

    Args:
        order: to train, of a private plan.
        repeats_answers: whether the carrier's sites answer the same order with the same bytes.

    Returns:
        64 hex digits; empty where asking with the same order again may release something more.
    """
    privacy = order.plan.privacy
    at_centre = privacy is not None and privacy.noise == "centre"
    once = order.plan.secure_sum is None and (at_centre or repeats_answers)
    return order_sha256(order) if once else ""


def charge_asking(path: Path, round_: int, sites: Sequence[str], asking: str, allowed: int) -> None:
    """Note durably that sites are asked, before they are; stop a run that was begun too often.

    Args:
        path: the run's file of askings.
        round_: of the order.
        sites: that it goes to.
        asking: as :func:`asking_of` gives it.
        allowed: how often privacy lets a site be asked.

    Raises:
        PrivacyProofError: once more would exceed the plan's limit; nothing is noted.
        DiskProblemError: the disk is full or not writable; then nothing may be sent.
    """
    known = _askings(path)
    for site in sites:
        before = known[site]
        if before.total() >= allowed and (not asking or asking not in before):
            what = (
                f"site {site} was asked {allowed} times, interrupted rounds included, which is "
                f"all that privacy.epsilon_limit allows, and round {round_} is not done"
            )
            fix = "the model of the last checkpoint is the run's result"
            raise PrivacyProofError(what=what, fix=fix)
    note_asked(path, round_, sites, asking)


def note_asked(path: Path, round_: int, sites: Sequence[str], asking: str = "") -> None:
    """Add a line for an order that is about to be sent, durably.

    Raises:
        DiskProblemError: the disk is full or not writable; then nothing may be sent.
    """
    append_lines(path, [json.dumps({"round": round_, "order": asking, "sites": list(sites)})])
    reached("C1")


def times_asked(path: Path) -> dict[str, int]:
    """By site, sorted by name; empty when nobody was asked. A torn line was never sent."""
    return {site: askings.total() for site, askings in sorted(_askings(path).items())}


def _askings(path: Path) -> defaultdict[str, Counter[str]]:
    """The askings that count, by site: each hash once, and how many there are without."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    lines = path.read_text().splitlines() if path.exists() else []
    for text in lines:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        asking = line.get("order", "")
        for site in line["sites"]:
            found[site][asking] = 1 if asking else found[site][asking] + 1
    return found
