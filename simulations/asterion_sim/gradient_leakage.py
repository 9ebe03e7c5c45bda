"""What one update gives away: an image rebuilt from it, and the same attack on a private one.

A fully connected first layer multiplies the image by its weights and adds a bias. So the gradient
of unit i's weights is ``d_i x`` and that of its bias is ``d_i``, with the image ``x`` and a number
``d_i``: their quotient is the image (Phong et al. 2018, https://doi.org/10.1109/TIFS.2017.2787987,
section III). The matrix of both has rank one when there is one image, also after several steps of
plain SGD; the attack takes its first singular vector, which is the best guess under white noise.
Deep networks are attacked by descent instead (Zhu et al. 2019, https://arxiv.org/abs/1906.08935).
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asterion_client.data.transforms import normalise
from asterion_client.local_round import Workspace, make_workspace, work
from asterion_shared.cases import Case, CaseList, Image, SiteData
from asterion_shared.errors import PlanMismatchError
from asterion_shared.messages import Order
from asterion_shared.parameters import Vector
from asterion_shared.plan import TABLE_MODELS, Plan
from asterion_shared.privacy.accounting import noise_multiplier_for
from asterion_shared.randomness import stream
from asterion_sim.phantoms import draw_phantom
from asterion_sim.sky_field import read_sky_field

Floats = npt.NDArray[np.float64]

SIDE = 128
"""Pixels a side of the demonstration's images."""

BATCH, BATCH_SIDE, BATCH_UNITS = 8, 64, 512
"""Images of one step, their pixels a side, and units of the first layer that they go through."""

REBUILT = 0.99
"""Correlation from which an image counts as rebuilt."""

DELTA = 1e-5
CLIP_NORM = 1.0
FIELD = Path(__file__).parent / "assets" / "hst_xdf.fits"


@dataclass(frozen=True, slots=True)
class Leak:
    """One image, and what the coordinator makes of the site's update.

    Attributes:
        name: what it shows.
        truth: as training sees it, float32 ``(C, *spatial)``.
        rebuilt: the attack's guess, same shape.
    """

    name: str
    truth: Image
    rebuilt: Image

    @property
    def correlation(self) -> float:
        """Of the pixels of both, in [-1, 1]; 0 when one of them is constant."""
        return float((_centred(self.truth[None]) @ _centred(self.rebuilt[None]).T)[0, 0])


def demonstration_plan(
    epsilon: float | None = None,
    *,
    model: str = "mlp",
    side: int = SIDE,
    units: int = 64,
    batch: int = 1,
) -> Plan:
    """A plan whose site takes one step of plain SGD.

    Args:
        epsilon: of records, all spent on that one step; None for no protection.
        model: ``mlp`` or ``logistic``.
        side: pixels a side of its images.
        units: of the hidden layer of ``mlp``.
        batch: images of the step.
    """
    privacy = None if epsilon is None else {
        "protects": "record", "noise": "site", "clip_norm": CLIP_NORM, "sampling_rate": 1.0,
        "noise_multiplier": noise_multiplier_for(epsilon, DELTA, "add_or_remove_one", 1.0, 1),
        "delta": DELTA, "epsilon_limit": epsilon,
    }  # fmt: skip
    return Plan.model_validate({
        "name": "leak",
        "task": "classification",
        "data": {"channels": ["grey"], "classes": ["a", "b"], "patch_size": [side, side],
                 "normalisation": "none"},
        "model": {"name": model, "widths": [units]},
        "local": {"unit": "steps", "amount": 1, "batch_size": batch, "optimiser": "sgd",
                  "learning_rate": 0.1},
        "rounds": {"count": 1},
        "privacy": privacy,
    })  # fmt: skip


def demonstration_images() -> dict[str, Image]:
    """A part of the Hubble eXtreme Deep Field and a drawn body, float32 ``(1, SIDE, SIDE)``.

    Raises:
        MissingExtraError: astropy is not installed.
    """
    draws = stream(1, round_=0, site="", purpose="leak")
    body, _ = draw_phantom(demonstration_plan(), (SIDE, SIDE), 1, draws)
    field = read_sky_field(FIELD)
    sky = normalise(_fullest(field.image, field.segments)[None], "asinh")
    return {"Hubble field": sky, "drawn body": normalise(body, "standardise")}


def leak(plan: Plan, name: str, image: Image) -> Leak:
    """A site trains on one image for one round; rebuild the image from what it sends.

    Args:
        plan: classification of images by ``mlp`` or ``logistic``, without augmentation.
        name: what the image shows.
        image: float32, of the plan's shape, as training shall see it.

    Raises:
        PlanMismatchError: the plan is another one.
    """
    if plan.model.name not in TABLE_MODELS or plan.data.kind != "image" or plan.local.augment:
        msg = (
            f"the plan trains {plan.model.name!r} on {plan.data.kind}s; this attack rebuilds "
            f"images from {' or '.join(TABLE_MODELS)} without local.augment"
        )
        raise PlanMismatchError(msg)
    workspace = make_workspace(plan)
    update = _update(workspace, [image])
    return Leak(name, image, rebuild(workspace, update).reshape(image.shape))


def images_rebuilt_from_a_batch(epsilon: float | None = None) -> int:
    """How many of :data:`BATCH` drawn bodies, learnt from in one step, the update gives away.

    Behind a unit with a bend (ReLU) that only one image of the batch passes, its quotient is that
    image (Boenisch et al. 2023, https://arxiv.org/abs/2112.02918, who also show that a
    coordinator can choose weights for which that is the rule). Here they are as they were drawn.

    Args:
        epsilon: as for :func:`demonstration_plan`.

    Returns:
        Images that some unit's quotient matches with a correlation of :data:`REBUILT`, either sign.
    """
    plan = demonstration_plan(epsilon, side=BATCH_SIDE, units=BATCH_UNITS, batch=BATCH)
    workspace = make_workspace(plan)
    images = []
    for number in range(BATCH):
        draws = stream(plan.seed, round_=number, site="", purpose="leak")
        body, _ = draw_phantom(plan, (BATCH_SIDE, BATCH_SIDE), number % 2, draws)
        images.append(normalise(body, "standardise"))
    matrix = _first_layer(workspace, _update(workspace, images))
    alive = matrix[matrix[:, -1] != 0]
    quotients = alive[:, :-1] / alive[:, -1:]
    matches = np.abs(_centred(np.stack(images)) @ _centred(quotients).T)
    return int((matches.max(axis=1, initial=0.0) >= REBUILT).sum())


def _centred(images: npt.NDArray[np.floating]) -> Floats:
    """``(n, pixels)``, each of mean 0 and length 1; zeros for a constant one."""
    rows = images.reshape(len(images), -1).astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    return np.asarray(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0))


def _update(workspace: Workspace, images: Sequence[Image]) -> Vector:
    """What a site with these images sends after its first round."""
    plan = workspace.plan
    cases = [
        Case(id=f"{number:012x}", image=image, label=number % 2)
        for number, image in enumerate(images)
    ]
    data = SiteData(site="leaky", train=CaseList.of(cases), test=CaseList(()))
    order = Order(
        run="leak", plan=plan, round=1, phase="train", weights=workspace.initial_weights,
        layout_sha256=workspace.layout.sha256, evaluate=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        update = work(order, data, workspace, Path(folder)).update
    assert update is not None  # noqa: S101  # it was an order to train
    return update


def rebuild(workspace: Workspace, update: Vector) -> npt.NDArray[np.float32]:
    """The input behind an update of a network whose first layer is fully connected.

    Args:
        workspace: of the plan, which the coordinator has too.
        update: float32 ``(layout.size,)``, what it received.

    Returns:
        float32 ``(inputs,)``; zeros for an update of zeros.
    """
    _, sizes, rows = np.linalg.svd(_first_layer(workspace, update), full_matrices=False)
    *pixels, bias = rows[0]
    if sizes[0] == 0 or bias == 0:
        return np.zeros(len(pixels), np.float32)
    return np.asarray(np.array(pixels) / bias, np.float32)


def _first_layer(workspace: Workspace, update: Vector) -> Floats:
    """The change of the first layer's weights and, in the last column, of its biases."""
    weights, biases = workspace.layout.shared[:2]
    first = update[: weights.size + biases.size].astype(np.float64)
    return np.column_stack([first[: weights.size].reshape(weights.shape), first[weights.size :]])


def _fullest(image: Image, segments: npt.NDArray[np.int32]) -> Image:
    """The window of ``SIDE`` pixels a side with the most pixels of sources."""
    starts = [
        (row, column)
        for row in range(0, image.shape[0] - SIDE + 1, SIDE // 4)
        for column in range(0, image.shape[1] - SIDE + 1, SIDE // 4)
    ]

    def sources(start: tuple[int, int]) -> int:
        row, column = start
        return int((segments[row : row + SIDE, column : column + SIDE] > 0).sum())

    row, column = max(starts, key=sources)
    return image[row : row + SIDE, column : column + SIDE]
