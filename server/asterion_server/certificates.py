"""X.509 certificates of the coordinator's authority (RFC 5280): what is in each."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from asterion_shared.errors import UserInputError

AUTHORITY_DAYS, LEAF_DAYS = 3650, 820


def authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate that an authority signs for itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Asterion coordinator authority")])
    return (
        _dated(AUTHORITY_DAYS, name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def leaf_certificate(
    common_name: str,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    key: ec.EllipticCurvePublicKey,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
) -> bytes:
    """The certificate of one end, PEM.

    Args:
        common_name: for people; cut at 64 characters.
        names: whom it stands for.
        usage: of a server or of a client.
        key: its public key.
        authority_key: signs it.
        authority: the certificate of that key.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _dated(LEAF_DAYS, subject, authority.subject, key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    return certificate.public_bytes(Encoding.PEM)


def host_name(host: str) -> x509.GeneralName:
    """A name or an address as certificates hold it.

    Raises:
        UserInputError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # not an address, so a name
    try:
        return x509.DNSName(host)
    except ValueError:
        msg = f"the host {host!r} is neither an address nor a name in ASCII; correct --host"
        raise UserInputError(msg) from None


def _dated(
    days: int, subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    # An hour back, because clocks of sites may be behind.
    begins = datetime.now(UTC) - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
    )


def _usage(*, key_cert_sign: bool = False, digital_signature: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
