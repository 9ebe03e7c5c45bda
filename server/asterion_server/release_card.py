"""The model card of a release, ``docs/README.md``: what a physician reads first."""

from collections.abc import Sequence

from asterion_server.release_run import TrainedRun
from asterion_server.release_settings import AboutSettings
from asterion_server.release_words import (
    approval_sentence,
    calibration_sentences,
    input_sentence,
    limits,
    metric_rows,
    performance_sentences,
    privacy_sentences,
    said,
    site_rows,
    subgroup_parts,
    table,
    task_sentence,
)
from asterion_shared.release.facts import OnnxFacts
from asterion_shared.reports.metric_words import headline_metric, label, number
from asterion_shared.reports.report_page import lowest_site, num_tested, plural

_MATURITY = {
    "research": "**For research only.** Nobody has approved it for use on patients or for a "
    "catalogue.",
    "evaluated": "**Evaluated, not approved.** It passed the release gate of the coordinator; "
    "nobody has approved it for routine use.",
    "approved": "**Approved** by those who released it, for the intended use below and no other.",
}


def model_card(
    run: TrainedRun,
    about: AboutSettings,
    onnx: OnnxFacts,
    *,
    name: str,
    version: int,
    maturity: str,
    held_back: Sequence[str],
    despite: str,
) -> str:
    """The card as Markdown.

    Args:
        run: that trained the model.
        about: what people said of it; what is empty is called not recorded.
        onnx: how the export went.
        name: of the model.
        version: >= 1.
        maturity: a key of the words above.
        held_back: what the release gate found.
        despite: why it is released all the same; empty when nothing was found.
    """
    result = run.result
    parts = [f"# {name}, version {version}", _MATURITY[maturity]]
    if held_back:
        found = "\n".join(f"> * {reason}" for reason in held_back)
        parts.append(
            f"> **The release gate held it back:**\n{found}\n>\n"
            f"> **It was released all the same**, as research, because: {' '.join(despite.split())}"
        )
    parts += [
        f"{task_sentence(run.plan)} It was trained in {plural(run.rounds, 'round')} by "
        f"{plural(len(run.sites), 'site')}; their data never left them.",
        "## Intended use", said(about.intended_use),
        f"Not to be used for: {said(about.not_for)}",
        "## How well it does", " ".join(performance_sentences(run)),
    ]  # fmt: skip
    if rows := metric_rows(result.final_metrics, run.plan):
        parts.append(table(("measured over all sites", "value", "95 % interval", "baseline"), rows))
    if words := calibration_sentences(run):
        parts.append(" ".join(words))
    parts += [_sites(run), *subgroup_parts(run), "## Limits",
              "\n".join(f"* {sentence}" for sentence in limits(run, about.limits)),
              "## Data", said(about.data_sources), input_sentence(run.plan),
              "The truth it was trained and tested on (reference standard): "
              f"{said(about.reference_standard)}",
              "## Privacy", " ".join(privacy_sentences(run)),
              "The full statement is docs/privacy.json.",
              "## How to use it", _use(onnx),
              "## Where it comes from", _origin(run),
              f"Authors: {said(about.authors)} Contact: {said(about.contact)}"]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _sites(run: TrainedRun) -> str:
    metric = headline_metric(run.plan.task)
    head = ("site", "training", "test", "skipped files", label(metric), "95 % interval")
    words = [f"By site, {num_tested(run.result):,} held-out test examples in all:"]
    lowest = lowest_site(run.result.final_sites, metric)
    if lowest is not None and len(run.result.final_sites) > 1:
        words.append(f"the lowest {label(metric)} is {number(lowest[1])}, at {lowest[0]}.")
    return f"{' '.join(words)}\n\n{table(head, site_rows(run))}"


def _use(onnx: OnnxFacts) -> str:
    lines = [
        "* Verify it first: `asterion verify RELEASE --key PUBLIC.pem`, with the coordinator's key "
        "as you know it from elsewhere.",
        "* `models/model.safetensors` has the weights; `configs/inference.json` builds the network "
        "with MONAI's parser; `plan.json` says how its input is made.",
    ]
    if onnx.largest_difference is None:
        lines.append(f"* There is no ONNX file: {onnx.why_not}.")
    else:
        lines.append(
            f"* `models/model.onnx` computes the same: on random inputs no output was further from "
            f"torch's than {onnx.largest_difference:.2g} ({onnx.tolerance:.2g} is accepted)."
        )
    return "\n".join(lines)


def _origin(run: TrainedRun) -> str:
    result = run.result
    began = run.plan.init.sha256 if run.plan.init is not None else "random weights"
    rows = [
        ("run", run.folder.path.name),
        ("finished", result.finished),
        ("plan, SHA-256", result.plan_sha256),
        ("began from", began),
        ("approval", approval_sentence(run)),
        ("programs", ", ".join(f"{n} {v}" for n, v in sorted(result.versions.items()))),
    ]
    return table(("", ""), rows)
