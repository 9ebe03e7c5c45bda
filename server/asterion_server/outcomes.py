"""What became of the sites in a round, as a result states it."""

import time
from collections.abc import Mapping

from asterion_shared.errors import QuorumLostError
from asterion_shared.messages import Answer, NoReport
from asterion_shared.result import RoundResult, SiteOutcome


def outcome_of(answer: Answer, norm: float | None = None, *, clipped: bool = False) -> SiteOutcome:
    """What became of one site.

    Args:
        answer: its report or its absence.
        norm: Euclidean length of its update, before any clip; None where nobody knows it.
        clipped: whether the update was shortened.
    """
    if isinstance(answer, NoReport):
        return SiteOutcome(outcome=answer.outcome, code=answer.code, stage=answer.stage)
    return SiteOutcome(
        outcome="answered" if answer.made_for is None else "carried",
        num_examples=answer.num_examples,
        num_test=answer.num_test,
        num_bad_files=answer.num_bad_files,
        num_steps=answer.num_steps,
        train_loss=answer.train_loss,
        update_norm=norm,
        clipped=clipped,
        seconds=answer.seconds,
        transfer_seconds=answer.transfer_seconds,
        late_seconds=answer.late_seconds,
        made_for=answer.made_for,
        bytes_down=answer.bytes_down,
        bytes_up=answer.bytes_up,
    )


def round_result(
    number: int, outcomes: Mapping[str, SiteOutcome], began: float, deadline_seconds: float
) -> RoundResult:
    """A round as it stands before its metrics are known.

    Args:
        number: of the round.
        outcomes: of every site that was asked, by name.
        began: ``time.monotonic()`` when it began.
        deadline_seconds: of its order.
    """
    return RoundResult(
        round=number,
        asked=tuple(sorted(outcomes)),
        outcomes=dict(sorted(outcomes.items())),
        seconds=time.monotonic() - began,
        deadline_seconds=deadline_seconds,
        bytes_down=sum(o.bytes_down for o in outcomes.values()),
        bytes_up=sum(o.bytes_up for o in outcomes.values()),
    )


def require_quorum(result: RoundResult, needed: int) -> None:
    """See to it that enough sites answered the round's own order; carried reports do not count.

    Raises:
        QuorumLostError: fewer than ``needed`` did.
    """
    answered = len(result.answered)
    if answered < needed:
        raise QuorumLostError(
            round_=result.round,
            answered=answered,
            asked=len(result.asked),
            needed=needed,
            why=", ".join(f"{site}: {why}" for site, why in result.missing.items()),
        )
