"""``asterion report``: runs side by side, and a run's page written anew."""

import json
from pathlib import Path
from typing import Annotated

import typer

from asterion_shared.errors import UserInputError

app = typer.Typer(
    no_args_is_help=True,
    help="Compare runs; write a run's report again, or its numbers for other tools.",
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="the run's folder, or its result.json")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="folders of runs or their result.json, 2 to 12"),
    ],
    out: Annotated[Path | None, typer.Option(help="also write one self-contained page")] = None,
    as_json: AsJson = False,
) -> None:
    """Put runs of one task side by side: result, sites, cost, privacy, absences, plans.

    Sites are paired by name, and every difference is to the first run.
    """
    # Here, because these import scipy and a plotting library.
    from rich.console import Console

    from asterion_shared.reports.compare_page import write_comparison
    from asterion_shared.reports.compare_terminal import comparison_json, print_comparison
    from asterion_shared.reports.compared_runs import read_runs

    read = read_runs(runs)
    if out is not None:
        write_comparison(read, out)
    if as_json:
        print(json.dumps(comparison_json(read)))
        return
    print_comparison(read, Console(highlight=False))
    if out is not None:
        print(f"the page: {out}")


@app.command()
def show(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="the page; absent: report.html beside result.json")
    ] = None,
    bracket: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="of asterion simulate bracket, with the run's plan and sites: show each site's "
            "own model and a pooled one as well, now and whenever the report is written again",
        ),
    ] = None,
) -> None:
    """Write a run's report.html again from its result.json, with this version's pages.

    Example pictures are not in result.json: those of the page that is there are taken over.
    """
    from asterion_shared.bracket_result import BRACKET_FILE, read_bracket, write_bracket
    from asterion_shared.reports.compared_runs import read_run, result_file
    from asterion_shared.reports.drawn_before import pictures_of
    from asterion_shared.reports.run_report import write_report

    read, beside = read_run(run), result_file(run).with_name("report.html")
    kept = beside.with_name(BRACKET_FILE)
    pictures = [] if read.result.is_live else pictures_of(beside)
    path = beside if out is None else out
    source = kept if bracket is None else bracket / BRACKET_FILE
    otherwise = read_bracket(source) if bracket is not None or kept.exists() else None
    write_report(read.result, path, plan=read.plan, pictures=pictures, bracket=otherwise)
    if bracket is not None and otherwise is not None:
        write_bracket(otherwise, kept)
    print(f"{path}: {read.result.headline}")


@app.command()
def export(
    run: Run,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write event files below DIR/NAME-OF-RUN")
    ] = None,
    mlflow: Annotated[
        str, typer.Option(metavar="URI", help="a tracking server, such as http://localhost:5000")
    ] = "",
    follow: Annotated[
        bool, typer.Option("--follow", help="wait for what comes until the run ends")
    ] = False,
) -> None:
    """Write a run's numbers for TensorBoard or MLflow, after it or while it goes on.

    Numbers and the plan alone; no picture and no file of the run. The step is the round.
    """
    from asterion_shared.reports.compared_runs import plan_beside
    from asterion_shared.reports.run_numbers import told_by_run

    if (tensorboard is None) == (not mlflow):
        msg = "name one of --tensorboard DIR or --mlflow URI"
        raise UserInputError(msg)
    folder = run.parent if run.is_file() else run
    name, plan = folder.resolve().name, plan_beside(folder)
    told = told_by_run(folder, follow=follow)
    if tensorboard is not None:
        from asterion_shared.reports.tensorboard_writer import write_tensorboard

        count, where = write_tensorboard(told, tensorboard / name, plan), str(tensorboard / name)
    else:
        from asterion_shared.reports.mlflow_writer import write_mlflow

        count, where = write_mlflow(told, mlflow, name, plan), mlflow
    print(f"{where}: {count} rounds of {name} written")
