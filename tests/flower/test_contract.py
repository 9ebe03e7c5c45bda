"""Every non-public flwr name that is used, with the shape it is used in.

When one of these fails after an update of flwr, the two ``*_compat`` modules are what must change.
"""

import ast
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import HTTPException, Request
from fastapi.routing import iter_route_contexts
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto import control_pb2, fleet_pb2, node_pb2, runtime_pb2, task_pb2
from flwr.serverapp import Grid
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.http_logging import get_uvicorn_log_config
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.logger import console_handler
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import LaunchResult
from flwr.supercore.superexec.plugin import AutoExecPlugin
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import (
    SuperLinkLifespan,
    _parse_superlink_lifespan_config,
)
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.dependencies.account import AccountAccessDependency
from flwr.superlink.main import create_app
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime import run_clientapp

from asterion_client.flower_client_compat import ACTIVATION_FAILED
from asterion_server.control_gate import READING
from asterion_server.flower_server_compat import _Proving, ensure_task_identity, flower_version

PACKAGES = Path(__file__).parents[2]
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")


def names(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_version_is_the_pinned_minor() -> None:
    assert flower_version().startswith("1.41.")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (run_clientapp.pull_task_input, ["client"]),
        (run_clientapp.push_message, ["client", "message", "context"]),
        (run_clientapp.push_task_output, ["client", "context", "sub_status", "details"]),
        (HeartbeatSender.__init__, ["heartbeat_fn"]),
        (load_superexec_auth_secret, ["secret_file"]),
        (SuperExecAuthHttpInterceptor.__init__, ["master_secret", "protected_methods"]),
        (RuntimeVersionHttpInterceptor.__init__, ["component_name"]),
        (RuntimeTokenHttpInterceptor.__init__, ["token"]),
        (NodeAuthHttpInterceptor.__init__, ["private_key", "public_key"]),
        (Run.create_empty, ["run_id"]),
        (AutoExecPlugin.launch_task, ["token", "task"]),
        (LaunchResult.failed, ["message"]),
        (flower_supernode, []),
        (supernode._push_messages, ["state", "object_store", "send", "push_object"]),
    ],
)
def test_a_function_takes_what_we_give(function: Callable[..., Any], parameters: list[str]) -> None:
    assert names(function) == parameters


def test_the_supernode_takes_a_message_and_then_sends_what_is_there() -> None:
    taken = names(supernode._pull_and_store_message)
    assert {"state", "object_store", "receive"} < set(taken)
    loop = inspect.getsource(supernode.start_client_internal)
    assert loop.index("run_id = _pull_and_store_message(") < loop.index("_push_messages(")


def test_the_superexec_asks_the_plugin_of_its_module_about_each_bundle() -> None:
    assert run_superexec.AutoExecPlugin is AutoExecPlugin  # type: ignore[attr-defined]
    assert "plugin = AutoExecPlugin(" in inspect.getsource(run_superexec)
    assert "fab_hash" in task_pb2.Task.DESCRIPTOR.fields_by_name


@pytest.mark.parametrize(
    ("client", "calls"),
    [
        (RuntimeHttpClient, ["AcquireTask", "SendTaskHeartbeat"]),
        (FleetHttpClient, ["DeactivateNode"]),
        (ControlHttpClient, ["StartRun", "StopRun", "ListRuns", "ListNodes", "RegisterNode"]),
    ],
)
def test_a_client_has_the_calls_and_the_way_to_make_it(client: Any, calls: list[str]) -> None:
    for call in calls:
        assert names(getattr(client, call)) == ["request"]
    assert names(client.from_server_address)[:4] == [
        "server_address",
        "insecure",
        "root_certificates",
        "interceptors",
    ]


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (
            node_pb2.NodeInfo,
            {"node_id", "name", "status", "public_key", "last_activated_at", "last_deactivated_at"},
        ),
        (control_pb2.StartRunRequest, {"fab", "override_config"}),
        (control_pb2.StartRunResponse, {"run_id"}),
        (control_pb2.RegisterNodeRequest, {"public_key", "name"}),
        (control_pb2.ListNodesResponse, {"nodes_info"}),
        (control_pb2.ListRunsResponse, {"run_dict"}),
        (runtime_pb2.AcquireTaskRequest, {"supported_task_types"}),
        (runtime_pb2.AcquireTaskResponse, {"task", "token"}),
        (fleet_pb2.DeactivateNodeRequest, {"node_id"}),
    ],
)
def test_a_protobuf_message_has_the_fields(message: Any, fields: set[str]) -> None:
    assert fields <= {field.name for field in message.DESCRIPTOR.fields}


def test_a_task_says_what_its_run_is_made_of() -> None:
    returned = inspect.signature(run_clientapp.pull_task_input).return_annotation
    assert returned == tuple[Message, Context, Run, Fab]
    assert {"fab_id", "fab_version"} <= {field.name for field in dataclasses.fields(Run)}
    assert "content" in {field.name for field in dataclasses.fields(Fab)}


def test_the_constants_mean_what_we_think() -> None:
    assert (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE) == (3, 4)
    assert (ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED) == (5, 8)
    assert (SubStatus.COMPLETED, SubStatus.FAILED) == ("completed", "failed")
    assert TaskType.CLIENT_APP == "flwr-clientapp"
    from flwr.supercore.error import ApiErrorCode

    assert f"[code: {int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)}]" == ACTIVATION_FAILED


def test_the_superlink_can_be_served_behind_a_gate_of_ours() -> None:
    assert names(create_app) == ["config", "superlink_lifespan_class"]
    assert names(_parse_superlink_lifespan_config) == []
    taken = {"authn_plugin", "host", "port", "ssl_keyfile", "ssl_certfile"}
    assert taken <= {field.name for field in dataclasses.fields(SuperLinkLifespanConfig)}
    assert names(SuperLinkLifespan.__init__) == ["config", "state_factory"]
    assert names(get_uvicorn_log_config) == ["log_level"]
    assert isinstance(console_handler, logging.Handler)


def test_flower_asks_the_plugin_about_each_control_call() -> None:
    assert NoOpControlAuthnPlugin.__abstractmethods__ == frozenset()
    assert names(NoOpControlAuthnPlugin.validate_tokens_in_metadata) == ["metadata"]
    is_valid, account = NoOpControlAuthnPlugin().validate_tokens_in_metadata([])
    assert is_valid
    assert isinstance(account, AccountInfo)
    with pytest.raises(HTTPException) as refused:
        AccountAccessDependency(Refusing())(Request({"type": "http", "headers": []}))
    assert refused.value.status_code == 401


class Refusing(NoOpControlAuthnPlugin):
    def validate_tokens_in_metadata(self, metadata: Any) -> tuple[bool, AccountInfo | None]:
        return False, None


def test_each_path_of_the_superlink_is_one_that_the_gate_knows() -> None:
    paths = {context.path for context in iter_route_contexts(create_app().routes)}
    hidden = {"/docs", "/docs/oauth2-redirect", "/openapi.json"}
    assert hidden < paths
    for path in paths - hidden:
        assert path == "/health" or path.startswith(("/v1/control/", "/v1/fleet/", "/v1/runtime/"))
    assert {f"/v1/control/{call}" for call in READING} < paths


def test_a_client_shows_each_request_to_what_adds_the_proof() -> None:
    fields = {field.name for field in dataclasses.fields(ProtobufRequestContext)}
    assert "request" in fields
    seen: list[tuple[str, bytes, str]] = []

    def answer(context: ProtobufRequestContext) -> httpx.Response:
        sent = context.request
        seen.append((sent.url.path, sent.content, sent.headers["authorization"]))
        return httpx.Response(200)

    request = httpx.Request("POST", "https://c:1/v1/control/list-runs", content=b"x")
    call = ProtobufRequestContext(
        "/flwr.proto.Control/ListRuns", control_pb2.ListRunsRequest(), request
    )
    _Proving(lambda path, body: f"{path}|{len(body)}").intercept(call, answer)
    assert seen == [("/v1/control/list-runs", b"x", "Bearer /v1/control/list-runs|1")]


def test_a_task_s_identity_is_three_numbers() -> None:
    assert {"_task_id", "_run_id", "_node_id"} <= set(vars(TaskIdentity))


def test_the_public_interface_we_stand_on() -> None:
    assert Grid.__abstractmethods__ == {
        "set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages",
        "send_and_receive",
    }  # fmt: skip
    assert names(Context) == [
        "run_id", "node_id", "node_config", "state", "run_config", "series_id",
    ]  # fmt: skip
    content = RecordDict(
        {
            "a": ArrayRecord({"v": Array("float32", (1,), "any", b"1234")}),
            "c": ConfigRecord({"x": True, "y": "z"}),
            "m": MetricRecord({"n": [1.0, 2.0]}),
        }
    )
    ensure_task_identity()
    message = Message(content, 7, "train", ttl=5.0, group_id="3")
    assert message.metadata.dst_node_id == 7
    assert message.metadata.ttl == 5.0
    assert content["a"]["v"].data == b"1234"
    assert all(record.count_bytes() > 0 for record in content.values())


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_only_the_compat_modules_import_what_is_not_public() -> None:
    offenders = [
        (path.name, module)
        for package in ("shared", "client", "server", "simulations")
        for path in (PACKAGES / package).glob("asterion_*/**/*.py")
        if not path.name.endswith("_compat.py")
        for module in imported_modules(path)
        if module.startswith("flwr") and not module.startswith(PUBLIC)
    ]
    assert offenders == []
