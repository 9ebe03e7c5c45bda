"""One answer into the centre's step: clipped, weighed, and by its age where it is carried over."""

from asterion_server.central_step import CentralStep
from asterion_server.outcomes import outcome_of
from asterion_server.selection import clip_factor, staleness_factor, weight_of
from asterion_shared.blocks import length
from asterion_shared.messages import Answer, NoReport
from asterion_shared.plan import Plan
from asterion_shared.result import SiteOutcome


def fold_answer(
    plan: Plan, step: CentralStep, answer: Answer, *, times: int, round_: int
) -> SiteOutcome:
    """Fold an answer's update, if it has one of its own.

    Args:
        plan: says how updates are clipped and weighed.
        step: takes the update, or leaves the site out.
        answer: a checked report, whose update may be in a partial fold already, or its absence.
        times: how often the site was drawn.
        round_: that folds it.

    Returns:
        What became of the site.
    """
    if isinstance(answer, NoReport):
        step.leave_out(answer.site)
        return outcome_of(answer)
    norm, update = answer.update_norm, answer.update
    if update is not None:
        norm = length(update)
        factor = clip_factor(plan, norm, step.clip_norm)
        weight = weight_of(plan, answer.num_examples, times)
        if answer.made_for is not None:
            weight *= staleness_factor(plan, round_ - answer.made_for)
        step.add(answer.site, update, weight, factor)
    clipped = norm is not None and clip_factor(plan, norm, step.clip_norm) < 1
    return outcome_of(answer, norm, clipped=clipped)
