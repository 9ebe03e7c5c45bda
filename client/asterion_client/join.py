"""Take what the coordinator's operator sent back: check all of it, then put it beside site.toml."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from asterion_client.settings import ConnectionSettings, SiteSettings, read_site_settings
from asterion_client.site_keys import SitePaths, paths_of, read_key
from asterion_shared.enrolment_files import Enrolment, same_key
from asterion_shared.errors import DiskProblemError, FileProblemError, UserInputError
from asterion_shared.files import sync_folder, write_atomically
from asterion_shared.fingerprints import certificate_fingerprint, fingerprint
from asterion_shared.link.certificate_check import papers_problems, raise_first

GONE = ".pem.gone"
"""Ends the name of a key that is no longer enrolled."""

Confirm = Callable[[str], bool]
"""Is asked with the authority's fingerprint whether it is the right one."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What joining came to.

    Attributes:
        site: its name.
        authority: the authority's fingerprint.
        new, changed: fingerprints of keys by ``peers/NAME`` or ``operators/NAME``.
        gone: such names whose keys were removed, because they are no longer enrolled.
        differences: where ``[connection]`` says something else than the coordinator, in words.
        wrote_connection: whether ``[connection]`` was added.
        rotated: whether the site's key was replaced by its next one.
    """

    site: str
    authority: str
    new: Mapping[str, str]
    changed: Mapping[str, str]
    gone: tuple[str, ...]
    differences: tuple[str, ...]
    wrote_connection: bool
    rotated: bool


def join(
    site_toml: Path,
    enrolment: Enrolment,
    confirm: Confirm,
    *,
    source: str,
    replace_peers: Collection[str] = (),
    now: datetime | None = None,
) -> Joined:
    """Check an enrolment and take it up; again after a rotation, or when peers have changed.

    Nothing is written before everything is checked.

    Args:
        site_toml: the site's settings.
        enrolment: its signature checked.
        confirm: is asked about an authority that is not yet the site's.
        source: where the enrolment came from, for messages.
        replace_peers: names of sites or operators whose keys may have changed.
        now: UTC; None: the clock's.

    Raises:
        SettingsError: the settings are wrong.
        FileProblemError: the enrolment is another site's or another key's, was not issued by its
            authority, or has ended; or the site has no key.
        UserInputError: the authority was not confirmed, or a known key changed.
        DiskProblemError: the folder is not writable.
    """
    settings = read_site_settings(site_toml)
    paths = paths_of(settings, site_toml.resolve().parent)
    if enrolment.site != settings.name:
        what = f"is for site {enrolment.site!r}, and site.toml says {settings.name!r}"
        raise FileProblemError(source, what, "take this site's own, or correct name in site.toml")
    is_next = _belongs_to(enrolment, paths, source)
    root, own = enrolment.root_certificate, enrolment.certificate
    raise_first(papers_problems(source, root.encode(), own.encode(), settings.name, now))
    changes = _key_changes(enrolment, paths, settings.name)
    _refuse_changed(changes, replace_peers)
    authority = certificate_fingerprint(root.encode())
    if not _is_known(paths.root_certificate, root) and not confirm(authority):
        msg = (
            f"site {settings.name} did not join: the authority's fingerprint must be the one that "
            "the coordinator's operator reads to you"
        )
        raise UserInputError(msg)
    _write(enrolment, paths, changes, is_next=is_next)
    if settings.connection is None:
        _add_connection(site_toml, enrolment)
    return Joined(
        settings.name,
        authority,
        new={name: fingerprint(pem) for name, pem in changes.new.items()},
        changed={name: fingerprint(pem) for name, pem in changes.changed.items()},
        gone=tuple(changes.gone),
        differences=_differences(settings, enrolment),
        wrote_connection=settings.connection is None,
        rotated=is_next,
    )


@dataclass(frozen=True, slots=True)
class _Changes:
    """Of the files in ``peers/`` and ``operators/``; keys are ``peers/NAME``, values PEM."""

    new: dict[str, str]
    changed: dict[str, str]
    gone: list[str]


def _belongs_to(enrolment: Enrolment, paths: SitePaths, source: str) -> bool:
    """Whether the certificate is of the next key; False: of the present one."""
    certificate = x509.load_pem_x509_certificate(enrolment.certificate.encode())
    key = certificate.public_key()
    if paths.next_key.exists() and read_key(paths.next_key).public_key() == key:
        return True
    if read_key(paths.private_key).public_key() == key:
        return False
    what = f"holds the certificate of another key than {paths.private_key.name}"
    fix = "send the operator the request that asterion site init writes, and take the answer to it"
    raise FileProblemError(source, what, fix)


def _key_changes(enrolment: Enrolment, paths: SitePaths, own: str) -> _Changes:
    changes = _Changes({}, {}, [])
    for folder, given in ((paths.peers, enrolment.peers), (paths.operators, enrolment.operators)):
        kind = "peers" if folder == paths.peers else "operators"
        known = {path.stem: path for path in sorted(folder.glob("*.pem"))}
        # A key that was taken away and comes back as another has changed all the same.
        gone = {path.name.removesuffix(GONE): path for path in folder.glob(f"*{GONE}")}
        before = gone | known
        for name, pem in given.items():
            if name not in before:
                changes.new[f"{kind}/{name}"] = pem
            elif not _same(before[name], pem) and not (kind == "peers" and name == own):
                changes.changed[f"{kind}/{name}"] = pem
            elif name not in known:
                changes.new[f"{kind}/{name}"] = pem
        changes.gone.extend(f"{kind}/{name}" for name in known if name not in given)
    return changes


def _same(path: Path, pem: str) -> bool:
    try:
        return same_key(path.read_text(encoding="ascii"), pem)
    except ValueError:
        return False


def _refuse_changed(changes: _Changes, replace_peers: Collection[str]) -> None:
    refused = {
        name: pem
        for name, pem in changes.changed.items()
        if name.partition("/")[2] not in replace_peers
    }
    if not refused:
        return
    lines = [f"  {name}.pem would become {fingerprint(pem)}" for name, pem in refused.items()]
    options = " ".join(f"--replace-peer {name.partition('/')[2]}" for name in refused)
    msg = (
        "keys that this site knows have changed, and nothing was taken:\n"
        + "\n".join(lines)
        + "\nask their owners, not through the coordinator, whether they have new keys with these "
        f"fingerprints; if so: {options}"
    )
    raise UserInputError(msg)


def _is_known(path: Path, root: str) -> bool:
    try:
        return certificate_fingerprint(path.read_bytes()) == certificate_fingerprint(root.encode())
    except (OSError, ValueError):
        return False


def _write(enrolment: Enrolment, paths: SitePaths, changes: _Changes, *, is_next: bool) -> None:
    for folder, given in ((paths.peers, enrolment.peers), (paths.operators, enrolment.operators)):
        for name, pem in given.items():
            write_atomically(folder / f"{name}.pem", pem.encode())
    for name in changes.gone:
        kind, _, stem = name.partition("/")
        folder = paths.peers if kind == "peers" else paths.operators
        # Under a name that nobody reads as a key, so that another one for it is not new.
        write_atomically(folder / f"{stem}{GONE}", (folder / f"{stem}.pem").read_bytes())
        (folder / f"{stem}.pem").unlink()
        sync_folder(folder)
    write_atomically(paths.root_certificate, enrolment.root_certificate.encode())
    if is_next:
        # The old key goes in this step; after a crash behind it, joining again does the rest.
        try:
            paths.next_key.replace(paths.private_key)
            sync_folder(paths.private_key.parent)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DiskProblemError(paths.private_key, reason) from error
    write_atomically(paths.certificate, enrolment.certificate.encode())


def _connection_lines(enrolment: Enrolment) -> str:
    """The section that a site's settings need."""
    return "\n".join(
        [
            "[connection]",
            f'carrier = "{enrolment.carrier}"',
            f'address = "{enrolment.addresses[0]}"',
            'root_certificate = "ca.pem"',
            'private_key = "site.key"',
            'certificate = "site.pem"',
            'peers = "peers"',
            "",
        ]
    )


def _add_connection(site_toml: Path, enrolment: Enrolment) -> None:
    before = site_toml.read_text(encoding="utf-8").rstrip("\n")
    text = f"{before}\n\n{_connection_lines(enrolment)}"
    write_atomically(site_toml, text.encode())


def _differences(settings: SiteSettings, enrolment: Enrolment) -> tuple[str, ...]:
    given: ConnectionSettings | None = settings.connection
    if given is None:
        return ()
    found: list[str] = []
    if given.address not in enrolment.addresses:
        known = " or ".join(enrolment.addresses)
        found.append(f"connection.address is {given.address}, the coordinator's is {known}")
    if given.carrier != enrolment.carrier:
        found.append(
            f"connection.carrier is {given.carrier}, the coordinator's {enrolment.carrier}"
        )
    if given.certificate is None and enrolment.carrier == "link":
        found.append('connection.certificate is not set; add certificate = "site.pem"')
    if given.peers is None:
        found.append('connection.peers is not set; secure sums need peers = "peers"')
    return tuple(found)
