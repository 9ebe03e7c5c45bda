"""``asterion plan``: write, check and describe plans."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from asterion_shared.errors import SettingsError, UserInputError
from asterion_shared.plan import Plan, TaskName, read_plan
from asterion_shared.plan_file import plan_to_toml
from asterion_shared.settings_files import validate

if TYPE_CHECKING:
    from asterion_shared.privacy.account import PrivacyAccount

app = typer.Typer(no_args_is_help=True, help="Write, check and describe plans.")


@app.command()
def new(
    task: Annotated[str, typer.Argument(help="segmentation, classification or anomaly")],
    name: Annotated[str, typer.Option(help="name of the run")] = "my-run",
) -> None:
    """Print a plan with every setting and what it means: asterion plan new TASK > plan.toml."""
    # Here, because it imports torch, which `asterion site start` must not wait for.
    from asterion_shared.tasks import task_module

    tasks: tuple[TaskName, ...] = get_args(TaskName)
    known: dict[str, TaskName] = {one: one for one in tasks}
    if task not in known:
        msg = f"there is no task {task!r}; choose one of {', '.join(tasks)}"
        raise UserInputError(msg)
    values: dict[str, Any] = {"name": name} | dict(task_module(known[task]).DEFAULTS)
    print(plan_to_toml(validate(Plan, values, f"plan new {task}")), end="")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="the plan, TOML")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Name every problem of a plan at once, or print its hash."""
    try:
        plan = read_plan(file)
    except SettingsError as error:
        if not as_json:
            raise
        rows = [{"where": p.where, "what": p.what, "fix": p.fix} for p in error.problems]
        print(json.dumps({"plan": None, "sha256": None, "problems": rows}))
        raise typer.Exit(error.exit_code) from None
    # Only the network knows whether the patch suits it; imported here because it takes seconds.
    from asterion_shared.tasks import task_module

    model = task_module(plan.task).build_model(plan)
    account = None
    if plan.privacy is not None:
        from asterion_shared.privacy.account import planned_account, rounds_allowed
        from asterion_shared.privacy.network_check import private_method

        rounds_allowed(plan)
        if plan.privacy.protects != "site":
            private_method(plan, model)
        account = planned_account(plan)
    if as_json:
        stated = None if account is None else {
            "epsilon": account.epsilon, "delta": account.delta, "accountant": account.accountant,
            "sentence": account.sentence, "outside": account.outside,
        }  # fmt: skip
        found: dict[str, Any] = {
            "plan": plan.name,
            "sha256": plan.sha256,
            "problems": [],
            "privacy": stated,
        }
        print(json.dumps(found))
        return
    print(f"{file}: a plan to {plan.kind} {plan.task}, {plan.rounds.count} rounds; it is right")
    print(f"sha256 {plan.sha256}")
    if account is not None:
        _print_privacy(plan, account)


def _print_privacy(plan: Plan, account: "PrivacyAccount") -> None:
    from asterion_shared.privacy.account import in_one_line
    from asterion_shared.privacy.adaptive_clip import split_noise

    print(f"privacy: {in_one_line(account)}, asked in every round ({account.accountant})")
    print(account.sentence)
    if plan.privacy is not None and plan.privacy.adaptive_clip is not None:
        noise = split_noise(plan.privacy)
        print(
            f"adaptive clip: the count of {plan.rounds.sites_per_round:,} sites has noise of "
            f"deviation {noise.count_deviation:.3g}, the sum a noise multiplier of "
            f"{noise.sum_multiplier:.3g}; together they cost privacy.noise_multiplier"
        )
    print("outside of the guarantee:")
    for words in account.outside:
        print(f"  {words}")


@app.command()
def schema() -> None:
    """Print the JSON schema of plans, for editors that complete and check TOML."""
    print(json.dumps(Plan.model_json_schema(), indent=2))
