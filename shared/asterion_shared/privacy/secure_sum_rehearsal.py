"""A whole secure sum in one process: both halves, every message as the bytes it would travel in.

For simulations, measurements and tests; each site's work is the work of a real one.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from asterion_shared.privacy.masks import Words
from asterion_shared.privacy.secure_sum import Instance, elliptic_signer, elliptic_verifier
from asterion_shared.privacy.secure_sum_centre import CentreSum
from asterion_shared.privacy.secure_sum_messages import (
    Agreement,
    AgreementList,
    Inbox,
    KeyList,
    Keys,
    Masked,
    Reveal,
    RevealList,
    Shares,
    Survivors,
    ToCentre,
    ToSite,
    Unmasking,
)
from asterion_shared.privacy.secure_sum_site import SiteSum

Phase = Literal["keys", "reveal", "shares", "masked", "agree", "unmask"]

_T = TypeVar("_T")
_Up = TypeVar("_Up", bound=ToCentre)
_Down = TypeVar("_Down", bound=ToSite)


@dataclass(slots=True)
class Cost:
    """What one rehearsal took.

    Attributes:
        bytes_up, bytes_down: of each site's messages.
        site_seconds: processor time of each site.
        centre_seconds: processor time of the coordinator, by phase.
    """

    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    site_seconds: dict[str, float] = field(default_factory=dict)
    centre_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What came of it.

    Attributes:
        total: the sum, ``(length,)``.
        survivors: sites whose vectors are in it, sorted.
        cost: what it took.
    """

    total: Words
    survivors: tuple[str, ...]
    cost: Cost


def rehearse(
    instance: Instance,
    vector_of: Callable[[str], Words],
    *,
    lost: Mapping[str, Phase] | None = None,
    keys: Mapping[str, ec.EllipticCurvePrivateKey] | None = None,
    verify_once: bool = False,
) -> Rehearsed:
    """Form the sum with real keys, masks, signatures and bytes.

    Args:
        instance: what is summed, by whom.
        vector_of: a site's vector; called once for each site that comes so far.
        lost: sites that drop out, and the first phase whose message they do not send.
        keys: identity keys by site; None makes new ones.
        verify_once: check a signature for all sites together, which saves most of the time of many
            sites; False where the cost counts.

    Raises:
        QuorumLostError: too few sites remained.
    """
    identities = keys or {name: ec.generate_private_key(ec.SECP384R1()) for name in instance.sites}
    verify = elliptic_verifier({name: key.public_key() for name, key in identities.items()})
    if verify_once:
        verify = lru_cache(maxsize=None)(verify)
    sites = {
        name: SiteSum(
            instance, name, roster=instance.sites, sign=elliptic_signer(identities[name]),
            verify=verify, record=lambda *_: None,
        )
        for name in instance.sites
    }  # fmt: skip
    stage = _Stage(CentreSum(instance, verify=verify), sites, dict(lost or {}), Cost())
    return stage.run(instance.sharing.complete, vector_of)


class _Stage:
    def __init__(
        self, centre: CentreSum, sites: dict[str, SiteSum], lost: Mapping[str, Phase], cost: Cost
    ) -> None:
        self.centre, self.sites, self.lost, self.cost = centre, sites, lost, cost
        self.there = list(sites)

    def run(self, complete: bool, vector_of: Callable[[str], Words]) -> Rehearsed:
        sites, centre = self.sites, self.centre
        self.phase("keys", Keys, lambda name: sites[name].keys(), centre.accept_keys)
        key_list = self.sent("keys", centre.close_keys, KeyList, self.there)
        if complete:
            peers: KeyList | RevealList = key_list
        else:
            answer = lambda name: sites[name].reveal(key_list)  # noqa: E731
            self.phase("reveal", Reveal, answer, centre.accept_reveal)
            peers = self.sent("reveal", centre.close_reveals, RevealList, self.there)
        self.phase("shares", Shares, lambda name: sites[name].shares(peers), centre.accept_shares)
        inboxes = self.timed("shares", centre.close_shares)

        def mask(name: str) -> Masked:
            content = inboxes[name].to_bytes()
            self.cost.bytes_down[name] += len(content)
            vector = vector_of(name)
            began = time.process_time()
            masked = sites[name].masked(Inbox.from_bytes(content), vector)
            self.cost.site_seconds[name] += time.process_time() - began
            return masked

        self.phase("masked", Masked, mask, centre.accept_masked, timed=False)
        survivors = self.sent("masked", centre.close_masked, Survivors, self.there)
        agree = lambda name: sites[name].agree(survivors)  # noqa: E731
        self.phase("agree", Agreement, agree, centre.accept_agreement)
        signed = self.sent("agree", centre.close_agreements, AgreementList, self.there)
        unmask = lambda name: sites[name].unmask(signed)  # noqa: E731
        self.phase("unmask", Unmasking, unmask, centre.accept_unmasking)
        total = self.timed("unmask", centre.finish)
        return Rehearsed(total, centre.survivors, self.cost)

    def phase(
        self, phase: Phase, kind: type[_Up], answer: Callable[[str], _Up],
        accept: Callable[[_Up], None], *, timed: bool = True,
    ) -> None:  # fmt: skip
        self.there = [name for name in self.there if self.lost.get(name) != phase]
        seconds, cost = 0.0, self.cost
        for name in self.there:
            began = time.process_time()
            message = answer(name)
            middle = time.process_time()
            content = message.to_bytes()
            encoded = time.process_time()
            spent = encoded - (began if timed else middle)
            cost.site_seconds[name] = cost.site_seconds.get(name, 0.0) + spent
            cost.bytes_up[name] = cost.bytes_up.get(name, 0) + len(content)
            del message
            began = time.process_time()
            accept(kind.from_bytes(content, name))
            seconds += time.process_time() - began
        cost.centre_seconds[phase] = cost.centre_seconds.get(phase, 0.0) + seconds

    def timed(self, phase: Phase, close: Callable[[], _T]) -> _T:
        began = time.process_time()
        found = close()
        self.cost.centre_seconds[phase] += time.process_time() - began
        return found

    def sent(
        self, phase: Phase, close: Callable[[], _Down], kind: type[_Down], names: Collection[str]
    ) -> _Down:
        began = time.process_time()
        content = close().to_bytes()
        self.cost.centre_seconds[phase] += time.process_time() - began
        for name in names:
            self.cost.bytes_down[name] = self.cost.bytes_down.get(name, 0) + len(content)
        return kind.from_bytes(content)
