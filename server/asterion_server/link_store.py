"""The link's durable queue: orders, reports and sessions in one SQL database.

SQLite beside the coordinator's other files by default, PostgreSQL by URL. The run's process posts
and pulls, the link's process sends and receives; a change is committed, and so durable, before it
is acted on. The bytes of large parts lie beside it (:mod:`asterion_shared.link.blobs`).
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sql
from sqlalchemy import event as sql_event
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from asterion_server.link_migration import migrate
from asterion_server.link_tables import ORDER, REPORT, SESSION, VERSION
from asterion_shared.errors import DiskProblemError
from asterion_shared.link import link_pb2 as wire
from asterion_shared.link.parcels import Parcel, Part, from_wire, to_wire
from asterion_shared.link.refusals import LinkRefusedError

BUSY_SECONDS = 30.0
TABLES_LOCK = 0x61737465
"""Number of the advisory lock under which PostgreSQL's tables are made."""

SESSION_SECONDS = 30.0
"""A session without contact for so long may be taken over by another state folder."""

OrderState = Literal["open", "answered", "over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOrder:
    """An order to one site.

    Attributes:
        key: 64 hex digits, see :func:`asterion_shared.link.records.order_key`.
        site, run, round: whom it is for, and what of.
        message_type: of the Flower message.
        content: its records.
        submission: the process that posted it last.
        expires: UTC in seconds since 1970 after which it is over; None: never.
        attempt: how often it was sent.
        state: ``open``; ``answered``: its report is stored; ``over``: nobody wants a report.
    """

    key: str
    site: str
    run: str
    round: int
    message_type: str
    content: Parcel
    submission: int
    expires: float | None
    attempt: int = 0
    state: OrderState = "open"

    @property
    def is_wanted(self) -> bool:
        """Whether a report to it is still to come and would be taken now."""
        return self.state == "open" and (self.expires is None or self.expires >= time.time())


@dataclass(frozen=True, slots=True)
class SiteSession:
    """A site's last session.

    Attributes:
        site: its name.
        instance_id: of the site's process, hex.
        version: of its program.
        is_open: whether it is connected.
        opened, last_contact: UTC in seconds since 1970.
    """

    site: str
    instance_id: str
    version: str
    is_open: bool
    opened: float
    last_contact: float


class LinkStore:
    """The open database. Any thread and any number of processes may use it.

    Args:
        url: of SQLAlchemy, such as ``sqlite:///link.sqlite`` or ``postgresql+psycopg://...``.

    Raises:
        DiskProblemError: it cannot be opened or made.
        PlanMismatchError: a newer version of Asterion made it; an older one's is brought up to now.
    """

    def __init__(self, url: str) -> None:
        self._url = sql.engine.make_url(url)
        waiting = {"timeout": BUSY_SECONDS} if self._url.get_backend_name() == "sqlite" else {}
        self._engine = sql.create_engine(self._url, connect_args=waiting)
        if waiting:
            sql_event.listen(self._engine, "connect", _make_durable)
            sql_event.listen(self._engine, "begin", _begin_sqlite)
        self._reading = self._engine.execution_options(reads_only=True)
        try:
            self._make_tables()
        except BaseException:
            self.close()
            raise

    def _make_tables(self) -> None:
        with self._begin() as db:
            if self._url.get_backend_name() == "postgresql":
                # Two processes that make the tables at once would be in each other's way.
                db.execute(sql.select(sql.func.pg_advisory_xact_lock(TABLES_LOCK)))
            migrate(db, self._url.render_as_string())

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def post(self, orders: Sequence[StoredOrder]) -> None:
        """Store orders, all or none. One that is there is open again unless it was answered."""
        with self._begin() as db:
            for order in orders:
                known = db.scalar(sql.select(ORDER.c.state).where(ORDER.c.key == order.key))
                if known is None:
                    db.execute(ORDER.insert().values(**_row(order)))
                    continue
                again: dict[str, Any] = {"submission": order.submission, "expires": order.expires}
                if known == "over":
                    again["state"] = "open"
                db.execute(ORDER.update().where(ORDER.c.key == order.key).values(again))

    def order(self, key: str) -> StoredOrder | None:
        """An order by its key, or None."""
        with self._begin(reads_only=True) as db:
            row = db.execute(sql.select(ORDER).where(ORDER.c.key == key)).one_or_none()
        return None if row is None else _order_of(row)

    def open_orders(self, site: str) -> list[StoredOrder]:
        """What a site shall still answer, oldest round first."""
        wanted = sql.select(ORDER).where(ORDER.c.site == site, ORDER.c.state == "open")
        with self._begin(reads_only=True) as db:
            rows = db.execute(wanted.order_by(ORDER.c.round, ORDER.c.key)).all()
        return [order for order in map(_order_of, rows) if order.is_wanted]

    def count_attempt(self, key: str) -> int:
        """Note that an order is about to be sent; how often that makes."""
        with self._begin() as db:
            more = ORDER.update().where(ORDER.c.key == key)
            db.execute(more.values(attempt=ORDER.c.attempt + 1))
            return int(db.scalar(sql.select(ORDER.c.attempt).where(ORDER.c.key == key)) or 0)

    def is_open(self, key: str) -> bool:
        """Whether a report to an order is still wanted."""
        order = self.order(key)
        return order is not None and order.is_wanted

    def store_report(self, key: str, content: Parcel) -> bool:
        """Store a report to an open order; True when one is there already, which then counts.

        Raises:
            LinkRefusedError: ``unknown_order`` or ``order_over``.
        """
        with self._begin() as db:
            row = db.execute(
                sql.select(ORDER).where(ORDER.c.key == key).with_for_update()
            ).one_or_none()
            if row is None:
                raise LinkRefusedError(code="unknown_order", why=f"no order {key[:12]}")
            order = _order_of(row)
            if order.state == "answered":
                return True
            if not order.is_wanted:
                raise LinkRefusedError(code="order_over", why=f"order {key[:12]} is over")
            data = to_wire(content).SerializeToString()
            db.execute(REPORT.insert().values(key=key, content=data))
            answered = ORDER.update().where(ORDER.c.key == key)
            db.execute(answered.values(state="answered"))
        return False

    def report(self, key: str) -> Parcel | None:
        """The report to an order; None while there is none."""
        with self._begin(reads_only=True) as db:
            data = db.scalar(sql.select(REPORT.c.content).where(REPORT.c.key == key))
        return None if data is None else _parcel(data)

    def end(self, keys: Iterable[str]) -> None:
        """Nobody wants reports to these orders any more."""
        with self._begin() as db:
            over = ORDER.update().where(ORDER.c.key.in_(list(keys)), ORDER.c.state == "open")
            db.execute(over.values(state="over"))

    def reclaim(self, run: str, before_round: int, keep: Iterable[str] = ()) -> None:
        """Remove a run's orders of earlier rounds and their reports, but for those to keep."""
        old = sql.and_(ORDER.c.run == run, ORDER.c.round < before_round)
        with self._begin() as db:
            keys = set(db.scalars(sql.select(ORDER.c.key).where(old))) - set(keep)
            db.execute(REPORT.delete().where(REPORT.c.key.in_(keys)))
            db.execute(ORDER.delete().where(ORDER.c.key.in_(keys)))

    def order_parts(self, run: str) -> list[Part]:
        """The stored parts that a run's orders need."""
        with self._begin(reads_only=True) as db:
            rows = db.scalars(sql.select(ORDER.c.content).where(ORDER.c.run == run)).all()
        return [part for row in rows for part in _parcel(row).stored]

    def report_parts(self, site: str) -> list[Part]:
        """The stored parts that a site's reports need."""
        both = sql.select(REPORT.c.content).join(ORDER, ORDER.c.key == REPORT.c.key)
        with self._begin(reads_only=True) as db:
            rows = db.scalars(both.where(ORDER.c.site == site)).all()
        return [part for row in rows for part in _parcel(row).stored]

    def open_session(self, site: str, state_id: str, instance_id: str, version: str) -> None:
        """Give a site's session to a process of it; the same state folder takes over at once.

        Raises:
            LinkRefusedError: ``second_process``: another state folder has it, and was heard of in
                the last :data:`SESSION_SECONDS`.
        """
        now = time.time()
        with self._begin() as db:
            # A site that never had a session has no row to lock yet.
            db.execute(sql.select(VERSION.c.version).with_for_update())
            row = db.execute(
                sql.select(SESSION).where(SESSION.c.site == site).with_for_update()
            ).one_or_none()
            if row is not None and row.is_open and row.state_id != state_id:
                silent = now - row.last_contact
                if silent < SESSION_SECONDS:
                    why = f"another state folder of site {site!r} is connected"
                    raise LinkRefusedError(code="second_process", why=why)
            values = {
                "state_id": state_id,
                "instance_id": instance_id,
                "version": version,
                "is_open": True,
                "opened": now,
                "last_contact": now,
            }
            if row is None:
                db.execute(SESSION.insert().values(site=site, **values))
            else:
                db.execute(SESSION.update().where(SESSION.c.site == site).values(values))

    def touch_sessions(self, sites: Iterable[str]) -> None:
        """Note that these sites are connected now."""
        with self._begin() as db:
            heard = SESSION.update().where(SESSION.c.site.in_(list(sites)))
            db.execute(heard.values(last_contact=time.time()))

    def close_session(self, site: str, instance_id: str) -> None:
        """The site's process is gone; one that took over since stays."""
        own = sql.and_(SESSION.c.site == site, SESSION.c.instance_id == instance_id)
        with self._begin() as db:
            db.execute(SESSION.update().where(own).values(is_open=False))

    def close_all_sessions(self) -> None:
        """The link starts: whoever was connected no longer is."""
        with self._begin() as db:
            db.execute(SESSION.update().values(is_open=False))

    def sessions(self) -> list[SiteSession]:
        """The last session of each site that ever had one, sorted by name."""
        with self._begin(reads_only=True) as db:
            rows = db.execute(sql.select(SESSION).order_by(SESSION.c.site)).all()
        return [
            SiteSession(r.site, r.instance_id, r.version, r.is_open, r.opened, r.last_contact)
            for r in rows
        ]

    def num_orders(self) -> dict[str, int]:
        """How many orders are stored, by state; every state is there."""
        states = sql.select(ORDER.c.state, sql.func.count()).group_by(ORDER.c.state)
        with self._begin(reads_only=True) as db:
            found = {row[0]: int(row[1]) for row in db.execute(states)}
        return {state: found.get(state, 0) for state in get_args(OrderState)}

    def orders_at_work(self) -> dict[str, tuple[str, int]]:
        """Sites that were sent an order and have not answered, with its run and round."""
        wanted = sql.select(ORDER).where(ORDER.c.state == "open", ORDER.c.attempt > 0)
        with self._begin(reads_only=True) as db:
            orders = map(_order_of, db.execute(wanted.order_by(ORDER.c.round)).all())
        return {order.site: (order.run, order.round) for order in orders if order.is_wanted}

    def orders_of(self, run: str) -> dict[str, tuple[int, str]]:
        """By site, the round of the newest order of a run, and how it stands.

        It is ``asked`` before the site has it, then ``working``, then ``answered`` or ``over``.
        """
        columns = ORDER.c.site, ORDER.c.round, ORDER.c.state, ORDER.c.attempt
        wanted = sql.select(*columns).where(ORDER.c.run == run).order_by(ORDER.c.round)
        with self._begin(reads_only=True) as db:
            rows = db.execute(wanted).all()
        begun = {False: "asked", True: "working"}
        return {
            r.site: (r.round, begun[r.attempt > 0] if r.state == "open" else r.state) for r in rows
        }

    @contextmanager
    def _begin(self, *, reads_only: bool = False) -> Iterator[sql.Connection]:
        engine = self._reading if reads_only else self._engine
        try:
            with engine.begin() as db:
                yield db
        except OperationalError as error:
            reason = str(error.orig).splitlines()[0] if error.orig else "cannot be used"
            raise DiskProblemError(self._url.render_as_string(), reason) from error
        except SQLAlchemyError as error:
            raise DiskProblemError(self._url.render_as_string(), type(error).__name__) from error


def _begin_sqlite(connection: sql.Connection) -> None:
    # A transaction that reads first and then writes must lock first, or it fails when another
    # process wrote in between.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _make_durable(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _write_ahead(connection: Any) -> None:
    # While another process makes the file or turns its log on, SQLite refuses at once: it does not
    # wait as it does for other locks.
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _row(order: StoredOrder) -> dict[str, Any]:
    return {
        "key": order.key,
        "site": order.site,
        "run": order.run,
        "round": order.round,
        "message_type": order.message_type,
        "content": to_wire(order.content).SerializeToString(),
        "state": order.state,
        "attempt": order.attempt,
        "submission": order.submission,
        "expires": order.expires,
    }


def _order_of(row: Any) -> StoredOrder:
    return StoredOrder(
        key=row.key,
        site=row.site,
        run=row.run,
        round=row.round,
        message_type=row.message_type,
        content=_parcel(row.content),
        submission=row.submission,
        expires=row.expires,
        attempt=row.attempt,
        state=row.state,
    )


def _parcel(data: bytes) -> Parcel:
    return from_wire(wire.Parcel.FromString(data))
