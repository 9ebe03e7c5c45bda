"""Join with a one-time token: ask the coordinator that it speaks of, and nobody else.

First the authority's certificate is fetched and compared with the token; nothing is sent with
that. Only over TLS with a certificate of that authority does the request follow.
"""

import http.client
import json
import ssl
from http import HTTPStatus

from asterion_shared.connection_check import split_address
from asterion_shared.enrolment_files import (
    MOST_BYTES,
    Enrolment,
    EnrolmentRequest,
    enrolment_from,
)
from asterion_shared.enrolment_tokens import Token
from asterion_shared.errors import ConnectionProblemError, UnreachableError
from asterion_shared.fingerprints import certificate_fingerprint

TIMEOUT_SECONDS = 20.0


def enrolment_by_token(address: str, token: Token, request: EnrolmentRequest) -> Enrolment:
    """Send a request to an inviting coordinator; its answer.

    Args:
        address: ``host:port`` of the invitation.
        token: as the operator gave it.
        request: the site's.

    Raises:
        UnreachableError: nobody answers there: the invitation may be over.
        ConnectionProblemError: somebody else answers, or the coordinator refuses.
        FileProblemError, SettingsError: the answer does not hold.
    """
    host, port = split_address(address)
    root = _authority(host, port, token)
    context = ssl.create_default_context(cadata=root)
    body = json.dumps({"token": token.secret, "request": request.model_dump(mode="json")})
    status, answer = _call(host, port, context, "POST", "/enrolment", body.encode())
    if status != HTTPStatus.OK:
        msg = f"the coordinator at {address} does not enrol this site: {_problem(answer)}"
        raise ConnectionProblemError(msg)
    try:
        values = dict(json.loads(answer))
    except (ValueError, TypeError):
        msg = f"{address} does not answer as an invitation does; check the address and the port"
        raise ConnectionProblemError(msg) from None
    return enrolment_from(values, address)


def _authority(host: str, port: int, token: Token) -> str:
    """The authority's certificate, PEM, if it is the token's."""
    # Whoever answers is believed nothing yet, and sent nothing: the token decides below.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    status, answer = _call(host, port, context, "GET", "/authority", None)
    try:
        is_right = status == HTTPStatus.OK and token.is_of(certificate_fingerprint(answer))
    except ValueError:
        is_right = False
    if not is_right:
        msg = (
            f"whoever answers at {host}:{port} is not the coordinator of this token, and nothing "
            "was sent; check the address, and ask its operator"
        )
        raise ConnectionProblemError(msg)
    return answer.decode("ascii")


def _call(
    host: str, port: int, context: ssl.SSLContext, method: str, path: str, body: bytes | None
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read(MOST_BYTES)
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message.lower()
        msg = f"the certificate at {host}:{port} does not hold: {why}; use a name it was made for"
        raise ConnectionProblemError(msg) from None
    except (ssl.SSLError, http.client.HTTPException):
        msg = f"{host}:{port} does not answer as an invitation does; check the address and the port"
        raise ConnectionProblemError(msg) from None
    except OSError as error:
        why = (error.strerror or "no answer").lower()
        msg = f"nobody invites at {host}:{port} ({why}); the invitation may be over: ask for one"
        raise UnreachableError(msg) from None
    finally:
        connection.close()


def _problem(answer: bytes) -> str:
    try:
        words = str(json.loads(answer)["problem"])[:500]
    except (ValueError, KeyError, TypeError):
        return "no reason was given"
    # Nobody has said yet that it is the coordinator; a terminal would carry out what it writes.
    return "".join(letter if letter.isprintable() else " " for letter in words)
