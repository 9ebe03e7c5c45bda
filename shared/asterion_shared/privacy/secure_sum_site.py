"""A site's half of a secure sum: a state machine without a network.

A phase is a method: it takes the coordinator's answer to the phase before and gives the message to
send. Whatever is refused ends the instance for this site and forgets its secrets; a site that
was restarted has none, so it drops out, and the next instance has new ones.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from asterion_shared.privacy import secure_sum as protocol
from asterion_shared.privacy.masks import (
    Words,
    add_masks,
    agreed_key,
    seal,
    unseal,
    word_type,
)
from asterion_shared.privacy.secure_sum import Instance, Record, Sign, Verify, refused
from asterion_shared.privacy.secure_sum_graph import neighbours_of, ring_order, survivor_problem
from asterion_shared.privacy.secure_sum_messages import (
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
    Unmasking,
)
from asterion_shared.privacy.shamir import SECRET_BYTES, SHARE_BYTES, share_number, split

FORGED = "secure_sum_forged"
TOO_FEW = "secure_sum_too_few"
TWO_SETS = "secure_sum_two_sets"
OUT_OF_STEP = "secure_sum_out_of_step"
OUT_OF_RANGE = "secure_sum_out_of_range"


class _Step(IntEnum):
    NEW = 0
    KEYS = 1
    REVEALED = 2
    SHARED = 3
    MASKED = 4
    AGREED = 5
    ENDED = 6


class SiteSum:
    """One site in one instance.

    ``keys``, ``reveal`` (only when the graph is sparse), ``shares``, ``masked``, ``agree``,
    ``unmask``: each once, in this order. Every method raises OrderRefusedError when the
    coordinator's message is not what an honest one sends.

    Args:
        instance: agreed with the site's own copy of the plan before this is made.
        site: the own name.
        roster: names whose identities ``verify`` knows.
        sign: by the own identity.
        verify: by the identities of the roster.
        record: see :data:`~asterion_shared.privacy.secure_sum.Record`.

    Raises:
        OrderRefusedError: the instance names a site that is not in the roster, or not this one.
    """

    def __init__(
        self, instance: Instance, site: str, *, roster: Collection[str], sign: Sign,
        verify: Verify, record: Record,
    ) -> None:  # fmt: skip
        unknown = sorted(set(instance.sites) - set(roster))
        if unknown or site not in instance.sites:
            msg = f"the sum is asked of {unknown[0] if unknown else instance.sites[0]!r}, "
            msg += "whom this site's roster does not name" if unknown else f"not of {site!r}"
            raise refused(FORGED, msg)
        self._instance, self._site = instance, site
        self._sign, self._verify, self._record = sign, verify, record
        self._step = _Step.NEW
        self._mask_private: X25519PrivateKey | None = X25519PrivateKey.generate()
        self._cipher_private: X25519PrivateKey | None = X25519PrivateKey.generate()
        self._seed, self._nonce = os.urandom(SECRET_BYTES), os.urandom(SECRET_BYTES)
        self._own: Keys | None = None
        self._all: dict[str, Keys] = {}
        self._keys_hash = b""
        self._ring = instance.sites
        self._neighbours: tuple[str, ...] = ()
        self._held: dict[str, tuple[bytes, bytes]] = {}
        self._inclusion: Inclusion | None = None
        self._survivors: tuple[str, ...] = ()
        self._survivors_hash = b""

    def keys(self) -> Keys:
        """Phase 1: fresh public keys, signed."""
        with self._phase(_Step.NEW, _Step.KEYS):
            mask_private, cipher_private = self._private()
            unsigned = Keys(
                instance=self._instance.digest,
                site=self._site,
                mask_public=mask_private.public_key().public_bytes_raw(),
                cipher_public=cipher_private.public_key().public_bytes_raw(),
                nonce_hash=protocol.nonce_hash_of(self._instance, self._site, self._nonce),
                seed_hash=protocol.seed_hash_of(self._instance, self._site, self._seed),
                signature=b"",
            )
            signature = self._sign(protocol.keys_statement(self._instance, unsigned))
            self._own = replace(unsigned, signature=signature)
            return self._own

    def reveal(self, key_list: KeyList) -> Reveal:
        """Phase 2, in a sparse graph: the nonce, signed together with all keys."""
        if self._instance.sharing.complete:
            raise refused(OUT_OF_STEP, "nonces are asked for, but every pair shares masks")
        with self._phase(_Step.KEYS, _Step.REVEALED):
            self._check_keys(key_list)
            unsigned = Reveal(
                instance=self._instance.digest, site=self._site, nonce=self._nonce, signature=b""
            )
            words = protocol.reveal_statement(self._instance, self._keys_hash, unsigned)
            return replace(unsigned, signature=self._sign(words))

    def shares(self, peers: KeyList | RevealList) -> Shares:
        """Phase 3: shares of the mask key and of the own seed, sealed for each neighbour.

        Args:
            peers: everybody's keys; in a sparse graph everybody's nonces.
        """
        complete = self._instance.sharing.complete
        if isinstance(peers, KeyList) is not complete:
            raise refused(OUT_OF_STEP, f"{type(peers).__name__} came, the other list is due")
        with self._phase(_Step.KEYS if complete else _Step.REVEALED, _Step.SHARED):
            if isinstance(peers, KeyList):
                self._check_keys(peers)
            else:
                self._check_reveals(peers)
            around = neighbours_of(self._ring, self._site, self._instance.sharing)
            self._neighbours = tuple(name for name in around if name in self._all)
            return self._share_secrets()

    def check_inbox(self, inbox: Inbox) -> None:
        """See to it that phase 4 can be carried out, before a vector is formed and charged."""
        with self._phase(_Step.SHARED, _Step.SHARED):
            self._open(inbox)

    def masked(self, inbox: Inbox, vector: Words) -> Masked:
        """Phase 4: the vector plus all masks.

        Args:
            inbox: what the neighbours sent.
            vector: ``(length,)`` of :func:`~asterion_shared.privacy.masks.word_type`, each
                below 2^bits; it is not changed.
        """
        self._check_vector(vector)
        with self._phase(_Step.SHARED, _Step.MASKED):
            self._open(inbox)
            own, (mask_private, _) = self._all[self._site], self._private()
            present = [name for name in self._neighbours if name in self._held]
            masks = [(protocol.own_mask_key(self._instance, self._site, self._seed), True)]
            for peer in present:
                masks.append((self._pair_key(mask_private, own, peer), self._site < peer))
            covered = vector.copy()
            add_masks(covered, masks, self._instance.bits)
            self._mask_private = self._cipher_private = None
            self._seed = b""
            without = tuple(name for name in self._neighbours if name not in self._held)
            unsigned = Inclusion(
                instance=self._instance.digest, site=self._site, without=without, signature=b""
            )
            words = protocol.inclusion_statement(self._instance, self._keys_hash, unsigned)
            self._inclusion = replace(unsigned, signature=self._sign(words))
            return Masked(
                instance=self._instance.digest, site=self._site, inclusion=self._inclusion,
                vector=covered,
            )  # fmt: skip

    def agree(self, survivors: Survivors) -> Agreement:
        """Phase 5: sign the survivors, once, after they are on record."""
        self._check_instance(survivors.instance)
        names = tuple(one.site for one in survivors.inclusions)
        shown = protocol.survivors_hash_of(self._instance, self._keys_hash, names)
        if self._survivors_hash and shown != self._survivors_hash:
            self._end()
            raise refused(TWO_SETS, f"two survivor sets are shown for {self._instance.id!r}")
        with self._phase(_Step.MASKED, _Step.AGREED):
            self._check_survivors(survivors, names)
            self._record(self._instance.id, shown.hex())
            self._survivors, self._survivors_hash = names, shown
            unsigned = Agreement(
                instance=self._instance.digest, site=self._site, survivors_hash=shown,
                signature=b"",
            )  # fmt: skip
            words = protocol.agreement_statement(self._instance, unsigned)
            return replace(unsigned, signature=self._sign(words))

    def unmask(self, agreements: AgreementList) -> Unmasking:
        """Phase 6: one share for each peer, after enough sites signed the same survivors."""
        with self._phase(_Step.AGREED, _Step.ENDED):
            self._check_agreements(agreements)
            survived = set(self._survivors)
            seeds = [(name, held[1]) for name, held in self._held.items() if name in survived]
            keys = [(name, held[0]) for name, held in self._held.items() if name not in survived]
            self._end()
            return Unmasking(
                instance=self._instance.digest, site=self._site,
                seed_shares=tuple(sorted(seeds)), key_shares=tuple(sorted(keys)),
            )  # fmt: skip

    @contextmanager
    def _phase(self, due: _Step, after: _Step) -> Iterator[None]:
        """Run a phase when it is due; whatever it raises ends the instance here."""
        if self._step != due:
            msg = f"phase {after.name} of {self._instance.id!r} is asked for after "
            raise refused(OUT_OF_STEP, f"{msg}{self._step.name}; each comes once, in order")
        try:
            yield
        except BaseException:
            self._end()
            raise
        self._step = after

    def _end(self) -> None:
        self._step = _Step.ENDED
        self._mask_private = self._cipher_private = None
        self._seed = self._nonce = b""
        self._held = {}

    def _private(self) -> tuple[X25519PrivateKey, X25519PrivateKey]:
        if self._mask_private is None or self._cipher_private is None:
            raise refused(OUT_OF_STEP, f"the keys of {self._instance.id!r} are gone")
        return self._mask_private, self._cipher_private

    def _check_instance(self, digest: bytes) -> None:
        if digest != self._instance.digest:
            raise refused(FORGED, f"a message of another instance than {self._instance.id!r}")

    def _check_names(self, names: list[str], what: str) -> None:
        if problem := protocol.repeated(names):
            raise refused(FORGED, f"{what} name {problem}")
        if unknown := set(names) - set(self._instance.sites):
            raise refused(FORGED, f"{what} name {min(unknown)!r}, who was not asked")

    def _check_enough(self, number: int, what: str) -> None:
        needed = self._instance.sharing.min_survivors
        if number < needed:
            raise refused(TOO_FEW, f"{what} of {number} sites, {needed} are needed")

    def _check_keys(self, key_list: KeyList) -> None:
        self._check_instance(key_list.instance)
        names = [one.site for one in key_list.keys]
        self._check_names(names, "the keys")
        self._check_enough(len(names), "keys")
        for one in key_list.keys:
            self._check_instance(one.instance)
            words = protocol.keys_statement(self._instance, one)
            if not self._verify(one.site, words, one.signature):
                raise refused(FORGED, f"the keys of {one.site!r} are not signed by it")
        publics = [
            public for one in key_list.keys for public in (one.mask_public, one.cipher_public)
        ]
        if len(set(publics)) != len(publics):
            raise refused(FORGED, "two sites have the same public key")
        self._all = {one.site: one for one in key_list.keys}
        if self._all.get(self._site) != self._own:
            raise refused(FORGED, f"the keys of {self._site!r} are not those it sent")
        self._keys_hash = protocol.keys_hash_of(self._instance, key_list.keys)

    def _check_reveals(self, reveals: RevealList) -> None:
        self._check_instance(reveals.instance)
        names = [one.site for one in reveals.reveals]
        self._check_names(names, "the nonces")
        if names != list(self._all):
            # A server that could leave one out would choose among many orders.
            raise refused(FORGED, f"nonces of {len(names)} sites, keys of {len(self._all)}")
        for one in reveals.reveals:
            self._check_instance(one.instance)
            shown = protocol.nonce_hash_of(self._instance, one.site, one.nonce)
            words = protocol.reveal_statement(self._instance, self._keys_hash, one)
            if shown != self._all[one.site].nonce_hash or not self._verify(
                one.site, words, one.signature
            ):
                raise refused(FORGED, f"the nonce of {one.site!r} is not the one it settled on")
        seed = protocol.ring_seed_of(self._instance, self._keys_hash, reveals.reveals)
        self._ring = ring_order(self._instance.sites, seed)

    def _share_secrets(self) -> Shares:
        instance, sharing = self._instance, self._instance.sharing
        holders = (*self._neighbours, self._site)
        if len(holders) < sharing.share_threshold:
            msg = f"{len(holders)} holders of this site's shares, {sharing.share_threshold} needed"
            raise refused(TOO_FEW, msg)
        mask_private, cipher_private = self._private()
        points = {name: instance.sites.index(name) + 1 for name in holders}
        threshold = sharing.share_threshold
        of_key = split(mask_private.private_bytes_raw(), list(points.values()), threshold)
        of_seed = split(self._seed, list(points.values()), threshold)
        self._held = {self._site: (of_key[points[self._site]], of_seed[points[self._site]])}
        sealed = []
        for peer in self._neighbours:
            key = self._seal_key(cipher_private, peer, self._site, peer)
            text = of_key[points[peer]] + of_seed[points[peer]]
            sealed.append((peer, seal(key, text, self._bound(self._site, peer))))
        return Shares(instance=instance.digest, site=self._site, sealed=tuple(sealed))

    def _seal_key(self, private: X25519PrivateKey, peer: str, sender: str, receiver: str) -> bytes:
        purpose = protocol.joined(b"shares", sender.encode(), receiver.encode(), self._keys_hash)
        public = self._all[peer].cipher_public
        try:
            return agreed_key(private, public, salt=self._instance.digest, purpose=purpose)
        except ValueError:
            raise refused(FORGED, f"no key can be agreed on with {peer!r}") from None

    def _pair_key(self, private: X25519PrivateKey, own: Keys, peer: str) -> bytes:
        try:
            return protocol.pair_mask_key(self._instance, private, own, self._all[peer])
        except ValueError:
            raise refused(FORGED, f"no mask can be agreed on with {peer!r}") from None

    def _bound(self, sender: str, receiver: str) -> bytes:
        return protocol.joined(self._instance.digest, sender.encode(), receiver.encode())

    def _open(self, inbox: Inbox) -> None:
        self._check_instance(inbox.instance)
        names = [sender for sender, _ in inbox.sealed]
        self._check_names(names, "the shares")
        if strange := set(names) - set(self._neighbours):
            raise refused(FORGED, f"shares of {min(strange)!r}, no neighbour of this site")
        needed = self._instance.sharing.share_threshold
        if len(names) + 1 < needed:
            raise refused(TOO_FEW, f"shares of {len(names)} neighbours, {needed - 1} are needed")
        _, cipher_private = self._private()
        for sender, sealed in inbox.sealed:
            key = self._seal_key(cipher_private, sender, sender, self._site)
            text = unseal(key, sealed, self._bound(sender, self._site))
            if text is None:
                raise refused(FORGED, f"the shares of {sender!r} were changed on their way")
            both = text[:SHARE_BYTES], text[SHARE_BYTES:]
            try:
                _ = [share_number(share) for share in both]
            except ValueError:
                raise refused(FORGED, f"{sender!r} sent what is no share") from None
            self._held[sender] = both

    def _check_vector(self, vector: Words) -> None:
        instance, wanted = self._instance, word_type(self._instance.bits)
        if vector.dtype != wanted or vector.shape != (instance.length,):
            msg = f"the vector is {vector.dtype} {vector.shape}, the sum is of {wanted} "
            raise refused(OUT_OF_RANGE, f"{msg}({instance.length},)")
        if instance.bits != 8 * vector.itemsize and int(np.max(vector)) >> instance.bits:
            msg = f"the vector has {np.max(vector)}, numbers must be below 2^{instance.bits}"
            raise refused(OUT_OF_RANGE, msg)

    def _check_survivors(self, survivors: Survivors, names: tuple[str, ...]) -> None:
        self._check_names(list(names), "the survivors")
        alive = set(names)
        if self._site not in alive:
            raise refused(FORGED, f"{self._site!r} is said to have dropped out, but it is here")
        if strange := alive - set(self._all):
            raise refused(FORGED, f"{min(strange)!r} survives without keys")
        if problem := survivor_problem(self._ring, alive, self._instance.sharing):
            raise refused(TOO_FEW, problem)
        for one in survivors.inclusions:
            if one.site == self._site and one != self._inclusion:
                raise refused(FORGED, f"another list of masks is shown for {self._site!r}")
            if one.site not in self._neighbours:
                continue
            words = protocol.inclusion_statement(self._instance, self._keys_hash, one)
            if one.site not in self._held or not self._verify(one.site, words, one.signature):
                raise refused(FORGED, f"{one.site!r} is said to survive, but did not say so")
            # Its own mask would come off while a live peer's mask was never put on.
            if missing := alive & set(one.without):
                raise refused(FORGED, f"{one.site!r} was kept from masking with {min(missing)!r}")

    def _check_agreements(self, agreements: AgreementList) -> None:
        self._check_instance(agreements.instance)
        names = [one.site for one in agreements.agreements]
        self._check_names(names, "the signatures")
        self._check_enough(len(names), "signatures")
        for one in agreements.agreements:
            if one.site not in self._survivors or one.survivors_hash != self._survivors_hash:
                raise refused(TWO_SETS, f"{one.site!r} signed other survivors than this site")
            words = protocol.agreement_statement(self._instance, one)
            if not self._verify(one.site, words, one.signature):
                raise refused(FORGED, f"the survivors are not signed by {one.site!r}")
