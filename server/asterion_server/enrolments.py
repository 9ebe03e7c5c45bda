"""What the enrolled sites get: one signed file each, written anew when anything in it changes."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.audit import audit_public_key
from asterion_shared.enrolment_files import Enrolment, signed_enrolment, signing_key, text_of
from asterion_shared.errors import DiskProblemError, FileProblemError
from asterion_shared.files import make_folder, write_atomically
from asterion_shared.fingerprints import public_pem
from asterion_shared.key_files import read_private


@contextmanager
def changing(folder: Path) -> Iterator[Provisioned]:
    """The coordinator's folder, for a change of who is enrolled; one process at a time.

    Raises:
        FileProblemError, SettingsError: as :func:`asterion_server.keys.open_provisioned`.
        DiskProblemError: the folder is not writable.
    """
    open_provisioned(folder)
    with locked(folder):
        yield open_provisioned(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time, whatever the coordinator's folder has by now.

    Raises:
        DiskProblemError: the folder is not writable.
    """
    path = folder / "enrolments" / "lock"
    try:
        make_folder(path.parent)
        file = path.open("w")
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_enrolments(made: Provisioned) -> None:
    """Write the files of all enrolled sites: addresses, peers or operators may have changed.

    Args:
        made: the coordinator's folder; without a site nothing is written.

    Raises:
        FileProblemError: a certificate or key is missing or cannot be read.
        DiskProblemError: the folder is not writable.
    """
    peers = {site: public_pem_of(made.public_key(site)) for site in made.settings.sites}
    operators = operators_of(made)
    for site in made.settings.sites:
        key = load_pem_private_key(read_private(made.private_key), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FileProblemError(made.private_key, "is not an EC private key", "run init again")
        newest = x509.load_pem_x509_certificate(_read(made.certificates(site)))
        enrolment = Enrolment(
            site=site,
            root_certificate=_read(made.root_certificate).decode(),
            certificate=newest.public_bytes(Encoding.PEM).decode(),
            addresses=tuple(
                f"{_in_url(host)}:{made.settings.port}" for host in made.settings.hosts
            ),
            carrier=made.settings.carrier,
            peers=peers,
            operators=operators,
            audit_public_key=audit_public_key(made.audit),
            server_certificate=_read(made.certificate).decode(),
        )
        write_atomically(made.enrolment(site), text_of(signed_enrolment(enrolment, key)))


def operators_of(made: Provisioned) -> dict[str, str]:
    """The operators' public keys by name, PEM; empty when none is enrolled.

    Raises:
        FileProblemError: a file in ``operators/`` is no Ed25519 public key.
    """
    found: dict[str, str] = {}
    for path in sorted(made.operators.glob("*.pem")):
        try:
            found[path.stem] = public_pem(signing_key(path.read_text(encoding="ascii")))
        except ValueError:
            fix = f"remove it, or enrol {path.stem} again: asterion server operator"
            raise FileProblemError(path, "is not an Ed25519 public key", fix) from None
    return found


def public_pem_of(path: Path) -> str:
    """A public key's file, as text.

    Raises:
        FileProblemError: it is missing.
    """
    return _read(path).decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = (error.strerror or "unreadable").lower()
        raise FileProblemError(path, what, "enrol the site again") from None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
