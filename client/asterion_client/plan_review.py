"""A plan in plain language, for the person at the site who decides about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterion_client.approvals import last_approved
from asterion_client.consent import objections
from asterion_client.data.subgroups import told_attributes
from asterion_client.dry_run import DryRun
from asterion_client.settings import SiteSettings
from asterion_shared.metrics.subgroups import values_of
from asterion_shared.plan import Plan
from asterion_shared.privacy.account import in_one_line, planned_account
from asterion_shared.reports.metric_words import in_bytes, in_time

_KINDS = {
    "train": "trains a {task} model",
    "evaluate": "scores a given {task} model, without training",
    "count": "counts examples, and no more",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a person reads before the plan may run.

    Attributes:
        run: as which run.
        plan: what may run.
        objections: codes and words of what ``[consent]`` has against it; then it cannot run.
        dry_run: what a step on the site's data showed; None: it was not tried.
        changes: lines of what is other than in the plan that was approved last; None: there is no
            such plan.
    """

    run: str
    plan: Plan
    objections: tuple[tuple[str, str], ...]
    dry_run: DryRun | None
    changes: tuple[str, ...] | None


def review_of(
    settings: SiteSettings, folder: Path, plan: Plan, run: str, tried: DryRun | None
) -> Review:
    """Put together what a person should know of a plan."""
    before = last_approved(settings, folder)
    return Review(
        run=run,
        plan=plan,
        objections=tuple(objections(settings, plan)),
        dry_run=tried,
        changes=None if before is None else tuple(differences(before, plan)),
    )


def differences(before: Plan, after: Plan) -> Iterator[str]:
    """Lines ``setting: old -> new``, sorted by setting; nothing when the plans are equal."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name, "not set"), new.get(name, "not set")
        if was != now:
            yield f"{name}: {was} -> {now}"


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{path}{name}.")
        elif value is not None:
            found[f"{path}{name}"] = value
    return found


def in_plain_words(review: Review, settings: SiteSettings) -> str:
    """The review as text, for a terminal."""
    parts = [
        "\n".join([title, *(f"  {line}" for line in lines)])
        for title, lines in sections(review, settings)
    ]
    return "\n\n".join(parts)


def sections(review: Review, settings: SiteSettings) -> list[tuple[str, list[str]]]:
    """The review: a title and its lines, in the order in which a person reads them."""
    plan = review.plan
    parts = [
        (f"Run {review.run}", list(_what(plan))),
        ("What is read", list(_read(settings, review.dry_run))),
        ("What leaves", list(_leaves(settings, plan, review.dry_run))),
        ("Privacy", list(_privacy(plan))),
    ]
    if review.changes is not None:
        same = ["nothing: it is the same plan"]
        parts.append(("Other than in the plan approved last", list(review.changes) or same))
    if review.dry_run is not None:
        parts.append(("Dry run", list(_tried(review.dry_run))))
    if review.objections:
        said = [f"{words} ({code})" for code, words in review.objections]
        parts.append(("Against the site's [consent]; it will be refused", said))
    return parts


def _what(plan: Plan) -> Iterator[str]:
    model = f"network {plan.model.name}, classes {', '.join(plan.data.classes)}"
    yield f"{_KINDS[plan.kind].format(task=plan.task)}: {model}"
    yield f"plan {plan.sha256}"
    if plan.kind == "train":
        local, rounds = plan.local, plan.rounds
        yield (
            f"{rounds.count} rounds, in each {local.amount} {local.unit} of {local.batch_size} "
            f"examples at a time; at least {rounds.quorum} sites make a round"
        )


def _read(settings: SiteSettings, tried: DryRun | None) -> Iterator[str]:
    yield f"{settings.data.format} files in {settings.data.folder}, by this site's own program"
    if tried is not None:
        yield f"to train: {tried.num_examples} examples of {tried.num_patients} patients or fields"
        yield f"held out: {tried.num_test} examples of {tried.num_test_patients}"
        if tried.num_bad_files:
            yield f"{tried.num_bad_files} files cannot be read and are left out"


def _subgroups(settings: SiteSettings, plan: Plan) -> Iterator[str]:
    """Which of the subgroups that the plan asks for are told."""
    told = told_attributes(settings, plan)
    allowed = () if settings.consent is None else settings.consent.subgroups
    for attribute in sorted(plan.evaluation.subgroups):
        asked = f"{attribute} ({', '.join(values_of(plan, attribute))})"
        if attribute in told:
            yield f"the same for held-out cases by {asked}"
        elif attribute in allowed:
            held = f"small groups ({settings.smallest_group}) are not held back from a secure sum"
            yield f"not by {asked}, as asked: {held}"
        else:
            yield f"not by {asked}, as asked: consent.subgroups does not name it"


def _leaves(settings: SiteSettings, plan: Plan, tried: DryRun | None) -> Iterator[str]:
    if plan.kind == "count":
        yield "how many examples there are to train and to test, and a hash of the data set"
        return
    if plan.secure_sum is not None:
        yield "masked numbers, of which the coordinator learns the sum over the sites alone"
    else:
        if plan.kind == "train":
            size = f", {tried.num_weights:,} numbers" if tried is not None else ""
            yield f"each round: the change of the network's weights{size}"
        noised = plan.privacy is not None and plan.privacy.noise == "site"
        loss = "" if noised or plan.kind != "train" else ", the mean loss"
        yield f"how many examples and steps{loss}, how many seconds it took"
        yield "counts and sums from which the metrics on held-out examples are formed"
        yield "how many files cannot be read, and a hash of the data set"
    yield from _subgroups(settings, plan)
    yield "no image, no row of a table, no file name, no header"
    if tried is not None:
        rounds = plan.rounds.count if plan.kind == "train" else 1
        each, whole = in_bytes(tried.bytes_up), in_bytes(tried.bytes_up * rounds)
        yield f"about {each} a round, {whole} in all"
    yield "asterion site egress lists every number once it has left"


def _privacy(plan: Plan) -> Iterator[str]:
    if plan.kind != "train":
        yield "nothing is trained, so nothing is charged; metrics are not noised"
        return
    account = planned_account(plan)
    yield in_one_line(account, secure_sum=plan.secure_sum is not None)
    if account is not None:
        yield account.sentence
        yield from (f"not covered: {words}" for words in account.outside)


def _tried(tried: DryRun) -> Iterator[str]:
    yield f"one step on these data took {in_time(tried.seconds)}, with the network {tried.network}"
