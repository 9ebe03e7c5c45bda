"""Keys agreed between two sites, and the streams of masks that grow from them.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20 and ChaCha20-Poly1305 (RFC 8439). Every key
serves one purpose, one instance and one stream or message, so each nonce is zero.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
TAG_BYTES = 16
MIN_BITS, MAX_BITS = 8, 64

Words = npt.NDArray[np.unsignedinteger[Any]]
"""Numbers modulo 2^bits: uint32 up to 32 bits, uint64 above."""

_CHUNK_BYTES = 1 << 17
"""Expanded at a time, so that the vector's piece stays in the cache while all masks are added."""


def word_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The little-endian type that holds numbers modulo 2^bits."""
    return np.dtype("<u4") if bits <= 32 else np.dtype("<u8")


def agreed_key(private: X25519PrivateKey, public: bytes, *, salt: bytes, purpose: bytes) -> bytes:
    """The key that two sites agree on for one purpose; 32 bytes.

    Args:
        private: the own key.
        public: the other's, 32 bytes.
        salt: digest of the instance.
        purpose: what the key is for, the same bytes at both sites.

    Raises:
        ValueError: ``public`` is no key that can be agreed with (a point of low order).
    """
    secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    return derived_key(secret, salt=salt, purpose=purpose)


def is_usable(public: bytes) -> bool:
    """Whether a key can be agreed on with ``public``: not so for points of low order."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def derived_key(secret: bytes, *, salt: bytes, purpose: bytes) -> bytes:
    """HKDF-SHA256 of a secret; 32 bytes."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=purpose).derive(secret)


def add_masks(vector: Words, keys: Iterable[tuple[bytes, bool]], bits: int) -> None:
    """Add (True) or subtract (False) the stream of each key, in place, modulo 2^bits.

    Args:
        vector: ``(n,)`` of :func:`word_type`, contiguous; may be empty.
        keys: 32 bytes each, and the sign.
        bits: of the modulus.
    """
    nonce = bytes(16)  # 64 bits of block counter and a nonce: the key is used once
    streams = [
        (Cipher(algorithms.ChaCha20(key, nonce), None).encryptor(), plus) for key, plus in keys
    ]
    size = _CHUNK_BYTES // vector.itemsize
    zeros, buffer = bytes(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    mask = np.frombuffer(buffer, word_type(bits))
    for start in range(0, vector.size, size):
        piece = vector[start : start + size]
        used = memoryview(zeros)[: piece.nbytes]
        for stream, plus in streams:
            stream.update_into(used, buffer)
            change = np.add if plus else np.subtract
            change(piece, mask[: piece.size], out=piece)
        wrap(piece, bits)


def wrap(vector: Words, bits: int) -> None:
    """Take ``vector`` modulo 2^bits, in place."""
    if bits != 8 * vector.itemsize:
        np.bitwise_and(vector, vector.dtype.type((1 << bits) - 1), out=vector)


def seal(key: bytes, text: bytes, bound: bytes) -> bytes:
    """Encrypt the only message that ``key`` is ever used for, bound to who it is from and for."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), text, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    """What :func:`seal` encrypted; None when it was changed, or is from or for somebody else."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, bound)
    except InvalidTag:
        return None
