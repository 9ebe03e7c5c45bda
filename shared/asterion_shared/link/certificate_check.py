"""Whether what one end of the link proves itself with belongs together, and holds now."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from asterion_shared.errors import FileProblemError, Problem
from asterion_shared.link.identity import Identity, named_site, read_identity
from asterion_shared.link.refusals import LinkRefusedError

WARNING_DAYS = 30
"""So long before a certificate ends it is named."""


def certificate_problems(
    root: Path,
    certificate: Path,
    private_key: Path,
    *,
    site: str | None,
    renew: str,
    now: datetime | None = None,
) -> Iterator[Problem]:
    """Every problem of one end's certificate, key and authority.

    Args:
        root: PEM file of the authority's certificate.
        certificate: this end's, PEM.
        private_key: of that certificate.
        site: name of the site; None at the coordinator.
        renew: what to do about a certificate that is none of this authority's, or ends.
        now: UTC; None: the clock's.

    Yields:
        Problems, those of files that are missing or unreadable first; nothing when all is well.
    """
    try:
        identity = read_identity(root, certificate, private_key)
        authority = _authority(root, identity)
    except FileProblemError as error:
        yield Problem(where=error.path, what=error.what, fix=error.fix)
        return
    own, moment = x509.load_pem_x509_certificate(identity.certificate), now or datetime.now(UTC)
    yield from _date_problems(root, authority, renew, moment)
    yield from _own_problems(certificate, own, authority, renew, moment)
    if site is not None:
        yield from _name_problems(certificate, own, site)


def site_problems(
    certificate: Path, site: str, root: Path, now: datetime | None = None
) -> Iterator[Problem]:
    """What is wrong with the certificate that a coordinator gave a site, or will soon be.

    Args:
        certificate: the newest that it was given, PEM; a missing file is no problem.
        site: the site's name.
        root: PEM file of the authority's certificate.
        now: UTC; None: the clock's.
    """
    if not (certificate.is_file() and root.is_file()):
        return
    renew = f"enrol site {site} again with its request, and give it the new enrolment"
    try:
        own = x509.load_pem_x509_certificate(certificate.read_bytes())
        authority = x509.load_pem_x509_certificate(root.read_bytes())
    except ValueError:
        yield Problem(where=str(certificate), what="is not a PEM certificate", fix=renew)
        return
    yield from _own_problems(certificate, own, authority, renew, now or datetime.now(UTC))


def _own_problems(
    path: Path, own: x509.Certificate, authority: x509.Certificate, renew: str, now: datetime
) -> Iterator[Problem]:
    try:
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        what = "was not issued by the authority in ca.pem"
        yield Problem(where=str(path), what=what, fix=renew)
    yield from _date_problems(path, own, renew, now)


def certificate_is_of(
    certificate: Path, root: Path, public_key: str, now: datetime | None = None
) -> Iterator[Problem]:
    """Whether a certificate is of a public key and of an authority, and holds now.

    Args:
        certificate: PEM file.
        root: PEM file of the authority's certificate.
        public_key: PEM.
        now: UTC; None: the clock's.

    Yields:
        Problems; nothing when all is well.
    """
    fix = "have the authority issue it for the key of the request"
    try:
        own = x509.load_pem_x509_certificate(certificate.read_bytes())
        authority = x509.load_pem_x509_certificate(root.read_bytes())
    except OSError as error:
        what = (error.strerror or "unreadable").lower()
        yield Problem(where=str(certificate), what=what, fix="check the path")
        return
    except ValueError:
        yield Problem(where=str(certificate), what="is not a PEM certificate", fix=fix)
        return
    if own.public_key() != load_pem_public_key(public_key.encode()):
        yield Problem(where=str(certificate), what="is of another key", fix=fix)
    yield from _own_problems(certificate, own, authority, fix, now or datetime.now(UTC))


def papers_problems(
    source: str, root: bytes, certificate: bytes, site: str, now: datetime | None = None
) -> Iterator[Problem]:
    """Whether a site's certificate is of an authority, names the site, and holds now.

    Args:
        source: where both came from, for messages.
        root: the authority's certificate, PEM.
        certificate: the site's, PEM.
        site: its name.
        now: UTC; None: the clock's.

    Yields:
        Problems; nothing when all is well.
    """
    own, authority = (x509.load_pem_x509_certificate(pem) for pem in (certificate, root))
    moment, renew = now or datetime.now(UTC), "ask the coordinator's operator to enrol this site"
    path = Path(source)
    yield from _date_problems(path, authority, renew, moment)
    yield from _own_problems(path, own, authority, renew, moment)
    yield from _name_problems(path, own, site)


def raise_first(problems: Iterable[Problem]) -> None:
    """Raise the first fatal problem as an error.

    Raises:
        FileProblemError: there is one.
    """
    for problem in problems:
        if problem.fatal:
            raise FileProblemError(problem.where, problem.what, problem.fix)


def _authority(root: Path, identity: Identity) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(identity.root)
    except ValueError:
        fix = "put the coordinator's ca.pem there"
        raise FileProblemError(root, "is not a PEM certificate", fix) from None


def _date_problems(
    path: Path, held: x509.Certificate, renew: str, now: datetime
) -> Iterator[Problem]:
    begins, ends = held.not_valid_before_utc, held.not_valid_after_utc
    if now < begins:
        what = (
            f"holds from {begins:%Y-%m-%d %H:%M} UTC on, and this clock says {now:%Y-%m-%d %H:%M}"
        )
        yield Problem(where=str(path), what=what, fix="set the clock of this machine")
    elif now > ends:
        yield Problem(where=str(path), what=f"ended on {ends:%Y-%m-%d}", fix=renew)
    elif ends - now < timedelta(days=WARNING_DAYS):
        what = f"ends on {ends:%Y-%m-%d}, in {(ends - now).days} days"
        yield Problem(where=str(path), what=what, fix=renew, fatal=False)


def _name_problems(path: Path, own: x509.Certificate, site: str) -> Iterator[Problem]:
    try:
        named = named_site(own)
    except LinkRefusedError:
        what = "is not the certificate of a site"
        yield Problem(where=str(path), what=what, fix="join again: asterion site join")
        return
    if named not in (None, site):  # one that names no site is told by its key
        what = f"is the certificate of site {named!r}, and site.toml says {site!r}"
        fix = "correct name in site.toml, or join with this site's own enrolment"
        yield Problem(where=str(path), what=what, fix=fix)
