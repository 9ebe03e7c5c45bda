"""Why one end of the link refuses what the other sent: a code for each kind, and its gRPC status.

The code travels as the status' text; other words stay in the log of the side that refused.
"""

import grpc

from asterion_shared.errors import ConnectionProblemError

REFUSALS: dict[str, grpc.StatusCode] = {
    "malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "too_large": grpc.StatusCode.OUT_OF_RANGE,
    "wrong_chunk": grpc.StatusCode.DATA_LOSS,
    "chunks_missing": grpc.StatusCode.FAILED_PRECONDITION,
    "not_offered": grpc.StatusCode.FAILED_PRECONDITION,
    "unknown_order": grpc.StatusCode.NOT_FOUND,
    "order_over": grpc.StatusCode.FAILED_PRECONDITION,
    "foreign": grpc.StatusCode.PERMISSION_DENIED,
    "revoked": grpc.StatusCode.PERMISSION_DENIED,
    "second_process": grpc.StatusCode.ALREADY_EXISTS,
    "other_version": grpc.StatusCode.FAILED_PRECONDITION,
    "quota": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "disk_problem": grpc.StatusCode.ABORTED,
}
"""``malformed``: not a message of this version; ``too_large``: more bytes than the order allows;
``wrong_chunk``: not the bytes that were announced; ``chunks_missing``: a report came before its
chunks; ``not_offered``: chunks of a report that nobody announced; ``unknown_order`` and
``order_over``: an answer to what this site was never asked, or no longer is; ``foreign``: the
certificate is no enrolled site's; ``revoked``: no longer admitted; ``second_process``: another
process has the site's session; ``other_version``: the sides do not fit; ``quota``: too much at
once; ``disk_problem``: the coordinator cannot store it."""

_MARK = "asterion: "

VERSION_KEY = "asterion-version"
"""Of the trailing metadata of ``other_version``: which version the coordinator has."""


class LinkRefusedError(ConnectionProblemError):
    """One end of the link refused a message. ``code`` is one of :data:`REFUSALS`."""

    exit_code = 33

    def __init__(self, *, code: str, why: str) -> None:
        self.code, self.why = code, why
        super().__init__(f"the coordinator's link refused this site ({code}): {why}")


def status_text(code: str) -> str:
    """What the other side is told."""
    return _MARK + code


def code_of(details: str | None) -> str:
    """The code of a status' text; empty when the link itself did not write it."""
    code = (details or "").removeprefix(_MARK)
    return code if details and details.startswith(_MARK) and code in REFUSALS else ""
