"""What a person writes about shifts in a scenario: one ``[[shifts]]`` entry each, by its kind.

A number may be fixed, or a range ``[low, high]`` from which each site draws its own.
"""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from asterion_shared.settings_files import Rule, Settings, rule

Number = float | tuple[float, float]
"""A fixed number, or the two ends of the range that each site draws its own from."""


def _within(low: float, high: float, *, above: bool = False) -> AfterValidator:
    def check(value: Number) -> Number:
        ends = value if isinstance(value, tuple) else (value, value)
        inside = all(low < end <= high if above else low <= end <= high for end in ends)
        if not inside or ends[0] > ends[1]:
            bounds = f"{'>' if above else '>='} {low:g}"
            bounds += f" and <= {high:g}" if math.isfinite(high) else ""
            msg = f"a number or [low, high] {bounds}, the lower first, is wanted"
            raise ValueError(msg)
        return value

    return AfterValidator(check)


Positive = Annotated[Number, _within(0, math.inf, above=True)]
NonNegative = Annotated[Number, _within(0, math.inf)]
Share = Annotated[Number, _within(0, 1)]
AtLeastOne = Annotated[Number, _within(1, math.inf)]
Percent = Annotated[Number, _within(-1000, 1000)]
Signed = Annotated[Number, _within(-math.inf, math.inf)]


class ShiftSettings(Settings):
    """What every shift has. A number may be given as ``[low, high]``: each site draws its own."""

    sites: tuple[str, ...] = ("*",)
    """Names of the sites that it may affect; ``*`` and ``?`` stand for any letters, or one."""

    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Probability that a site of those is affected."""

    LOGARITHMIC: ClassVar[frozenset[str]] = frozenset()
    """Numbers that span decades: their logarithm is drawn uniformly."""

    WHOLE: ClassVar[frozenset[str]] = frozenset()
    """Numbers that are rounded to whole ones once drawn."""


class LabelShiftSettings(ShiftSettings):
    """What every shift of labels or masks has."""

    test_too: bool = False
    """Whether test cases are changed too; else their truth stays true."""


class GainOffset(ShiftSettings):
    """Another scale of stored numbers. Normalisations other than "none" take it out again."""

    kind: Literal["gain_offset"] = "gain_offset"
    gain: Positive = 1.0
    offset_percent: Percent = 0.0
    """Added before the gain, per cent of the signal."""

    LOGARITHMIC = frozenset({"gain"})


class BiasField(ShiftSettings):
    """A smooth field of sensitivity that multiplies the image."""

    kind: Literal["bias_field"] = "bias_field"
    ratio: AtLeastOne
    """Most over least sensitive point of the image."""

    degree: Annotated[int, Field(ge=1, le=5)] = 3


class Noise(ShiftSettings):
    """Receiver noise."""

    kind: Literal["noise"] = "noise"
    sigma_percent: NonNegative
    """Deviation, per cent of the signal."""

    distribution: Literal["gaussian", "rician"] = "gaussian"
    """Rician for the magnitude images of MR."""


class Resolution(ShiftSettings):
    """Larger voxels; the grid and the masks stay."""

    kind: Literal["resolution"] = "resolution"
    in_plane_mm: Positive | None = None
    slice_mm: Positive | None = None
    """Slice thickness, volumes only."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: s.in_plane_mm is not None or s.slice_mm is not None,
            lambda s: "neither in_plane_mm nor slice_mm is given; give one",
        ),
    )


class Gibbs(ShiftSettings):
    """Ringing at edges, by a cut in k-space."""

    kind: Literal["gibbs"] = "gibbs"
    alpha: Share
    """0 is no cut, 1 leaves nothing; seen from about 0.4 on."""


class KspaceUndersampling(ShiftSettings):
    """Fewer lines of k-space, filled with zeros."""

    kind: Literal["kspace_undersampling"] = "kspace_undersampling"
    acceleration: AtLeastOne
    """All lines over measured lines."""

    centre_fraction: Share = 0.08
    """Share of the lines, around the centre, that are always measured."""


class ContrastCurve(ShiftSettings):
    """A bent grey scale."""

    kind: Literal["contrast_curve"] = "contrast_curve"
    gamma: Positive

    LOGARITHMIC = frozenset({"gamma"})


class AnnotationStyle(LabelShiftSettings):
    """Outlines drawn wider, or below 0 tighter, than the truth."""

    kind: Literal["annotation_style"] = "annotation_style"
    grow_mm: Signed | None = None
    grow_pixels: Signed | None = None

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda s: (s.grow_mm is None) != (s.grow_pixels is None),
            lambda s: "grow_mm and grow_pixels are both given, or neither; give one",
        ),
    )


class LabelNoise(LabelShiftSettings):
    """Classes that are wrong, with a probability, once and for all."""

    kind: Literal["label_noise"] = "label_noise"
    probability: Share


class MissingLabels(LabelShiftSettings):
    """Cases without a label, or with a mask in which every pixel is unknown."""

    kind: Literal["missing_labels"] = "missing_labels"
    probability: Share


class Psf(ShiftSettings):
    """Seeing: the width of a point source."""

    kind: Literal["psf"] = "psf"
    seeing_arcsec: Positive
    """Full width at half maximum."""

    beta: Annotated[Number, _within(1, 20, above=True)] = 3.0
    """Of the Moffat profile; smaller has broader wings."""

    native_arcsec: NonNegative = 0.0
    """Width that the images have already."""

    profile: Literal["moffat", "kolmogorov"] = "moffat"
    """Kolmogorov needs the extra ``galsim``; beta is then not used."""


class Sky(ShiftSettings):
    """Brightness of the sky, and its slope, in units of the noise."""

    kind: Literal["sky"] = "sky"
    level_sigma: NonNegative = 0.0
    gradient_sigma: NonNegative = 0.0


class GainReadNoise(ShiftSettings):
    """Photon noise and read noise of the camera."""

    kind: Literal["gain_read_noise"] = "gain_read_noise"
    gain_electrons_per_adu: Positive = 1.0
    read_noise_electrons: NonNegative = 5.0

    LOGARITHMIC = frozenset({"gain_electrons_per_adu"})


class PixelScale(ShiftSettings):
    """Larger pixels; the grid and the masks stay."""

    kind: Literal["pixel_scale"] = "pixel_scale"
    scale_arcsec: Positive


class Crowding(ShiftSettings):
    """More stars, which are in the truth."""

    kind: Literal["crowding"] = "crowding"
    per_arcmin2: Positive
    faintest_sigma: Positive = 5.0
    brightest_sigma: Positive = 500.0
    fwhm_arcsec: Positive
    """Width of the new stars."""

    class_name: str = ""
    """Class of the new stars in a segmentation; absent: the first after the background."""

    LOGARITHMIC = frozenset({"per_arcmin2"})


class SatelliteTrails(ShiftSettings):
    """Straight bright tracks."""

    kind: Literal["satellite_trails"] = "satellite_trails"
    per_image: NonNegative
    """Mean number in an image."""

    peak_sigma: Positive = 20.0
    width_arcsec: Positive
    length_arcsec: Positive | None = None
    """Absent: across the image."""


class CosmicRays(ShiftSettings):
    """Short sharp tracks of charged particles."""

    kind: Literal["cosmic_rays"] = "cosmic_rays"
    hits_per_1000_pixels: NonNegative
    peak_sigma: Positive = 30.0
    mean_length_pixels: Positive = 3.0


class UvUndersampling(ShiftSettings):
    """The dirty image of an interferometer with few antennas."""

    kind: Literal["uv_undersampling"] = "uv_undersampling"
    antennas: Annotated[Number, _within(3, 1000)]
    hours: Annotated[Number, _within(0, 12)] = 1.0
    declination_deg: Annotated[Number, _within(-90, 90)] = 45.0
    extent: Annotated[Number, _within(0, 1, above=True)] = 0.8
    """Longest baseline over the highest frequency that the pixels hold."""

    WHOLE = frozenset({"antennas"})


Shift = Annotated[
    GainOffset | BiasField | Noise | Resolution | Gibbs | KspaceUndersampling | ContrastCurve
    | AnnotationStyle | LabelNoise | MissingLabels | Psf | Sky | GainReadNoise | PixelScale
    | Crowding | SatelliteTrails | CosmicRays | UvUndersampling,
    Field(discriminator="kind"),
]  # fmt: skip
"""One ``[[shifts]]`` entry of a scenario."""
