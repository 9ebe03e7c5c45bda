"""``asterion site fine-tune``: a released model on the site's own data."""

import json
from pathlib import Path
from typing import Annotated

import typer

MODEL, FACTS = "model.safetensors", "fine-tuning.json"


def fine_tune(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="a release's folder")],
    site_toml: Annotated[Path, typer.Argument(metavar="SITE_TOML", help="the site's settings")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keep the tuned weights here, at the site")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="times the plan's local work")] = 5,
    learning_rate: Annotated[
        float | None, typer.Option(help="absent: a tenth of the plan's")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="public key that the release must be signed with")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Train a released model on the site's own data, and say with an interval whether it helps.

    Nothing leaves the site, and no run is joined.
    """
    from asterion_client.fine_tune import fine_tune as tune
    from asterion_client.settings import read_site_settings
    from asterion_shared.errors import UserInputError
    from asterion_shared.files import write_atomically
    from asterion_shared.parameters import named_parts
    from asterion_shared.release.opening import open_release
    from asterion_shared.reports.metric_words import label, number
    from asterion_shared.tensor_files import write_tensors

    if learning_rate is not None and not 0 < learning_rate <= 10:
        msg = f"--learning-rate is {learning_rate:g}; give one above 0 and at most 10"
        raise UserInputError(msg)
    if out is not None and (out / MODEL).exists():
        msg = f"{out / MODEL} is there already; choose another --out"
        raise UserInputError(msg)
    settings, model = read_site_settings(site_toml), open_release(release, key)
    found = tune(
        settings,
        site_toml.resolve().parent,
        model,
        rounds=rounds,
        learning_rate=learning_rate,
        say=lambda line: typer.echo(line, err=True),
    )
    parts = {"released": found.released, "tuned": found.tuned, "gain": found.gain}
    facts = {
        "site": settings.name,
        "release": f"{model.facts.name} {model.facts.version}",
        "metric": found.metric,
        **{name: {"value": t.value, "low": t.low, "high": t.high} for name, t in parts.items()},
        "verdict": found.verdict,
        "num_test": found.num_test,
        "num_drawn": found.num_drawn,
        "num_steps": found.num_steps,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        tensors = named_parts(found.weights, found.layout)
        facts["sha256"] = write_tensors(out / MODEL, tensors)
        write_atomically(out / FACTS, (json.dumps(facts, indent=2) + "\n").encode())
    if as_json:
        print(json.dumps(facts))
        return
    name = label(found.metric)
    for what, told in parts.items():
        sign = "+" if what == "gain" and (told.value or 0) > 0 else ""
        bounds = f"{number(told.low)} to {number(told.high)}"
        print(f"{what:9} {name} {sign}{number(told.value)} (95 % interval {bounds})")
    drawn = f"{found.num_test} held-out cases, {found.num_drawn} {found.drawn}"
    print(f"fine-tuning {found.verdict} at site {settings.name}: {found.num_steps} steps, {drawn}")
    if out is not None:
        print(f"weights {out / MODEL}")
