"""Who the sites of a federation are: this site's private key, and the public keys of all."""

from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from asterion_client.settings import ConnectionSettings
from asterion_client.site_keys import read_key
from asterion_shared.errors import FileProblemError, OrderRefusedError

PublicKeys = Mapping[str, ec.EllipticCurvePublicKey]
_FIX = "join again with the file that the coordinator's operator made: asterion site join"


def read_identities(
    connection: ConnectionSettings | None, site: str, folder: Path
) -> tuple[PublicKeys, ec.EllipticCurvePrivateKey]:
    """The public keys of all sites by name, and this site's private key.

    Args:
        connection: of the site's settings.
        site: its name.
        folder: where ``site.toml`` lies.

    Raises:
        OrderRefusedError: ``no_roster``: ``connection.peers`` is not set.
        FileProblemError: a key cannot be read, or this site's own is not among the public ones.
    """
    if connection is None or connection.peers is None:
        msg = "the plan has a secure sum and site.toml no connection.peers; name the folder of keys"
        raise OrderRefusedError(msg, code="no_roster")
    private = read_key(folder / connection.private_key)
    peers = folder / connection.peers
    roster: dict[str, ec.EllipticCurvePublicKey] = {}
    for path in sorted(peers.glob("*.pem")):
        public = _read_public_key(path)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise FileProblemError(path, "is not an EC public key", _FIX)
        roster[path.stem] = public
    if roster.get(site) != private.public_key():
        what = f"has no {site}.pem that belongs to {connection.private_key}"
        raise FileProblemError(peers, what, _FIX)
    return roster, private


def _read_public_key(path: Path) -> object:
    try:
        return load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        what = f"cannot be read as a key ({type(error).__name__})"
        raise FileProblemError(path, what, _FIX) from None
