"""Where a run starts: the weights that a plan's seed gives, or those of its ``[init]`` file."""

import hashlib
from pathlib import Path

from asterion_shared.errors import FileProblemError, PlanMismatchError
from asterion_shared.parameters import Layout, Vector, from_bytes, layout_of, read_vector
from asterion_shared.plan import Plan
from asterion_shared.tasks import initial_model


def initial_weights(plan: Plan, plan_folder: Path) -> tuple[Layout, Vector]:
    """Layout of the plan's network and its initial weights, shape ``(layout.size,)``.

    Args:
        plan: names the network, the seed and perhaps a file.
        plan_folder: where a relative ``init.file`` is looked up.

    Raises:
        FileProblemError: the file is missing or its SHA-256 is not the plan's.
        PlanMismatchError: its tensors, or the parameter policy, do not fit the network.
    """
    model = initial_model(plan)
    layout = layout_of(model, plan.parameters)
    if plan.init is None:
        return layout, read_vector(model, layout)
    path = plan_folder / plan.init.file
    try:
        data = path.read_bytes()
    except OSError as error:
        what = error.strerror or "it cannot be read"
        raise FileProblemError(path, what, "correct init.file in the plan") from None
    found = hashlib.sha256(data).hexdigest()
    if found != plan.init.sha256:
        what = f"its SHA-256 is {found}, the plan says {plan.init.sha256}"
        raise FileProblemError(path, what, "use the file that was meant, or correct the plan")
    try:
        return layout, from_bytes(data, layout)
    except PlanMismatchError as error:
        msg = f"{path} does not fit the plan's network: {error}"
        raise PlanMismatchError(msg) from None
