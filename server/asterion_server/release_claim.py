"""``docs/claim.md``: a report in the order of CLAIM, honest about what nobody recorded.

Order and subjects: Tejani et al., "Checklist for Artificial Intelligence in Medical Imaging
(CLAIM): 2024 Update", Radiology: Artificial Intelligence 6(4), 2024; the words here are our own.
"""

from asterion_server.release_run import TrainedRun
from asterion_server.release_settings import AboutSettings
from asterion_server.release_words import (
    input_sentence,
    limits,
    metric_rows,
    performance_sentences,
    said,
    site_rows,
    subgroup_parts,
    table,
    task_sentence,
)
from asterion_shared.metrics import HEADLINE
from asterion_shared.plan import Plan
from asterion_shared.reports.metric_words import label
from asterion_shared.reports.report_page import num_tested, plural

Item = tuple[str, str]
"""What is asked, and the answer."""


def claim_report(run: TrainedRun, about: AboutSettings, *, name: str, version: int) -> str:
    """The report as Markdown.

    Args:
        run: that trained the model.
        about: what people said of it; what is empty is called not recorded.
        name: of the model.
        version: >= 1.
    """
    sections = {
        "Title and summary": _title(run),
        "Introduction": _introduction(about),
        "Study design": _design(about),
        "Data": _data(run, about),
        "Reference standard": _reference(about),
        "Partitions": _partitions(run),
        "Test data": [("How the number of test cases was chosen", said(about.sample_size))],
        "Model": _model(run),
        "Training": _training(run),
        "Evaluation": _evaluation(run, about),
        "Results: data": _counts(run, about),
        "Results: performance": _performance(run, about),
        "Discussion": _discussion(run, about),
        "Other information": _other(run, about),
    }
    parts = [
        f"# {name}, version {version}: report in the order of CLAIM",
        "The items follow CLAIM (2024 update), which was written for medical imaging; for tables "
        "and sky images some do not apply. What the run recorded is filled in by the program; what "
        "only people know comes from `release.toml`, and is called not recorded where nobody wrote "
        "it.",
    ]
    number = 0
    for title, items in sections.items():
        parts.append(f"## {title}")
        for asked, answer in items:
            number += 1
            parts.append(f"**{number}. {asked}.** {answer}")
    rows = metric_rows(run.result.final_metrics, run.plan)
    if rows:
        parts += ["## Table 1: over all sites",
                  table(("metric", "value", "95 % interval", "baseline"), rows)]  # fmt: skip
    head = ("site", "training", "test", "skipped files", label(HEADLINE[run.plan.task]),
            "95 % interval")  # fmt: skip
    parts += ["## Table 2: by site", table(head, site_rows(run))]
    if subgroups := subgroup_parts(run):
        parts += ["## Table 3: by subgroup", *subgroups]
    return "\n\n".join(parts) + "\n"


def _title(run: TrainedRun) -> list[Item]:
    sites = plural(len(run.sites), "site")
    return [
        ("Kind of study", f"Development of a deep learning model ({run.plan.task}) by federated "
         f"learning at {sites}."),
        ("Summary", f"{task_sentence(run.plan)} It was trained in {plural(run.rounds, 'round')} at "
         f"{sites} without moving their data. {' '.join(performance_sentences(run))}"),
    ]  # fmt: skip


def _introduction(about: AboutSettings) -> list[Item]:
    return [
        ("Background, intended use and role", f"{said(about.background)} Intended use: "
         f"{said(about.intended_use)}"),
        ("Aims and hypotheses", said(about.hypotheses)),
    ]  # fmt: skip


def _design(about: AboutSettings) -> list[Item]:
    return [
        ("Prospective or retrospective", said(about.design)),
        ("Goal of the study", "To make a model and to measure it."),
    ]


def _data(run: TrainedRun, about: AboutSettings) -> list[Item]:
    return [
        ("Sources of data", said(about.data_sources)),
        ("Who was included and who was not", said(about.eligibility)),
        ("Preparation of the data", input_sentence(run.plan)),
        ("Choice of parts of the data", _windows(run.plan)),
        ("De-identification", f"Data, names and headers stay at the sites. Of the data at the "
         f"sites: {said(about.deidentification)}"),
        ("Missing data", f"{_skipped(run)}{_missing(run.plan)}"),
        ("How images were acquired", said(about.acquisition)),
    ]  # fmt: skip


def _windows(plan: Plan) -> str:
    if plan.data.kind == "table" or plan.task == "classification":
        return "None: each record is used as a whole."
    each = plural(plan.local.patches_per_image, "random window")
    return f"In training {each} of each image in one pass; in testing the whole image."


def _skipped(run: TrainedRun) -> str:
    if run.result.secure_sum:
        return "Files that cannot be read are skipped; how many is known to each site alone."
    skipped = sum(site.num_bad_files for site in run.result.sites)
    return f"Files that cannot be read are skipped: {skipped:,} in all."


def _missing(plan: Plan) -> str:
    if plan.data.kind == "image":
        return ""
    return " A missing number is 0 after standardising, beside a column that says it is missing."


def _reference(about: AboutSettings) -> list[Item]:
    return [
        ("What counts as the truth", said(about.reference_standard)),
        ("Why that", "See item 14." if about.reference_standard else said("")),
        ("Where the annotations come from", said(about.annotators)),
        ("Annotation of the test set", "See item 16." if about.annotators else said("")),
        ("Agreement of the annotators", said(about.annotator_agreement)),
    ]


def _partitions(run: TrainedRun) -> list[Item]:
    return [
        ("How data were assigned", "Each site splits its own: as its list of records says, or "
         "else at random with a share that its settings name."),
        ("At which level the parts are disjoint", "By patient, or by field of the sky, where a "
         "site's records say whose they are; else by record. Which of the two is known to each "
         "site."),
    ]  # fmt: skip


def _model(run: TrainedRun) -> list[Item]:
    plan = run.plan
    widths = ", ".join(str(width) for width in plan.model.widths)
    programs = ", ".join(f"{name} {v}" for name, v in sorted(run.result.versions.items()))
    start = f"random, drawn from the seed {plan.seed}"
    if plan.init is not None:
        start = f"a file with SHA-256 {plan.init.sha256}"
    return [
        ("The network", f"{task_sentence(plan)} Network `{plan.model.name}`, widths {widths}, "
         f"dropout {plan.model.dropout:g}; `plan.json` has every setting."),
        ("Programs", programs),
        ("Initial weights", f"{start[:1].upper()}{start[1:]}."),
    ]  # fmt: skip


def _training(run: TrainedRun) -> list[Item]:
    plan, local = run.plan, run.plan.local
    augmented = f"; random {' and '.join(local.augment)}" if local.augment else ""
    return [
        ("Training", f"{plural(run.rounds, 'round')} of {plan.algorithm.name}; in each, every site "
         f"that was asked did {local.amount:,} {local.unit} with {local.optimiser}, learning rate "
         f"{local.learning_rate:g}, batches of {local.batch_size}{augmented}. One model was "
         "trained in this run; other runs before it are not recorded."),
        ("Choice of the final model", _choice(run)),
        ("Ensembles", "None."),
    ]  # fmt: skip


def _choice(run: TrainedRun) -> str:
    if run.chosen == "final":
        return "The model after the last round."
    return (
        f"The model after round {run.rounds}, of all measured ones the one with the highest "
        f"{label(HEADLINE[run.plan.task])} over all sites, on the same test data that the numbers "
        "here come from."
    )


def _evaluation(run: TrainedRun, about: AboutSettings) -> list[Item]:
    registered = said(about.registration)
    return [
        ("Measures", f"{label(HEADLINE[run.plan.task])} first; Table 1 has all, each beside a "
         "trivial baseline."),
        ("Uncertainty", "95 % intervals: of means over cases, from their spread; of an AUROC, "
         "after Hanley and McNeil (1982)."),
        ("Robustness", said(about.robustness)),
        ("Explanations", said(about.explanations)),
        ("Tests on the sites' own data", f"{num_tested(run.result):,} held-out test examples of "
         "the sites that trained the model; Tables 1 and 2."),
        ("Tests on other data", said(about.external_test)),
        ("Registration", registered),
    ]  # fmt: skip


def _counts(run: TrainedRun, about: AboutSettings) -> list[Item]:
    result = run.result
    trained = "known to each site alone"
    if not result.secure_sum:
        trained = f"{sum(site.num_examples for site in result.sites):,}"
    return [
        ("Numbers", f"Training examples: {trained}. Test examples: {num_tested(result):,}. By "
         "site: Table 2. Who was left out for want of consent, or because a group is small, is "
         "known to each site alone."),
        ("Who they are", said(about.characteristics)),
    ]  # fmt: skip


def _performance(run: TrainedRun, about: AboutSettings) -> list[Item]:
    return [
        ("Performance", " ".join(performance_sentences(run))),
        ("Estimates with their precision", "Tables 1 and 2; docs/result.json has every round."),
        ("Where it fails", said(about.failure_analysis)),
    ]


def _discussion(run: TrainedRun, about: AboutSettings) -> list[Item]:
    return [
        ("Limits", " ".join(limits(run, about.limits))),
        ("What follows for practice", said(about.implications)),
    ]


def _other(run: TrainedRun, about: AboutSettings) -> list[Item]:
    return [
        ("Full protocol", f"The plan is in `plan.json` (SHA-256 {run.result.plan_sha256}). "
         f"Study protocol: {said(about.protocol)}"),
        ("What is available", "The model and its plan: this release. Data: they stay at the sites. "
         f"{said(about.availability)}"),
        ("Funding", said(about.funding)),
    ]  # fmt: skip
