"""Make a coordinator's folder: its authority, its certificate, its secret; or renew the second.

Another authority, such as a hospital's, can stand in for the coordinator's own: then its
certificates and the server's key are copied in, and no ``ca.key`` lies here.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from asterion_server.certificates import authority_certificate, host_name, leaf_certificate
from asterion_server.coordinator_toml import set_values
from asterion_server.database_urls import check_database
from asterion_server.enrolments import locked, write_enrolments
from asterion_server.keys import CoordinatorSettings, Provisioned
from asterion_shared.audit import audit_public_key
from asterion_shared.carrier import Carrier
from asterion_shared.errors import DiskProblemError, FileProblemError, UserInputError
from asterion_shared.files import make_folder, write_atomically
from asterion_shared.key_files import read_private, write_private
from asterion_shared.link.certificate_check import certificate_problems, raise_first
from asterion_shared.link.identity import read_identity
from asterion_shared.settings_files import read_toml, validate

LOOPBACK = ("localhost", "127.0.0.1")
"""Processes of the same machine reach it so; its own certificate always holds for these."""

OF_ANOTHER = "--root-certificate, --certificate and --private-key"


@dataclass(frozen=True, slots=True)
class OwnPapers:
    """What another authority gave the coordinator.

    Attributes:
        root_certificate: of the authority, PEM; it issued the other directly.
        certificate: the coordinator's, for the use of a server, with every host among its names.
        private_key: of that certificate, EC, mode 0600.
    """

    root_certificate: Path
    certificate: Path
    private_key: Path


def init_coordinator(
    folder: Path,
    hosts: Sequence[str] = (),
    *,
    port: int | None = None,
    listen: str | None = None,
    carrier: Carrier | None = None,
    papers: OwnPapers | None = None,
) -> Provisioned:
    """Make a coordinator's folder, or renew the certificate of one; keys that are there stay.

    Args:
        folder: the coordinator's folder.
        hosts: names and addresses under which sites will reach it; empty: as before.
        port: where it will listen; None: as before, at first 8000.
        listen: address to listen on; None: as before, at first all.
        carrier: of the messages; None: as before, at first the link.
        papers: of another authority; None: the coordinator has its own.

    Raises:
        UserInputError: no host was ever named, a name is not allowed, or the folder's authority
            is another.
        FileProblemError: the papers do not belong together, or others can read a key.
        DiskProblemError: the folder is not writable.
    """
    given = {"hosts": tuple(dict.fromkeys(hosts)) or None, "listen": listen, "port": port,
             "carrier": carrier}  # fmt: skip
    # Or the list of sites would be read, changed by a revocation, and written back as it was.
    is_there = (folder / "coordinator.toml").exists()
    with locked(folder) if is_there else nullcontext():
        return _init(folder, given, papers)


def _init(folder: Path, given: Mapping[str, Any], papers: OwnPapers | None) -> Provisioned:
    path = folder / "coordinator.toml"
    values: dict[str, Any] = read_toml(path) if path.exists() else {}
    if values:
        before = validate(CoordinatorSettings, values, str(path))
        check_database(before.database, path)
    values |= {name: value for name, value in given.items() if value is not None}
    if not values.get("hosts"):
        msg = "got no host; name one under which sites will reach the coordinator, with --host"
        raise UserInputError(msg)
    made = Provisioned(folder, validate(CoordinatorSettings, values, "coordinator"))
    if papers is not None:
        _check_papers(made, papers)
    _make_private(folder)
    if papers is None:
        _certify_server(made)
    else:
        _take(made, papers)
    if not made.secret.exists():
        write_private(made.secret, secrets.token_bytes(32))
    audit_public_key(made.audit)
    shown = ("hosts", "sites", "listen", "port", "carrier", "runs_at_once")
    set_values(path, {name: getattr(made.settings, name) for name in shown})
    write_enrolments(made)
    return made


def authority_of(made: Provisioned) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The coordinator's own authority, made on first use.

    Raises:
        FileProblemError: another authority certifies here, or the key cannot be used.
    """
    key_path, root = made.authority_key, made.root_certificate
    if key_path.exists() and root.exists():
        return _ec_key(key_path), x509.load_pem_x509_certificate(root.read_bytes())
    if root.exists():
        fix = f"give {OF_ANOTHER}; certificates of sites with server enrol --certificate"
        raise FileProblemError(root, "is another authority's, whose key is not here", fix)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = authority_certificate(key)
    write_private(key_path, _pem(key))
    write_atomically(root, certificate.public_bytes(Encoding.PEM))
    return key, certificate


def _certify_server(made: Provisioned) -> None:
    authority_key, authority = authority_of(made)
    if made.private_key.exists():
        key = _ec_key(made.private_key)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        write_private(made.private_key, _pem(key))
    hosts = dict.fromkeys((*made.settings.hosts, *LOOPBACK, made.own_host))
    names = [host_name(host) for host in hosts]
    certificate = leaf_certificate(
        made.settings.hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, key.public_key(),
        authority_key, authority,
    )  # fmt: skip
    write_atomically(made.certificate, certificate)


def _check_papers(made: Provisioned, papers: OwnPapers) -> None:
    if made.authority_key.exists():
        msg = f"{made.folder} has an authority of its own already; choose another folder"
        raise UserInputError(msg)
    root, own, key = papers.root_certificate, papers.certificate, papers.private_key
    raise_first(certificate_problems(root, own, key, site=None, renew="take the right files"))
    certificate = x509.load_pem_x509_certificate(own.read_bytes())
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        what = "has no extended key usage or no alternative names"
        fix = "have it issued for a TLS server, with every host among its names"
        raise FileProblemError(own, what, fix) from None
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise FileProblemError(own, "is not for a server", "have it issued for a TLS server")
    needed = list(made.settings.hosts)
    if made.settings.carrier == "flower":
        needed.append(made.own_host)  # stock Flower's processes reach each other so
    if lacking := [host for host in needed if host_name(host) not in names]:
        what = f"does not hold for {', '.join(lacking)}"
        raise FileProblemError(own, what, "have it issued for every host, or correct --host")


def _take(made: Provisioned, papers: OwnPapers) -> None:
    found = read_identity(papers.root_certificate, papers.certificate, papers.private_key)
    write_private(made.private_key, found.private_key)
    write_atomically(made.certificate, found.certificate)
    write_atomically(made.root_certificate, found.root)


def _ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(read_private(path), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FileProblemError(path, "is not an EC private key", "put it back from the backup")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _make_private(folder: Path) -> None:
    """Make the coordinator's folder for its owner alone: updates and models lie in it.

    One that is there keeps its mode.
    """
    try:
        make_folder(folder, 0o700)
    except OSError as error:
        raise DiskProblemError(folder, error.strerror or type(error).__name__) from error
