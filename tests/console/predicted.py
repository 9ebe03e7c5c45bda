"""Predictions at a clinic, made by the command's own code from generated images."""

from pathlib import Path

import nibabel
import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.predict.releases import plan_of, store_release
from torch import nn
from torch.nn import functional

from asterion_client.predict.asked import Asked, carry_out
from asterion_shared.plan import Plan
from asterion_shared.tasks import initial_model

SIDE = 64
LONG = "a folder with a name as long as a name may be & not shorter, of the second reading 2026 ü"
LUMPS = "lumps-2026-11"


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A body with one bright lump, noisy; and the lump, both ``(SIDE, SIDE)``."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    body = (x / 0.8) ** 2 + (y / 0.9) ** 2 < 1
    at, size = random.uniform(-0.35, 0.35, 2), random.uniform(0.12, 0.3, 2)
    lump = ((x - at[0]) / size[0]) ** 2 + ((y - at[1]) / size[1]) ** 2 < 1
    image = 0.4 * body + random.uniform(0.15, 0.5) * lump + 0.07 * random.normal(size=x.shape)
    return image.astype(np.float32), lump.astype(np.uint8)


def store_images(folder: Path, count: int) -> Path:
    """Images with the masks that a site has of them, but for the last two."""
    for place in (folder / "images", folder / "labels"):
        place.mkdir(parents=True)
    for number in range(count):
        image, lump = phantom(100 + number)
        name = f"phantom_{number:02d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "images" / name)
        if number < count - 2:
            nibabel.save(nibabel.Nifti1Image(lump, np.eye(4)), folder / "labels" / name)
    (folder / "images" / "broken.nii").write_bytes(b"no image")
    return folder


def trained(plan: Plan, steps: int) -> nn.Module:
    """A network that finds lumps, after some seconds."""
    network = initial_model(plan)
    pairs = [phantom(seed) for seed in range(16)]
    images = torch.stack([torch.from_numpy(image)[None] for image, _ in pairs])
    lumps = torch.stack([torch.from_numpy(lump.astype(np.int64)) for _, lump in pairs])
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(network(images), lumps).backward()
        optimiser.step()
    return network


def store_predictions(work: Path, place: Path, *, count: int = 7, steps: int = 60) -> None:
    """Predict images into two folders of a place; a third one was broken off."""
    plan = plan_of(
        "segmentation",
        {"dimensions": 2, "classes": ["nothing", "lump"], "patch_size": [SIDE, SIDE],
         "normalisation": "none"},
        model={"name": "unet", "widths": [4, 8], "dropout": 0.2},
    )  # fmt: skip
    release = store_release(
        work / "release", trained(plan, steps), plan, Ed25519PrivateKey.generate()
    )
    images = store_images(work / "in", count)
    for name in (LONG, LUMPS):
        asked = Asked(release=release, folder=images, out=place / name, samples=8)
        assert carry_out(asked, "closed") == 12
    (place / "broken-off" / "masks").mkdir(parents=True)
