"""Metrics in words: what a name means, how a number of it is written."""

from collections.abc import Mapping

from asterion_shared.metrics import HEADLINE
from asterion_shared.metrics.subgroups import subgroup_of
from asterion_shared.plan import TaskName

_LABELS: dict[str, str] = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95 (mm)",
    "hd95_arcsec": "HD95 (arcsec)",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "pixel_auroc": "pixel AUROC",
    "pixel_auprc": "pixel AUPRC",
    "pixel_sensitivity": "pixel sensitivity",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "calibration_error": "calibration error",
    "sensitivity": "sensitivity",
    "num_cases": "cases",
    "auroc_cases": "ranked cases",
}

_ENDINGS = (("_low", "lower end"), ("_high", "upper end"), ("_median", "median"),
            ("_bound", "error of its bins"), ("_bins", "bins left"))  # fmt: skip

_MEANINGS: dict[str, str] = {
    "dice": "how well the outlined area agrees with the reference outline: 1 is a perfect match, "
    "0 is no overlap",
    "auroc": "the chance that a random positive case is ranked above a random negative one: "
    "1 is perfect, 0.5 is guessing",
}

_BASELINES: dict[TaskName, str] = {
    "segmentation": "calling everything background",
    "classification": "always naming the most common class",
    "anomaly": "the error of a linear (PCA) reconstruction",
}

_SECONDARY: dict[TaskName, tuple[str, ...]] = {
    "segmentation": ("iou", "hd95_mm", "hd95_arcsec"),
    "classification": ("balanced_accuracy", "auprc", "calibration_error"),
    "anomaly": ("auprc", "sensitivity"),
}


def headline_metric(task: TaskName) -> str:
    """Name of the metric a task is judged by."""
    return HEADLINE[task]


def secondary_metrics(task: TaskName) -> tuple[str, ...]:
    """Names of the metrics that stand beside it in tables, where they were measured."""
    return _SECONDARY[task]


def baseline_words(task: TaskName) -> str:
    """What the trivial baseline of a task does, to follow "the baseline is"."""
    return _BASELINES[task]


def meaning(name: str) -> str:
    """What a metric says, in one clause; empty for a metric without one."""
    return _MEANINGS.get(name.partition("/")[0], "")


def label(name: str) -> str:
    """A metric's flat name as a person reads it.

    >>> label("dice/anterior"), label("baseline/auroc"), label("dice_low")
    ('Dice, anterior', 'AUROC of the baseline', 'Dice, lower end')
    >>> label("auroc_by_sex/female")
    'AUROC, sex female'
    """
    if name.startswith("baseline/"):
        return f"{label(name.removeprefix('baseline/'))} of the baseline"
    metric, subgroup = subgroup_of(name)
    if subgroup:
        return f"{label(metric)}, {subgroup.replace('_', ' ').replace('/', ' ')}"
    base, _, part = name.partition("/")
    for ending, words in _ENDINGS:
        if base.endswith(ending):
            base, part = base.removesuffix(ending), ", ".join(p for p in (part, words) if p)
            break
    shown = _LABELS.get(base, base.replace("_", " "))
    return f"{shown}, {part}" if part else shown


def number(value: float | None, *, digits: int = 3) -> str:
    """A number for a table; a dash where it is undefined.

    >>> number(0.12345), number(1234.0), number(42)
    ('0.123', '1,234', '42')
    """
    if value is None:
        return "\u2013"
    if isinstance(value, int) or (abs(value) >= 100 and float(value).is_integer()):
        return f"{int(value):,}"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:,.0f}"


def value(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric's value for a table; a distance to a tenth.

    >>> value({"hd95_mm": 12.345, "dice": 0.5}, "hd95_mm"), value({}, "dice")
    ('12.3', '\u2013')
    """
    return number(metrics.get(name), digits=1 if name.startswith("hd95_") else 3)


def signed(value: float | None) -> str:
    """A difference with its sign; a dash where it is not known.

    >>> signed(0.0214), signed(-0.3), signed(-1e-9), signed(None)
    ('+0.021', '\u22120.300', '0.000', '\u2013')
    """
    if value is None:
        return number(None)
    text = f"{value:+.3f}".replace("-", "\u2212")
    return text[1:] if text[1:] == "0.000" else text


def in_bytes(count: int) -> str:
    """A number of bytes with its unit.

    >>> in_bytes(0), in_bytes(2048), in_bytes(5_000_000)
    ('0 B', '2.0 kB', '5.0 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def in_time(seconds: float) -> str:
    """A duration as a person says it.

    >>> in_time(0.34), in_time(75), in_time(3720), in_time(3600)
    ('0.3 s', '1 min 15 s', '1 h 2 min', '1 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    large, small = (f"{hours} h", f"{minutes} min") if hours else (f"{minutes} min", f"{rest} s")
    return large if small.startswith("0 ") else f"{large} {small}"
