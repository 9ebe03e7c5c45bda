"""A site's local training when records or patients are protected: DP-SGD.

Abadi et al. 2016, algorithm 1, with Poisson sampling: at each step every protected unit takes part
with the plan's probability; the gradient of each is clipped, the sum is noised and divided by the
expected number of units. FedProx's pull is added after that, unscaled: it depends on the weights
alone. The number of units is taken as known.

The draws of patches and of drop-out are secret too. One unit more shifts them for all the others;
if they were known, every contribution would change with it, and not only its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from asterion_shared.cases import SiteData
from asterion_shared.clipped_gradients import LossOf, Method, clipped_gradient_sum, example_losses
from asterion_shared.errors import DataProblemError
from asterion_shared.parameters import Vector, clipped
from asterion_shared.plan import Plan
from asterion_shared.privacy.gaussian_noise import add_gaussian
from asterion_shared.privacy.network_check import private_method
from asterion_shared.privacy.planned import private_steps
from asterion_shared.privacy.secret_stream import SecretStream, poisson_sample
from asterion_shared.privacy.settings import PrivacySettings
from asterion_shared.tasks.batches import batch_of, require_usable

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_TOGETHER = 128
"""Examples whose clipped gradients are added in float32."""

ROUNDING_MARGIN = 2**-9
"""Share by which gradients are clipped shorter than the plan's norm, so that rounding cannot make
the sum more sensitive than that: n numbers of length 1 add up in float32 with an error of at most
n^2 2^-24, which is 2^-10 for n = 128; the norms themselves are rounded by less than the rest."""


@dataclass(frozen=True, slots=True)
class PrivateStep:
    """How a plan's clipped gradients are formed; built once for a workspace.

    Attributes:
        loss_of: the loss of each example.
        method: see :class:`asterion_shared.clipped_gradients.Method`.
    """

    loss_of: LossOf
    method: Method


def private_step_of(plan: Plan, model: nn.Module) -> PrivateStep | None:
    """None when the plan protects no records or patients.

    Raises:
        PlanMismatchError: the network cannot be trained so.
    """
    if plan.privacy is None or plan.privacy.protects == "site":
        return None
    return PrivateStep(example_losses(plan), private_method(plan, model))


def train_privately(
    plan: Plan,
    privacy: PrivacySettings,
    data: SiteData,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: PrivateStep,
    pull: Callable[[], None],
    secret: SecretStream,
) -> int:
    """Train in place; return the steps done, which the plan alone decides.

    Nothing else that depends on the data is returned: no loss, no sample, no norm.

    Args:
        plan: the plan.
        privacy: its section.
        data: the site's cases.
        model: in training mode.
        optimiser: of the model's parameters.
        step: as :func:`private_step_of` gave it.
        pull: adds what the algorithm adds to the gradients, after the noise.
        secret: sampling, noise, patches and drop-out.

    Raises:
        DataProblemError: ``no_data``: nothing to learn from; ``unknown_patients``: patients are
            protected and a case does not say whose it is.
    """
    weights = list(model.parameters())
    units = _units(privacy, data, require_usable(plan, data.train))
    assert privacy.sampling_rate is not None  # noqa: S101  # a rule of the section
    expected = privacy.sampling_rate * len(units.sizes)
    deviation = privacy.noise_multiplier * privacy.clip_norm
    num_steps = private_steps(plan)
    # The same memory at each step: for many weights fresh pages cost more than the arithmetic.
    total = np.empty(sum(weight.numel() for weight in weights))
    gradient = torch.empty(total.size)
    patches = np.random.default_rng(secret.words(4))
    device = weights[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _seed_torch(device, secret)
        for _ in range(num_steps):
            taken = poisson_sample(len(units.sizes), privacy.sampling_rate, secret)
            rows = units.one_of_each(taken, secret)
            _clipped_sum(plan, privacy, data, model, step, rows, patches, total)
            add_gaussian(total, deviation, secret, out=total)
            np.divide(total, expected, out=gradient.numpy(), casting="same_kind")
            write_gradients(weights, gradient.to(device))
            pull()
            optimiser.step()
    return num_steps


def _clipped_sum(
    plan: Plan,
    privacy: PrivacySettings,
    data: SiteData,
    model: nn.Module,
    step: PrivateStep,
    rows: Rows,
    patches: np.random.Generator,
    total: Floats,
) -> None:
    """The sum of the clipped gradients of these cases, all weights in one vector, into ``total``.

    At most :data:`MOST_TOGETHER` of them are added in float32.
    """
    parameters = dict(model.named_parameters())
    device = str(next(iter(parameters.values())).device)
    together = min(plan.local.batch_size, MOST_TOGETHER)
    total.fill(0.0)
    for begin in range(0, len(rows), together):
        batch = batch_of(plan, data.train, rows[begin : begin + together], patches)
        found = clipped_gradient_sum(
            model,
            step.loss_of,
            batch.to(device),
            privacy.clip_norm * (1 - ROUNDING_MARGIN),
            step.method,
            parameters,
        )
        gradients = [found.gradients[name].flatten() for name in parameters]
        total += torch.cat(gradients).cpu().numpy()


def write_gradients(weights: Sequence[nn.Parameter], values: Tensor) -> None:
    """Give each weight its part of the vector, in their order, as its gradient."""
    parts = torch.split(values, [weight.numel() for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.grad = part.view(weight.shape)


def release_privately(update: Vector, privacy: PrivacySettings, secret: SecretStream) -> Vector:
    """A site's update, clipped and noised at the site: nobody is trusted.

    An update that is not finite counts as zero, so that even a failed training shows in nothing.
    """
    bounded = clipped(update, privacy.clip_norm)
    noised = add_gaussian(bounded, privacy.noise_multiplier * privacy.clip_norm, secret)
    return noised.astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Units:
    """The protected units, one after another.

    Attributes:
        rows: cases of all units, int64; those of a unit stand together.
        begins: where each unit's cases begin in ``rows``, int64 (units,).
        sizes: how many each has, at least one, uint64 (units,).
    """

    rows: Rows
    begins: Rows
    sizes: npt.NDArray[np.uint64]

    def one_of_each(self, chosen: Rows, secret: SecretStream) -> Rows:
        """One case of each chosen unit, drawn in secret where it has several; int64 (chosen,)."""
        if len(self.rows) == len(self.sizes):
            return self.rows[chosen]
        which = secret.words(len(chosen)) % self.sizes[chosen]
        return self.rows[self.begins[chosen] + which.astype(np.int64)]


def _units(privacy: PrivacySettings, data: SiteData, usable: Sequence[int]) -> _Units:
    """The cases of each protected unit: itself, or all of a patient's."""
    if privacy.protects == "record":
        count = len(usable)
        return _Units(np.array(usable, np.int64), np.arange(count), np.ones(count, np.uint64))
    by_patient: dict[str, list[int]] = {}
    for index in usable:
        case = data.train[index]
        by_patient.setdefault(case.group if case.group_named else "", []).append(index)
    if "" in by_patient:
        msg = (
            f"{len(by_patient[''])} of {len(usable)} training cases do not say whose they are, and "
            "the plan protects patients; name the patient of each in the column 'group'"
        )
        raise DataProblemError(msg, code="unknown_patients")
    units = [rows for _, rows in sorted(by_patient.items())]
    sizes = np.array([len(rows) for rows in units], np.int64)
    begins = np.concatenate([np.zeros(1, np.int64), sizes[:-1].cumsum()])
    return _Units(np.concatenate(units).astype(np.int64), begins, sizes.astype(np.uint64))


def _seed_torch(device: torch.device, secret: SecretStream) -> None:
    """Seed the generator that drop-out draws from; ``torch.manual_seed`` looks at all devices."""
    seed = int(secret.words(1)[0] >> np.uint64(1))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
