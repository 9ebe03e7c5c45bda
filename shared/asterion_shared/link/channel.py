"""How a site reaches the link, and the limits both ends hold."""

import grpc

from asterion_shared.link.identity import Identity

WIRE_FORMAT = 1
"""Version of the wire; both sides must have the same."""

MOST_MESSAGE_BYTES = 3 * 2**20
"""A chunk, or the announcement of the largest parcel, with room."""

RECEIVE_OPTION = "grpc.max_receive_message_length"
MESSAGE_OPTIONS: list[tuple[str, int | str]] = [
    (RECEIVE_OPTION, MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    # A dead peer is noticed within half a minute, though TCP would wait for hours.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 15_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]
"""gRPC settings of both ends."""


def open_channel(address: str, identity: Identity, *, proxy: str | None = None) -> grpc.Channel:
    """A channel from a site to the coordinator; nothing is sent yet.

    Args:
        address: ``host:port`` of the coordinator.
        identity: the site's.
        proxy: ``http://host:port`` of an HTTP CONNECT proxy; None: as ``https_proxy`` says.
    """
    credentials = grpc.ssl_channel_credentials(
        identity.root, identity.private_key, identity.certificate
    )
    options = [
        *MESSAGE_OPTIONS,
        ("grpc.initial_reconnect_backoff_ms", 200),
        # How long one attempt may take: TCP and TLS need three round trips, of 4 s on a bad line.
        ("grpc.min_reconnect_backoff_ms", 20_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Two channels of a process would else share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if proxy is not None:
        options.append(("grpc.http_proxy", proxy))
    return grpc.secure_channel(address, credentials, options)
