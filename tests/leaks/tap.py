"""Hears in plain text what a site's process gives to either carrier."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto

from asterion_client import flower_client_compat
from asterion_shared.link import link_pb2_grpc, records

Hear = Callable[[str, bytes], None]
CALLS = ("Attend", "Download", "Offer", "Upload", "Submit")


def tap(hear: Hear, patch: Callable[[Any, str, Any], None]) -> None:
    """Listen from now on.

    Args:
        hear: is told of each sending by the call's name; of a report once as one piece too, for
            its chunks may cut what is looked for.
        patch: as setattr.
    """
    pack, push = records.pack, flower_client_compat.push_message

    def packing(content: RecordDict, *given: Any, **named: Any) -> Any:
        hear("record", recorddict_to_proto(content).SerializeToString())
        return pack(content, *given, **named)

    def pushing(client: Any, message: Any, context: Any) -> Any:
        hear("push", recorddict_to_proto(message.content).SerializeToString())
        return push(client, message, context)

    class Stub(link_pb2_grpc.LinkStub):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel)
            assert set(vars(self)) == set(CALLS)
            for name in CALLS:
                setattr(self, name, _listening(name, getattr(self, name)))

    def _listening(name: str, call: Any) -> Any:
        def heard(message: Any) -> Any:
            hear(name, message.SerializeToString())
            return message

        def listened(request: Any, **given: Any) -> Any:
            return call(map(heard, request) if _streams(request) else heard(request), **given)

        return listened

    for module in (records, sys.modules.get("asterion_client.link_runner")):
        if module is not None:
            patch(module, "pack", packing)
    patch(flower_client_compat, "push_message", pushing)
    patch(link_pb2_grpc, "LinkStub", Stub)


def _streams(request: Any) -> bool:
    return isinstance(request, Iterator)
