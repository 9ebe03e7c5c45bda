"""The coordinator's half of a secure sum: a state machine without a network.

Each phase is an ``accept_...`` for every site's message, in any order, and a ``close_...`` that
ends the phase and gives the answer to send. A site whose message is refused or does not come has
dropped out of the phases after it. Only the running total is held, never a second masked vector.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from asterion_shared.errors import QuorumLostError, ReportRejectedError
from asterion_shared.privacy import secure_sum as protocol
from asterion_shared.privacy.masks import Words, add_masks, is_usable, word_type, wrap
from asterion_shared.privacy.secure_sum import Instance, Verify
from asterion_shared.privacy.secure_sum_graph import neighbours_of, ring_order, survivor_problem
from asterion_shared.privacy.secure_sum_messages import (
    REJECTED,
    Agreement,
    AgreementList,
    Inbox,
    Inclusion,
    KeyList,
    Keys,
    Masked,
    Reveal,
    RevealList,
    Shares,
    Survivors,
    ToCentre,
    Unmasking,
)
from asterion_shared.privacy.shamir import combine, share_number


class _Step(IntEnum):
    KEYS = 1
    REVEALS = 2
    SHARES = 3
    MASKED = 4
    AGREEMENTS = 5
    UNMASKING = 6
    DONE = 7


class CentreSum:
    """The coordinator in one instance.

    ``accept_keys``, ``close_keys``, then (only when the graph is sparse) reveals, then shares,
    masked vectors, agreements and unmaskings; :meth:`finish` gives the sum. ``accept_...`` raises
    ReportRejectedError and changes nothing, ``close_...`` raises QuorumLostError when too few
    messages came; the instance is over then and nothing was unmasked.

    Args:
        instance: what is summed, by whom.
        verify: by the identities of the sites.
    """

    def __init__(self, instance: Instance, *, verify: Verify) -> None:
        self._instance, self._verify = instance, verify
        self._step = _Step.KEYS
        self._keys: dict[str, Keys] = {}
        self._keys_hash = b""
        self._reveals: dict[str, Reveal] = {}
        self._ring = instance.sites
        self._around: dict[str, tuple[str, ...]] = {}
        self._sealed: dict[str, dict[str, bytes]] = {}
        self._inclusions: dict[str, Inclusion] = {}
        self._total: Words = np.zeros(0, word_type(instance.bits))
        self._survivors_hash = b""
        self._agreements: dict[str, Agreement] = {}
        self._seed_shares: dict[str, dict[int, bytes]] = {}
        self._key_shares: dict[str, dict[int, bytes]] = {}
        self._unmasked: set[str] = set()

    def accept_keys(self, keys: Keys) -> None:
        """Phase 1."""
        self._check(keys, _Step.KEYS, self._instance.sites, self._keys)
        words = protocol.keys_statement(self._instance, keys)
        if not self._verify(keys.site, words, keys.signature):
            raise _rejected(keys, "its identity did not sign the keys")
        theirs = {public for one in self._keys.values() for public in _publics(one)}
        if theirs & set(_publics(keys)) or keys.mask_public == keys.cipher_public:
            raise _rejected(keys, "another key is the same")
        if not all(is_usable(public) for public in _publics(keys)):
            raise _rejected(keys, "nobody can agree on a secret with its keys")
        self._keys[keys.site] = keys

    def close_keys(self) -> KeyList:
        """End phase 1: everybody's keys, for every site that sent its own."""
        self._need(_Step.KEYS, len(self._keys), "sent keys")
        self._keys = dict(sorted(self._keys.items()))
        everybody = tuple(self._keys.values())
        self._keys_hash = protocol.keys_hash_of(self._instance, everybody)
        if self._instance.sharing.complete:
            self._settle_graph()
        else:
            self._step = _Step.REVEALS
        return KeyList(instance=self._instance.digest, keys=everybody)

    def accept_reveal(self, reveal: Reveal) -> None:
        """Phase 2, in a sparse graph."""
        self._check(reveal, _Step.REVEALS, self._keys, self._reveals)
        shown = protocol.nonce_hash_of(self._instance, reveal.site, reveal.nonce)
        words = protocol.reveal_statement(self._instance, self._keys_hash, reveal)
        settled = self._keys[reveal.site].nonce_hash
        if shown != settled or not self._verify(reveal.site, words, reveal.signature):
            raise _rejected(reveal, "the nonce is not the one it settled on")
        self._reveals[reveal.site] = reveal

    def close_reveals(self) -> RevealList:
        """End phase 2. Without every nonce the instance is over: begin another without the lost."""
        lost = [name for name in self._keys if name not in self._reveals]
        if self._step == _Step.REVEALS and lost:
            why = f"the ring needs all nonces; begin another instance without {', '.join(lost)}"
            raise self._lost(len(self._reveals), len(self._keys), why)
        self._need(_Step.REVEALS, len(self._reveals), "sent nonces")
        everybody = tuple(self._reveals[name] for name in self._keys)
        seed = protocol.ring_seed_of(self._instance, self._keys_hash, everybody)
        self._ring = ring_order(self._instance.sites, seed)
        self._settle_graph()
        return RevealList(instance=self._instance.digest, reveals=everybody)

    def accept_shares(self, shares: Shares) -> None:
        """Phase 3."""
        self._check(shares, _Step.SHARES, self._keys, self._sealed)
        if tuple(name for name, _ in shares.sealed) != self._around[shares.site]:
            raise _rejected(shares, "the shares are not one for each neighbour, sorted")
        self._sealed[shares.site] = dict(shares.sealed)

    def close_shares(self) -> dict[str, Inbox]:
        """End phase 3: what to send to each site that is still there."""
        self._need(_Step.SHARES, len(self._sealed), "shared their secrets")
        self._step = _Step.MASKED
        self._total = np.zeros(self._instance.length, word_type(self._instance.bits))
        inboxes = {
            name: Inbox(
                instance=self._instance.digest,
                sealed=tuple(
                    (peer, self._sealed[peer][name])
                    for peer in self._around[name]
                    if peer in self._sealed
                ),
            )
            for name in sorted(self._sealed)
        }
        self._sealed = {name: {} for name in inboxes}  # the names stay, the bytes are sent
        return inboxes

    def accept_masked(self, masked: Masked) -> None:
        """Phase 4: the vector is added to the total and not kept."""
        self._check(masked, _Step.MASKED, self._sealed, self._inclusions)
        inclusion = masked.inclusion
        if inclusion.site != masked.site or inclusion.instance != masked.instance:
            raise _rejected(masked, "its statement is another's")
        absent = tuple(one for one in self._around[masked.site] if one not in self._sealed)
        words = protocol.inclusion_statement(self._instance, self._keys_hash, inclusion)
        if inclusion.without != absent:
            raise _rejected(masked, "it left out masks that it should have added")
        if not self._verify(inclusion.site, words, inclusion.signature):
            raise _rejected(masked, "its identity did not sign whose masks it added")
        vector = masked.vector
        if vector.dtype != self._total.dtype or vector.shape != self._total.shape:
            what = f"{vector.dtype} {vector.shape} instead of {self._total.dtype}"
            raise _rejected(masked, f"the vector is {what} {self._total.shape}")
        np.add(self._total, vector, out=self._total)
        self._inclusions[masked.site] = inclusion

    def close_masked(self) -> Survivors:
        """End phase 4: the survivors, for them to sign."""
        self._need(_Step.MASKED, len(self._inclusions), "sent masked vectors")
        if problem := survivor_problem(self._ring, set(self._inclusions), self._instance.sharing):
            raise self._lost(len(self._inclusions), self._instance.sharing.num_sites, problem)
        wrap(self._total, self._instance.bits)
        self._step = _Step.AGREEMENTS
        names = self.survivors
        self._survivors_hash = protocol.survivors_hash_of(self._instance, self._keys_hash, names)
        return Survivors(
            instance=self._instance.digest,
            inclusions=tuple(self._inclusions[name] for name in names),
        )

    @property
    def survivors(self) -> tuple[str, ...]:
        """Sites whose vectors are in the total, sorted."""
        return tuple(sorted(self._inclusions))

    def accept_agreement(self, agreement: Agreement) -> None:
        """Phase 5."""
        self._check(agreement, _Step.AGREEMENTS, self._inclusions, self._agreements)
        words = protocol.agreement_statement(self._instance, agreement)
        right = agreement.survivors_hash == self._survivors_hash
        if not right or not self._verify(agreement.site, words, agreement.signature):
            raise _rejected(agreement, "it did not sign these survivors")
        self._agreements[agreement.site] = agreement

    def close_agreements(self) -> AgreementList:
        """End phase 5: everybody's signatures."""
        self._need(_Step.AGREEMENTS, len(self._agreements), "signed the survivors")
        self._step = _Step.UNMASKING
        return AgreementList(
            instance=self._instance.digest,
            agreements=tuple(one for _, one in sorted(self._agreements.items())),
        )

    def accept_unmasking(self, unmasking: Unmasking) -> None:
        """Phase 6."""
        self._check(unmasking, _Step.UNMASKING, self._inclusions, self._unmasked)
        own = unmasking.site
        peers = [one for one in self._around[own] if one in self._sealed]
        seeds = sorted([own, *(peer for peer in peers if peer in self._inclusions)])
        keys = [peer for peer in peers if peer not in self._inclusions]
        shown = [name for name, _ in unmasking.seed_shares], [n for n, _ in unmasking.key_shares]
        if shown != (seeds, keys):
            raise _rejected(unmasking, "the shares are not one for each peer, sorted")
        try:
            for _, share in (*unmasking.seed_shares, *unmasking.key_shares):
                share_number(share)
        except ValueError as error:
            raise _rejected(unmasking, str(error)) from None
        point = self._instance.sites.index(own) + 1
        for name, share in unmasking.seed_shares:
            self._seed_shares.setdefault(name, {})[point] = share
        for name, share in unmasking.key_shares:
            self._key_shares.setdefault(name, {})[point] = share
        self._unmasked.add(own)

    def finish(self) -> Words:
        """The sum of the survivors' vectors modulo 2^bits, ``(length,)``.

        Raises:
            QuorumLostError: too few shares of some secret came, or they do not fit together.
                More may be accepted and this called again.
        """
        if self._step != _Step.UNMASKING:
            msg = f"finish is called in phase {self._step.name}"
            raise ValueError(msg)
        seeds = {name: self._seed_of(name) for name in self.survivors}
        dropped = sorted(set(self._key_shares))
        private = {name: self._mask_private_of(name) for name in dropped}
        add_masks(self._total, self._masks(seeds, private), self._instance.bits)
        self._step = _Step.DONE
        total, self._total = self._total, np.zeros(0, self._total.dtype)
        return total

    def _masks(
        self, seeds: Mapping[str, bytes], private: Mapping[str, X25519PrivateKey]
    ) -> Iterator[tuple[bytes, bool]]:
        """Keys of all streams that are left in the total, with the sign that takes them off."""
        for name, seed in seeds.items():
            yield protocol.own_mask_key(self._instance, name, seed), False
        for name, key in private.items():
            for peer in self._around[name]:
                if peer in self._inclusions:
                    own, other = self._keys[name], self._keys[peer]
                    # The survivor added it when its own name comes first.
                    yield protocol.pair_mask_key(self._instance, key, own, other), name < peer

    def _seed_of(self, name: str) -> bytes:
        settled = self._keys[name].seed_hash
        for seed in self._secrets(name, self._seed_shares.get(name, {})):
            if protocol.seed_hash_of(self._instance, name, seed) == settled:
                return seed
        raise self._unfit(name)

    def _mask_private_of(self, name: str) -> X25519PrivateKey:
        for secret in self._secrets(name, self._key_shares[name]):
            private = X25519PrivateKey.from_private_bytes(secret)
            if private.public_key().public_bytes_raw() == self._keys[name].mask_public:
                return private
        raise self._unfit(name)

    def _secrets(self, name: str, shares: Mapping[int, bytes]) -> Iterator[bytes]:
        """What each run of ``share_threshold`` shares gives: any one wrong share is passed over."""
        needed, points = self._instance.sharing.share_threshold, sorted(shares)
        if len(points) < needed:
            why = f"to have the shares of {name!r}; wait for more sites or begin another instance"
            raise self._lost(len(points), len(self._around[name]) + 1, why, needed)
        for start in range(len(points) if len(points) > needed else 1):
            run = [points[(start + j) % len(points)] for j in range(needed)]
            try:
                yield combine({point: shares[point] for point in run})
            except ValueError:
                continue

    def _settle_graph(self) -> None:
        for name in self._keys:
            around = neighbours_of(self._ring, name, self._instance.sharing)
            self._around[name] = tuple(one for one in around if one in self._keys)
        self._step = _Step.SHARES

    def _check(
        self, message: ToCentre, due: _Step, expected: Iterable[str], seen: Iterable[str]
    ) -> None:
        if self._step != due:
            raise _rejected(message, f"a {type(message).__name__} came in phase {self._step.name}")
        if message.instance != self._instance.digest:
            raise _rejected(message, f"it belongs to another instance than {self._instance.id!r}")
        if message.site not in expected:
            raise _rejected(message, "the site was not asked, or dropped out before")
        if message.site in seen:
            raise _rejected(message, f"a second {type(message).__name__} came")

    def _need(self, due: _Step, number: int, what: str) -> None:
        if self._step != due:
            msg = f"phase {due.name} is closed in phase {self._step.name}"
            raise ValueError(msg)
        if number < self._instance.sharing.min_survivors:
            raise self._lost(number, self._instance.sharing.num_sites, f"so many {what}")

    def _lost(
        self, answered: int, asked: int, why: str, needed: int | None = None
    ) -> QuorumLostError:
        """Before the survivors are unmasked the instance ends with it."""
        if self._step < _Step.UNMASKING:
            self._step, self._total = _Step.DONE, np.zeros(0, self._total.dtype)
        needed = self._instance.sharing.min_survivors if needed is None else needed
        return QuorumLostError(
            round_=self._instance.round, answered=answered, asked=asked, needed=needed, why=why
        )

    def _unfit(self, name: str) -> QuorumLostError:
        why = f"no shares of {name!r} fit what it settled on; some site sent wrong ones"
        return self._lost(
            0, len(self._around[name]) + 1, why, self._instance.sharing.share_threshold
        )


def _publics(keys: Keys) -> tuple[bytes, bytes]:
    return keys.mask_public, keys.cipher_public


def _rejected(message: ToCentre, why: str) -> ReportRejectedError:
    return ReportRejectedError(message.site, REJECTED, why)
