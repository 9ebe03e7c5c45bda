"""``asterion server withdraw`` and ``asterion server receipt``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from asterion_shared.plan import Plan
    from asterion_shared.signed_plan import PlanSignature

receipt_app = typer.Typer(no_args_is_help=True, help="Receipts for data that were withdrawn.")

Run = Annotated[str, typer.Argument(help="name of the run that had the data")]
Site = Annotated[str, typer.Argument(help="the site that withdraws, or whose patients do")]
Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="the coordinator's folder")]
DEFAULT = Path("coordinator")


def withdraw(
    run: Run,
    site: Site,
    what: Annotated[
        Literal["site", "patients"], typer.Option(help="the whole site, or some of its patients")
    ] = "site",
    patients: Annotated[
        int | None, typer.Option(min=1, help="how many patients, as the site said")
    ] = None,
    retrain: Annotated[
        bool, typer.Option(help="train the plan again without them, and sign a receipt")
    ] = True,
    name: Annotated[str, typer.Option(help="name of the new run; absent: RUN.without-SITE")] = "",
    key: Annotated[
        Path | None,
        typer.Option(envvar="ASTERION_OPERATOR_KEY", help="operator's private key: signs the plan"),
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="a signature made by: asterion operator sign")
    ] = None,
    folder: Folder = DEFAULT,
) -> None:
    """Take a site out of every later order of a run, and train again without withdrawn data."""
    from asterion_server.app import RUN_NAME
    from asterion_server.keys import open_provisioned
    from asterion_server.round_audit import coordinator_trail
    from asterion_server.run_folder import RunFolder
    from asterion_server.withdrawal import refuse_secure_sum, take_out
    from asterion_server.withdrawal import retrain as begin
    from asterion_shared.errors import UserInputError

    made = open_provisioned(folder)
    new = name or f"{run}.without-{'patients-of-' if what == 'patients' else ''}{site}"
    for given in (run, new):
        if RUN_NAME.fullmatch(given) is None:
            msg = (
                f"the run's name is {given!r}; use at most 63 lower-case letters, digits, '_', "
                "'.', '-', and --name for the new run"
            )
            raise UserInputError(msg)
    old = RunFolder(made.runs / run)
    if not old.launch_file.exists():
        msg = f"there is no run {run!r} in {folder}; asterion server status lists the runs"
        raise UserInputError(msg)
    if retrain:
        refuse_secure_sum(old)
    if what == "site":
        left = take_out(made, run, site)
        print(f"site {site} is out of every later order of run {run}; left are "
              f"{', '.join(left) or 'none'}")  # fmt: skip
    elif not retrain:
        msg = "the site itself leaves patients out: asterion site withdraw; nothing is to do here"
        raise UserInputError(msg)
    coordinator_trail(made.folder).append("withdrawn", run=run, facts={"site": site, "what": what})
    if retrain:
        signed = _signed(old.read_plan(), new, key, signature)
        begin(made, run, site, what=what, name=new, num_patients=patients, signature=signed)
        print(f"run {new} trains again from the beginning; its receipt will be "
              f"{RunFolder(made.runs / new).receipt}")  # fmt: skip


def _signed(
    plan: "Plan", run: str, key: Path | None, signature: Path | None
) -> "PlanSignature | None":
    from asterion_shared.signed_plan import read_operator_key, read_signature, sign_plan

    if signature is not None:
        return read_signature(signature)
    return None if key is None else sign_plan(plan, run, key.stem, read_operator_key(key))


@receipt_app.command("key")
def show_key(folder: Folder = DEFAULT) -> None:
    """Print the public key of the coordinator's receipts; give it on another way than these."""
    from asterion_server.keys import open_provisioned
    from asterion_shared.audit import audit_public_key

    print(audit_public_key(open_provisioned(folder).folder / "audit"), end="")


@receipt_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="the receipt, JSON")],
    key: Annotated[Path, typer.Option(help="the coordinator's public key, PEM")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Check a receipt's signature and say what it states; works without the coordinator."""
    from asterion_server.receipts import verify_receipt

    found = verify_receipt(file, key)
    if as_json:
        print(json.dumps(found.model_dump(mode="json")))
        return
    asked = found.withdrawal
    number = f"{asked.num_patients} " if asked.num_patients is not None else ""
    who = f"site {asked.site}" if asked.what == "site" else f"{number}patients of {asked.site}"
    print(f"the signature holds: {who} withdrew from run {asked.run} at {asked.withdrawn_at}")
    print(f"run {found.retrained_as} was trained again without, {found.rounds_redone} rounds from "
          f"{found.started_from}, sites {', '.join(found.sites)}")  # fmt: skip
    print(f"model before {found.model_sha256_before or 'none'}")
    print(f"model after  {found.model_sha256_after}")
    for note in found.notes:
        print(f"- {note}")
