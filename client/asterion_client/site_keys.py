"""A site's own keys: made here, never overwritten, and never sent."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from asterion_client.consent_settings import ConsentSettings
from asterion_client.settings import SiteSettings, read_site_settings
from asterion_shared import __version__
from asterion_shared.audit import audit_public_key
from asterion_shared.enrolment_files import (
    REQUEST_SUFFIX,
    EnrolmentRequest,
    signed_request,
    text_of,
)
from asterion_shared.errors import FileProblemError, UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.fingerprints import fingerprint, public_pem
from asterion_shared.key_files import read_private, write_private

NEXT = ".next"
"""Ends the name of a key that is to replace the one beside it."""


@dataclass(frozen=True, slots=True)
class SitePaths:
    """Where a site's papers lie.

    Attributes:
        folder: of ``site.toml``; all others are beside it unless its ``[connection]`` says else.
        root_certificate: the authority's certificate.
        private_key: the site's own key.
        certificate: of that key.
        peers: public keys of all sites, ``NAME.pem``.
        operators: public keys of the operators, ``NAME.pem``.
    """

    folder: Path
    root_certificate: Path
    private_key: Path
    certificate: Path
    peers: Path
    operators: Path

    @property
    def next_key(self) -> Path:
        """The key that is to replace ``private_key``; absent when none is."""
        return self.private_key.with_name(f"{self.private_key.name}{NEXT}")


def paths_of(settings: SiteSettings, folder: Path) -> SitePaths:
    """Where a site's papers lie, or will.

    Args:
        settings: the site's.
        folder: of ``site.toml``.
    """
    given = settings.connection
    return SitePaths(
        folder=folder,
        root_certificate=folder / (given.root_certificate if given else "ca.pem"),
        private_key=folder / (given.private_key if given else "site.key"),
        certificate=folder / ((given.certificate if given else None) or "site.pem"),
        peers=folder / ((given.peers if given else None) or "peers"),
        operators=folder / (settings.consent or ConsentSettings()).operator_keys,
    )


def init_site(site_toml: Path, *, rotate: bool = False) -> tuple[Path, str]:
    """Make the site's key, if there is none, and a request for the coordinator's operator.

    Args:
        site_toml: the site's settings; the key and the request go beside it.
        rotate: make a new key beside the present one, whose request both sign. The present one is
            used until the site has joined with the answer.

    Returns:
        The request's file, and the fingerprint of the public key in it.

    Raises:
        SettingsError, FileProblemError: the settings are wrong, or a key cannot be read.
        UserInputError: there is no key to rotate.
        DiskProblemError: the folder is not writable.
    """
    settings = read_site_settings(site_toml)
    paths = paths_of(settings, site_toml.resolve().parent)
    if rotate and not paths.private_key.exists():
        msg = f"there is no key {paths.private_key} to rotate; make it first, without --rotate"
        raise UserInputError(msg)
    wanted = paths.next_key if rotate else paths.private_key
    if not wanted.exists():
        made = ec.generate_private_key(ec.SECP384R1())
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_private(wanted, pem)
    key = read_key(wanted)
    previous = read_key(paths.private_key) if rotate else None
    public = public_pem(key.public_key())
    request = EnrolmentRequest(
        site=settings.name,
        public_key=public,
        audit_public_key=audit_public_key(paths.folder / settings.state_folder / "audit"),
        asterion_version=__version__,
        previous_public_key=public_pem(previous.public_key()) if previous is not None else None,
    )
    path = paths.folder / f"{settings.name}{REQUEST_SUFFIX}"
    write_atomically(path, text_of(signed_request(request, key, previous)))
    return path, fingerprint(public)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's private key, OpenSSH or PEM.

    Raises:
        FileProblemError: it is missing, others can read it, or it is no such key.
    """
    fix = "make it: asterion site init"
    try:
        data = read_private(path, fix)
        load = load_ssh_private_key if b"OPENSSH" in data[:100] else load_pem_private_key
        key: object = load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FileProblemError(path, "is not an EC private key", fix)
    return key
