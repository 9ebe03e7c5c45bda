"""The site's Flower ``ClientApp``: decode, let the site work, let out what may leave."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from asterion_client.egress import LOG as SITE_LOG
from asterion_client.egress import code_of, describe, guarded, hashed, refusal, reply
from asterion_client.egress_log import EgressLog
from asterion_client.settings import read_site_settings
from asterion_client.site_audit import (
    NOWHERE,
    Place,
    record_answer,
    record_order,
    site_trail,
)
from asterion_shared.audit import AuditTrail
from asterion_shared.errors import OrderRefusedError
from asterion_shared.flower_messages import MESSAGE_TYPES, AddressedOrder, decode_order
from asterion_shared.messages import Order, Report, order_sha256

SITE_VARIABLE = "ASTERION_SITE"
"""Environment variable with the path of ``site.toml``; the node setting ``site-toml`` wins."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where orders to one site are answered.

    Attributes:
        name: the site's own name; an order for another name is refused.
        answer: does the work; raises an error with a reason code to refuse.
        audit: where orders and answers are written down before they count; None: nowhere.
        log: where every number that leaves is put on record before it does; None: nowhere.
        still_holds: whether the last answer may be given again to the same order.
    """

    name: str
    answer: Callable[[Order], Report]
    audit: AuditTrail | None = None
    log: EgressLog | None = None
    still_holds: Callable[[Order], bool] = lambda order: True


@dataclass(slots=True)
class _Memory:
    """The last order of a node: older ones are stale, the same one gets the same bytes again."""

    flower_run: int = 0
    round: int = -1
    digest: str = ""
    content: RecordDict | None = None
    plans: set[str] = field(default_factory=set)
    """Hashes of those that came."""


def client_app_of(desk_of: Callable[[Context], Desk]) -> ClientApp:
    """A ``ClientApp`` that answers count, train and evaluate orders.

    It never raises: whatever goes wrong leaves as a reason code.

    Args:
        desk_of: finds the site of a node; called once for each order.
    """
    app = ClientApp()
    memories: dict[int, _Memory] = {}
    lock = Lock()

    def handle(message: Message, context: Context) -> Message:
        with lock:
            memory = memories.setdefault(context.node_id, _Memory())
            return Message(_content(message, context, desk_of, memory), reply_to=message)

    app.query()(handle)
    app.train()(handle)
    app.evaluate()(handle)
    return app


def _content(
    message: Message, context: Context, desk_of: Callable[[Context], Desk], memory: _Memory
) -> RecordDict:
    desk: Desk | None = None
    addressed: AddressedOrder | None = None
    try:
        desk = desk_of(context)
        addressed = decode_order(message.content)
        _check(addressed, desk, message, memory)
    except Exception as error:  # the last guard: whatever it is, only a code may leave
        code = code_of(error)
        SITE_LOG.warning("an order was refused: %s", describe(error, code))
        order = None if addressed is None else addressed.order
        return _let_out(desk, reply(refusal(code)), order, unwritten=memory)
    order, digest = addressed.order, order_sha256(addressed.order, addressed.site)
    about = f"{order.run} {order.round}"
    if memory.content is not None and memory.digest == digest and _holds(desk, order):
        SITE_LOG.info("order %s: %s again, the same answer", hashed(about), order.phase)
        return _put_on_record(desk, order, memory.content)
    answer = guarded(lambda: _work(desk, order, memory), about=about)
    content = _let_out(desk, reply(answer, order), order)
    if "report" in content:
        memory.digest, memory.content = digest, content
        SITE_LOG.info("order %s: %s answered", hashed(about), order.phase)
    return content


def _work(desk: Desk, order: Order, memory: _Memory) -> Report:
    _write_down(desk, order, memory)
    return desk.answer(order)


def _write_down(desk: Desk, order: Order, memory: _Memory) -> None:
    if desk.audit is not None:
        record_order(desk.audit, order, new_plan=order.plan.sha256 not in memory.plans)
        memory.plans.add(order.plan.sha256)


def refuse_unread(code: str, stated: Place = NOWHERE) -> RecordDict:
    """The refusal, once it is on record, of an order that nobody reads.

    Args:
        code: of :data:`asterion_shared.messages.REASON_CODES`.
        stated: run and round as the carrier has them, if it does.

    Raises:
        AsterionError: the site's settings cannot be read.
    """
    SITE_LOG.warning("an order was refused unread: %s", code)
    desk = _named_desk(os.environ.get(SITE_VARIABLE))
    return _let_out(desk, reply(refusal(code)), None, stated=stated)


def _let_out(
    desk: Desk | None,
    content: RecordDict,
    order: Order | None,
    unwritten: _Memory | None = None,
    stated: Place = NOWHERE,
) -> RecordDict:
    """An answer once it is on record; where it cannot be, no more than a code leaves.

    An order that is ``unwritten`` so far is written down before its answer. One that was not read
    has its run and round ``stated``.
    """
    content = _put_on_record(desk, order, content, stated)
    if desk is None or desk.audit is None:
        return content
    try:
        if order is not None and unwritten is not None:
            _write_down(desk, order, unwritten)
        return record_answer(desk.audit, content, order, stated)
    except Exception as error:
        code = code_of(error)
        SITE_LOG.warning("the audit trail cannot go on: %s", describe(error, code))
        return reply(refusal(code))


def _put_on_record(
    desk: Desk | None, order: Order | None, content: RecordDict, stated: Place = NOWHERE
) -> RecordDict:
    """An answer whose numbers are on record, or a bare refusal where they cannot be put there."""
    if desk is None or desk.log is None:
        return content
    try:
        desk.log.write(order, content, stated)
    except Exception as error:  # what is not on record does not leave, whatever the reason
        code = code_of(error)
        SITE_LOG.warning("a reply cannot be put on record: %s", describe(error, code))
        return reply(refusal(code))
    return content


def _holds(desk: Desk, order: Order) -> bool:
    """Whether what was answered may be sent again; what stops that stops a new answer as well."""
    try:
        return desk.still_holds(order)
    except Exception as error:  # the last guard: a new answer is asked for, and refused
        SITE_LOG.warning("an answer is not given again: %s", describe(error, code_of(error)))
        return False


def _check(addressed: AddressedOrder, desk: Desk, message: Message, memory: _Memory) -> None:
    order, metadata = addressed.order, message.metadata
    if addressed.site != desk.name:
        msg = f"the order is for site {addressed.site!r}, this is {desk.name!r}; enrol it so"
        raise OrderRefusedError(msg, code="settings_invalid")
    if metadata.message_type != MESSAGE_TYPES[order.phase]:
        msg = f"a {metadata.message_type} message carries the phase {order.phase!r}"
        raise OrderRefusedError(msg, code="plan_invalid")
    # A new submission of a run may lawfully begin again, so rounds are compared within one.
    if metadata.run_id != memory.flower_run:
        memory.flower_run, memory.round = metadata.run_id, order.round
    if order.round < memory.round:
        msg = f"round {order.round} came after round {memory.round}"
        raise OrderRefusedError(msg, code="stale_order")
    memory.round = order.round


def _desk_from_settings(context: Context) -> Desk:
    return _named_desk(context.node_config.get("site-toml") or os.environ.get(SITE_VARIABLE))


def _named_desk(path: object) -> Desk:
    if not path:
        msg = f"no site.toml is named; set {SITE_VARIABLE} to its path"
        raise OrderRefusedError(msg, code="settings_invalid")
    return desk_of_file(str(path))


@cache
def desk_of_file(path: str) -> Desk:
    """The desk of a ``site.toml``; the same one, with its data and model warm, for each order."""
    from asterion_client.site_desk import SiteDesk

    settings, folder = read_site_settings(Path(path)), Path(path).resolve().parent
    trail = site_trail(settings, folder)
    log = EgressLog(folder / settings.state_folder, settings.name)
    desk = SiteDesk(settings, folder, trail)
    return Desk(settings.name, desk.answer, trail, log, desk.still_holds)


app = client_app_of(_desk_from_settings)
