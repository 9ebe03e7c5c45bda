"""One secure sum: what it is for, what is signed, by whom. ``docs/secure-sum.md`` has the steps.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017
(the variant against a dishonest server), on the sparse graph of Bell et al., "Secure single-server
aggregation with (poly)logarithmic overhead", CCS 2020. The site's half is
:class:`~asterion_shared.privacy.secure_sum_site.SiteSum`, the coordinator's
:class:`~asterion_shared.privacy.secure_sum_centre.CentreSum`; neither knows of a network.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from asterion_shared.errors import OrderRefusedError, UserInputError
from asterion_shared.privacy.masks import MAX_BITS, MIN_BITS, agreed_key, derived_key
from asterion_shared.privacy.secure_sum_graph import Sharing
from asterion_shared.privacy.secure_sum_messages import Agreement, Inclusion, Keys, Reveal

Sign = Callable[[bytes], bytes]
"""Signs bytes with the site's own identity key; at most 512 bytes come back."""

Verify = Callable[[str, bytes, bytes], bool]
"""``verify(site, message, signature)``: whether that site's identity signed it."""

Record = Callable[[str, str], None]
"""``record(instance_id, survivors_hash)``: durable when it returns; raises OrderRefusedError when
another hash is on record for the instance."""

MAX_LENGTH = 1 << 32
_DOMAIN = b"asterion secure sum 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One sum. A second try, or a second vector, is another instance with another ``id``.

    Every field is bound into every key and every signature.

    Attributes:
        run: identity of the run.
        id: unique over all instances that a site ever takes part in; 1 to 200 characters.
        round: of the run, >= 0.
        sites: names of all sites that are asked, sorted; each site compares them with the roster
            of identities that it was given.
        sharing: the thresholds, from the plan.
        bits: the sum is taken modulo 2^bits, 8 to 64.
        length: numbers in the vector, 1 to 2^32.
        order_sha256: hash of the order that the vectors answer, its plan and weights included, 64
            hex digits. Sites that were asked for something else (less noise, or weights that make
            an update known beforehand: Pasquini, Francati and Ateniese, CCS 2022) refuse each
            other's signatures.
    """

    run: str
    id: str
    round: int
    sites: tuple[str, ...]
    sharing: Sharing
    bits: int
    length: int
    order_sha256: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.id) <= 200 or self.round < 0:
            msg = (
                f"instance {self.id!r}, round {self.round}; give 1 to 200 characters and 0 or more"
            )
            raise UserInputError(msg)
        if list(self.sites) != sorted(set(self.sites)) or "" in self.sites:
            msg = "the sites of a secure sum must be named once each, sorted"
            raise UserInputError(msg)
        if len(self.sites) != self.sharing.num_sites:
            msg = (
                f"{len(self.sites)} sites, but thresholds for {self.sharing.num_sites}; choose "
                "them for the sites that are asked"
            )
            raise UserInputError(msg)
        if not MIN_BITS <= self.bits <= MAX_BITS or not 1 <= self.length <= MAX_LENGTH:
            msg = (
                f"{self.length} numbers modulo 2^{self.bits}; allowed are 1 to {MAX_LENGTH} "
                f"numbers and {MIN_BITS} to {MAX_BITS} bits"
            )
            raise UserInputError(msg)

    @property
    def digest(self) -> bytes:
        """SHA-256 over every field."""
        return _digest(self)


@lru_cache(maxsize=64)
def _digest(instance: Instance) -> bytes:
    sharing = instance.sharing
    numbers = (
        instance.round, instance.bits, instance.length, sharing.num_sites, sharing.max_colluders,
        sharing.max_dropouts, sharing.neighbours, sharing.share_threshold, sharing.min_survivors,
        sharing.window_survivors,
    )  # fmt: skip
    names = instance.run, instance.id, instance.order_sha256
    texts = (*names, *map(str, numbers), *instance.sites)
    return hash_of("instance", *(text.encode() for text in texts))


def hash_of(purpose: str, *parts: bytes) -> bytes:
    """SHA-256 of a purpose and parts, each with its length before it, so that none runs over."""
    return hashlib.sha256(joined(_DOMAIN, purpose.encode(), *parts)).digest()


def joined(*parts: bytes) -> bytes:
    """The parts, each after its length in 8 bytes: different lists give different bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def keys_statement(instance: Instance, keys: Keys) -> bytes:
    """What a site signs in phase 1."""
    parts = keys.mask_public, keys.cipher_public, keys.nonce_hash, keys.seed_hash
    return _statement(instance, "keys", keys.site, *parts)


def reveal_statement(instance: Instance, keys_hash: bytes, reveal: Reveal) -> bytes:
    """What a site signs in phase 2: that it saw these keys, and its nonce."""
    return _statement(instance, "reveal", reveal.site, keys_hash, reveal.nonce)


def inclusion_statement(instance: Instance, keys_hash: bytes, inclusion: Inclusion) -> bytes:
    """What a site signs in phase 4: whose masks are not in its vector."""
    without = (name.encode() for name in inclusion.without)
    return _statement(instance, "masked", inclusion.site, keys_hash, *without)


def agreement_statement(instance: Instance, agreement: Agreement) -> bytes:
    """What a site signs in phase 5: the survivors it was shown."""
    return _statement(instance, "survivors", agreement.site, agreement.survivors_hash)


def _statement(instance: Instance, phase: str, site: str, *parts: bytes) -> bytes:
    return joined(_DOMAIN, b"statement", phase.encode(), instance.digest, site.encode(), *parts)


def keys_hash_of(instance: Instance, keys: tuple[Keys, ...]) -> bytes:
    """Hash of everybody's keys."""
    return hash_of("keys", instance.digest, *(one.to_bytes() for one in keys))


def ring_seed_of(instance: Instance, keys_hash: bytes, reveals: tuple[Reveal, ...]) -> bytes:
    """Seed of the ring's order. Nobody knows it before the last honest nonce is out."""
    return hash_of("ring", instance.digest, keys_hash, *(one.nonce for one in reveals))


def survivors_hash_of(instance: Instance, keys_hash: bytes, survivors: tuple[str, ...]) -> bytes:
    """Hash of the sites whose masked vectors are summed, and of the keys they are masked with."""
    names = (name.encode() for name in survivors)
    return hash_of("survivors", instance.digest, keys_hash, *names)


def nonce_hash_of(instance: Instance, site: str, nonce: bytes) -> bytes:
    """Commitment to a site's part of the ring's seed."""
    return hash_of("nonce", instance.digest, site.encode(), nonce)


def seed_hash_of(instance: Instance, site: str, seed: bytes) -> bytes:
    """Commitment to the seed of a site's own mask; it hides it, the seed being 32 random bytes."""
    return hash_of("seed", instance.digest, site.encode(), seed)


def own_mask_key(instance: Instance, site: str, seed: bytes) -> bytes:
    """Key of the stream that a site adds alone."""
    return derived_key(seed, salt=instance.digest, purpose=joined(b"own mask", site.encode()))


def pair_mask_key(instance: Instance, private: X25519PrivateKey, one: Keys, other: Keys) -> bytes:
    """Key of the stream that the one whose name sorts first adds and the other subtracts.

    Args:
        instance: what it is for.
        private: the mask key of either.
        one: keys of the site that ``private`` belongs to.
        other: keys of its peer.

    Raises:
        ValueError: the peer's key is no key that can be agreed with.
    """
    first, second = sorted((one, other), key=lambda keys: keys.site)
    purpose = joined(
        b"pair mask", first.site.encode(), second.site.encode(), first.mask_public,
        second.mask_public,
    )  # fmt: skip
    return agreed_key(private, other.mask_public, salt=instance.digest, purpose=purpose)


def repeated(names: Sequence[str]) -> str:
    """What is wrong with a list of sites that must be sorted, each once; empty when nothing is.

    >>> repeated(["a", "b"]), repeated(["a", "b", "b"])
    ('', "'b' twice, or out of order")
    """
    for before, name in pairwise(names):
        if before >= name:
            return f"{name!r} twice, or out of order"
    return ""


def refused(code: str, message: str) -> OrderRefusedError:
    """A site's no. ``code`` is one of messages.REASON_CODES."""
    return OrderRefusedError(message, code=code)


def elliptic_signer(key: ec.EllipticCurvePrivateKey) -> Sign:
    """Signs with an identity key as the coordinator enrols them: ECDSA on P-384, SHA-384."""
    return lambda message: key.sign(message, ec.ECDSA(hashes.SHA384()))


def elliptic_verifier(roster: Mapping[str, ec.EllipticCurvePublicKey]) -> Verify:
    """Verifies against a roster of identities by site's name; an unknown name is never right."""

    def verify(site: str, message: bytes, signature: bytes) -> bool:
        key = roster.get(site)
        if key is None:
            return False
        try:
            key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            return False
        return True

    return verify
