"""A coordinator and sites with keys and certificates, for tests that need no data at a site."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asterion_server.keys import Provisioned
from asterion_sim.local_federation import enrol_on_this_machine

BARE = 'name = "{name}"\ntask = "anomaly"\n[data]\nformat = "npz"\n'


def provisioned(
    center: Path, hosts: Sequence[str], sites: Sequence[str], **given: Any
) -> Provisioned:
    """Enrol sites that have nothing but a name; see :func:`papers_of`."""
    tomls = [center.parent / f"{center.name}-sites" / name / "site.toml" for name in sites]
    for path in tomls:
        if not path.exists():
            path.parent.mkdir(parents=True)
            path.write_text(BARE.format(name=path.parent.name))
    return enrol_on_this_machine(center, tomls, hosts, **given)


def papers_of(made: Provisioned, site: str) -> Path:
    """The folder of a site that :func:`provisioned` made: ``site.toml`` and what joining wrote."""
    return made.folder.parent / f"{made.folder.name}-sites" / site


def connection_lines(made: Provisioned, site: str) -> str:
    """The section that joining added to its ``site.toml``."""
    text = (papers_of(made, site) / "site.toml").read_text()
    return text[text.index("[connection]") :]
