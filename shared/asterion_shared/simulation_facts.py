"""What a simulated run says in its result beyond a live one."""

from typing import Annotated, Literal

from pydantic import Field

from asterion_shared.plan import Name, Sha256
from asterion_shared.settings_files import Settings


class InjectedFault(Settings):
    """What a simulation's scenario did to a site."""

    round: Annotated[int, Field(ge=0)]
    site: Name
    fault: str
    """Its kind, such as ``drop`` or ``scaled``."""


class Simulation(Settings):
    """What a simulated run says beyond a live one."""

    engine: dict[str, str | int] = Field(default_factory=dict)
    """How the numbers were formed: engine, chunk, workers, threads, dtype, device."""

    scenario_sha256: Sha256 | Literal[""] = ""
    """Hash of the scenario; empty without one."""

    faults: tuple[InjectedFault, ...] = ()
    """Every fault that the scenario injected, by round and site."""
