"""``asterion server release`` and ``asterion server releases``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from asterion_server.release_build import Made
    from asterion_server.release_registry import Model

releases_app = typer.Typer(
    invoke_without_command=True,
    help="List released models; promote a version, or go back to the one before.",
)

Folder = Annotated[Path, typer.Option("--folder", metavar="DIR", help="the coordinator's folder")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]
Name = Annotated[str, typer.Argument(help="name of the model")]
DEFAULT = Path("coordinator")


def release(
    run: Annotated[str, typer.Argument(help="name of a run that has ended")],
    folder: Folder = DEFAULT,
    out: Annotated[
        Path | None, typer.Option(help="a new folder; absent: DIR/releases/NAME/VERSION")
    ] = None,
    name: Annotated[str, typer.Option(help="name of the model; absent: the plan's")] = "",
    model: Annotated[
        Literal["final", "best"], typer.Option(help="of the last round, or of the best one")
    ] = "final",
    maturity: Annotated[
        Literal["research", "evaluated", "approved"], typer.Option(help="what it is called")
    ] = "research",
    settings: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="thresholds and words; absent: DIR/release.toml, if any"),
    ] = None,
    despite: Annotated[
        str, typer.Option(metavar="REASON", help="release what the gate holds back, as research")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make a signed release of a run's model: weights, ONNX, model card and papers."""
    from asterion_server.app import RUN_NAME
    from asterion_server.keys import open_provisioned
    from asterion_server.release_build import release as build
    from asterion_server.release_settings import read_release_settings, release_settings_in
    from asterion_shared.errors import UserInputError

    made = open_provisioned(folder)
    for given in filter(None, (run, name)):
        if RUN_NAME.fullmatch(given) is None:
            msg = f"the name is {given!r}; use lower-case letters, digits, '_', '.', '-'"
            raise UserInputError(msg)
    asked = read_release_settings(settings) if settings else release_settings_in(made.folder)
    found = build(
        made, run, asked, name=name, chosen=model, out=out, maturity=maturity, despite=despite
    )
    if as_json:
        facts = found.facts.model_dump(mode="json")
        print(json.dumps({"release": str(found.folder), "facts": facts}))
    else:
        _print(found, made.releases / "release.pem")


@releases_app.callback()
def list_models(context: typer.Context, folder: Folder = DEFAULT, as_json: AsJson = False) -> None:
    """List released models; promote a version, or go back to the one before."""
    if context.invoked_subcommand is not None:
        return
    from asterion_server.keys import open_provisioned
    from asterion_server.release_build import registry_of

    models = registry_of(open_provisioned(folder)).models()
    if as_json:
        told = {m.name: {"current": m.current, "versions": [
            released.model_dump(mode="json") for released in m.versions.values()
        ]} for m in models.values()}  # fmt: skip
        print(json.dumps({"models": told}))
        return
    if not models:
        print("nothing was released yet: asterion server release RUN")
    for model in models.values():
        _list(model)


@releases_app.command()
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, help="the version that is in use from now on")],
    folder: Folder = DEFAULT,
) -> None:
    """Make a version the one in use, after it was verified."""
    from asterion_server.keys import open_provisioned
    from asterion_server.release_build import make_current

    found = make_current(open_provisioned(folder), name, version)
    print(f"{name} version {found.version} is the one in use")


@releases_app.command()
def rollback(name: Name, folder: Folder = DEFAULT) -> None:
    """Go back to the version that was in use before."""
    from asterion_server.keys import open_provisioned
    from asterion_server.release_build import make_current

    found = make_current(open_provisioned(folder), name, None)
    print(f"{name} version {found.version} is the one in use again")


@releases_app.command()
def key(folder: Folder = DEFAULT) -> None:
    """Print the public key of releases; give it to others on another way than these."""
    from asterion_server.keys import open_provisioned
    from asterion_server.release_build import registry_of, release_key
    from asterion_shared.audit_key import public_pem

    registry = registry_of(open_provisioned(folder))
    with registry.locked():
        print(public_pem(release_key(registry)), end="")


def _print(found: "Made", public: Path) -> None:
    from asterion_server.release_words import performance_sentences
    from asterion_shared.reports.report_page import plural

    facts, onnx = found.facts, found.facts.onnx
    print(f"{facts.name} version {facts.version} ({facts.maturity}), of run {facts.run}: "
          f"{plural(facts.rounds, 'round')}, {plural(facts.sites, 'site')}")  # fmt: skip
    for sentence in performance_sentences(found.run):
        print(f"  {sentence}")
    for reason in facts.held_back:
        print(f"  held back by the gate: {reason}")
    if facts.despite:
        print(f"  released all the same, as research: {facts.despite}")
    if onnx.largest_difference is None:
        print(f"  no ONNX file: {onnx.why_not}")
    else:
        print(f"  ONNX and torch differ by {onnx.largest_difference:.2g} at most "
              f"({onnx.tolerance:.2g} is accepted)")  # fmt: skip
    print(f"release {found.folder}")
    print(f"verify it with: asterion verify {found.folder} --key {public}")


def _list(model: "Model") -> None:
    from asterion_shared.reports.metric_words import label, number
    from asterion_shared.reports.report_page import plural

    print(model.name)
    for released in model.versions.values():
        mark = "  (in use)" if released.version == model.current else ""
        called = "research, held back" if released.held_back else released.maturity
        reached = f"{label(released.metric)} {number(released.value)}"
        worst = f", worst site {number(released.worst_site)}"
        print(f"  version {released.version}: {called}{mark}")
        print(f"    {reached}{worst}; run {released.run}, {plural(released.rounds, 'round')}, "
              f"{plural(released.sites, 'site')}; {released.at}")  # fmt: skip
