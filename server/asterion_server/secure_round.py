"""A round under a secure sum: sites train, then their vectors are summed without being seen.

Live, the steps of the sum travel as orders of their own. In a simulation, where every site is on
this machine, the same vectors are formed and added without masks: masks cancel exactly.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from asterion_shared.errors import OrderRefusedError, QuorumLostError, ReportRejectedError
from asterion_shared.messages import (
    Answer,
    NoReport,
    Order,
    Report,
    SumOrder,
    SumStep,
    order_sha256,
)
from asterion_shared.privacy.secret_stream import secret_stream
from asterion_shared.privacy.secure_sum import Instance, Verify
from asterion_shared.privacy.secure_sum_centre import CentreSum
from asterion_shared.privacy.secure_sum_messages import (
    Agreement,
    Keys,
    Masked,
    Reveal,
    Shares,
    ToCentre,
    ToSite,
    Unmasking,
)
from asterion_shared.privacy.summed_vector import BITS, Summed, SummedVector, Words

Ask = Callable[[Order, Sequence[str]], Iterator[Answer]]
"""Sends an order; yields one answer for each site."""

Message = TypeVar("Message", bound=ToCentre)


@dataclass(frozen=True, slots=True)
class SecureRound:
    """What came of a round.

    Attributes:
        answers: one for each site that was asked; the reports are bare. A site that was lost
            after its vector was in the sum has a report.
        summed: what the coordinator learns; None when too few sites remained.
        problem: why there is no sum.
    """

    answers: tuple[Answer, ...]
    summed: Summed | None
    problem: QuorumLostError | None


def summed_here(order: Order, sites: Sequence[str], ask: Ask) -> SecureRound:
    """The round of a simulation, whose reports have the updates in them."""
    form = _form(order)
    total: Words = np.zeros(form.length, np.uint32)
    answers: list[Answer] = []
    survivors = 0
    for answer in ask(order, sites):
        if isinstance(answer, NoReport):
            answers.append(answer)
            continue
        try:
            total += form.encode(
                answer.update, answer.num_examples, answer.statistics, secret_stream()
            )
        except OrderRefusedError as error:
            answers.append(NoReport(site=answer.site, outcome="refused", code=error.code))
            continue
        survivors += 1
        answers.append(answer.bare())
    problem = _too_few(order, form, survivors, len(sites))
    return SecureRound(tuple(answers), None if problem else form.decode(total), problem)


def summed_live(order: Order, sites: Sequence[str], ask: Ask, verify: Verify) -> SecureRound:
    """The round of a live run: the order itself, then the steps of the sum.

    Args:
        order: to train or to evaluate.
        sites: that are asked, as many as the plan says.
        ask: sends orders.
        verify: by the sites' identities.
    """
    exchange = _Exchange(order, sites, ask, verify)
    try:
        summed = exchange.run()
    except QuorumLostError as error:
        return SecureRound(exchange.answers(), None, error)
    return SecureRound(exchange.answers(), summed, None)


class _Exchange:
    """One sum on its way."""

    def __init__(self, order: Order, sites: Sequence[str], ask: Ask, verify: Verify) -> None:
        self._order, self._ask, self._form = order, ask, _form(order)
        self._answers: dict[str, Answer] = {answer.site: answer for answer in ask(order, sites)}
        self._there = [s for s in sorted(sites) if isinstance(self._answers[s], Report)]
        self._instance = Instance(
            run=order.run,
            id=f"{order.run}/{order.round}/{order.phase}/{secrets.token_hex(8)}",
            round=order.round,
            sites=tuple(sorted(sites)),
            sharing=self._form.sharing,
            bits=BITS,
            length=self._form.length,
            order_sha256=order_sha256(order),
        )
        self._centre = CentreSum(self._instance, verify=verify)

    def answers(self) -> tuple[Answer, ...]:
        """What became of each site so far."""
        return tuple(self._answers.values())

    def run(self) -> Summed:
        """All steps.

        Raises:
            QuorumLostError: too few sites remained; nothing was unmasked.
        """
        centre = self._centre
        self._step("keys", {}, Keys, centre.accept_keys)
        peers: ToSite = centre.close_keys()
        if not self._instance.sharing.complete:
            self._step("reveal", self._to_all(peers), Reveal, centre.accept_reveal)
            peers = centre.close_reveals()
        self._step("shares", self._to_all(peers), Shares, centre.accept_shares)
        inboxes = {site: inbox.to_bytes() for site, inbox in centre.close_shares().items()}
        self._step("masked", inboxes, Masked, centre.accept_masked)
        survivors = centre.close_masked()
        self._step("agree", self._to_all(survivors), Agreement, centre.accept_agreement)
        signed = centre.close_agreements()
        self._step("unmask", self._to_all(signed), Unmasking, centre.accept_unmasking)
        return self._form.decode(centre.finish().astype(np.uint32))

    def _to_all(self, message: ToSite) -> dict[str, bytes]:
        return dict.fromkeys(self._there, message.to_bytes())

    def _step(
        self,
        step: SumStep,
        content: Mapping[str, bytes],
        kind: type[Message],
        accept: Callable[[Message], None],
    ) -> None:
        """Ask the sites that are still there; those without a right answer are lost."""
        order = replace(
            self._order,
            phase="sum",
            weights=None,
            layout_sha256="",
            evaluate=False,
            sum=SumOrder(
                id=self._instance.id,
                of="train" if self._order.phase == "train" else "evaluate",
                step=step,
                sites=self._instance.sites,
                size=self._form.size,
                content=content,
            ),
        )
        for answer in self._ask(order, tuple(self._there)):
            taken = _taken(answer, kind, accept)
            known = self._answers[answer.site]
            if isinstance(taken, Report) and isinstance(known, Report):
                self._answers[answer.site] = replace(
                    known,
                    seconds=known.seconds + taken.seconds,
                    bytes_down=known.bytes_down + taken.bytes_down,
                    bytes_up=known.bytes_up + taken.bytes_up,
                )
                continue
            self._there.remove(answer.site)
            if answer.site not in self._centre.survivors:
                self._answers[answer.site] = taken


def _taken(answer: Answer, kind: type[Message], accept: Callable[[Message], None]) -> Answer:
    """The answer, once the sum has taken its message; else why the site is lost."""
    if isinstance(answer, NoReport):
        return answer
    try:
        accept(kind.from_bytes(answer.sum_message, answer.site))
    except ReportRejectedError as error:
        return NoReport(site=answer.site, outcome="failed", code=error.code, stage="receiving")
    return answer


def _form(order: Order) -> SummedVector:
    size = order.weights.size if order.phase == "train" and order.weights is not None else 0
    return SummedVector(order.plan, size, order.round)


def _too_few(order: Order, form: SummedVector, answered: int, asked: int) -> QuorumLostError | None:
    needed = form.sharing.min_survivors
    if answered >= needed:
        return None
    why = "the secure sum needs so many"
    return QuorumLostError(
        round_=order.round, answered=answered, asked=asked, needed=needed, why=why
    )
