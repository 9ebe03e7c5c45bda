"""``[console]`` of ``coordinator.toml`` and of ``site.toml``: where the console is served."""

import ipaddress
from typing import Annotated, ClassVar

from pydantic import Field

from asterion_shared.settings_files import Rule, Settings, rule

GREETING = "console at "
"""What a console's process says before its address."""

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]


class ConsoleSettings(Settings):
    """Where a console is served, and under which names."""

    port: Annotated[int, Field(ge=1, le=65535)]
    """Port of the pages."""

    address: Host = "127.0.0.1"
    """Address to listen on: this machine alone, unless you write another; then a certificate is
    needed."""

    hosts: tuple[Host, ...] = ()
    """Names under which browsers reach it, besides the address and, on this machine, localhost;
    requests under other names are refused."""

    certificate: str | None = None
    """PEM, with its chain, relative to this file; with the private key: the pages go over TLS."""

    private_key: str | None = None
    """Of the certificate, PEM, mode 0600, relative to this file."""

    people: str = "console-people.json"
    """File with those who may sign in, mode 0600, relative to this file; ``console-password``
    writes it."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: (s.certificate is None) == (s.private_key is None),
            lambda s: "certificate and private_key belong together; give both or none",
        ),
        rule(
            lambda s: is_loopback(s.address) or s.certificate is not None,
            lambda s: (
                f"address is {s.address!r}, which other machines reach; give a certificate and its "
                "private_key, or leave it at 127.0.0.1"
            ),
        ),
    )

    @property
    def has_tls(self) -> bool:
        """Whether the pages go over TLS."""
        return self.certificate is not None

    @property
    def url(self) -> str:
        """Where a browser finds it first."""
        host = self.hosts[0] if self.hosts else self.address
        return f"http{'s' if self.has_tls else ''}://{_with_port(host, self.port)}/"

    def accepted_hosts(self) -> frozenset[str]:
        """What the ``Host`` header of a request may be, in lower case."""
        names = {self.address, *self.hosts}
        if is_loopback(self.address):
            names.add("localhost")
        accepted = {_with_port(name, self.port).lower() for name in names}
        if self.port == (443 if self.has_tls else 80):
            accepted |= {_bracketed(name).lower() for name in names}
        return frozenset(accepted)


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _with_port(host: str, port: int) -> str:
    return f"{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
