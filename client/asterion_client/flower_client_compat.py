"""Every non-public flwr name a site uses. Tests fail when one of them changes.

The site's runner stands where Flower's SuperExec and ``flwr-clientapp`` would: it takes tasks
from its own SuperNode over the loopback interface, proves itself with a shared secret, and gives
each task to the one installed app. Code that comes with a run is never unpacked.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import (
    pull_task_input,
    push_message,
    push_task_output,
)

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_COMPONENT = "flwr-clientapp"
SUPERNODE_NUMBER = re.compile(r"SuperNode ID: (\d+)")
"""How a SuperNode says which number the coordinator knows it by."""

ACTIVATION_FAILED = "[code: 2004]"
"""What a SuperNode writes when its key is unknown, or its previous session still open."""

NOT_AUTHENTICATED = "401 Unauthorized"
"""What it writes when its signature is not accepted, as with a wrong clock."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a run says it is made of; the coordinator's word, and nothing of it is used.

    Attributes:
        bundle: its bytes.
        name: publisher and project.
        version: that the bundle states.
    """

    bundle: bytes
    name: str
    version: str


Work = Callable[[Message, Context, Submission], Message]


@dataclass(frozen=True, slots=True)
class Task:
    """A task that was taken: its token is good for this task alone."""

    token: str


class TaskSource:
    """Takes tasks from the site's own SuperNode.

    Args:
        address: ``127.0.0.1:port`` of the SuperNode.
        secret_file: the secret shared with it.
        message_seconds: how long to wait for the rest of a message that it has announced.
    """

    def __init__(self, address: str, secret_file: Path, message_seconds: float) -> None:
        secret = load_superexec_auth_secret(str(secret_file))
        if secret is None:
            msg = f"{secret_file} holds no secret"
            raise ValueError(msg)
        self._address, self._message_seconds = address, message_seconds
        # No retries here: the runner's own loop asks again, and it must notice a dead SuperNode.
        self._client = RuntimeHttpClient.from_server_address(
            server_address=address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE}),
            ],
        )

    def take(self) -> Task | None:
        """The oldest waiting task, or None."""
        kinds = [TaskType.CLIENT_APP]
        response = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=kinds))
        return Task(response.token) if response.HasField("task") and response.token else None

    def carry_out(self, task: Task, work: Work) -> None:
        """Pull a task's message, do the work, push the reply; a heartbeat runs meanwhile."""
        client = RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,
            root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name=_COMPONENT),
                RuntimeTokenHttpInterceptor(task.token),
            ],
            retry_invoker=_few_retries(),
        )
        heartbeat = HeartbeatSender(_heartbeat(client))
        heartbeat.start()
        context, ending = None, SubStatus.FAILED
        try:
            with _ends_if_stuck(self._message_seconds):
                message, context, run, fab = pull_task_input(client)
            submission = Submission(fab.content, run.fab_id, run.fab_version)
            push_message(client, work(message, context, submission), context)
            ending = SubStatus.COMPLETED
        finally:
            # The details would go to the coordinator: none.
            push_task_output(client, context, ending, "")
            if heartbeat.is_running:
                heartbeat.stop()
            client.close()


def serve_supernode() -> None:
    """Be Flower's SuperNode, with the arguments of this process, and never a message behind."""
    # Here, because only this process needs Flower's server of the Runtime interface.
    from flwr.supernode.cli.flower_supernode import flower_supernode

    turn = _Turn(supernode._pull_and_store_message, supernode._push_messages)
    supernode.__dict__.update(_pull_and_store_message=turn.pull, _push_messages=turn.push)
    flower_supernode()


class _Turn:
    """One message in, its reply out, and nothing of another one between them.

    Flower's SuperNode sends, after each message that it took, whatever reply is there. When a run
    is stopped while its message is being taken, that message is dropped, and the runner answers
    it all the same. The next run's message then sets off the dead run's reply, and its own reply
    stays until a third one comes: the site is late by one message from then on, in all runs.

    Args:
        pull: Flower's own function that takes a message, if there is one.
        push: Flower's own function that waits for replies and sends them.
    """

    def __init__(self, pull: Callable[..., int | None], push: Callable[..., None]) -> None:
        self._pull, self._push = pull, push
        self._message_id: str | None = None

    def pull(
        self, *, state: Any, object_store: Any, receive: Callable[[], Any], **others: Any
    ) -> int | None:
        """As Flower's; what of a dropped message is there already is removed."""

        def noted() -> Any:
            received = receive()
            if received is not None:
                self._message_id = received[0].metadata.message_id
            return received

        self._message_id = None
        run_id = self._pull(state=state, object_store=object_store, receive=noted, **others)
        if run_id is None and self._message_id is not None:
            state.delete_messages(message_ids=[self._message_id])
            object_store.delete(self._message_id)
        return run_id

    def push(self, *, send: Callable[..., Any], **others: Any) -> None:
        """As Flower's; it goes on until the reply to the message that was taken is sent."""
        is_answered = False

        def noted(message: Message, *rest: Any) -> Any:
            nonlocal is_answered
            is_answered |= message.metadata.reply_to_message_id == self._message_id
            return send(message, *rest)

        while not is_answered:
            self._push(send=noted, **others)


def order_message(content: RecordDict, message_type: str, submission: int, round_: int) -> Message:
    """A message as the app takes it, from an order that another carrier brought.

    Args:
        content: the order's records.
        message_type: of the message.
        submission: which process of the coordinator's posted it, as Flower's run number says.
        round_: of the run.
    """
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = submission, 1, 1
    return Message(content, 1, message_type, group_id=str(round_))


@contextmanager
def _ends_if_stuck(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer; the daemon starts another.

    Flower waits two hours for the rest of a message that a dead coordinator sent by half, and
    nothing else could be done meanwhile.
    """
    timer = Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def release_session(
    address: str, root_certificate: Path, private_key: Path, node_number: int
) -> None:
    """End the site's own previous session, which a killed SuperNode left behind.

    Without it the coordinator refuses the site until that session has expired (60 s).
    """
    key = load_ssh_private_key(private_key.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        msg = f"{private_key} is not an EC private key"
        raise TypeError(msg)
    with FleetHttpClient.from_server_address(
        address,
        False,
        root_certificate.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    ) as client:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_number))


def _few_retries() -> RetryInvoker:
    invoker = make_simple_http_retry_invoker()
    invoker.max_tries = 3
    return invoker


def _heartbeat(client: RuntimeHttpClient) -> Callable[[], bool]:
    def beat() -> bool:
        # Flower's own function ends the whole process when a task was withdrawn; a warm runner
        # goes on, and the reply to a withdrawn task is dropped by the SuperNode.
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError:
            return False
        return True

    return beat
