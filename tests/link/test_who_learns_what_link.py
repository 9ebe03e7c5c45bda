"""What docs/privacy.md says of the link: who learns what by the carrier itself.

A real server and real sites on the loopback interface. What orders and reports hold is in
tests/privacy/test_who_learns_what.py; here is what the link adds to them, and to whom it shows it.
"""

import logging
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.link.loopback import (
    SITES,
    Loopback,
    Site,
    eventually,
    noise,
    order_content,
    refusal_of,
    report_content,
)

from asterion_client.link_session import LinkSession
from asterion_server.certificates import authority_certificate, leaf_certificate
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link import link_pb2_grpc as service
from asterion_shared.link.channel import MESSAGE_OPTIONS
from asterion_shared.link.identity import SITE_URI, Identity
from asterion_shared.link.parcels import to_wire
from asterion_shared.link.records import order_key, pack

UPDATE = noise(300_000, 7)  # 1.2 MB: two chunks, lies beside the queue
WEIGHTS = noise(300_000, 8)
SMALL = noise(50, 9)  # travels and lies in the queue itself


def answered(session: LinkSession, update: np.ndarray) -> None:
    order = eventually(lambda: session.next_order(0.2), 40)
    session.send(order, pack(report_content(update), session._blobs.add))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def pieces(vector: np.ndarray) -> list[bytes]:
    """Bytes of a vector that no other data hold by chance."""
    data = vector.tobytes()
    return [data[start : start + 24] for start in (0, len(data) // 2, len(data) - 24)]


def test_who_holds_ca_pem_and_no_certificate_gets_a_handshake_that_fails(
    link: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asterion.link")
    root = link.made.root_certificate
    context = ssl.create_default_context(cafile=str(root))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", link.made.settings.port), 10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secured,
    ):
        # In TLS 1.3 our side is done before the other one has looked for our certificate.
        assert _heard(secured) == b""
    credentials = grpc.ssl_channel_credentials(root.read_bytes())
    site = link.site()
    with grpc.secure_channel(link.address, credentials, MESSAGE_OPTIONS) as channel:
        stub = service.LinkStub(channel)
        for work in (
            lambda: next(stub.Attend(site.hello())),
            lambda: stub.Submit(wire.Report(key=bytes(32))),
        ):
            details, status = refusal_of(work)
            assert (status, details.startswith("asterion")) == (grpc.StatusCode.UNAVAILABLE, False)
    assert link.store.sessions() == []
    assert caplog.messages == [line for line in caplog.messages if "refused" not in line]


def _heard(secured: ssl.SSLSocket) -> bytes:
    """All that the other side says until it ends the connection."""
    heard = b""
    try:
        while data := secured.recv(65_536):
            heard += data
    except (ssl.SSLError, ConnectionResetError):
        return heard
    return heard


def test_a_certificate_that_somebody_made_is_none(link: Loopback) -> None:
    """An authority of the same name, a site's name in the certificate: TLS itself refuses it."""
    key, own = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    names = [x509.UniformResourceIdentifier(f"{SITE_URI}north")]
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    made = leaf_certificate(
        "north", names, usage, own.public_key(), key, authority_certificate(key)
    )
    pem = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    forged = Identity(link.made.root_certificate.read_bytes(), made, pem)
    stub = service.LinkStub(link.channel(forged))
    details, status = refusal_of(lambda: next(stub.Attend(link.site().hello())))
    assert (status, details.startswith("asterion")) == (grpc.StatusCode.UNAVAILABLE, False)
    assert link.store.sessions() == []


def test_the_port_has_calls_of_sites_alone() -> None:
    """Nothing lists sites or runs, submits, stops or enrols; that needs the coordinator's disk."""
    calls = wire.DESCRIPTOR.services_by_name["Link"].methods_by_name
    assert set(calls) == {"Attend", "Download", "Offer", "Upload", "Submit"}


def test_what_the_link_adds_to_a_message() -> None:
    """Every field of every message but those of the records themselves."""
    fields = {
        name: {field.name for field in message.fields}
        for name, message in wire.DESCRIPTOR.message_types_by_name.items()
    }
    for records in ("Records", "Record", "Values", "Value", "Arrays", "Array", "Integers",
                    "Numbers", "Truths", "Texts", "Datas"):  # fmt: skip
        del fields[records]
    assert fields == {
        # From a site.
        "Hello": {"format", "version", "state_id", "instance_id"},
        "Wanted": {"key", "part", "chunks"},
        "Report": {"key", "content"},
        "Chunk": {"key", "part", "number", "packed", "data"},
        # To a site.
        "Notice": {"welcome", "order", "withdrawn", "beat"},
        "Welcome": {"site", "seconds_between_beats"},
        "Order": {"key", "run", "round", "message_type", "submission", "attempt", "seconds_left",
                  "content"},
        "Withdrawn": {"key"},
        "Beat": set(),
        "Needed": {"parts"},
        "NeededPart": {"part", "chunks"},
        "Received": {"num_chunks"},
        "Receipt": {"known"},
        # Both ways.
        "Parcel": {"parts", "lossless"},
        "Part": {"size", "inline", "chunks"},
    }  # fmt: skip


@contextmanager
def tapped(port: int) -> Iterator[tuple[str, list[bytes]]]:
    """A way to a port of this machine, and all that passes it, both ways."""
    seen: list[bytes] = []
    listener, ends_of = socket.create_server(("127.0.0.1", 0)), list[socket.socket]()

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                seen.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the test is over

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            ends_of.extend((near, far))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"localhost:{listener.getsockname()[1]}", seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for end in ends_of:
            end.close()


def test_the_network_sees_sizes_times_and_the_coordinators_name_on_the_link(
    link: Loopback,
) -> None:
    grid = link.grid("secretrun")
    with tapped(link.made.settings.port) as (way, seen):
        session = link.session("north", address=way)
        key = link.post(grid, "north", vector=WEIGHTS)
        answered(session, UPDATE)
        eventually(lambda: link.store.report(key.hex()))
        session.stop()
    told = b"".join(seen)
    for secret in (b"secretrun", b"north", b"asterion:site", b"train", key,
                   *pieces(WEIGHTS), *pieces(UPDATE)):  # fmt: skip
        assert secret not in told
    assert b"localhost" in told  # the name that the site dials, in the clear (SNI)
    # Both large vectors and little else: sizes are what remains.
    assert len(told) == pytest.approx(WEIGHTS.nbytes + UPDATE.nbytes, rel=0.03)


def test_what_the_link_stores_and_when_it_goes(link: Loopback) -> None:
    """Order and report until the next round is posted, each in one place; then neither."""
    grid, session = link.grid(), link.session("north")
    center = link.made.folder
    key = link.post(grid, "north", vector=WEIGHTS)
    answered(session, UPDATE)
    eventually(lambda: link.store.report(key.hex()))
    stored = {name for name in files_below(center) if name.startswith("link/")}
    queue = {f"link/queue.sqlite{end}" for end in ("", "-wal", "-shm")}
    large = stored - queue
    assert {str(Path(name).parent) for name in large} == {"link/orders/run", "link/reports/north"}
    for name, data in files_below(center).items():
        for vector, home in ((UPDATE, "link/reports/north"), (WEIGHTS, "link/orders/run")):
            assert any(p in data for p in pieces(vector)) == (
                name in large and name.startswith(home) and len(data) >= vector.nbytes
            )
    (reply,) = grid.pull_messages([key.hex()])
    del reply
    second = link.post(grid, "north", 2, vector=noise(300_000, 10))
    assert (link.store.order(key.hex()), link.store.report(key.hex())) == (None, None)
    assert link.store.order(second.hex()) is not None
    reports = center / "link" / "reports" / "north"
    eventually(lambda: not any(path.is_file() for path in reports.iterdir()), 20)
    assert not any(p in data for p in pieces(UPDATE) for data in files_below(center).values())
    grid.close()
    assert link.store.order(second.hex()) is None
    assert not list((center / "link" / "orders").rglob("run/*"))


def test_others_on_the_coordinators_machine_cannot_enter_its_folder(link: Loopback) -> None:
    assert stat.S_IMODE(link.made.folder.stat().st_mode) == 0o700


def test_another_site_learns_neither_of_orders_nor_of_chunks_of_others(link: Loopback) -> None:
    """It knows run, plan and weights, so it can form the key of another site's order."""
    grid = link.grid()
    north, south = link.site("north"), link.site("south")
    north.attend()
    south.attend()
    keys = {name: link.post(grid, name, vector=WEIGHTS) for name in ("north", "south")}
    content = order_content("north", 1, WEIGHTS)
    guessed = order_key("north", content, pack(content, south.blobs.add))
    absent = order_key("west", order_content("west", 1, WEIGHTS), pack(content, south.blobs.add))
    assert guessed == keys["north"]
    assert link.store.order(absent.hex()) is None
    parcel = to_wire(south.pack(report_content(UPDATE)))
    told = [
        refusal_of(work)
        for key in (guessed, absent)
        for work in (
            lambda k=key: list(south.stub.Download(wire.Wanted(key=k, part=1, chunks=[0]))),
            lambda k=key: south.stub.Offer(wire.Report(key=k, content=parcel)),
            lambda k=key: south.stub.Submit(wire.Report(key=k, content=parcel)),
        )
    ]
    assert len(set(told)) == 1, "an order of another site is told from none"
    # What north has sent is asked of south again: who has which bytes is told to nobody.
    report = to_wire(north.pack(report_content(UPDATE)))
    first = north.stub.Offer(wire.Report(key=keys["north"], content=report))
    north.stub.Upload(_chunks(north, keys["north"]))
    assert not north.stub.Offer(wire.Report(key=keys["north"], content=report)).parts
    assert south.stub.Offer(wire.Report(key=keys["south"], content=parcel)) == first


def _chunks(site: Site, key: bytes) -> Iterator[wire.Chunk]:
    part = site.pack(report_content(UPDATE)).parts[1]
    for number in range(part.num_chunks):
        data = site.blobs.read(part, number)
        yield wire.Chunk(key=key, part=1, number=number, data=data)


def test_a_site_hears_of_its_own_orders_and_no_other_name(link: Loopback) -> None:
    grid = link.grid()
    call = link.site("south").attend()
    for name in SITES:
        link.post(grid, name, vector=SMALL)
    notice = next(n for n in call if n.WhichOneof("what") == "order")
    told = notice.SerializeToString()
    assert b"south" in told
    assert not any(name.encode() in told for name in SITES if name != "south")
    link.post(grid, "north", 2, vector=SMALL)
    rest = next(n for n in call)  # its order of round 1 is over, or a beat; never north's
    assert rest.WhichOneof("what") in ("withdrawn", "beat")
