"""A SuperNode is not a message behind after a run was stopped, with Flower's own state."""

from threading import Timer
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.nodestate import NodeStateFactory

from asterion_client.flower_client_compat import _Turn
from asterion_server.flower_server_compat import ensure_task_identity, set_message_id

STOPPED, NEXT = 11, 22


class Node:
    """Flower's own state and functions, and what came in and went out."""

    def __init__(self) -> None:
        objects = ObjectStoreFactory()
        self.state = NodeStateFactory(objectstore_factory=objects).state()
        self.store = objects.store()
        self.state.set_node_id(7)
        for run_id in (STOPPED, NEXT):
            run = Run.create_empty(run_id)
            run.fab_hash = "f"
            self.state.store_run(run)
        self.sent: list[str] = []
        self.turn = _Turn(supernode._pull_and_store_message, supernode._push_messages)

    def take(self, message: Message, *, is_answered_and_dropped: bool = False) -> int | None:
        whole = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}

        def confirm(run_id: int, message_id: str) -> None:
            if is_answered_and_dropped:
                self.reply_to(message)
                raise RunNotRunningException

        return self.turn.pull(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=None,
            get_fab=None,
            pull_object=lambda run_id, object_id: whole[object_id],
            confirm_message_received=confirm,
            trusted_entities=None,
        )

    def reply_to(self, message: Message) -> None:
        reply = Message(RecordDict({"c": ConfigRecord({"x": "y"})}), reply_to=message)
        set_message_id(reply)
        with no_object_id_recompute():
            self.state.record_message_processing_start(message.metadata.message_id)
            self.state.record_message_processing_end(message.metadata.message_id)
            self.store.preregister(message.metadata.run_id, get_object_tree(reply))
            for name, one in get_all_nested_objects(reply).items():
                self.store.put(name, one.deflate())
            self.state.store_message(reply)

    def push(self) -> None:
        def send(message: Message, *rest: Any) -> tuple[set[str], str]:
            self.sent.append(message.metadata.reply_to_message_id)
            if message.metadata.run_id == STOPPED:
                raise RunNotRunningException
            return set(), "session"

        self.turn.push(
            state=self.state, object_store=self.store, send=send, push_object=lambda *given: None
        )


def order_of(run_id: int) -> Message:
    ensure_task_identity()
    message = Message(RecordDict({"c": ConfigRecord({"run": run_id})}), 7, "train", group_id="1")
    message.metadata.__dict__["_run_id"] = run_id
    set_message_id(message)
    return message


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_dropped_message_is_gone(node: Node) -> None:
    dropped = order_of(STOPPED)
    assert node.take(dropped, is_answered_and_dropped=True) is None
    assert dropped.metadata.message_id not in node.store
    assert not node.state.get_messages_legacy(is_reply=False)


def test_the_next_reply_is_sent_though_a_dead_run_s_waits_before_it(node: Node) -> None:
    dropped, following = order_of(STOPPED), order_of(NEXT)
    assert node.take(dropped, is_answered_and_dropped=True) is None
    assert node.take(following) == NEXT
    Timer(0.3, node.reply_to, [following]).start()
    node.push()
    assert node.sent == [dropped.metadata.message_id, following.metadata.message_id]


def test_a_plain_turn_ends_with_its_reply(node: Node) -> None:
    for message in (order_of(NEXT), order_of(STOPPED)):
        assert node.take(message) is not None
        node.reply_to(message)
        node.push()
        assert node.sent[-1] == message.metadata.message_id
    assert len(node.sent) == 2
