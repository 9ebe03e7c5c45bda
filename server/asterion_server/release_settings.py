"""``release.toml``: what a release must reach, and what only people know of it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from asterion_shared.settings_files import Settings, read_toml, validate

FILE = "release.toml"
Share = Annotated[float, Field(ge=0, le=1)]


class GateSettings(Settings):
    """``[gate]``: thresholds that hold a release back.

    Held back is besides: a run that has not finished, a privacy claim that an attack broke, and a
    headline metric that is not above the trivial baseline.
    """

    worst_site_at_least: Share | None = None
    """Headline metric of the site with the lowest; absent: not asked."""

    worst_class_at_least: Share | None = None
    """Headline metric of the class with the lowest; absent: not asked."""

    worst_subgroup_at_least: Share | None = None
    """Headline metric of the subgroup with the lowest, of those that the plan's
    ``evaluation.subgroups`` lists; absent: not asked."""

    calibration_error_at_most: Share | None = None
    """Expected calibration error over all sites (classification); absent: not asked."""


class AboutSettings(Settings):
    """``[about]``: what no program can know, in plain sentences.

    What is empty is called not recorded in the model card and in the CLAIM report.
    """

    intended_use: str = ""
    """Who shall use it, on whom, for what, and what a person does with the answer."""

    not_for: str = ""
    """What it must not be used for."""

    background: str = ""
    """Why it was made: the clinical or scientific question."""

    hypotheses: str = ""
    design: str = ""
    """Prospective or retrospective; exploratory, feasibility, non-inferiority."""

    data_sources: str = ""
    """Where and when the data were taken, and why those."""

    eligibility: str = ""
    """Who was included and who was not."""

    deidentification: str = ""
    acquisition: str = ""
    """Scanners or instruments, and their protocols."""

    characteristics: str = ""
    """Age, sex, severity and the like of those in the data, as totals."""

    reference_standard: str = ""
    """What counts as the truth, and why."""

    annotators: str = ""
    """Who drew or named it, with which training; how the test set was done."""

    annotator_agreement: str = ""
    sample_size: str = ""
    """How the number of test cases was chosen."""

    robustness: str = ""
    explanations: str = ""
    external_test: str = ""
    """Results on data of sites that did not train."""

    registration: str = ""
    """Of the trial."""

    failure_analysis: str = ""
    limits: str = ""
    implications: str = ""
    protocol: str = ""
    """Where the full study protocol is."""

    availability: str = ""
    """Of data, code and model."""

    funding: str = ""
    authors: str = ""
    contact: str = ""
    copyright: str = ""


class ReleaseSettings(Settings):
    """``release.toml`` in the coordinator's folder; all of it may be absent."""

    gate: GateSettings = GateSettings()
    about: AboutSettings = AboutSettings()


def release_settings_in(folder: Path) -> ReleaseSettings:
    """Those of a coordinator's folder; the defaults where it has no ``release.toml``.

    Raises:
        FileProblemError, SettingsError: as :func:`read_release_settings`.
    """
    path = folder / FILE
    return read_release_settings(path) if path.exists() else ReleaseSettings()


def read_release_settings(path: Path) -> ReleaseSettings:
    """The settings of a file.

    Raises:
        FileProblemError: it is missing or is not TOML.
        SettingsError: lists every problem of it.
    """
    return validate(ReleaseSettings, read_toml(path), str(path))
