"""A site, or patients of it, withdraw from a run: no later order, and a model without them."""

from collections.abc import Sequence
from contextlib import closing

from asterion_server.checkpoint import load_latest, rounds_of
from asterion_server.keys import Provisioned
from asterion_server.launch import resume, stop
from asterion_server.link_paths import database_url
from asterion_server.link_store import LinkStore
from asterion_server.quarantine_files import QuarantineFiles
from asterion_server.receipts import What, Withdrawal
from asterion_server.run_folder import Launch, RunFolder
from asterion_server.run_queue import queue_of
from asterion_server.run_result import utc_now
from asterion_shared.errors import PlanMismatchError, UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.signed_plan import PlanSignature


def take_out(made: Provisioned, run: str, site: str) -> tuple[str, ...]:
    """Take a site out of every later order of a run, for good; the run goes on without it.

    What it was asked just now is withdrawn as well: the round is done again without it. Its
    reports that are held in quarantine are dropped.

    Args:
        made: the coordinator's folder.
        run: name of the run, going on or ended.
        site: that withdraws.

    Returns:
        The sites that are left, sorted.

    Raises:
        UserInputError: there is no such run, or the site is not in it.
        UnreachableError: over stock Flower, the coordinator does not run.
        DiskProblemError: the folder is not writable.
    """
    folder, launched = _launched(made, run)
    if site not in (*launched.sites, *launched.left):
        msg = f"site {site!r} is not in run {run!r}; its sites are {', '.join(launched.sites)}"
        raise UserInputError(msg)
    rest = tuple(name for name in launched.sites if name != site)
    left = tuple(dict.fromkeys((*launched.left, site)))
    wanted = launched.model_copy(update={"sites": rest, "left": left})
    if made.settings.carrier == "link":
        folder.write_launch(wanted)
        folder.kill_process()  # the daemon starts it again, with the sites that are left
        _withdraw_orders(made, run, site)
    else:
        with queue_of(made) as queue:
            goes_on = queue.standing(folder) == "running"
        if goes_on:
            stop(made, run)
        folder.write_launch(wanted)
        if goes_on:
            resume(made, run)
    _drop_held(folder, site)
    return rest


def retrain(
    made: Provisioned,
    run: str,
    site: str,
    *,
    what: What,
    name: str,
    num_patients: int | None = None,
    signature: PlanSignature | None = None,
) -> None:
    """Begin a run of the same plan without what was withdrawn; at its end there is a receipt.

    It begins with the weights that the plan begins with: checkpoints of earlier rounds are not
    kept, and those that are kept have learnt from the data.

    Args:
        made: the coordinator's folder.
        run: that had the data.
        site: that they are of.
        what: the whole site, taken out before; or patients, whom the site has withdrawn itself.
        name: of the new run.
        num_patients: as the site said; None: it did not.
        signature: an operator's, for the new run.

    Raises:
        UserInputError: there is no such run or site, the data took no part in it, the name is
            taken, or the plan has a secure sum.
        PlanMismatchError: fewer sites are left than the plan's quorum, or the signature is of
            another run.
        UnreachableError: the coordinator does not run.
    """
    folder, launched = _launched(made, run)
    plan = folder.read_plan()
    refuse_secure_sum(folder)
    if site not in (*launched.sites, *launched.left):
        msg = f"site {site!r} is not in run {run!r}; its sites are {', '.join(launched.sites)}"
        raise UserInputError(msg)
    if not rounds_with(folder, site):
        msg = f"site {site!r} took part in no finished round of {run!r}: there is nothing to redo"
        raise UserInputError(msg)
    sites = tuple(other for other in launched.sites if what == "patients" or other != site)
    if len(sites) < plan.rounds.quorum:
        msg = (
            f"{len(sites)} sites are left and the plan's quorum is {plan.rounds.quorum}; a model "
            "without the site needs another plan"
        )
        raise PlanMismatchError(msg)
    new = RunFolder(made.runs / name)
    if new.path.exists():
        msg = f"there is a run {name!r} already; give the new one another name with --name"
        raise UserInputError(msg)
    if signature is not None and (signature.plan_sha256, signature.run) != (plan.sha256, name):
        msg = (
            f"the signature is for run {signature.run!r}, this is {name!r} with the plan of {run!r}"
        )
        raise PlanMismatchError(msg)
    asked = Withdrawal(
        run=run, site=site, what=what, num_patients=num_patients, withdrawn_at=utc_now()
    )
    with queue_of(made) as queue:
        write_atomically(new.plan_file, plan.canonical().encode())
        write_atomically(new.withdrawal_file, asked.model_dump_json().encode())
        if signature is not None:
            write_atomically(new.signature_file, signature.model_dump_json().encode())
        gone = (*launched.left, site) if what == "site" else launched.left
        begun = {"sites": sites, "left": tuple(dict.fromkeys(gone)), "flower_run": 0}
        queue.submit(new, launched.model_copy(update=begun))


def refuse_secure_sum(folder: RunFolder) -> None:
    """Refuse what cannot be shown of sums.

    Raises:
        UserInputError: the run's plan has a secure sum.
    """
    if folder.read_plan().secure_sum is not None:
        msg = (
            f"run {folder.path.name!r} has a secure sum: the coordinator has seen sums over the "
            "sites alone, so it can neither take one part out of them nor show that it did, and "
            "signs no receipt; take the site out of later orders with --no-retrain, and launch "
            "the plan as a new run with --site for each site that is left"
        )
        raise UserInputError(msg)


def rounds_with(folder: RunFolder, site: str) -> Sequence[int]:
    """The finished rounds of training whose model a site may have a part in, in order."""
    checkpoints = folder.path / "checkpoints"
    found = load_latest(checkpoints, folder.path.name, folder.read_plan())
    rounds = () if found is None else rounds_of(found, checkpoints)
    parts = ("answered", "carried", "quarantined")  # what was held may have been released later
    return [
        one.round
        for one in rounds
        if one.round > 0 and site in one.outcomes and one.outcomes[site].outcome in parts
    ]


def _launched(made: Provisioned, run: str) -> tuple[RunFolder, Launch]:
    folder = RunFolder(made.runs / run)
    if not folder.launch_file.exists():
        msg = f"there is no run {run!r} in {made.folder}; asterion server status lists the runs"
        raise UserInputError(msg)
    return folder, folder.read_launch()


def _withdraw_orders(made: Provisioned, run: str, site: str) -> None:
    """The site is told at once that nobody wants its report any more."""
    with closing(LinkStore(database_url(made))) as store:
        store.end(order.key for order in store.open_orders(site) if order.run == run)


def _drop_held(folder: RunFolder, site: str) -> None:
    files = QuarantineFiles(folder.path)
    for report in files.reports():
        if report.site == site and files.state(report) in ("held", "released"):
            files.decide(report, "drop")
