"""The coordinator's folder: its settings, what lies where, and whose keys are enrolled."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Field

from asterion_server.database_urls import check_database, problem_of_url
from asterion_shared.carrier import Carrier
from asterion_shared.console.settings import ConsoleSettings
from asterion_shared.enrolment_files import ENROLMENT_SUFFIX, REQUEST_SUFFIX
from asterion_shared.errors import FileProblemError, Problem
from asterion_shared.key_files import check_private
from asterion_shared.link.certificate_check import certificate_problems, site_problems
from asterion_shared.plan import Name
from asterion_shared.settings_files import Rule, Settings, read_toml, rule, validate

_EVERY_ADDRESS = ("0.0.0.0", "::", "[::]")  # noqa: S104  # compared, not listened on


class CoordinatorSettings(Settings):
    """``coordinator.toml``: where the coordinator listens, and who belongs to it."""

    hosts: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...]
    """Names and addresses under which sites reach it."""

    sites: tuple[Name, ...] = ()
    """The enrolled sites; ``asterion server enrol`` and ``revoke`` change them."""

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

    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of ``/metrics``, for Prometheus; absent: none. The link only."""

    metrics_address: str = "127.0.0.1"
    """Address that this port is opened on: this machine alone, unless you write another."""

    console: ConsoleSettings | None = None
    """Pages for people: runs, sites, launching and stopping; absent: none. The link only."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: s.database is None or not problem_of_url(s.database),
            lambda s: (
                f"database {problem_of_url(s.database or '')}; write for example "
                "postgresql+psycopg://HOST/NAME and leave the password to PGPASSFILE"
            ),
        ),
        rule(
            lambda s: s.console is None or s.carrier == "link",
            lambda s: f"carrier is {s.carrier!r} and [console] is given; it is of the link alone",
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
        host = f"[{self.own_host}]" if ":" in self.own_host else self.own_host
        return f"{host}:{self.settings.port}"

    @property
    def own_host(self) -> str:
        """The address it listens on, or of all of them the loopback one."""
        listen = self.settings.listen
        return "127.0.0.1" if listen in _EVERY_ADDRESS else listen

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

    @property
    def authority_key(self) -> Path:
        """The authority's private key; absent when another authority certifies."""
        return self.folder / "ca.key"

    @property
    def operators(self) -> Path:
        """Folder with the operators' Ed25519 public keys, ``NAME.pem``."""
        return self.folder / "operators"

    @property
    def audit(self) -> Path:
        """Folder of the coordinator's audit records and of their key."""
        return self.folder / "audit"

    @property
    def releases(self) -> Path:
        """Folder of released models, their registry, and the key that signs them."""
        return self.folder / "releases"

    @property
    def console_people(self) -> Path | None:
        """Who may sign in to the console, hashed passwords; None without a console."""
        console = self.settings.console
        return None if console is None else self.folder / console.people

    def certificates(self, site: str) -> Path:
        """All certificates that a site was given, PEM, the newest first."""
        return self.folder / "certificates" / f"{site}.pem"

    def request(self, site: str) -> Path:
        """The request with which a site was enrolled last."""
        return self.folder / "enrolments" / f"{site}{REQUEST_SUFFIX}"

    def enrolment(self, site: str) -> Path:
        """What the site gets."""
        return self.folder / "enrolments" / f"{site}{ENROLMENT_SUFFIX}"


def open_provisioned(folder: Path) -> Provisioned:
    """The folder that ``asterion server init`` made.

    Raises:
        FileProblemError: it is not such a folder.
        SettingsError: its ``coordinator.toml`` was edited and does not hold.
    """
    path = folder / "coordinator.toml"
    if not path.exists():
        fix = f"make it first: asterion server init {folder} --host NAME"
        raise FileProblemError(folder, "is not a coordinator's folder", fix)
    found = Provisioned(folder, validate(CoordinatorSettings, read_toml(path), str(path)))
    check_database(found.settings.database, path)
    needed = [found.root_certificate, found.certificate, found.private_key, found.secret]
    for file in needed:
        if not file.exists():
            raise FileProblemError(file, "no such file", f"run asterion server init {folder} again")
    for site in found.settings.sites:
        if not found.public_key(site).exists():
            fix = f"enrol the site again: asterion server enrol {folder} {site}{REQUEST_SUFFIX}"
            raise FileProblemError(found.public_key(site), "no such file", fix)
    return found


def own_problems(made: Provisioned, now: datetime | None = None) -> Iterator[Problem]:
    """What is wrong with the coordinator's own certificate, or will soon be."""
    return certificate_problems(
        made.root_certificate,
        made.certificate,
        made.private_key,
        site=None,
        renew=f"run asterion server init {made.folder} again",
        now=now,
    )


def papers_problems(made: Provisioned, now: datetime | None = None) -> Iterator[Problem]:
    """What is wrong with the coordinator's or a site's certificate, or will soon be."""
    yield from own_problems(made, now)
    for site in made.settings.sites:
        yield from site_problems(made.certificates(site), site, made.root_certificate, now)


def check_key_files(made: Provisioned) -> None:
    """Refuse to go on when others can read one of the coordinator's keys.

    Raises:
        FileProblemError: names the file and the ``chmod``.
    """
    for path in private_files(made):
        if path.exists():
            check_private(path)


def private_files(made: Provisioned) -> tuple[Path, ...]:
    """Every file that only the coordinator's own account may read; some may be absent."""
    own = (made.private_key, made.authority_key, made.secret)
    keys = (*own, made.audit / "audit.key", made.releases / "release.key")
    return keys if made.console_people is None else (*keys, made.console_people)


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
