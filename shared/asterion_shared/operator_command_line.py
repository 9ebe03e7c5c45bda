"""``asterion operator``: an operator's key, and signatures under plans."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make an operator's key, and sign plans with it.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="under which the sites will know the key")],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="where the two files go")
    ] = Path(),
) -> None:
    """Make NAME.key, which stays with the operator, and NAME.pem for coordinator and sites."""
    from asterion_shared.operator_keys import make_operator_key

    private, public, words = make_operator_key(folder, name)
    print(f"{private}: the private key; keep it, nobody else needs it")
    print(f"{public}: the public key, for the coordinator: asterion server operator")
    print(f"fingerprint {words}")


@app.command()
def sign(
    plan: Annotated[Path, typer.Argument(help="the plan, TOML")],
    key: Annotated[
        Path, typer.Option(envvar="ASTERION_OPERATOR_KEY", help="the operator's private key")
    ],
    run: Annotated[str, typer.Option(help="name of the run; absent: the plan's name")] = "",
    days: Annotated[int, typer.Option(min=1, max=3650, help="how long it holds")] = 30,
    out: Annotated[Path | None, typer.Option(help="absent: PLAN with .signature added")] = None,
) -> None:
    """Sign a plan for one run, for somebody else to launch."""
    from asterion_shared.files import write_atomically
    from asterion_shared.plan import read_plan
    from asterion_shared.signed_plan import read_operator_key, sign_plan

    wanted = read_plan(plan)
    signed = sign_plan(wanted, run or wanted.name, key.stem, read_operator_key(key), days=days)
    path = out or plan.with_name(f"{plan.name}.signature")
    write_atomically(path, f"{signed.model_dump_json(indent=1)}\n".encode())
    print(f"{path}: plan {wanted.sha256[:12]} as run {signed.run}, by {signed.operator}, for "
          f"{days} days")  # fmt: skip
