"""A Flower grid without a network: it calls the sites' ``ClientApp`` directly.

It drives the whole message path (records, codes, deadlines, re-sends) in fast tests. Sites can be
taken offline, made silent, or brought back, as a network and its people do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from asterion_server.flower_server_compat import (
    NODE_UNAVAILABLE,
    NodeInfo,
    Run,
    ensure_task_identity,
    set_message_id,
)


@dataclass(slots=True)
class InProcessSite:
    """A site of an :class:`InProcessGrid`.

    Attributes:
        name: under which it is enrolled.
        app: what answers its messages.
        node_config: the site's own settings, as its node would hand them over.
        online: whether the grid lists it and takes messages for it.
        silent: takes messages and never answers.
        activations: how often it connected; a new number means that it restarted.
    """

    name: str
    app: ClientApp
    node_config: dict[str, str | int | float | bool] = field(default_factory=dict)
    online: bool = True
    silent: bool = False
    activations: int = 1

    def restart(self) -> None:
        """Come (back) online as a new session; messages taken before are lost."""
        self.online, self.silent = True, False
        self.activations += 1


class InProcessGrid(Grid):
    """Delivers messages when they are pushed; the answers wait to be pulled.

    Args:
        sites: node number to site.
    """

    def __init__(self, sites: Mapping[int, InProcessSite]) -> None:
        ensure_task_identity()
        self.sites = dict(sites)
        self.pushed: list[Message] = []
        self._answers: dict[str, Message] = {}
        self._unanswered: dict[str, Message] = {}
        self._contexts = {
            number: Context(1, number, dict(site.node_config), RecordDict(), {})
            for number, site in self.sites.items()
        }
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message; part of the interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of the sites that are online."""
        return [number for number, site in self.sites.items() if site.online]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The sites that are online, with their names."""
        return [
            NodeInfo(node_id=n, name=site.name, last_activated_at=str(site.activations))
            for n, site in self.sites.items()
            if site.online
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages at once."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand over the answers that are there, each once."""
        ids = list(message_ids)
        for identity in ids:
            message = self._unanswered.get(identity)
            if message is not None and not self.sites[message.metadata.dst_node_id].online:
                error = Error(NODE_UNAVAILABLE, "the node is offline")
                self._answers[identity] = Message(error, reply_to=self._unanswered.pop(identity))
        return [self._answers.pop(identity) for identity in ids if identity in self._answers]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver messages and hand over their answers."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> str:
        identity = set_message_id(message)
        number = message.metadata.dst_node_id
        site = self.sites[number]
        self.pushed.append(message)
        self._unanswered[identity] = message
        if site.online and not site.silent:
            answer = site.app(self._unanswered.pop(identity), self._contexts[number])
            self._answers[identity] = answer
        return identity
