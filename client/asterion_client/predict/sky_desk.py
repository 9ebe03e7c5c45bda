"""Catalogues of what was found on the sky, and how they compare with a reference."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asterion_client.data.raw_image import RawImage
from asterion_client.predict.fits_maps import sky_of
from asterion_client.predict.inputs import Member
from asterion_client.predict.outputs import Desk
from asterion_client.predict.reference_match import (
    Matched,
    Reference,
    match_image,
    read_reference,
    summarise_matches,
)
from asterion_client.predict.sky_catalogue import find_sources, write_catalogue


@dataclass(slots=True)
class SkyDesk:
    """Writes a catalogue for each image, and keeps what a comparison needs.

    Attributes:
        reference: a catalogue to compare with; None without.
        radius_arcsec: how near a match is; None: as the pixel size suggests.
        smallest_pixels: sources of fewer pixels are in no catalogue.
        num_sources: of all images.
        matches: by image, of those with world coordinates.
        num_without: images without.
    """

    reference: Reference | None = None
    radius_arcsec: float | None = None
    smallest_pixels: int = 1
    num_sources: int = 0
    matches: dict[str, Matched] = field(default_factory=dict)
    num_without: int = 0

    def write(
        self,
        desk: Desk,
        member: Member,
        raw: RawImage,
        mask: npt.NDArray[np.int16],
        probabilities: npt.NDArray[np.float32],
    ) -> str:
        """Write the catalogue of one image; its file below the folder of results.

        Raises:
            DiskProblemError: it cannot be written.
        """
        sky = sky_of(member.record.path, desk.settings)
        sources = find_sources(mask, probabilities, raw.image, sky, self.smallest_pixels)
        name = f"catalogues/{member.stem}.fits"
        write_catalogue(desk.out / name, sources, desk.plan.data.classes, desk.plan.data.channels)
        self.num_sources += len(sources)
        self.num_without += sky.world is None
        if self.reference is not None:
            matched = match_image(sources, self.reference, raw, sky, self.radius_arcsec)
            if matched is not None:
                self.matches[member.id] = matched
        return name

    def comparison(self) -> dict[str, Any] | None:
        """Completeness and purity of all images; None without a reference."""
        if self.reference is None:
            return None
        return summarise_matches(self.matches, self.num_without)


def sky_desk(
    reference: Path | None, radius_arcsec: float | None, smallest_pixels: int = 1
) -> SkyDesk:
    """A desk with a reference, read, or without.

    Raises:
        FileProblemError: the reference is no catalogue.
    """
    known = None if reference is None else read_reference(reference)
    return SkyDesk(known, radius_arcsec, smallest_pixels)
