"""How sites differ in what they record: scanners, telescopes, annotators.

A scenario names shifts; each site draws its own strength from the range of each number, once,
from (seed, site, position in the list), and each case its own realisation. Shifts act in the
order of the list on the image as it is stored, before normalisation. Labels and masks of test
cases stay true unless a shift says ``test_too``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import zoom

from asterion_client.data.transforms import UNKNOWN, normalise
from asterion_shared.cases import Case, CaseList, Image, Mask, SiteData
from asterion_shared.errors import Problem, SettingsError
from asterion_shared.plan import Plan
from asterion_sim import shifts_medical, shifts_sky
from asterion_sim.shift_draws import DrawnShift, drawn_shifts
from asterion_sim.shift_frame import Frame
from asterion_sim.shift_settings import LabelShiftSettings, Shift

__all__ = [
    "DrawnShift",
    "Shift",
    "ShiftedCases",
    "apply_shifts",
    "check_shifts",
    "drawn_shifts",
    "shift_problems",
    "shifted_case",
    "shifted_label",
    "shifted_site",
]

_ON_IMAGES: dict[str, Callable[..., Image]] = {
    "gain_offset": shifts_medical.gain_offset,
    "bias_field": shifts_medical.bias_field,
    "noise": shifts_medical.noise,
    "resolution": shifts_medical.resolution,
    "gibbs": shifts_medical.gibbs,
    "kspace_undersampling": shifts_medical.kspace_undersampling,
    "contrast_curve": shifts_medical.contrast_curve,
    "psf": shifts_sky.psf,
    "sky": shifts_sky.sky,
    "gain_read_noise": shifts_sky.gain_read_noise,
    "pixel_scale": shifts_sky.pixel_scale,
    "satellite_trails": shifts_sky.satellite_trails,
    "cosmic_rays": shifts_sky.cosmic_rays,
    "uv_undersampling": shifts_sky.uv_undersampling,
}

_ON_LABELS = ("label_noise", "missing_labels")

NOISY_KINDS = ("noise", "gain_read_noise")
"""Shifts that put noise into an image; a generated image gets its own only without them."""


def apply_shifts(
    image: Image,
    mask: Mask | None,
    label: int,
    *,
    shifts: Sequence[DrawnShift],
    plan: Plan,
    case_id: str,
    spacing: tuple[float, ...] = (),
    unit: str = "",
    noise: float | None = None,
    test: bool = False,
) -> tuple[Image, Mask | None, int]:
    """Apply a site's shifts to one case, before normalisation.

    Args:
        image: float32 ``(C, *spatial)``, linear in signal; or a row of a table, which only
            shifts of labels may meet.
        mask: int16 class numbers ``spatial``, or None.
        label: class number, -1 for none.
        shifts: from :func:`drawn_shifts`, applied in this order.
        plan: its task and classes.
        case_id: with the shifts' own address it makes the randomness: equal ids, equal result.
        spacing: pixel size along each axis, in ``unit``; empty when not known.
        unit: ``mm``, ``arcsec`` or empty.
        noise: deviation of the image's noise where it is known; None: measured on the image.
        test: whether the case is a test case, whose truth stays unless a shift says otherwise.

    Returns:
        Image, mask and label; the arguments are never written to.

    Raises:
        DataProblemError: ``settings_invalid``: a shift is in mm or arcsec and the size is unknown.
    """
    for shift in shifts:
        frame = Frame(spacing=spacing, unit=unit, noise=noise, draws=shift.draws(case_id))
        if shift.kind in _ON_IMAGES:
            image = _ON_IMAGES[shift.kind](image, frame, **shift.values)
        elif shift.kind == "crowding":
            image, mask = _crowded(image, mask, frame, shift, plan)
        elif not test or shift.test_too:
            mask, label = _relabelled(mask, label, frame, shift, len(plan.data.classes))
    return image, mask, label


def shifted_label(
    label: int, *, shifts: Sequence[DrawnShift], plan: Plan, case_id: str, test: bool = False
) -> int:
    """The label that :func:`apply_shifts` gives, without an image."""
    for shift in shifts:
        if shift.kind in _ON_LABELS and (shift.test_too or not test):
            frame = Frame(spacing=(), unit="", noise=None, draws=shift.draws(case_id))
            _, label = _relabelled(None, label, frame, shift, len(plan.data.classes))
    return label


class ShiftedCases(CaseList):
    """Cases of another list, shifted when they are read.

    Args:
        cases: the cases as they are.
        shifts: the site's.
        plan: the run's plan.
        test: whether these are test cases.
        memory_bytes: how much may be kept.
    """

    def __init__(
        self,
        cases: CaseList,
        shifts: tuple[DrawnShift, ...],
        plan: Plan,
        *,
        test: bool,
        memory_bytes: int,
    ) -> None:
        numbers = range(len(cases))
        readers = (partial(shifted_case, cases, n, shifts, plan, test=test) for n in numbers)
        super().__init__(readers, memory_bytes=memory_bytes)
        self._cases, self._plan, self._test = cases, plan, test
        self._shifts = tuple(s for s in shifts if s.kind in _ON_LABELS)

    def labels(self) -> npt.NDArray[np.int64]:
        """Labels of all cases, int64 (n,); -1 where there is none. Shifts no image."""
        if not self._shifts:
            return self._cases.labels()
        found = [
            shifted_label(
                case.label, shifts=self._shifts, plan=self._plan, case_id=case.id, test=self._test
            )
            for case in self._cases
        ]
        return np.array(found, np.int64)


def shifted_site(
    site: SiteData, shifts: Sequence[Shift], plan: Plan, *, memory_bytes: int = 4 * 2**30
) -> SiteData:
    """A site as it would look through other instruments, or labelled by other hands.

    Its cases are normalised already. The shift acts on the image brought back to a scale linear
    in signal (asinh is undone by sinh, in units of the sky's noise) and normalised again. What
    is lost are absolute counts: one unit then counts as one ADU.

    Args:
        site: any site; its cases are read when they are needed.
        shifts: the scenario's list.
        plan: the run's plan: its seed, task, classes, pixel size and normalisation.
        memory_bytes: how much of the shifted training cases, and of the test cases, is kept,
            beside what the site keeps itself; 0: a case is shifted anew whenever it is read.

    Returns:
        The same object where no shift affects the site.

    Raises:
        SettingsError: a shift does not fit the plan.
    """
    check_shifts(shifts, plan)
    drawn = drawn_shifts(shifts, plan.seed, site.site)
    if not drawn:
        return site
    train, test = (
        ShiftedCases(cases, drawn, plan, test=is_test, memory_bytes=memory_bytes)
        for cases, is_test in ((site.train, False), (site.test, True))
    )
    return replace(site, train=train, test=test)


def shifted_case(
    cases: CaseList, index: int, shifts: tuple[DrawnShift, ...], plan: Plan, *, test: bool
) -> Case:
    """Read one case and shift it, as :func:`shifted_site` says.

    Raises:
        DataProblemError: as :func:`apply_shifts`.
    """
    case = cases[index]
    asinh = plan.data.normalisation == "asinh" and plan.data.kind == "image"
    spacing, unit = _pixel_size(case, plan)
    image, mask, label = apply_shifts(
        np.sinh(case.image) if asinh else case.image,
        case.mask,
        case.label,
        shifts=shifts,
        plan=plan,
        case_id=case.id,
        spacing=spacing,
        unit=unit,
        test=test,
    )
    if plan.data.kind == "image":
        image = normalise(image, plan.data.normalisation)
    native = _brought_to_native(case, mask)
    return replace(case, image=image, mask=mask, label=label, native_mask=native)


def shift_problems(shifts: Sequence[Shift], plan: Plan) -> list[Problem]:
    """What does not fit together between shifts and a plan; empty when all is well."""
    found = []
    for position, shift in enumerate(shifts):
        message = _misfit(shift, plan)
        if message:
            what, _, fix = message.partition("; ")
            found.append(Problem(where=f"shifts.{position}", what=what, fix=fix))
    return found


def check_shifts(shifts: Sequence[Shift], plan: Plan) -> None:
    """Refuse shifts that do not fit a plan.

    Raises:
        SettingsError: lists every problem.
    """
    problems = shift_problems(shifts, plan)
    if problems:
        source = f"the scenario of plan {plan.name!r}"
        raise SettingsError(source, problems)


def _misfit(shift: Shift, plan: Plan) -> str | None:
    on_labels = isinstance(shift, LabelShiftSettings)
    data = plan.data
    if data.kind == "table" and not on_labels:
        return f"kind is {shift.kind!r} and the plan's data are a table; remove it"
    allowed = {
        "annotation_style": ("segmentation",),
        "label_noise": ("classification",),
        "missing_labels": ("segmentation", "classification"),
    }.get(shift.kind, (plan.task,))
    if plan.task not in allowed:
        return (
            f"kind is {shift.kind!r} and the plan's task {plan.task!r}; "
            f"it is for {' and '.join(allowed)}"
        )
    in_arcsec = any(name.endswith("_arcsec") for name in type(shift).model_fields)
    if in_arcsec and data.spacing_mm is not None:
        return f"kind is {shift.kind!r}, in arcsec, and the plan has data.spacing_mm; remove one"
    in_mm = shift.kind == "resolution" or getattr(shift, "grow_mm", None) is not None
    if in_mm and data.pixel_scale_arcsec is not None:
        return (
            f"kind is {shift.kind!r}, in mm, and the plan has data.pixel_scale_arcsec; remove one"
        )
    if getattr(shift, "slice_mm", None) is not None and data.dimensions == 2:
        return "slice_mm is given and the plan's images have 2 dimensions; use in_plane_mm"
    name = getattr(shift, "class_name", "")
    if name and name not in data.classes[1:]:
        return f"class_name is {name!r}; it must be one of {', '.join(data.classes[1:])}"
    return None


def _crowded(
    image: Image, mask: Mask | None, frame: Frame, shift: DrawnShift, plan: Plan
) -> tuple[Image, Mask | None]:
    values: dict[str, Any] = dict(shift.values)
    name = values.pop("class_name")
    number = plan.data.classes.index(name) if name else 1
    # A star is no anomaly, and the mask of a classification is not trained on.
    class_ = number if plan.task == "segmentation" else 0
    return shifts_sky.crowding(image, mask, frame, class_=class_, **values)


def _relabelled(
    mask: Mask | None, label: int, frame: Frame, shift: DrawnShift, num_classes: int
) -> tuple[Mask | None, int]:
    values: dict[str, Any] = dict(shift.values)
    match shift.kind:
        case "annotation_style" if mask is not None:
            if values["grow_mm"] is None:
                grow, spacing = values["grow_pixels"], (1.0,) * mask.ndim
            else:
                grow, spacing = values["grow_mm"], frame.sizes("mm", shift.kind)
            return shifts_medical.annotation_style(mask, spacing, grow), label
        case "label_noise":
            noisy = shifts_medical.noisy_label
            return mask, noisy(label, values["probability"], num_classes, frame.draws)
        case "missing_labels" if frame.draws.random() < values["probability"]:
            return None if mask is None else np.full_like(mask, UNKNOWN), UNKNOWN
    return mask, label


def _pixel_size(case: Case, plan: Plan) -> tuple[tuple[float, ...], str]:
    """Pixel size of a case's image and its unit; nothing where it is not known."""
    num_axes = case.image.ndim - 1
    if plan.data.spacing_mm is not None:
        return plan.data.spacing_mm, "mm"
    if plan.data.pixel_scale_arcsec is not None:
        return (plan.data.pixel_scale_arcsec,) * num_axes, "arcsec"
    if len(case.native_spacing) == num_axes:
        return case.native_spacing, case.spacing_unit
    return (), ""


def _brought_to_native(case: Case, mask: Mask | None) -> Mask | None:
    """The native mask, with what a shift changed on the plan's grid."""
    if case.native_mask is None or case.mask is None or mask is None or mask is case.mask:
        return case.native_mask
    factors = np.array(case.native_mask.shape) / np.array(mask.shape)

    def to_native(plane: npt.NDArray[np.int16]) -> Mask:
        return np.asarray(zoom(plane, factors, order=0, mode="nearest", grid_mode=True), np.int16)

    changed = to_native((mask != case.mask).astype(np.int16)) > 0
    return np.where(changed, to_native(mask), case.native_mask).astype(np.int16)
