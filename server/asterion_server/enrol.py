"""Enrol a site, revoke it, enrol an operator: who takes part in a federation.

The link reads what is changed here at each call, so a running coordinator needs no restart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from asterion_server.certificates import leaf_certificate
from asterion_server.coordinator_toml import set_values
from asterion_server.enrolments import changing, public_pem_of, write_enrolments
from asterion_server.initialise import authority_of
from asterion_server.keys import Provisioned, open_provisioned, public_keys
from asterion_server.link_wake import Bell, address_of
from asterion_server.round_audit import coordinator_trail
from asterion_shared.audit_records import Fact
from asterion_shared.enrolment_files import (
    EnrolmentRequest,
    ec_key,
    same_key,
    signing_key,
    text_of,
)
from asterion_shared.errors import FileProblemError, UserInputError
from asterion_shared.files import append_lines, write_atomically
from asterion_shared.fingerprints import fingerprint, public_pem
from asterion_shared.link.certificate_check import certificate_is_of, raise_first
from asterion_shared.link.identity import SITE_URI, named_site
from asterion_shared.link.refusals import LinkRefusedError
from asterion_shared.plan import Name
from asterion_shared.settings_files import Settings, validate

Confirm = Callable[[str, str], bool]
"""Is asked with a name and a fingerprint whether they are right."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What enrolling a site came to.

    Attributes:
        site: its name.
        fingerprint: of its public key.
        file: what the site gets.
        others: sites whose files changed too, because their peers did.
        is_new: whether the key was not enrolled before.
        replaced: whether the site had another key before.
    """

    site: str
    fingerprint: str
    file: Path
    others: tuple[str, ...]
    is_new: bool
    replaced: bool


class OperatorName(Settings):
    """The name of an operator."""

    operator: Name


def enrol(
    folder: Path,
    requests: Sequence[EnrolmentRequest],
    confirm: Confirm,
    *,
    certificate: Path | None = None,
    replace: bool = False,
    check: Callable[[str], None] = lambda site: None,
) -> list[Enrolled]:
    """Certify sites' keys and admit the sites.

    A key that is enrolled already is certified anew without a question: its certificate may be
    about to end. So is a new key whose request the enrolled one has signed.

    Args:
        folder: the coordinator's.
        requests: the sites', their signatures checked; may be empty.
        confirm: is asked about each key that is new here, once.
        certificate: of the one site, when another authority issued it; None: the coordinator's own
            authority does.
        replace: whether a new key may take the place of one that is enrolled and lost.
        check: is given each site's name right before the change, when nobody can revoke it; raises
            to refuse.

    Raises:
        UserInputError: a site is enrolled with another key, or the question was answered no.
        FileProblemError: the certificate is not this site's, or there is no authority here.
        DiskProblemError: the folder is not writable.
    """
    # Asked before the lock: a person who takes time must keep no revocation waiting.
    confirm = cache(confirm)
    for request in requests:
        _admissible(open_provisioned(folder), request, confirm, replace=replace)
    with changing(folder) as made:
        for request in requests:
            check(request.site)
        # Every question before the first change.
        admitted = [_admissible(made, request, confirm, replace=replace) for request in requests]
        certificates = [_certificate(made, r.site, _key_of(r), certificate) for r in requests]
        trail = coordinator_trail(folder)
        for request, issued, one in zip(requests, certificates, admitted, strict=True):
            facts: dict[str, Fact] = {"site": one.site, "key": one.fingerprint}
            trail.append("enrolled", facts=facts | {"audit_key": request.audit_public_key})
            _admit(made, request, issued, is_new=one.is_new)
        sites = tuple(sorted({*made.settings.sites, *(request.site for request in requests)}))
        _set_sites(made, sites)
    _ring(made.folder)
    return admitted


def _admissible(
    made: Provisioned, request: EnrolmentRequest, confirm: Confirm, *, replace: bool
) -> Enrolled:
    site, key = request.site, _key_of(request)
    shown = fingerprint(key)
    _check_key_is_free(made, site, key)
    before = _enrolled_key(made, site)
    is_new = before is None or not same_key(before, key)
    if is_new and not _is_rotation(request, before):
        if before is not None and not replace:
            msg = (
                f"site {site} is enrolled with another key, {fingerprint(before)}; if that key "
                "is lost, or the site begins anew, add --replace, and the old one is revoked"
            )
            raise UserInputError(msg)
        if not confirm(site, shown):
            msg = f"site {site} was not enrolled: the fingerprints must be the same"
            raise UserInputError(msg)
    if before is None:
        _check_flower_takes(made, site, key)
    others = tuple(name for name in made.settings.sites if is_new and name != site)
    return Enrolled(
        site, shown, made.enrolment(site), others, is_new, is_new and before is not None
    )


def _admit(made: Provisioned, request: EnrolmentRequest, issued: bytes, *, is_new: bool) -> None:
    path = made.certificates(request.site)
    if is_new and made.public_key(request.site).exists():
        _revoke_serials(made, request.site)
    write_atomically(path, issued + (path.read_bytes() if path.exists() else b""))
    write_atomically(made.request(request.site), text_of(request))
    # The key last: until it is there, the site is not admitted.
    write_atomically(made.public_key(request.site), _key_of(request).encode())


def _key_of(request: EnrolmentRequest) -> str:
    return public_pem(ec_key(request.public_key))


def revoke(folder: Path, site: str) -> tuple[str, ...]:
    """Admit a site no longer; an open session of it ends within a second.

    Args:
        folder: the coordinator's.
        site: its name.

    Returns:
        The serial numbers that were added to the list, hexadecimal.

    Raises:
        UserInputError: no such site is enrolled.
        DiskProblemError: the folder is not writable.
    """
    with changing(folder) as made:
        # A name with path characters is in no list of sites.
        half_done = site in public_keys(folder)
        if site not in made.settings.sites and not half_done:
            known = ", ".join(made.settings.sites) or "none"
            msg = f"no site {site!r} is enrolled; enrolled are: {known}"
            raise UserInputError(msg)
        serials = _revoke_serials(made, site)
        _ring(made.folder)
        rest = tuple(name for name in made.settings.sites if name != site)
        set_values(folder / "coordinator.toml", {"sites": rest})
        made.public_key(site).unlink(missing_ok=True)
        made.enrolment(site).unlink(missing_ok=True)
        _ring(made.folder)
        coordinator_trail(folder).append(
            "revoked", facts={"site": site, "serials": " ".join(serials)}
        )
        # Last: what is wrong with another site's or an operator's file must keep nobody admitted.
        write_enrolments(open_provisioned(folder))
    return serials


def revoked_serials(made: Provisioned, site: str) -> frozenset[str]:
    """Which of the certificates that a site was ever given are revoked, hexadecimal; may be empty.

    Args:
        made: the coordinator's folder.
        site: its name; need not be enrolled.
    """
    return frozenset(_serials(made, site)) & frozenset(_listed(made))


def enrol_operator(folder: Path, name: str, key: Path) -> str:
    """Take an operator's public key; the sites get it with their next enrolment file.

    Args:
        folder: the coordinator's.
        name: the operator's.
        key: file with the Ed25519 public key, PEM.

    Returns:
        The key's fingerprint.

    Raises:
        UserInputError: an operator of that name has another key.
        FileProblemError: the file is missing or no such key.
    """
    validate(OperatorName, {"operator": name}, "operator")
    try:
        pem = public_pem(signing_key(key.read_text(encoding="ascii")))
    except OSError as error:
        what = (error.strerror or "unreadable").lower()
        raise FileProblemError(key, what, "check the path") from None
    except ValueError:
        fix = "give the public key, not the private one, as PEM"
        raise FileProblemError(key, "is not an Ed25519 public key", fix) from None
    with changing(folder) as made:
        path = made.operators / f"{name}.pem"
        if path.exists() and not same_key(path.read_text(encoding="ascii"), pem):
            msg = f"operator {name} has another key; remove {path} first, if that is meant"
            raise UserInputError(msg)
        facts: dict[str, Fact] = {"operator": name, "key": fingerprint(pem)}
        coordinator_trail(folder).append("operator_enrolled", facts=facts)
        write_atomically(path, pem.encode())
        write_enrolments(made)
    return fingerprint(pem)


def _is_rotation(request: EnrolmentRequest, before: str | None) -> bool:
    """Whether the enrolled key itself has signed for the new one."""
    previous = request.previous_public_key
    return before is not None and previous is not None and same_key(previous, before)


def _enrolled_key(made: Provisioned, site: str) -> str | None:
    path = made.public_key(site)
    return public_pem_of(path) if path.exists() else None


def _check_key_is_free(made: Provisioned, site: str, key: str) -> None:
    """One key, one site: two names for it would be one party that counts twice."""
    for other in made.settings.sites:
        if other != site and same_key(public_pem_of(made.public_key(other)), key):
            msg = f"the key of this request is that of site {other}; each site needs its own"
            raise UserInputError(msg)


def _check_flower_takes(made: Provisioned, site: str, key: str) -> None:
    """Stock Flower never registers a key again that it has once unregistered."""
    path = made.certificates(site)
    if made.settings.carrier != "flower" or not path.exists():
        return
    if ec_key(key) in [c.public_key() for c in x509.load_pem_x509_certificates(path.read_bytes())]:
        msg = (
            f"site {site} was revoked, and stock Flower does not take its key again; have the site "
            "remove site.key and begin anew: asterion site init"
        )
        raise UserInputError(msg)


def _certificate(made: Provisioned, site: str, key: str, given: Path | None) -> bytes:
    if given is not None:
        return _foreign_certificate(made, site, key, given)
    authority_key, authority = authority_of(made)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{SITE_URI}{site}")]
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    return leaf_certificate(site, names, usage, ec_key(key), authority_key, authority)


def _foreign_certificate(made: Provisioned, site: str, key: str, given: Path) -> bytes:
    """A certificate that another authority issued, if it is of this site's key."""
    raise_first(certificate_is_of(given, made.root_certificate, key))
    certificate = x509.load_pem_x509_certificate(given.read_bytes())
    fix = "have it issued for this site, or give this site's own"
    try:
        named = named_site(certificate)
    except LinkRefusedError:
        raise FileProblemError(given, "names more than one site", fix) from None
    if named not in (None, site):
        raise FileProblemError(given, f"names site {named!r}, and the request {site!r}", fix)
    return certificate.public_bytes(Encoding.PEM)


def _revoke_serials(made: Provisioned, site: str) -> tuple[str, ...]:
    """Add all that a site was ever given to the list, but those that stand there."""
    listed = _listed(made)
    new = tuple(serial for serial in _serials(made, site) if serial not in listed)
    if new:
        append_lines(made.revoked, new)
    return new


def _listed(made: Provisioned) -> Sequence[str]:
    return made.revoked.read_text(encoding="ascii").split() if made.revoked.exists() else ()


def _serials(made: Provisioned, site: str) -> tuple[str, ...]:
    """Of all certificates that a site was ever given; a lost file keeps no site admitted."""
    path = made.certificates(site)
    given = x509.load_pem_x509_certificates(path.read_bytes()) if path.exists() else ()
    return tuple(f"{certificate.serial_number:x}" for certificate in given)


def _set_sites(made: Provisioned, sites: tuple[str, ...]) -> None:
    set_values(made.folder / "coordinator.toml", {"sites": sites})
    write_enrolments(open_provisioned(made.folder))


def _ring(folder: Path) -> None:
    """Have the link look now, if one runs."""
    bell = Bell()
    try:
        bell.ring(address_of(folder))
    finally:
        bell.close()
