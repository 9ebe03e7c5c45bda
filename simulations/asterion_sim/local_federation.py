"""A whole federation on one machine, enrolled by the steps that an operator and the sites take.

It is a rehearsal: one person is the operator and every site, so the sites agree to whatever that
operator signs.
"""

from collections.abc import Sequence
from pathlib import Path

from asterion_client.join import join
from asterion_client.settings import read_site_settings
from asterion_client.site_keys import init_site
from asterion_server.enrol import enrol, enrol_operator
from asterion_server.initialise import init_coordinator
from asterion_server.keys import Provisioned, open_provisioned
from asterion_shared.carrier import Carrier
from asterion_shared.enrolment_files import read_enrolment, read_request
from asterion_shared.files import write_atomically
from asterion_shared.operator_keys import make_operator_key
from asterion_shared.plan import Plan
from asterion_shared.signed_plan import PlanSignature, read_operator_key, sign_plan

OPERATOR = "local"
CONSENT = f"""
# A rehearsal on one machine: whatever its operator signs may run.
[consent]
operators = ["{OPERATOR}"]
noise = ["none", "site", "shares", "centre"]
largest_epsilon = 1e6
smallest_cohort = 1
plans_a_day = 1_000_000
rounds_a_day = 1_000_000
bytes_a_day = 1_000_000_000_000_000
approval = "auto"
"""


def operator_key(coordinator: Path) -> Path:
    """The private key of the operator of a coordinator's folder that was made here."""
    return coordinator.parent / f"{coordinator.name}-operator" / f"{OPERATOR}.key"


def signed_here(coordinator: Path, plan: Plan, run: str) -> PlanSignature:
    """The signature of that operator under a plan."""
    return sign_plan(plan, run, OPERATOR, read_operator_key(operator_key(coordinator)))


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
            ``[connection]`` and a ``[consent]`` into it where there is none.
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
    key = operator_key(coordinator)
    if not key.exists():
        make_operator_key(key.parent, OPERATOR)
    enrol_operator(coordinator, OPERATOR, key.with_suffix(".pem"))
    requests = [read_request(init_site(site_toml)[0]) for site_toml in sites]
    enrol(coordinator, requests, lambda site, shown: True)
    made = open_provisioned(coordinator)
    for request, site_toml in zip(requests, sites, strict=True):
        file = made.enrolment(request.site)
        join(site_toml, read_enrolment(file), lambda shown: True, source=str(file))
        if read_site_settings(site_toml).consent is None:
            text = f"{site_toml.read_text(encoding='utf-8')}{CONSENT}"
            write_atomically(site_toml, text.encode())
    return made
