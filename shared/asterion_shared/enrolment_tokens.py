"""One-time tokens: a secret, and whose certificate to trust, in letters that can be read aloud.

A token is 40 letters and digits of base 32 (RFC 4648): 100 bits of the SHA-256 of the authority's
public key, 80 bits of secret, and 20 bits of the SHA-256 of both, which show a slip of the pen.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from asterion_shared.errors import UserInputError
from asterion_shared.fingerprints import in_groups, plain

AUTHORITY, SECRET, CHECK = 20, 16, 4
"""Letters of each part, five bits each."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token's parts, in capitals.

    Attributes:
        authority: how the fingerprint of the authority begins.
        secret: known to whoever made the token and whoever it was given to.
    """

    authority: str
    secret: str

    def text(self) -> str:
        """As it is printed and read aloud."""
        body = self.authority + self.secret
        return in_groups(body + _check(body))

    def is_of(self, fingerprint: str) -> bool:
        """Whether the authority with this fingerprint is meant."""
        return hmac.compare_digest(plain(fingerprint)[:AUTHORITY], self.authority)


def new_token(fingerprint: str) -> Token:
    """A token with a new secret.

    Args:
        fingerprint: of the authority, as :func:`certificate_fingerprint` makes it.
    """
    secret = base64.b32encode(secrets.token_bytes(10)).decode()
    return Token(plain(fingerprint)[:AUTHORITY], secret)


def read_token(text: str) -> Token:
    """A token as a person typed it: grouped in any way, in either case.

    Raises:
        UserInputError: it was mistyped; its words are not shown.
    """
    letters = plain(text)
    body = letters[: AUTHORITY + SECRET]
    if len(letters) != AUTHORITY + SECRET + CHECK or letters != body + _check(body):
        msg = "the token was mistyped: it does not fit its own check; ask to hear it again"
        raise UserInputError(msg)
    return Token(body[:AUTHORITY], body[AUTHORITY:])


def _check(body: str) -> str:
    return base64.b32encode(hashlib.sha256(body.encode()).digest())[:CHECK].decode()
