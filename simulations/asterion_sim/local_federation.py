"""A whole federation on one machine, enrolled by the steps that an operator and the sites take."""

from collections.abc import Sequence
from pathlib import Path

from asterion_client.join import join
from asterion_client.site_keys import init_site
from asterion_server.enrol import enrol
from asterion_server.initialise import init_coordinator
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.carrier import Carrier
from asterion_shared.enrolment_files import read_enrolment, read_request


def enrol_on_this_machine(
    coordinator: Path,
    sites: Sequence[Path],
    hosts: Sequence[str] = ("127.0.0.1",),
    *,
    port: int | None = None,
    listen: str | None = None,
    carrier: Carrier | None = None,
) -> Provisioned:
    """Make a coordinator and have sites join it; nobody compares fingerprints.

    Run again it renews all certificates and keeps all keys.

    Args:
        coordinator: folder of the coordinator, new or made before.
        sites: each site's ``site.toml``; keys, certificates and peers go beside it, and a
            ``[connection]`` into it where there is none.
        hosts: names and addresses under which sites reach it.
        port: where it will listen; None: 8000, or as before.
        listen: address to listen on; None: all, or as before.
        carrier: of the messages; None: the link, or as before.

    Returns:
        The coordinator's folder.

    Raises:
        SettingsError, UserInputError, FileProblemError, DiskProblemError: as the steps do.
    """
    init_coordinator(coordinator, hosts, port=port, listen=listen, carrier=carrier)
    requests = [read_request(init_site(site_toml)[0]) for site_toml in sites]
    enrol(coordinator, requests, lambda site, shown: True)
    made = open_provisioned(coordinator)
    for request, site_toml in zip(requests, sites, strict=True):
        file = made.enrolment(request.site)
        join(site_toml, read_enrolment(file), lambda shown: True, source=str(file))
    return made
