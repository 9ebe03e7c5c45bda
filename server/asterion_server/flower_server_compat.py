"""Every non-public flwr name the coordinator uses. Tests fail when one of them changes.

flwr moves fast: at least five of its last fourteen minor releases broke deployments. So these
names appear nowhere else, and ``tests/flower/test_contract.py`` holds their signatures.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.task_pb2 import Task
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.run import Run
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import LaunchResult
from flwr.supercore.superexec.plugin import AutoExecPlugin
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "MESSAGE_LOST",
    "NODE_UNAVAILABLE",
    "SITE_CRASHED",
    "Control",
    "FlowerNode",
    "FlowerRun",
    "NodeInfo",
    "ObjectPushError",
    "Run",
    "ensure_task_identity",
    "public_key_to_bytes",
    "serve_bundle",
    "serve_superlink",
    "set_message_id",
]

NODE_UNAVAILABLE = int(ErrorCode.NODE_UNAVAILABLE)
"""The site went away before it answered."""

SITE_CRASHED = int(ErrorCode.CLIENT_APP_CRASHED)
"""The site's process died while it worked."""

MESSAGE_LOST = (int(ErrorCode.MESSAGE_UNAVAILABLE), int(ErrorCode.REPLY_MESSAGE_UNAVAILABLE))
"""The order or its answer is past its time or was deleted."""


def ensure_task_identity() -> None:
    """Make it possible to build messages outside a Flower task, as in a simulation or a test."""
    if TaskIdentity._run_id is None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def set_message_id(message: Message) -> str:
    """Give a message its id, as a grid does before sending; return it."""
    message.metadata.__dict__["_message_id"] = message.object_id
    return message.metadata.message_id


def serve_bundle(sha256: str) -> None:
    """Be Flower's SuperExec, with the arguments of this process, for runs of one bundle alone.

    Stock SuperExec starts whatever code a submitted bundle holds, and whoever reaches the port and
    has the authority's certificate can submit one.

    Args:
        sha256: of the bundle that may run; the SuperLink computes the hash of what came.
    """

    class OneBundle(AutoExecPlugin):
        supported_task_types = frozenset({TaskType.SERVER_APP})

        def launch_task(self, token: str, task: Task) -> LaunchResult:
            if task.fab_hash != sha256:
                return LaunchResult.failed("the bundle is not the one of this installation")
            return super().launch_task(token, task)

    run_superexec.AutoExecPlugin = OneBundle  # type: ignore[attr-defined]
    (point,) = entry_points(group="console_scripts", name="flower-superexec")
    point.load()()


def serve_superlink(in_front: Callable[[Any], Any], is_proven: Callable[[], bool]) -> None:
    """Be Flower's SuperLink, with the arguments of this process, behind an application of ours.

    Args:
        in_front: takes the SuperLink's ASGI application and gives the one that is served.
        is_proven: whether the call that is being served was proven to come from an account. Flower
            asks it again for each Control call, so that one which came by another way is refused.
    """
    # Here, because only this process needs FastAPI and all of the SuperLink.
    import uvicorn
    from flwr.supercore.http_logging import get_uvicorn_log_config
    from flwr.supercore.logger import console_handler
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import (
        SuperLinkLifespan,
        _parse_superlink_lifespan_config,
    )
    from flwr.superlink.main import create_app

    class Proven(NoOpControlAuthnPlugin):
        """All accounts are Flower's one: without its paid parts it knows no second."""

        def validate_tokens_in_metadata(
            self, metadata: Sequence[tuple[str, str | bytes]]
        ) -> tuple[bool, AccountInfo | None]:
            return super().validate_tokens_in_metadata(metadata) if is_proven() else (False, None)

    config = _parse_superlink_lifespan_config()
    config.authn_plugin = Proven()
    uvicorn.run(
        app=in_front(create_app(config, SuperLinkLifespan)),
        host=config.host,
        port=config.port,
        log_config=get_uvicorn_log_config(console_handler.level),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        # A caller must not choose the address it is seen under.
        proxy_headers=False,
    )


@dataclass(frozen=True, slots=True)
class FlowerNode:
    """A site as the SuperLink knows it."""

    name: str
    public_key: bytes
    online: bool
    last_activated: str
    last_deactivated: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class FlowerRun:
    """A submitted run: ``pending``, ``starting``, ``running`` or ``finished``, and how it ended."""

    run_id: int
    status: str
    ending: str
    name: str


Prove = Callable[[str, bytes], str]
"""From a call's path and body to its proof; ``asterion_server.control_proof`` has two of them."""


class _Proving:
    """Adds the proof to each call, as flwr's clients let one."""

    def __init__(self, prove: Prove) -> None:
        self._prove = prove

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        request = context.request
        proof = self._prove(request.url.path, request.content)
        request.headers["authorization"] = f"Bearer {proof}"
        return call_next(context)


class Control:
    """The SuperLink's control interface: enrol sites, start, watch and stop runs.

    Args:
        address: ``host:port``.
        root_certificate: PEM file of the authority behind its certificate.
        prove: makes the proof of one call from its path and its body.
    """

    def __init__(self, address: str, root_certificate: Path, prove: Prove) -> None:
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=root_certificate.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
                _Proving(prove),
            ],
        )

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def nodes(self) -> list[FlowerNode]:
        """All enrolled sites."""
        nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            FlowerNode(
                n.name,
                n.public_key,
                n.status == "online",
                n.last_activated_at,
                n.last_deactivated_at,
                n.node_id,
            )
            for n in nodes
            if n.status != "unregistered"
        ]

    def enrol(self, name: str, public_key: bytes) -> None:
        """Enrol a site under its name and public key."""
        self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))

    def remove(self, number: int) -> None:
        """Admit a site no longer; stock Flower never takes its key again."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=number))

    def start(self, bundle: bytes, config: Mapping[str, str]) -> int:
        """Submit a run; return its number."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
            override_config=user_config_to_proto(dict(config)),
        )
        return int(self._client.StartRun(request).run_id)

    def run(self, run_id: int) -> FlowerRun | None:
        """A run by its number; None when the SuperLink does not know it."""
        return next((run for run in self.runs() if run.run_id == run_id), None)

    def runs(self) -> list[FlowerRun]:
        """All runs that were submitted."""
        return [
            FlowerRun(
                int(run.run_id),
                run.status.status,
                run.status.sub_status,
                run.override_config["run"].string if "run" in run.override_config else "",
            )
            for run in self._client.ListRuns(ListRunsRequest()).run_dict.values()
        ]

    def stop(self, run_id: int) -> bool:
        """End a run at once; False when it had ended already."""
        try:
            return bool(self._client.StopRun(StopRunRequest(run_id=run_id)).success)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                return False
            raise


def flower_version() -> str:
    """The installed version of flwr."""
    return version("flwr")
