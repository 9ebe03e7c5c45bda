"""What a site agrees to: every order is held against ``[consent]`` before data are touched.

Nothing that a coordinator sends changes what is asked here. A refusal is an answer with a code.
Plan, signature and approval are looked at with each order. Hours, quotas and the machine's other
work decide whether a round may begin; the later steps of a round that has begun are carried out,
for the other sites wait for them.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from asterion_client.approvals import check_approval, keep_waiting
from asterion_client.consent_settings import ConsentSettings
from asterion_client.day_book import Day, DayBook
from asterion_client.link_transfers import seconds_until_open
from asterion_client.machine_load import percent_of_others
from asterion_client.settings import SiteSettings
from asterion_shared.errors import OrderRefusedError, PrivacyProofError
from asterion_shared.files import append_lines
from asterion_shared.messages import Order, order_sha256
from asterion_shared.plan import Plan, parse_plan
from asterion_shared.privacy.accounting import steps_within
from asterion_shared.privacy.planned import charge_of
from asterion_shared.signed_plan import check_signature, read_operator_keys

PAUSED = "consent/paused"
"""While this file is in the state folder, no round begins."""

MOST_ORDERS = 3
"""Different orders of a round that has begun that hours and quotas do not hold up: to count, to
train and to evaluate. More are no round that others wait for, but a way around the quotas."""

_ASKED = "asked.txt"
"""In a run's folder: hashes of the orders of a private plan that were admitted and ask for a
release: to train, or under a secure sum for the masked vector, with fresh noise in each sum."""

Objection = tuple[str, str]
"""A code of ``REASON_CODES``, and words for the site's own people."""


class Consent:
    """Decides for one site.

    Args:
        settings: the site's.
        folder: where ``site.toml`` lies.
        days: what the site did today.
    """

    def __init__(self, settings: SiteSettings, folder: Path, days: DayBook) -> None:
        self._settings, self._folder, self._days = settings, folder, days
        self._state = folder / settings.state_folder

    def require(self, order: Order, now: float | None = None) -> None:
        """See to it that the site agrees to an order.

        Args:
            order: any.
            now: UTC, seconds since 1970; None: the clock's.

        Raises:
            OrderRefusedError: it does not; ``code`` says why.
            FileProblemError: an operator's key, or the site's own, is missing or wrong.
            DiskProblemError: that a round begins cannot be written.
        """
        moment = time.time() if now is None else now
        given = self._settings.consent
        if given is None:
            _refuse("no_consent", "site.toml has no [consent]; write one to take part")
        for code, words in objections(self._settings, order.plan):
            _refuse(code, words)
        keys = read_operator_keys(self._folder / given.operator_keys, given.operators)
        check_signature(order.signature, order.plan, order.run, keys, moment)
        _check_step(given, order)
        if given.approval == "person":
            try:
                check_approval(self._settings, self._folder, order.plan, order.run, moment)
            except OrderRefusedError:
                keep_waiting(self._state, order)
                raise
        digest = order_sha256(order, self._settings.name)
        if not self._goes_on(order, digest):
            self._check_moment(given, order, moment)
        self._admit(order, digest)

    def _goes_on(self, order: Order, digest: str) -> bool:
        """Whether an order belongs to a round that has begun, for which the others wait."""
        done = self._days.orders_of(order.run, order.round)
        if done is None:
            return False
        return order.sum is not None or digest in done or len(done) < MOST_ORDERS

    def _check_moment(self, given: ConsentSettings, order: Order, now: float) -> None:
        """Whether a round may begin now."""
        if (self._state / PAUSED).exists():
            _refuse("site_paused", "the site is paused; asterion site continue ends that")
        local = datetime.fromtimestamp(now, UTC).astimezone().replace(tzinfo=None)
        if seconds_until_open(given.hours, local) > 0:
            _refuse("outside_hours", f"consent.hours are {', '.join(given.hours)}")
        for code, words in _spent(given, self._days.today(), order):
            _refuse(code, words)
        if given.busy_percent is not None:
            others = percent_of_others()
            if others > given.busy_percent:
                words = (
                    f"other programs use {others:.0f} percent of the processors, consent."
                    f"busy_percent is {given.busy_percent:g}"
                )
                _refuse("site_busy", words)

    def _admit(self, order: Order, digest: str) -> None:
        """Note durably that the order is carried out."""
        releases = _asks_for_release(order)
        if order.plan.privacy is not None and (releases or order.phase == "train"):
            path = self._state / "runs" / order.run / _ASKED
            known = set(path.read_text(encoding="ascii").split()) if path.exists() else set()
            if digest not in known:
                allowed = _most_rounds(order.plan.canonical(), *_limits(self._settings))
                if len(known) >= allowed:
                    words = (
                        f"run {order.run} was carried out {len(known)} times, which is all that "
                        "consent.largest_epsilon allows"
                    )
                    _refuse("epsilon_too_large", words)
                if releases:
                    append_lines(path, [digest])
        self._days.begin(order.run, order.round, None if order.sum else digest)


def objections(settings: SiteSettings, plan: Plan) -> Iterator[Objection]:
    """What a site has against a plan, from plan and settings alone; nothing when it agrees.

    Args:
        settings: the site's.
        plan: any.
    """
    given = settings.consent
    if given is None:
        yield "no_consent", "site.toml has no [consent]; write one to take part"
        return
    if plan.task != settings.task:
        yield "wrong_task", f"the plan is for {plan.task}, this site's data for {settings.task}"
    if plan.kind not in given.kinds:
        yield "kind_not_allowed", f"the plan is to {plan.kind}, consent.kinds are {given.kinds}"
    if given.models is not None and plan.model.name not in given.models:
        words = f"the plan's network is {plan.model.name!r}, consent.models are {given.models}"
        yield "model_not_allowed", words
    if given.secure_sum == "required" and plan.secure_sum is None:
        yield "secure_sum_needed", "the plan has no [secure_sum], and consent.secure_sum needs one"
    if plan.rounds.quorum < given.smallest_cohort:
        words = (
            f"rounds.quorum of the plan is {plan.rounds.quorum}, consent.smallest_cohort is "
            f"{given.smallest_cohort}"
        )
        yield "cohort_too_small", words
    if plan.kind == "train":
        yield from _privacy_objections(settings, given, plan)


def _privacy_objections(
    settings: SiteSettings, given: ConsentSettings, plan: Plan
) -> Iterator[Objection]:
    noise = "none" if plan.privacy is None else plan.privacy.noise
    if noise not in given.noise:
        yield "noise_not_allowed", f"the plan's noise is {noise!r}, consent.noise is {given.noise}"
    if plan.privacy is None:
        return
    epsilon, delta = _limits(settings)
    allowed = _most_rounds(plan.canonical(), epsilon, delta)
    if allowed < plan.rounds.count:
        words = (
            f"the plan has {plan.rounds.count} rounds, and {allowed} come to consent."
            f"largest_epsilon, {epsilon:g}"
        )
        yield "epsilon_too_large", words


def _limits(settings: SiteSettings) -> tuple[float, float | None]:
    """Largest epsilon of a plan, and the site's delta; None: the plan's."""
    assert settings.consent is not None  # noqa: S101  # callers looked
    delta = None if settings.privacy is None else settings.privacy.delta
    return settings.consent.largest_epsilon, delta


@lru_cache(maxsize=16)
def _most_rounds(canonical_plan: str, epsilon: float, delta: float | None) -> int:
    """Rounds of a private plan that stay within an epsilon."""
    plan = parse_plan(canonical_plan)
    charge = charge_of(plan, 1)
    assert charge is not None  # noqa: S101  # the plan is private
    assert plan.privacy is not None  # noqa: S101
    try:
        return steps_within(epsilon, delta or plan.privacy.delta, charge)
    except PrivacyProofError:
        return 0


def _check_step(given: ConsentSettings, order: Order) -> None:
    """What the order itself asks for, beyond its plan."""
    plan = order.plan
    if order.phase == "train" and (plan.kind != "train" or order.round > plan.rounds.count):
        asked = f"to train in round {order.round}"
        words = f"{asked}; the plan is to {plan.kind}, of {plan.rounds.count} rounds"
        _refuse("not_in_plan", words)
    if order.phase == "evaluate" and plan.kind == "count":
        _refuse("not_in_plan", "to evaluate; the plan is to count")
    if order.sum is not None and len(order.sum.sites) < given.smallest_cohort:
        words = (
            f"{len(order.sum.sites)} sites take part in the sum, consent.smallest_cohort is "
            f"{given.smallest_cohort}"
        )
        _refuse("cohort_too_small", words)


def _asks_for_release(order: Order) -> bool:
    """Whether what leaves is noised anew, and charged."""
    if order.sum is not None:
        return (order.sum.of, order.sum.step) == ("train", "masked")
    return order.phase == "train" and order.plan.secure_sum is None


def _spent(given: ConsentSettings, day: Day, order: Order) -> Iterator[Objection]:
    """Which of the day's quotas a round would pass."""
    if order.run not in day.runs and len(day.runs) >= given.plans_a_day:
        yield "plans_spent", f"{len(day.runs)} runs today, consent.plans_a_day allows no more"
    if (order.run, order.round) not in day.rounds and len(day.rounds) >= given.rounds_a_day:
        yield "rounds_spent", f"{len(day.rounds)} rounds today, consent.rounds_a_day allows no more"
    leaving = 0 if order.weights is None else order.weights.nbytes
    if day.num_bytes + leaving > given.bytes_a_day:
        words = f"{day.num_bytes:,} bytes today, consent.bytes_a_day is {given.bytes_a_day:,}"
        yield "bytes_spent", words
    if day.seconds >= 3600 * given.device_hours_a_day:
        words = (
            f"{day.seconds / 3600:.2f} hours of work today, consent.device_hours_a_day is "
            f"{given.device_hours_a_day:g}"
        )
        yield "device_hours_spent", words


def _refuse(code: str, words: str) -> NoReturn:
    raise OrderRefusedError(words, code=code)
