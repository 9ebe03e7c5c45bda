"""What the two halves of a secure sum send, and its bytes on the wire.

A message is a tag of 8 bytes (its kind), the instance's digest, then its fields in order. Numbers
are little-endian; a text, a list and bytes of changing size have their length before them. Nothing
is executed, every length is checked against what is there, and what is left over is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from asterion_shared.errors import OrderRefusedError, ReportRejectedError
from asterion_shared.privacy.masks import KEY_BYTES, TAG_BYTES, Words
from asterion_shared.privacy.secure_sum_graph import MAX_SITES
from asterion_shared.privacy.shamir import SHARE_BYTES

MALFORMED, REJECTED = "secure_sum_malformed", "report_rejected"
MAX_NAME_BYTES, MAX_SIGNATURE_BYTES = 200, 512
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES


class _MalformedError(ValueError):
    """Bytes that are no such message; never leaves this module."""


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content, self._at = memoryview(content), 0

    def take(self, size: int) -> memoryview:
        if size > len(self._content) - self._at:
            msg = f"{size} bytes wanted at {self._at}, {len(self._content)} are there"
            raise _MalformedError(msg)
        self._at += size
        return self._content[self._at - size : self._at]

    def number(self, size: int, most: int) -> int:
        value = int.from_bytes(self.take(size), "little")
        if value > most:
            msg = f"a length of {value} at {self._at}, at most {most} is allowed"
            raise _MalformedError(msg)
        return value

    def end(self) -> None:
        if self._at != len(self._content):
            msg = f"{len(self._content) - self._at} bytes too many"
            raise _MalformedError(msg)


@dataclass(frozen=True, slots=True)
class _Format:
    """How a field is written and read."""

    write: Callable[[Any], bytes]
    read: Callable[[_Reader], Any]


def _fixed(size: int) -> _Format:
    def write(value: bytes) -> bytes:
        if len(value) != size:
            msg = f"a field of {len(value)} bytes, {size} belong there"
            raise ValueError(msg)
        return value

    return _Format(write, lambda reader: bytes(reader.take(size)))


def _sized(most: int) -> _Format:
    def write(value: bytes) -> bytes:
        if len(value) > most:
            msg = f"a field of {len(value)} bytes, at most {most} belong there"
            raise ValueError(msg)
        return len(value).to_bytes(2, "little") + value

    return _Format(write, lambda reader: bytes(reader.take(reader.number(2, most))))


def _read_name(reader: _Reader) -> str:
    try:
        name = str(reader.take(reader.number(2, MAX_NAME_BYTES)), "utf-8")
    except UnicodeDecodeError as error:
        msg = "a name is not UTF-8"
        raise _MalformedError(msg) from error
    if not name:
        msg = "a name is empty"
        raise _MalformedError(msg)
    return name


def _list(item: _Format) -> _Format:
    def write(values: tuple[Any, ...]) -> bytes:
        return b"".join([len(values).to_bytes(4, "little"), *map(item.write, values)])

    return _Format(
        write,
        lambda reader: tuple(item.read(reader) for _ in range(reader.number(4, MAX_SITES))),
    )


def _pair(first: _Format, second: _Format) -> _Format:
    return _Format(
        lambda pair: first.write(pair[0]) + second.write(pair[1]),
        lambda reader: (first.read(reader), second.read(reader)),
    )


def _write_words(vector: Words) -> bytes:
    head = bytes([vector.itemsize]) + vector.size.to_bytes(8, "little")
    return head + vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()


def _read_words(reader: _Reader) -> Words:
    itemsize, size = reader.number(1, 8), reader.number(8, 1 << 32)
    if itemsize not in (4, 8):
        msg = f"numbers of {itemsize} bytes, 4 or 8 are allowed"
        raise _MalformedError(msg)
    words: Words = np.frombuffer(reader.take(itemsize * size), np.dtype(f"<u{itemsize}"))
    return words


_HASH = _KEY = _fixed(KEY_BYTES)
_SIGNATURE = _sized(MAX_SIGNATURE_BYTES)
_NAME = _Format(lambda name: _sized(MAX_NAME_BYTES).write(name.encode()), _read_name)
_SHARES = _list(_pair(_NAME, _fixed(SHARE_BYTES)))
_SEALED = _list(_pair(_NAME, _fixed(SEALED_BYTES)))
_WORDS = _Format(_write_words, _read_words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """What every message has.

    Attributes:
        instance: digest of the instance that it belongs to, 32 bytes.
    """

    kind: ClassVar[bytes]
    fields: ClassVar[tuple[tuple[str, _Format], ...]]

    instance: bytes

    def to_bytes(self) -> bytes:
        """The message on the wire.

        Raises:
            ValueError: a field has a size that the format does not allow.
        """
        values = [form.write(getattr(self, name)) for name, form in self.fields]
        return b"".join([self.kind, _HASH.write(self.instance), *values])

    @classmethod
    def _parse(cls, content: bytes) -> Self:
        reader = _Reader(content)
        message = cls._read(reader)
        reader.end()
        return message

    @classmethod
    def _read(cls, reader: _Reader) -> Self:
        kind = bytes(reader.take(len(cls.kind)))
        if kind != cls.kind:
            msg = f"starts with {kind!r} instead of {cls.kind!r}"
            raise _MalformedError(msg)
        instance = _HASH.read(reader)
        return cls(instance=instance, **{name: form.read(reader) for name, form in cls.fields})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToCentre(_Message):
    """A site's message.

    Attributes:
        site: its name.
    """

    site: str

    @classmethod
    def from_bytes(cls, content: bytes, sender: str) -> Self:
        """Read a message that came from ``sender``, as the connection says.

        Raises:
            ReportRejectedError: it is malformed, or names another site.
        """
        try:
            message = cls._parse(content)
        except _MalformedError as error:
            what = f"the bytes are no {cls.__name__}: {error}"
            raise ReportRejectedError(sender, REJECTED, what) from None
        if message.site != sender:
            what = f"it names the site {message.site!r}"
            raise ReportRejectedError(sender, REJECTED, what)
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class ToSite(_Message):
    """The coordinator's message."""

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a message.

        Raises:
            OrderRefusedError: it is malformed.
        """
        try:
            return cls._parse(content)
        except _MalformedError as error:
            msg = f"the coordinator's bytes are no {cls.__name__}: {error}"
            raise OrderRefusedError(msg, code=MALFORMED) from None


def _nested(kind: type[ToCentre]) -> _Format:
    return _Format(lambda message: message.to_bytes(), kind._read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys(ToCentre):
    """Phase 1: the site's public keys of this instance, and commitments to two secrets.

    Attributes:
        mask_public, cipher_public: X25519, 32 bytes each.
        nonce_hash: commitment to the site's part of the ring's order.
        seed_hash: commitment to the seed of its own mask.
        signature: by the site's identity.
    """

    kind = b"ASSkeys1"
    fields = (
        ("site", _NAME), ("mask_public", _KEY), ("cipher_public", _KEY), ("nonce_hash", _HASH),
        ("seed_hash", _HASH), ("signature", _SIGNATURE),
    )  # fmt: skip

    mask_public: bytes
    cipher_public: bytes
    nonce_hash: bytes
    seed_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList(ToSite):
    """Answer to phase 1: everybody's keys, sorted by name."""

    kind = b"ASSklst1"
    fields = (("keys", _list(_nested(Keys))),)

    keys: tuple[Keys, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal(ToCentre):
    """Phase 2, only in a sparse graph: the nonce behind ``nonce_hash``, signed with the keys."""

    kind = b"ASSrevl1"
    fields = (("site", _NAME), ("nonce", _KEY), ("signature", _SIGNATURE))

    nonce: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealList(ToSite):
    """Answer to phase 2: everybody's nonces, sorted by name."""

    kind = b"ASSrlst1"
    fields = (("reveals", _list(_nested(Reveal))),)

    reveals: tuple[Reveal, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares(ToCentre):
    """Phase 3: (receiver, sealed shares of both secrets) for each neighbour, sorted."""

    kind = b"ASSshar1"
    fields = (("site", _NAME), ("sealed", _SEALED))

    sealed: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbox(ToSite):
    """Answer to phase 3: (sender, sealed shares) from each neighbour that sent any, sorted."""

    kind = b"ASSinbx1"
    fields = (("sealed", _SEALED),)

    sealed: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion(ToCentre):
    """What a site says of its masked vector.

    Attributes:
        without: neighbours whose masks are *not* in it, as no shares came from them; sorted.
        signature: by the site's identity.
    """

    kind = b"ASSincl1"
    fields = (("site", _NAME), ("without", _list(_NAME)), ("signature", _SIGNATURE))

    without: tuple[str, ...]
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masked(ToCentre):
    """Phase 4: the masked vector, ``(length,)`` modulo 2^bits."""

    kind = b"ASSmask1"
    fields = (("site", _NAME), ("inclusion", _nested(Inclusion)), ("vector", _WORDS))

    inclusion: Inclusion
    vector: Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors(ToSite):
    """Answer to phase 4: the sites whose vectors are in the sum, sorted, each by its inclusion."""

    kind = b"ASSsurv1"
    fields = (("inclusions", _list(_nested(Inclusion))),)

    inclusions: tuple[Inclusion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(ToCentre):
    """Phase 5: the site signs the survivors that it was shown."""

    kind = b"ASSagre1"
    fields = (("site", _NAME), ("survivors_hash", _HASH), ("signature", _SIGNATURE))

    survivors_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementList(ToSite):
    """Answer to phase 5: everybody's signatures, sorted by name."""

    kind = b"ASSalst1"
    fields = (("agreements", _list(_nested(Agreement))),)

    agreements: tuple[Agreement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmasking(ToCentre):
    """Phase 6: for each peer one share, never two: (owner, share), sorted.

    Attributes:
        seed_shares: of survivors' own masks.
        key_shares: of the mask keys of those who dropped out.
    """

    kind = b"ASSunmk1"
    fields = (("site", _NAME), ("seed_shares", _SHARES), ("key_shares", _SHARES))

    seed_shares: tuple[tuple[str, bytes], ...]
    key_shares: tuple[tuple[str, bytes], ...]
