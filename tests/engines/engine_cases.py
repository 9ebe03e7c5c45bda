"""Plans and sites that the engines are compared on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from asterion_client.local_round import make_workspace, work
from asterion_shared.cases import Case, CaseList, SiteData
from asterion_shared.messages import Order, Report
from asterion_shared.plan import Plan
from asterion_shared.settings_files import validate

SGD: dict[str, Any] = {"optimiser": "sgd", "learning_rate": 0.05}
EPOCH: dict[str, Any] = {"unit": "epochs", "amount": 1, "batch_size": 5} | SGD
IMAGES: dict[str, Any] = {"patch_size": [12, 12], "classes": ["a", "b", "c"]}
VOLUMES: dict[str, Any] = {"dimensions": 3, "patch_size": [8, 8, 8], "classes": ["a", "b"]}
NORMALS: dict[str, Any] = {"patch_size": [8, 8], "classes": ["a", "b"]}
TABLE: dict[str, Any] = {"kind": "table", "features": ["x", "y", "z"], "classes": ["a", "b"]}

NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"task": "segmentation", "data": IMAGES, "model": {"name": "unet", "widths": [4, 8]}},
    "unet 3d": {
        "task": "segmentation",
        "data": VOLUMES,
        "model": {"name": "unet", "widths": [4, 8]},
    },
    "small unet": {
        "task": "segmentation",
        "data": IMAGES,
        "model": {"name": "small_unet", "widths": [4, 8, 8]},
    },
    "small unet, one logit": {
        "task": "segmentation",
        "data": IMAGES | {"classes": ["a", "b"]},
        "model": {"name": "small_unet", "widths": [4, 8]},
        "local": EPOCH | {"dice_weight": 0.0},
    },
    "residual": {
        "task": "classification",
        "data": IMAGES,
        "model": {"name": "residual", "widths": [4, 8]},
    },
    "residual 3d": {
        "task": "classification",
        "data": VOLUMES,
        "model": {"name": "residual", "widths": [4]},
    },
    "cnn": {
        "task": "classification",
        "data": IMAGES,
        "model": {"name": "cnn", "widths": [4, 8, 16]},
    },
    "cnn 3d": {
        "task": "classification",
        "data": VOLUMES,
        "model": {"name": "cnn", "widths": [4, 16]},
    },
    "mlp": {"task": "classification", "data": TABLE, "model": {"name": "mlp", "widths": [8, 6]}},
    "mlp of images": {
        "task": "classification",
        "data": IMAGES,
        "model": {"name": "mlp", "widths": [16]},
    },
    "logistic": {"task": "classification", "data": TABLE, "model": {"name": "logistic"}},
    "logistic of images": {
        "task": "classification",
        "data": IMAGES,
        "model": {"name": "logistic"},
    },
    "autoencoder": {
        "task": "anomaly",
        "data": NORMALS,
        "model": {"name": "conv_autoencoder", "widths": [4, 8], "code_size": 3},
    },
}
"""Every network of the catalogue that the batched engines take."""

WAYS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"local": EPOCH | {"momentum": 0.9}},
    "weight decay": {"local": EPOCH | {"weight_decay": 0.1}},
    "fedprox": {"algorithm": {"name": "fedprox", "mu": 0.7}},
    "all of them": {
        "local": EPOCH | {"momentum": 0.9, "weight_decay": 0.1, "amount": 2},
        "algorithm": {"name": "fedprox", "mu": 0.7},
    },
    "steps": {"local": SGD | {"unit": "steps", "amount": 7, "batch_size": 4}},
    "stored order": {"local": EPOCH | {"shuffle": False}},
    "adam": {"local": EPOCH | {"optimiser": "adam", "learning_rate": 1e-3}},
    "adamw": {
        "local": EPOCH | {"optimiser": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
        "algorithm": {"name": "fedprox", "mu": 0.7},
    },
}
"""Every optimiser and algorithm; sites do unequal numbers of steps in all but "steps"."""


def plan_of(network: str, way: str = "sgd", **sections: Any) -> Plan:
    values = {"name": "engines", "seed": 3, "local": EPOCH} | NETWORKS[network]
    return validate(Plan, values | WAYS[way] | sections, "plan")


def sites_of(plan: Plan, sizes: tuple[int, ...] = (9, 17, 4, 12)) -> list[SiteData]:
    """Unequal sites with noise that the classes shift; no two sites alike."""
    return [site_of(plan, f"site_{number}", size) for number, size in enumerate(sizes)]


def site_of(plan: Plan, name: str, size: int) -> SiteData:
    draws = np.random.default_rng([size, len(name)])
    table, num_classes = plan.data.kind == "table", len(plan.data.classes)
    shape = (2 * len(plan.data.features),) if table else (1, *plan.data.patch_size)
    cases = []
    for number in range(size):
        label = 0 if plan.task == "anomaly" else number % num_classes
        image = (draws.standard_normal(shape) + label).astype(np.float32)
        mask = None
        if plan.task == "segmentation":
            mask = draws.integers(-1, num_classes, shape[1:]).astype(np.int16)
        cases.append(Case(id=f"{number:012x}", image=image, label=label, mask=mask))
    return SiteData(site=name, train=CaseList.of(cases), test=CaseList.of(cases[:2]))


def order_of(plan: Plan, round_: int = 2) -> Order:
    space = make_workspace(plan)
    return Order(
        run="r",
        plan=plan,
        round=round_,
        phase="train",
        weights=space.initial_weights,
        layout_sha256=space.layout.sha256,
        evaluate=False,
    )


def hospital_reports(plan: Plan, sites: list[SiteData], order: Order, folder: Path) -> list[Report]:
    """What the hospital's own step sends: the oracle."""
    space = make_workspace(plan)
    return [work(order, site, space, folder / site.site) for site in sites]


def renamed(site: SiteData, name: str) -> SiteData:
    return replace(site, site=name)
