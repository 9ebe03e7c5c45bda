"""Pictures of the least certain cases with the map of where the classifier looked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from asterion_client.data.raw_image import UnreadableFileError
from asterion_client.predict.calls import predicting_network
from asterion_client.predict.inputs import Member, read_member
from asterion_client.predict.outputs import Desk
from asterion_client.predict.results import CaseResult, by_certainty, write_csv
from asterion_shared.errors import UserInputError
from asterion_shared.files import write_atomically
from asterion_shared.plan import Plan
from asterion_shared.release.opening import ReleasedModel
from asterion_shared.tasks.batches import fit_to_patch


def refuse_unexplained(plan: Plan) -> None:
    """Refuse what Grad-CAM is not for.

    Raises:
        UserInputError: the release is for no classification of images.
    """
    if plan.task != "classification" or plan.data.kind != "image":
        msg = (
            f"--explain is for classification of images, and the release is for {plan.task} of a "
            f"{plan.data.kind}; leave it out"
        )
        raise UserInputError(msg)


def write_explanations(
    desk: Desk,
    released: ReleasedModel,
    members: Mapping[str, Member],
    results: Sequence[CaseResult],
    most: int,
) -> list[str]:
    """Write a picture for each of the least certain cases, and ``explanations.csv``.

    Args:
        desk: where to.
        released: the model, on the CPU.
        members: by id.
        results: of the whole folder.
        most: how many pictures.

    Returns:
        What to know about them, in sentences; empty when there is nothing.

    Raises:
        DiskProblemError: a file cannot be written.
    """
    from asterion_client.predict.cam_pictures import draw_attention
    from asterion_client.predict.gradcam import ALIKE, explain, random_networks

    network, plan = predicting_network(released).eval(), released.plan
    random = random_networks(plan)
    rows: list[list[object]] = []
    flagged = 0
    for result in by_certainty(results)[:most]:
        member = members[result.id]
        try:
            read = read_member(member, desk.settings, plan, None)
        except UnreadableFileError:
            return ["a file went away before it was explained"]
        patch = fit_to_patch(plan, read.case.image)
        number = plan.data.classes.index(result.call)
        attention = explain(network, random, patch, number)
        if attention is None:
            return [f"no explanations: {plan.model.name} has no layer that keeps places apart"]
        case = replace(read.case, image=patch)
        name = f"explanations/{member.stem}.png"
        write_atomically(desk.out / name, draw_attention(plan, case, attention, result))
        flagged += attention.flagged
        likeness = "" if attention.likeness is None else f"{attention.likeness:.4f}"
        rows.append([result.id, result.call, likeness, "yes" if attention.flagged else "no", name])
    head = ["file", "class", "correlation_with_random_weights", "flagged", "picture"]
    write_csv(desk.out / "explanations.csv", head, rows)
    if not flagged:
        return []
    return [f"{flagged} of {len(rows)} maps are like those of random networks (rank correlation "
            f"{ALIKE} or more, or constant): they do not show what was learnt"]  # fmt: skip
