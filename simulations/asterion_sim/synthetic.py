"""Generated sites, so that everything runs with no file and no extra package.

Phantoms stand for medical images, star fields and galaxies for the sky, shifted normals for
tables. An image is made when it is read, from its own stream, and is not kept, so that memory
does not grow with the number of cases. Shifts act on the raw signal, before noise is added.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from asterion_client.data.transforms import normalise
from asterion_shared.cases import Case, CaseList, Image, SiteData
from asterion_shared.errors import UserInputError
from asterion_shared.metrics import distance_name
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream
from asterion_shared.table_columns import scale_of, to_columns
from asterion_sim import shift_settings, shifts_medical, shifts_sky
from asterion_sim.phantoms import draw_phantom
from asterion_sim.shift_frame import Frame
from asterion_sim.shifts import (
    NOISY_KINDS,
    DrawnShift,
    Shift,
    apply_shifts,
    check_shifts,
    drawn_shifts,
    shifted_label,
)
from asterion_sim.star_fields import SKY_NOISE, draw_field
from asterion_sim.synthetic_tables import make_row

CASES_2D = range(20, 401)
CASES_3D = range(10, 61)
"""Fewest and most cases of a site, the last number excluded; volumes cost more."""

FEWEST_CASES = 3
"""Two to test on and one to train on."""

TEST_FRACTION = 0.25
PRIOR_FLOOR = 0.05
"""Least share of each class at a site: a site with one class breaks plain averaging."""

PIXEL_MM, PIXEL_ARCSEC = 1.0, 0.3
"""Pixel size of generated images where the plan does not give one."""

SCANNER_NOISE_PERCENT = 2.0
READ_NOISE_ELECTRONS = 5.0
"""Noise of a generated image that no shift gives noise: Rician, or of a camera of gain 1."""

MISSING_CELLS = (0.0, 0.2)
"""Least and most share of a table's cells that a site misses."""

DEFAULT_SHIFTS: dict[str, tuple[Shift, ...]] = {
    "medical": (
        shift_settings.GainOffset(gain=(1.0, 1e4), offset_percent=(0.0, 20.0)),
        shift_settings.BiasField(ratio=(1.0, 1.5)),
        shift_settings.Noise(sigma_percent=(1.0, 6.0), distribution="rician"),
    ),
    "sky": (
        shift_settings.Psf(seeing_arcsec=(0.6, 1.2), native_arcsec=0.6),
        shift_settings.GainReadNoise(
            gain_electrons_per_adu=(0.1, 10.0), read_noise_electrons=(2.0, 10.0)
        ),
    ),
    "table": (),
}
"""How the sites of :func:`synthetic_sites` differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProfile:
    """How much one generated site has, and of what.

    Attributes:
        name: the site's name.
        num_cases: training and test cases together.
        prior: share of each class, shape (K,); its sum is 1, each at least the floor.
        missing: share of a table's cells that are missing.
        shifts: how it records.
    """

    name: str
    num_cases: int
    prior: tuple[float, ...]
    missing: float
    shifts: tuple[DrawnShift, ...]


class GeneratedCases(CaseList):
    """Images that are made when they are read, and again when they are read again.

    Args:
        plan: as in :func:`generated_sites`.
        profile: the site.
        size: of the images, pixels.
        numbers: which cases of the site these are.
    """

    def __init__(
        self, plan: Plan, profile: SiteProfile, size: tuple[int, ...], numbers: range
    ) -> None:
        super().__init__((), memory_bytes=0)
        self._plan, self._profile, self._size, self._numbers = plan, profile, size, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Case:
        return make_image_case(self._plan, self._profile, self._size, self._numbers[index])

    def labels(self) -> npt.NDArray[np.int64]:
        """Labels of all cases, int64 (n,); -1 where there is none. Makes no image."""
        labels = [
            shifted_label(
                _true_label(
                    self._plan,
                    self._profile,
                    number,
                    _case_stream(self._plan, self._profile.name, number),
                ),
                shifts=self._profile.shifts,
                plan=self._plan,
                case_id=_case_id(self._plan, self._profile.name, number),
                test=number < num_test_cases(self._profile),
            )
            for number in self._numbers
        ]
        return np.array(labels, np.int64)


def synthetic_sites(plan: Plan, num_sites: int) -> dict[str, SiteData]:
    """Sites that differ in size, classes and instrument, for a plan without data.

    Sizes are log-uniform, class shares uniform over all mixtures (Dirichlet 1) above a floor.

    Args:
        plan: as in :func:`generated_sites`.
        num_sites: how many, >= 1.

    Returns:
        As :func:`generated_sites`.
    """
    volumes = plan.data.kind == "image" and plan.data.dimensions == 3
    return generated_sites(
        plan,
        num_sites,
        cases_per_site=CASES_3D if volumes else CASES_2D,
        shifts=DEFAULT_SHIFTS[_subject(plan)],
        class_concentration=1.0,
    )


def generated_sites(
    plan: Plan,
    num_sites: int,
    *,
    cases_per_site: int | range,
    shifts: Sequence[Shift] = (),
    class_concentration: float | None = None,
    image_size: tuple[int, ...] | None = None,
) -> dict[str, SiteData]:
    """Sites whose data honour the plan's contract, of any number and size.

    Args:
        plan: its task, dimensions, channels or features, classes, pixel size, normalisation and
            seed are used.
        num_sites: how many, >= 1.
        cases_per_site: training and test cases together, at least 3; of a range each site draws
            its own, log-uniformly.
        shifts: how sites record differently; on images they act before noise.
        class_concentration: of the Dirichlet distribution that a site's class shares come from
            (at least :data:`PRIOR_FLOOR` each); None: all classes alike everywhere.
        image_size: size of the images, pixels; None: the plan's patch size.

    Returns:
        Data by site name, ``site_001`` and so on. The same arguments give the same data, and a
        site does not depend on how many others there are. In an anomaly plan, training cases are
        normal and every second test case holds an anomaly. Rows of tables are made at once,
        because they are standardised by their site's own training rows.

    Raises:
        SettingsError: a shift does not fit the plan.
        UserInputError: fewer than 3 cases are asked for.
    """
    check_shifts(shifts, plan)
    fewest = cases_per_site if isinstance(cases_per_site, int) else min(cases_per_site, default=0)
    if fewest < FEWEST_CASES:
        msg = f"cases_per_site is {cases_per_site}; at least {FEWEST_CASES} are needed at a site"
        raise UserInputError(msg)
    names = [f"site_{number:03d}" for number in range(1, num_sites + 1)]
    size = image_size or plan.data.patch_size
    sites = {}
    for name in names:
        profile = site_profile(plan, name, cases_per_site, shifts, class_concentration)
        sites[name] = _site_data(plan, profile, size)
    return sites


def site_profile(
    plan: Plan,
    name: str,
    cases_per_site: int | range,
    shifts: Sequence[Shift] = (),
    class_concentration: float | None = None,
) -> SiteProfile:
    """Draw a site's profile from the plan's seed and the site's name."""
    draws = stream(plan.seed, round_=0, site=name, purpose="profile")
    num_classes = len(plan.data.classes)
    prior = np.full(num_classes, 1 / num_classes)
    if class_concentration is not None:
        floor = min(PRIOR_FLOOR, 0.5 / num_classes)
        shares = draws.dirichlet(np.full(num_classes, class_concentration))
        prior = floor + (1 - num_classes * floor) * shares
    if isinstance(cases_per_site, range):
        fewest, most = np.log([cases_per_site[0], cases_per_site[-1]])
        num_cases = round(np.exp(draws.uniform(fewest, most)))
    else:
        num_cases = cases_per_site
    return SiteProfile(
        name=name,
        num_cases=num_cases,
        prior=tuple(float(share) for share in prior / prior.sum()),
        missing=float(draws.uniform(*MISSING_CELLS)),
        shifts=drawn_shifts(shifts, plan.seed, name),
    )


def num_test_cases(profile: SiteProfile) -> int:
    """How many of a site's cases, counted from number 0, are its test."""
    return max(2, round(TEST_FRACTION * profile.num_cases))


def make_image_case(plan: Plan, profile: SiteProfile, size: tuple[int, ...], number: int) -> Case:
    """Make one image or volume.

    Args:
        plan: as in :func:`generated_sites`.
        profile: the site.
        size: of the image, pixels.
        number: 0 .. ``profile.num_cases`` - 1; the first :func:`num_test_cases` are the test.

    Returns:
        A normalised image with its truth.
    """
    draws = _case_stream(plan, profile.name, number)
    label = _true_label(plan, profile, number, draws)
    sky = _subject(plan) == "sky"
    signal, truth = (draw_field if sky else draw_phantom)(plan, size, label, draws)
    spacing, unit = _pixel_size(plan, size)
    case_id = _case_id(plan, profile.name, number)
    image, mask, label = apply_shifts(
        signal,
        None if plan.task == "classification" else truth,
        label,
        shifts=profile.shifts,
        plan=plan,
        case_id=case_id,
        spacing=spacing,
        unit=unit,
        noise=SKY_NOISE if sky else None,
        test=number < num_test_cases(profile),
    )
    if not any(shift.kind in NOISY_KINDS for shift in profile.shifts):
        image = _recorded(image, sky, draws)
    return Case(
        id=case_id,
        image=_normalised(image, plan),
        label=label,
        mask=mask,
        native_shape=size,
        native_spacing=spacing,
        spacing_unit=unit,
    )


def _site_data(plan: Plan, profile: SiteProfile, size: tuple[int, ...]) -> SiteData:
    num_test, numbers = num_test_cases(profile), range(profile.num_cases)
    if plan.data.kind == "table":
        rows = _make_rows(plan, profile)
        train, test = CaseList.of(rows[num_test:]), CaseList.of(rows[:num_test])
    else:
        train = GeneratedCases(plan, profile, size, numbers[num_test:])
        test = GeneratedCases(plan, profile, size, numbers[:num_test])
    what = f"{plan.seed}/{profile.name}/{profile.num_cases}/{size}/{profile.shifts}"
    return SiteData(
        site=profile.name,
        train=train,
        test=test,
        manifest_sha256=hashlib.sha256(what.encode()).hexdigest(),
    )


def _make_rows(plan: Plan, profile: SiteProfile) -> list[Case]:
    """Rows of a table, standardised by the site's own training rows; the test's first."""
    labels, rows = [], []
    for number in range(profile.num_cases):
        draws = _case_stream(plan, profile.name, number)
        labels.append(int(draws.choice(len(profile.prior), p=profile.prior)))
        rows.append(make_row(plan, labels[-1], profile.missing, draws))
    table, num_test = np.stack(rows), num_test_cases(profile)
    columns = to_columns(table, plan.data, scale_of(table[num_test:], plan.data))
    cases = []
    for number, (row, true_label) in enumerate(zip(columns, labels, strict=True)):
        case_id = _case_id(plan, profile.name, number)
        image, _, label = apply_shifts(
            row,
            None,
            true_label,
            shifts=profile.shifts,
            plan=plan,
            case_id=case_id,
            test=number < num_test,
        )
        cases.append(Case(id=case_id, image=image, label=label))
    return cases


def _true_label(plan: Plan, profile: SiteProfile, number: int, draws: np.random.Generator) -> int:
    """A case's class; the first thing that is drawn from its stream."""
    match plan.task:
        case "segmentation":
            return -1
        case "classification":
            return int(draws.choice(len(profile.prior), p=profile.prior))
        case "anomaly":
            return number % 2 if number < num_test_cases(profile) else 0


def _recorded(image: Image, sky: bool, draws: np.random.Generator) -> Image:
    frame = Frame(spacing=(), unit="", noise=None, draws=draws)
    if not sky:
        return shifts_medical.noise(
            image, frame, sigma_percent=SCANNER_NOISE_PERCENT, distribution="rician"
        )
    return shifts_sky.gain_read_noise(
        image, frame, gain_electrons_per_adu=1.0, read_noise_electrons=READ_NOISE_ELECTRONS
    )


def _normalised(image: Image, plan: Plan) -> Image:
    """As ``normalise``, whose general machinery takes longer than drawing a small image."""
    if plan.data.normalisation != "standardise":
        return normalise(image, plan.data.normalisation)
    axes = tuple(range(1, image.ndim))
    deviation = image.std(axis=axes, keepdims=True)
    above = image - image.mean(axis=axes, keepdims=True)
    return np.asarray(above / np.where(deviation > 0, deviation, 1), np.float32)


def _subject(plan: Plan) -> str:
    """What a plan's data are of: ``table``, ``sky`` or ``medical``."""
    if plan.data.kind == "table":
        return "table"
    return "sky" if distance_name(plan) == "hd95_arcsec" else "medical"


def _pixel_size(plan: Plan, size: tuple[int, ...]) -> tuple[tuple[float, ...], str]:
    if _subject(plan) == "sky":
        return (plan.data.pixel_scale_arcsec or PIXEL_ARCSEC,) * len(size), "arcsec"
    return plan.data.spacing_mm or (PIXEL_MM,) * len(size), "mm"


def _case_stream(plan: Plan, site: str, number: int) -> np.random.Generator:
    return stream(plan.seed, round_=0, site=site, purpose=f"case {number}")


def _case_id(plan: Plan, site: str, number: int) -> str:
    return hashlib.sha256(f"{plan.seed}/{site}/{number}".encode()).hexdigest()[:12]
