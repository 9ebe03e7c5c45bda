"""Small site folders of unequal size, one set a task, and a plan for each."""

from pathlib import Path
from typing import Any

import numpy as np

from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

SIZES = {"east": 6, "north": 14, "west": 9}
COMMON: dict[str, Any] = {
    "seed": 5,
    "algorithm": {"name": "fedprox", "mu": 0.1},
    "rounds": {"count": 3, "deadline_seconds": 120.0},
    "local": {"amount": 3, "batch_size": 4, "learning_rate": 0.01},
}
PLANS: dict[str, dict[str, Any]] = {
    "segmentation": {
        "task": "segmentation",
        "data": {"classes": ["sky", "source"], "patch_size": [16, 16]},
        "model": {"name": "unet", "widths": [4, 8]},
        "local": COMMON["local"] | {"augment": ["flip", "rotate90"]},
    },
    "classification": {
        "task": "classification",
        "data": {"classes": ["round", "long"], "patch_size": [16, 16]},
        "model": {"name": "residual", "widths": [4, 8], "dropout": 0.1},
    },
    "anomaly": {
        "task": "anomaly",
        "data": {"classes": ["normal", "odd"], "patch_size": [16, 16]},
        "model": {"name": "conv_autoencoder", "widths": [4, 8], "code_size": 3},
    },
    "table": {
        "task": "classification",
        "data": {"kind": "table", "features": ["a", "b"], "classes": ["well", "ill"]},
        "model": {"name": "mlp", "widths": [4]},
        "local": COMMON["local"] | {"unit": "epochs", "amount": 2},
    },
}


def plan_of(kind: str, **sections: Any) -> Plan:
    return validate(Plan, COMMON | {"name": kind} | PLANS[kind] | sections, kind)


def make_folders(kind: str, parent: Path) -> dict[str, Path]:
    """Site name to folder; the same numbers at every call."""
    folders = {}
    for index, (name, size) in enumerate(SIZES.items()):
        folder = parent / name
        (folder / "data").mkdir(parents=True)
        draws = np.random.default_rng(index)
        settings = f'name = "{name}"\ntask = "{PLANS[kind]["task"]}"\n[data]\nfolder = "data"\n'
        if kind == "table":
            settings += 'format = "table"\ngroup_column = "patient"\n'
            rows = [
                f"{draws.normal(i % 2):.3f},{draws.normal():.3f},{i % 2},p{i}" for i in range(size)
            ]
            (folder / "data/rows.csv").write_text("a,b,label,patient\n" + "\n".join(rows) + "\n")
        else:
            settings += 'format = "npz"\n'
            masks = np.zeros((size, 16, 16), np.uint8)
            masks[::2, 4:12, 6:9] = 1
            images = draws.normal(0, 0.5, masks.shape) + masks * (index + 1)
            arrays = {"images": images.astype(np.float32)}
            if kind == "segmentation":
                arrays["masks"] = masks
            else:
                arrays["labels"] = masks.any(axis=(1, 2)).astype(np.int64)
            np.savez(folder / "data/images.npz", **arrays)
        # A simulation withholds nothing, since nothing leaves; so the sites here do not either.
        (folder / "site.toml").write_text(f"{settings}[egress]\nsmallest_group = 1\n")
        folders[name] = folder
    return folders
