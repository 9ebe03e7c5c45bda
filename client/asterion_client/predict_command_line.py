"""``asterion site predict``: a release on the site's own files."""

from pathlib import Path
from typing import Annotated

import typer


def predict(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="the release's folder")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="the files to predict, at any depth")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="a new folder for the results")],
    site: Annotated[
        Path | None,
        typer.Option(metavar="SITE_TOML", help="how the site's files are read; its device"),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="RELEASE2", help="another release, to see where they disagree"
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="PUBLIC.pem", help="the key that must have signed the releases"),
    ] = None,
    data_format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="nifti, dicom, fits, npz or table"),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=1000, help="predictions of a case with dropout on")
    ] = 20,
    explain: Annotated[
        int,
        typer.Option(min=0, max=10_000, metavar="N", help="Grad-CAM of the N least certain images"),
    ] = 0,
    pictures: Annotated[
        int,
        typer.Option(min=0, max=10_000, metavar="N", help="pictures of the N least certain images"),
    ] = 50,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="CATALOGUE", help="FITS images: sources to compare with, CSV or FITS"),
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(
            metavar="ARCSEC", help="how near a match is; else 1 arcsec or 2 pixels, the wider"
        ),
    ] = None,
    smallest: Annotated[
        int, typer.Option(min=1, metavar="PIXELS", help="FITS images: least pixels of a source")
    ] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda[:N]; else as the site's settings say, or cpu")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Predict the site's own files with a release, in a process whose network is closed.

    Masks come in the files' own format, classes and scores as CSV and FHIR, sources as a FITS
    catalogue; review.csv names the least certain cases first. Ends with code 12 when a file was
    skipped; the others are predicted all the same.
    """
    import json
    import subprocess
    import sys

    asked = {
        "release": release,
        "folder": folder,
        "out": out,
        "site": site,
        "others": others or [],
        "key": key,
        "format": data_format,
        "samples": samples,
        "explain": explain,
        "pictures": pictures,
        "reference": reference,
        "radius_arcsec": radius,
        "smallest_pixels": smallest,
        "device": device,
        "as_json": as_json,
    }
    done = subprocess.run(
        [sys.executable, "-m", "asterion_client.predict"],
        input=json.dumps(asked, default=str), text=True, check=False,
    )  # fmt: skip
    raise typer.Exit(done.returncode)
