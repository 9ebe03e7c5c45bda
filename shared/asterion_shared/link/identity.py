"""Who is at the other end: the certificates of the link, behind one interface.

A site is who its certificate says: a URI ``asterion:site:NAME`` among its names, signed by the
coordinator's authority; the key must be the one that was enrolled under that name. A certificate
of another authority may have no such name; then the enrolled key alone says whose it is. Mutual
TLS has checked the signature and the dates before any call; an :class:`Authority` decides whether
the site is still admitted, anew at each call, so a revocation counts at once. No clock of one side
is compared with one of the other side beyond the certificates' dates, which begin an hour early.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)

from asterion_shared.errors import FileProblemError
from asterion_shared.key_files import read_private
from asterion_shared.link.refusals import LinkRefusedError

SITE_URI = "asterion:site:"


@dataclass(frozen=True, slots=True)
class Identity:
    """What one end proves itself with, PEM.

    Attributes:
        root: certificate of the authority that the other end's is checked against.
        certificate: this end's.
        private_key: of that certificate, PKCS 8.
    """

    root: bytes
    certificate: bytes
    private_key: bytes


class Authority(Protocol):
    """Decides who is admitted."""

    def site_of(self, certificate: bytes) -> str:
        """The site that a PEM certificate stands for.

        Raises:
            LinkRefusedError: ``foreign``: it stands for no site; ``revoked``: for one that is no
                longer admitted.
        """
        ...


@dataclass(frozen=True, slots=True)
class FolderAuthority:
    """Admits sites whose public key lies in a folder and whose certificate is not revoked.

    Attributes:
        enrolled: folder with ``NAME.pem``, the sites' public keys.
        revoked: file with the serial numbers of revoked certificates, hexadecimal as OpenSSL prints
            them or in lower case, one a line.
    """

    enrolled: Path
    revoked: Path

    def site_of(self, certificate: bytes) -> str:
        """See :meth:`Authority.site_of`; both files are read anew at each call."""
        known = x509.load_pem_x509_certificate(certificate)
        listed = self.revoked.read_text(encoding="ascii").split() if self.revoked.exists() else []
        if f"{known.serial_number:x}" in (word.lower().lstrip("0") for word in listed):
            why = f"the certificate with serial number {known.serial_number:x} is revoked"
            raise LinkRefusedError(code="revoked", why=why)
        site = named_site(known)
        if site is None:
            return self._site_with_key(known)
        try:
            enrolled = (self.enrolled / f"{site}.pem").read_bytes()
        except OSError:
            raise LinkRefusedError(code="foreign", why=f"site {site!r} is not enrolled") from None
        if load_pem_public_key(enrolled) != known.public_key():
            raise LinkRefusedError(
                code="foreign", why=f"site {site!r} is enrolled with another key"
            )
        return site

    def _site_with_key(self, certificate: x509.Certificate) -> str:
        """The site whose key was enrolled, for a certificate that names none."""
        key = certificate.public_key()
        for path in sorted(self.enrolled.glob("*.pem")):
            with suppress(FileNotFoundError):  # revoked in this moment
                if load_pem_public_key(path.read_bytes()) == key:
                    return path.stem
        raise LinkRefusedError(code="foreign", why="the certificate is no enrolled site's")


def named_site(certificate: x509.Certificate) -> str | None:
    """The site that a certificate names; None: it names none, as another authority's may.

    Raises:
        LinkRefusedError: ``foreign``: it names more than one, or what is no name.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    sites = [uri.removeprefix(SITE_URI) for uri in uris if uri.startswith(SITE_URI)]
    if not sites:
        return None
    if len(sites) != 1 or "/" in sites[0]:
        raise LinkRefusedError(code="foreign", why="the certificate is no site's")
    return sites[0]


def read_identity(root: Path, certificate: Path, private_key: Path) -> Identity:
    """Read what this end proves itself with; the key may be PEM or OpenSSH.

    Raises:
        FileProblemError: a file is missing or is not what it should be, others can read the key,
            or it is not the certificate's.
    """
    fix = "take the files of asterion server init, or at a site those of asterion site join"
    ca = _read(root, fix)
    try:
        own = x509.load_pem_x509_certificate(_read(certificate, fix))
    except ValueError:
        raise FileProblemError(certificate, "is not a PEM certificate", fix) from None
    data = read_private(private_key, fix)
    load: Callable[[bytes, None], object] = (
        load_ssh_private_key if b"OPENSSH" in data[:100] else load_pem_private_key
    )
    try:
        key = load(data, None)
    except (ValueError, TypeError):
        raise FileProblemError(private_key, "is not a private key", fix) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FileProblemError(private_key, "is not an EC private key", fix)
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*form) != own.public_key().public_bytes(*form):
        what = f"does not belong to the certificate {certificate.name}"
        raise FileProblemError(private_key, what, fix)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(ca, own.public_bytes(Encoding.PEM), pem)


def _read(path: Path, fix: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileProblemError(path, (error.strerror or "unreadable").lower(), fix) from None
