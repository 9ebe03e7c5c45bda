"""The coordinator's folder and its keys: an authority, a certificate, one key a site.

Everything is made on the coordinator's machine; a site's folder under ``kits/`` is what its
operator hands over (by hand, not by mail). Private keys have mode 0600.
"""

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import Field

from asterion_server.certificates import authority_certificate, host_name, leaf_certificate
from asterion_server.database_urls import check_database, has_password, problem_of_url
from asterion_shared.carrier import Carrier
from asterion_shared.errors import DiskProblemError, FileProblemError, Problem, UserInputError
from asterion_shared.files import make_folder, sync_folder, write_atomically
from asterion_shared.link.certificate_check import certificate_problems
from asterion_shared.link.identity import SITE_URI
from asterion_shared.plan import Name
from asterion_shared.settings_files import Rule, Settings, read_toml, rule, validate

LOOPBACK = ("localhost", "127.0.0.1")
"""The coordinator's own processes reach it so; its certificate always holds for these."""


class CoordinatorSettings(Settings):
    """``coordinator.toml``: where the coordinator listens, and who belongs to it."""

    hosts: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...]
    """Names and addresses under which sites reach it."""

    sites: tuple[Name, ...]
    """The enrolled sites."""

    listen: str = "0.0.0.0"  # noqa: S104  # sites come from other machines
    """Address to listen on; 127.0.0.1 for this machine alone."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8000

    carrier: Carrier = "link"
    """What carries the messages: Asterion's own link, or stock Flower."""

    database: str | None = None
    """The link's queue, as SQLAlchemy names it (``postgresql+psycopg://HOST/NAME``); absent: an
    SQLite file in the coordinator's folder. With a password in it the file needs mode 0600."""

    runs_at_once: Annotated[int, Field(ge=1, le=64)] = 4
    """Runs that go on at one time under the link; others wait."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: s.database is None or not problem_of_url(s.database),
            lambda s: (
                f"database {problem_of_url(s.database or '')}; write for example "
                "postgresql+psycopg://HOST/NAME and leave the password to PGPASSFILE"
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A coordinator's folder: what lies where.

    Attributes:
        folder: all other paths are below it.
        settings: its ``coordinator.toml``.
    """

    folder: Path
    settings: CoordinatorSettings

    @property
    def address(self) -> str:
        """``host:port`` for the coordinator's own processes."""
        return f"127.0.0.1:{self.settings.port}"

    @property
    def root_certificate(self) -> Path:
        """The authority's certificate; every site gets a copy."""
        return self.folder / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The coordinator's certificate."""
        return self.folder / "server.pem"

    @property
    def private_key(self) -> Path:
        """The coordinator's private key."""
        return self.folder / "server.key"

    @property
    def secret(self) -> Path:
        """What the coordinator's own processes prove themselves with."""
        return self.folder / "superexec.secret"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.folder / "runs"

    def public_key(self, site: str) -> Path:
        """A site's public key, PEM."""
        return self.folder / "enrolled" / f"{site}.pem"

    @property
    def revoked(self) -> Path:
        """Serial numbers of revoked certificates, one a line; absent when none is."""
        return self.folder / "revoked"

    def kit(self, site: str) -> Path:
        """A site's: ``ca.pem``, ``site.key``, ``site.pem``, ``peers/``, ``connection.toml``."""
        return self.folder / "kits" / site


def provision(
    folder: Path,
    hosts: Sequence[str],
    sites: Sequence[str],
    *,
    port: int = 8000,
    listen: str = "0.0.0.0",  # noqa: S104  # sites come from other machines
    carrier: Carrier = "link",
) -> Provisioned:
    """Make a coordinator's folder, or add to one: keys that are there are kept.

    Args:
        folder: the coordinator's folder.
        hosts: names and addresses under which sites will reach it; the first goes into the kits.
        sites: names of the sites to enrol.
        port: where it will listen.
        listen: address to listen on.
        carrier: of the messages.

    Raises:
        UserInputError: no host or no site is named, or a name is not allowed.
        DiskProblemError: the folder is not writable.
    """
    if not hosts or not sites:
        msg = f"got {len(hosts)} hosts and {len(sites)} sites; name at least one of each"
        raise UserInputError(msg)
    values = {"hosts": tuple(dict.fromkeys(hosts)), "sites": tuple(sorted(set(sites))),
              "listen": listen, "port": port, "carrier": carrier}  # fmt: skip
    if (folder / "coordinator.toml").exists():  # what a person has set there stays
        given = validate(CoordinatorSettings, read_toml(folder / "coordinator.toml"), "coordinator")
        values |= {"database": given.database, "runs_at_once": given.runs_at_once}
        check_database(given.database, folder / "coordinator.toml")
    made = Provisioned(folder, validate(CoordinatorSettings, values, "coordinator"))
    _make_private(folder)
    authority_key, authority = _authority(made)
    _certify_server(made, authority_key, authority)
    if not made.secret.exists():
        _write_private(made.secret, secrets.token_bytes(32))
    for site in made.settings.sites:
        _enrol(made, site)
        _certify_site(made, site, authority_key, authority)
    for site in made.settings.sites:
        for peer in made.settings.sites:
            _write(made.kit(site) / "peers" / f"{peer}.pem", made.public_key(peer).read_bytes())
    secret = has_password(made.settings.database)
    write = _write_private if secret else _write
    write(folder / "coordinator.toml", _toml(made.settings).encode())
    return made


def open_provisioned(folder: Path) -> Provisioned:
    """The folder that :func:`provision` made.

    Raises:
        FileProblemError: it is not such a folder.
        SettingsError: its ``coordinator.toml`` was edited and does not hold.
    """
    path = folder / "coordinator.toml"
    if not path.exists():
        fix = f"make it first: asterion server init {folder} --host NAME --site NAME"
        raise FileProblemError(folder, "is not a coordinator's folder", fix)
    found = Provisioned(folder, validate(CoordinatorSettings, read_toml(path), str(path)))
    check_database(found.settings.database, path)
    needed = [found.root_certificate, found.certificate, found.private_key, found.secret]
    for file in [*needed, *(found.public_key(site) for site in found.settings.sites)]:
        if not file.exists():
            fix = f"run asterion server init {folder} again with the same hosts and sites"
            raise FileProblemError(file, "no such file", fix)
    return found


def own_problems(made: Provisioned, now: datetime | None = None) -> Iterator[Problem]:
    """What is wrong with the coordinator's own certificate, or will soon be."""
    return certificate_problems(
        made.root_certificate,
        made.certificate,
        made.private_key,
        site=None,
        renew=f"run asterion server init {made.folder} again with the same hosts and sites",
        now=now,
    )


def public_keys(folder: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    """The enrolled sites' public keys by name; empty when none is enrolled.

    Args:
        folder: the coordinator's.

    Raises:
        FileProblemError: a file is not an EC key.
    """
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for path in sorted((folder / "enrolled").glob("*.pem")):
        key = load_pem_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise FileProblemError(path, "is not an EC key", "enrol the site again")
        keys[path.stem] = key
    return keys


def _authority(made: Provisioned) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_path = made.folder / "ca.key"
    if key_path.exists() and made.root_certificate.exists():
        key = load_pem_private_key(key_path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FileProblemError(key_path, "is not an EC key", "remove it, and ca.pem with it")
        return key, x509.load_pem_x509_certificate(made.root_certificate.read_bytes())
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = authority_certificate(key)
    _write_private(key_path, _pem(key))
    _write(made.root_certificate, certificate.public_bytes(Encoding.PEM))
    return key, certificate


def _certify_server(
    made: Provisioned, authority_key: ec.EllipticCurvePrivateKey, authority: x509.Certificate
) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    hosts = dict.fromkeys((*made.settings.hosts, *LOOPBACK))
    names = [host_name(host) for host in hosts]
    certificate = leaf_certificate(
        made.settings.hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, key.public_key(),
        authority_key, authority,
    )  # fmt: skip
    _write_private(made.private_key, _pem(key))
    _write(made.certificate, certificate)


def _certify_site(
    made: Provisioned,
    site: str,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
) -> None:
    """Give a site the certificate of its key; a new one each time, so that it does not run out."""
    key = load_pem_public_key(made.public_key(site).read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FileProblemError(made.public_key(site), "is not an EC key", "enrol the site again")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{SITE_URI}{site}")]
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = leaf_certificate(site, names, usage, key, authority_key, authority)
    _write(made.kit(site) / "site.pem", certificate)


def _enrol(made: Provisioned, site: str) -> None:
    """Make a site's key and kit; one that is there stays as it is, but for the address."""
    kit = made.kit(site)
    if not made.public_key(site).exists():
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        _write_private(kit / "site.key", private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        _write(made.public_key(site), public)
    _write(kit / "ca.pem", made.root_certificate.read_bytes())
    lines = [
        "# Put ca.pem, site.key, site.pem and peers beside site.toml and these lines into it.",
        "[connection]",
        f'carrier = "{made.settings.carrier}"',
        f'address = "{_in_url(made.settings.hosts[0])}:{made.settings.port}"',
        'root_certificate = "ca.pem"',
        'private_key = "site.key"',
        'certificate = "site.pem"',
        "# Keys of all sites, for secure sums: compare them with the other sites, not through us.",
        'peers = "peers"',
    ]
    _write(kit / "connection.toml", ("\n".join(lines) + "\n").encode())


def _toml(settings: CoordinatorSettings) -> str:
    quoted = {name: ", ".join(f'"{x}"' for x in getattr(settings, name)) for name in
              ("hosts", "sites")}  # fmt: skip
    return (
        "# Written by asterion server init; run it again to add hosts or sites.\n"
        f"hosts = [{quoted['hosts']}]\nsites = [{quoted['sites']}]\n"
        f'listen = "{settings.listen}"\nport = {settings.port}\n'
        f'carrier = "{settings.carrier}"\nruns_at_once = {settings.runs_at_once}\n'
        + (f'database = "{settings.database}"\n' if settings.database is not None else "")
    )


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, content)


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; it never exists with a wider mode."""
    part = path.with_name(f".{path.name}.part")
    try:
        make_folder(path.parent)
        part.unlink(missing_ok=True)
        part.touch(0o600, exist_ok=False)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise DiskProblemError(path, error.strerror or type(error).__name__) from error
