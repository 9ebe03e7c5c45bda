"""Generated sites, so that everything runs with no file and no extra package.

Discs and rods (balls and rods in 3D) stand for medical images, Sersic profiles for galaxies, and
shifted normals for tables. Each site has its own profile: how many cases, which classes, and how
its scanner or camera distorts them. An image is made when it is read, from its own stream.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from asterion_client.data.transforms import normalise
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.metrics import distance_name
from asterion_shared.plan import Plan
from asterion_shared.randomness import stream
from asterion_shared.table_columns import scale_of, to_columns
from asterion_sim.synthetic_scenes import make_scene, see
from asterion_sim.synthetic_tables import make_row

CASES_2D = (20, 400)
CASES_3D = (10, 60)
"""Fewest and most cases of a site (log-uniform between); volumes cost more."""

TEST_FRACTION = 0.25
PRIOR_FLOOR = 0.05
"""Least share of each class at a site: a site with one class breaks plain averaging."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProfile:
    """How one virtual site differs from the others.

    Attributes:
        name: the site's name.
        num_cases: training and test cases together.
        prior: share of each class, shape (K,); its sum is 1, each at least the floor.
        gain: stored units for one unit of signal, > 0; over four decades, as real exports.
        offset: stored value of nothing, in units of signal.
        noise: deviation of the noise, in units of signal (an object's brightness is about 1).
        blur_pixels: deviation of the point-spread, pixels.
        missing: share of a table's cells that are missing.
    """

    name: str
    num_cases: int
    prior: tuple[float, ...]
    gain: float
    offset: float
    noise: float
    blur_pixels: float
    missing: float


def synthetic_sites(plan: Plan, num_sites: int) -> dict[str, SiteData]:
    """Sites whose data honour the plan's contract.

    Args:
        plan: its task, dimensions, channels or features, classes, patch size (the size of the
            images), normalisation and seed are used.
        num_sites: how many, >= 1.

    Returns:
        Data by site name, ``site_001`` and so on. The same plan gives the same data.
    """
    names = [f"site_{number:03d}" for number in range(1, num_sites + 1)]
    return {name: _site_data(plan, site_profile(plan, name)) for name in names}


def site_profile(plan: Plan, name: str) -> SiteProfile:
    """Draw a site's profile from the plan's seed and the site's name."""
    draws = stream(plan.seed, round_=0, site=name, purpose="profile")
    volumes = plan.data.kind == "image" and plan.data.dimensions == 3
    fewest, most = np.log(CASES_3D if volumes else CASES_2D)
    num_classes = len(plan.data.classes)
    floor = min(PRIOR_FLOOR, 0.5 / num_classes)
    prior = floor + (1 - num_classes * floor) * draws.dirichlet(np.ones(num_classes))
    return SiteProfile(
        name=name,
        num_cases=round(np.exp(draws.uniform(fewest, most))),
        prior=tuple(float(share) for share in prior / prior.sum()),
        gain=float(10 ** draws.uniform(0, 4)),
        offset=float(draws.uniform(0, 2)),
        noise=float(draws.uniform(0.05, 0.25)),
        blur_pixels=float(draws.uniform(0.3, 1.2)),
        missing=float(draws.uniform(0, 0.2)),
    )


def num_test_cases(profile: SiteProfile) -> int:
    """How many of a site's cases, counted from number 0, are its test."""
    return max(2, round(TEST_FRACTION * profile.num_cases))


def _site_data(plan: Plan, profile: SiteProfile) -> SiteData:
    make = _make_row_cases if plan.data.kind == "table" else _make_image_readers
    readers, num_test = make(plan, profile), num_test_cases(profile)
    ids = "\n".join(_case_id(plan, profile.name, number) for number in range(len(readers)))
    return SiteData(
        site=profile.name,
        train=CaseList(readers[num_test:]),
        test=CaseList(readers[:num_test]),
        manifest_sha256=hashlib.sha256(ids.encode()).hexdigest(),
    )


def _make_image_readers(plan: Plan, profile: SiteProfile) -> list[Callable[[], Case]]:
    return [partial(make_image_case, plan, profile, n) for n in range(profile.num_cases)]


def _make_row_cases(plan: Plan, profile: SiteProfile) -> list[Callable[[], Case]]:
    """Rows are made at once: they are standardised by the site's own training rows."""
    labels, rows = [], []
    for number in range(profile.num_cases):
        draws = _case_stream(plan, profile.name, number)
        labels.append(int(draws.choice(len(profile.prior), p=profile.prior)))
        rows.append(make_row(plan, labels[-1], profile.missing, draws))
    table = np.stack(rows)
    columns = to_columns(table, plan.data, scale_of(table[num_test_cases(profile) :]))
    cases = [
        Case(id=_case_id(plan, profile.name, number), image=row, label=label)
        for number, (row, label) in enumerate(zip(columns, labels, strict=True))
    ]
    return [partial(_itself, case) for case in cases]


def make_image_case(plan: Plan, profile: SiteProfile, number: int) -> Case:
    """Make one image or volume.

    Args:
        plan: as in :func:`synthetic_sites`.
        profile: the site.
        number: 0 .. ``profile.num_cases`` - 1; the first :func:`num_test_cases` are the test.

    Returns:
        An image of the plan's patch size, normalised. In an anomaly plan, training cases are
        normal and every second test case holds an anomaly.
    """
    draws = _case_stream(plan, profile.name, number)
    label = int(draws.choice(len(profile.prior), p=profile.prior))
    if plan.task == "anomaly":
        label = number % 2 if number < num_test_cases(profile) else 0
    signal, mask = make_scene(plan, label, profile.prior, draws)
    seen = see(signal, profile.blur_pixels, profile.noise, draws)
    stored = np.asarray(profile.gain * (seen + profile.offset), np.float32)
    image = normalise(stored, plan.data.normalisation)
    spatial = image.shape[1:]
    return Case(
        id=_case_id(plan, profile.name, number),
        image=image,
        label=-1 if plan.task == "segmentation" else label,
        mask=None if plan.task == "classification" else mask,
        native_shape=spatial,
        native_spacing=(1.0,) * len(spatial),
        spacing_unit=distance_name(plan).rpartition("_")[2],
    )


def _itself(case: Case) -> Case:
    return case


def _case_stream(plan: Plan, site: str, number: int) -> np.random.Generator:
    return stream(plan.seed, round_=0, site=site, purpose=f"case {number}")


def _case_id(plan: Plan, site: str, number: int) -> str:
    return hashlib.sha256(f"{plan.seed}/{site}/{number}".encode()).hexdigest()[:12]
