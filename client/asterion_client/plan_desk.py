"""What a person at the site does about plans: review, approve, take back, pause; each on record."""

from pathlib import Path

from asterion_client.approvals import Approval, waiting, withdraw_approval
from asterion_client.approvals import approve as sign_approval
from asterion_client.consent import PAUSED
from asterion_client.dry_run import DryRun, dry_run
from asterion_client.plan_review import Review, review_of
from asterion_client.settings import SiteSettings, read_site_settings
from asterion_client.site_audit import site_trail
from asterion_shared.audit_records import Fact
from asterion_shared.errors import OrderRefusedError, UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan, parse_plan, read_plan


def review_plan(
    site_toml: Path, plan: str, run: str = "", *, with_dry_run: bool
) -> tuple[SiteSettings, Review]:
    """Put together what a person should know of a plan.

    Args:
        site_toml: the site's settings.
        plan: a TOML file, or the run of one that waits here.
        run: its name; empty: the plan's.
        with_dry_run: whether to try one step on the site's data.

    Raises:
        UserInputError: there is no ``[consent]``, or no such plan.
        AsterionError: as :func:`asterion_client.dry_run.dry_run`.
    """
    settings, folder = read_site_settings(site_toml), site_toml.resolve().parent
    wanted, name = _find(settings, site_toml, plan, run)
    tried = dry_run(site_toml, wanted.canonical()) if with_dry_run else None
    return settings, review_of(settings, folder, wanted, name, tried)


def review_waiting(site_toml: Path, run: str, tried: DryRun | None) -> tuple[SiteSettings, Review]:
    """The review of a plan that waits here, with a dry run that was made before.

    Raises:
        UserInputError: as :func:`review_plan`.
    """
    settings, folder = read_site_settings(site_toml), site_toml.resolve().parent
    kept = {one.run: one for one in waiting(folder / settings.state_folder)}
    if settings.consent is None or run not in kept:
        msg = f"no plan of run {run!r} waits here; it was approved, or never came"
        raise UserInputError(msg)
    wanted = parse_plan(kept[run].plan)
    return settings, review_of(settings, folder, wanted, run, tried)


def approve_reviewed(
    settings: SiteSettings, folder: Path, found: Review, reviewed: str, **facts: Fact
) -> Approval:
    """Sign that a plan may run here, as it was reviewed; it is on record before.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
        found: the review as it is now.
        reviewed: SHA-256 of the plan that the person has seen.
        facts: what else the record says, such as who it was.

    Raises:
        OrderRefusedError: the site's ``[consent]`` is against it, or it is another plan.
        AsterionError: it cannot be put on record or signed.
    """
    if found.objections:
        code, words = found.objections[0]
        what = f"not approved: {words}"
        raise OrderRefusedError(what, code=code)
    if reviewed != found.plan.sha256:
        # Of a plan that waits, the operator may have sent another since.
        what = f"not approved: this is another plan than {reviewed}"
        raise OrderRefusedError(what, code="approval_missing")
    told: dict[str, Fact] = {"plan_sha256": found.plan.sha256, **facts}
    site_trail(settings, folder).append("approved", run=found.run, facts=told)
    return sign_approval(settings, folder, found.plan, found.run)


def take_back(settings: SiteSettings, folder: Path, run: str, **facts: Fact) -> None:
    """Take an approval back; the next order of the run is refused.

    Raises:
        UserInputError: the run is not approved.
        AsterionError: it cannot be removed, or put on record.
    """
    if not withdraw_approval(settings, folder, run):
        msg = f"run {run!r} is not approved here; asterion site plans lists those that are"
        raise UserInputError(msg)
    site_trail(settings, folder).append("approval_withdrawn", run=run, facts=facts)


def is_paused(settings: SiteSettings, folder: Path) -> bool:
    """Whether the site begins no further round."""
    return (folder / settings.state_folder / PAUSED).exists()


def pause(settings: SiteSettings, folder: Path) -> None:
    """Begin no further round until told to continue; a round that has begun is ended.

    Raises:
        DiskProblemError: the state folder is not writable.
    """
    write_atomically(folder / settings.state_folder / PAUSED, b"")


def take_part_again(settings: SiteSettings, folder: Path) -> None:
    """End a pause."""
    (folder / settings.state_folder / PAUSED).unlink(missing_ok=True)


def _find(settings: SiteSettings, site_toml: Path, plan: str, run: str) -> tuple[Plan, str]:
    """A plan from its file, or one that waits here."""
    if settings.consent is None:
        msg = f"{site_toml} has no [consent], so nothing can run; asterion site new shows one"
        raise UserInputError(msg)
    state = site_toml.resolve().parent / settings.state_folder
    kept = {one.run: one for one in waiting(state)}
    if plan in kept:
        return parse_plan(kept[plan].plan), plan
    if not Path(plan).is_file():
        known = ", ".join(kept) or "none"
        msg = f"{plan!r} is no file, and no plan of that run waits here; waiting are: {known}"
        raise UserInputError(msg)
    wanted = read_plan(Path(plan))
    return wanted, run or wanted.name
