"""The two files that make a release a MONAI bundle: ``metadata.json`` and ``inference.json``."""

from importlib.metadata import version
from typing import Any

from asterion_server.release_onnx import input_shape
from asterion_server.release_run import TrainedRun
from asterion_server.release_settings import AboutSettings
from asterion_server.release_words import NOT_RECORDED, task_sentence
from asterion_shared.plan import Plan
from asterion_shared.table_columns import column_names

SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
"""Of MONAI's metadata; named in the file, fetched by nobody here."""


def metadata(run: TrainedRun, name: str, number: int, about: AboutSettings) -> dict[str, Any]:
    """``configs/metadata.json``, as https://docs.monai.io/en/stable/mb_specification.html says.

    Args:
        run: that trained the model.
        name: of the model.
        number: its version, >= 1; MONAI writes it ``NUMBER.0.0``.
        about: what people said of it.
    """
    mine = f"{number}.0.0"
    return {
        "schema": SCHEMA,
        "version": mine,
        "changelog": {mine: f"run {run.folder.path.name}, {run.rounds} rounds"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"asterion-shared": version("asterion-shared")},
        "name": name,
        "task": run.plan.task,
        "description": task_sentence(run.plan),
        "authors": about.authors or NOT_RECORDED,
        "copyright": about.copyright or NOT_RECORDED,
        "intended_use": about.intended_use or NOT_RECORDED,
        "data_source": about.data_sources or NOT_RECORDED,
        "network_data_format": {
            "inputs": {"image": _inputs(run.plan)},
            "outputs": {"pred": _outputs(run.plan)},
        },
    }


def inference(plan: Plan) -> dict[str, Any]:
    """``configs/inference.json``: MONAI's parser builds the network and the inferer from it.

    How an image becomes the network's input is the plan's data contract, which
    ``asterion site predict`` carries out; MONAI's own transforms are not named in its place.
    """
    window: dict[str, Any] = {"_target_": "SimpleInferer"}
    if plan.task != "classification" and plan.data.kind == "image":
        window = {"_target_": "SlidingWindowInferer", "roi_size": list(plan.data.patch_size),
                  "sw_batch_size": 4, "overlap": 0.5}  # fmt: skip
    return {
        "imports": ["$from pathlib import Path"],
        "bundle_root": ".",
        "device": "cpu",
        "network_def": {
            "_target_": "asterion_shared.release.opening.released_network",
            "folder": "@bundle_root",
        },
        "network": "$@network_def.to(@device)",
        "inferer": window,
    }


def _inputs(plan: Plan) -> dict[str, Any]:
    data, (width, *space) = plan.data, input_shape(plan)
    table = data.kind == "table"
    names = column_names(data) if table else data.channels
    return {
        "type": "tabular" if table else "image",
        "format": "columns" if table else "magnitude",
        "modality": NOT_RECORDED,
        "num_channels": width,
        "spatial_shape": space,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": plan.task != "classification" and not table,
        "channel_def": {str(i): name for i, name in enumerate(names)},
    }


def _outputs(plan: Plan) -> dict[str, Any]:
    data, rebuilt = plan.data, plan.task == "anomaly"
    names = data.channels if rebuilt else data.classes
    return {
        "type": "reconstruction" if rebuilt else "probabilities",
        "format": "magnitude" if rebuilt else "logits",
        "num_channels": len(names),
        "spatial_shape": [] if plan.task == "classification" else list(data.patch_size),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": plan.task != "classification",
        "channel_def": {str(i): name for i, name in enumerate(names)},
    }
