"""How one example is drawn: stretch, slice, outlines, legends. Drawn the same on any machine."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage

from asterion_shared.cases import Case
from asterion_shared.plan import Plan

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Cut = tuple[slice | int, ...]

_ALL = (slice(None),) * 3

PAPER, INK, SOFT = "#10161c", "#e9eef3", "#a6b2be"
TRUTH, PREDICTION, BOTH, CONFUSED = "#56b4e9", "#f5a623", "#f2f2f2", "#e05fb5"
"""Blue, orange, near-white and magenta: told apart by the colour-blind, and by lightness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A plane ready to be shown.

    Attributes:
        plane: float32 in [0, 1], ``(H, W)`` or ``(H, W, 3)``.
        words: which channel is seen, as a sentence with a blank behind; or empty.
        transpose: whether it, and what is laid over it, is turned so that axis 0 runs right.
        upwards: whether the first row is at the bottom, as on the sky and in anatomy.
        aspect: height of a pixel over its width.
    """

    plane: Array
    words: str
    transpose: bool
    upwards: bool
    aspect: float

    def turn(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A plane of the same grid as it lies on the screen."""
        return np.swapaxes(plane, 0, 1) if self.transpose else plane


def view(plan: Plan, case: Case, shape: tuple[int, ...], cut: Cut) -> View:
    """The part of a case's image that is shown, stretched for the eye.

    Args:
        plan: says what the channels are and whether this is the sky.
        case: its image lies on the plan's grid.
        shape: grid to show it on; the image is resampled to it when it differs.
        cut: index of a plane of that grid; empty for a 2D image.
    """
    image = case.image
    colour = tuple(name.lower() for name in plan.data.channels) == ("red", "green", "blue")
    channels = image if colour else image[:1]
    if channels.shape[1:] != shape:
        factors = [new / old for new, old in zip(shape, channels.shape[1:], strict=True)]
        channels = np.stack([_resample(c, factors) for c in channels])
    sky = plan.data.pixel_scale_arcsec is not None or plan.data.normalisation in ("asinh", "zscale")
    planes = [stretch(c[cut], asinh=sky and plan.data.normalisation != "asinh") for c in channels]
    spacing = _plane_spacing(case, shape, cut)
    volume = len(shape) == 3
    # NIfTI runs right, forward, up; a DICOM series lies slice by slice and row by row.
    anatomical = volume and all(isinstance(part, slice) for part in cut[:1])
    return View(
        plane=np.stack(planes, axis=-1) if colour else planes[0],
        words="" if colour else _channel_words(plan.data.channels),
        transpose=anatomical,
        upwards=anatomical or sky,
        aspect=spacing[1] / spacing[0] if anatomical else spacing[0] / spacing[1],
    )


def _channel_words(names: tuple[str, ...]) -> str:
    return f"Shown is channel {names[0]}. " if names[1:] else ""


def _resample(channel: Array, factors: list[float]) -> Array:
    # grid_mode: the outer edges of both grids coincide, not the centres of their corner pixels.
    return np.asarray(
        ndimage.zoom(channel, factors, order=1, mode="nearest", grid_mode=True), np.float32
    )


def _plane_spacing(case: Case, shape: tuple[int, ...], cut: Cut) -> tuple[float, float]:
    spacing = case.native_spacing
    if len(spacing) != len(shape):
        return 1.0, 1.0
    kept = [s for axis, s in enumerate(spacing) if isinstance((*cut, *_ALL)[axis], slice)]
    return kept[0], kept[1]


def stretch(plane: Array, *, asinh: bool) -> Array:
    """Map a plane to [0, 1] between its 1st and 99.7th percentile; a flat one to 0.

    With ``asinh`` the median is taken off first and what is left is compressed in units of the
    noise (1.48 median absolute deviations), so that faint and bright sources are both seen.
    """
    values = plane.astype(np.float64)
    if asinh:
        values = values - np.median(values)
        noise = 1.4826 * float(np.median(np.abs(values)))
        values = np.arcsinh(values / noise) if noise > 0 else values
    low, high = np.percentile(values, [1.0, 99.7])
    if high <= low:
        low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.clip(scaled, 0, 1).astype(np.float32)


def fullest_slice(mask: Labels, spacing: tuple[float, ...]) -> tuple[Cut, str]:
    """The plane of a volume with the most voxels above 0, and which one that is in words.

    It is cut across the axis with the coarsest spacing, or the last one when they are alike.
    """
    axis = _cut_axis(mask.ndim, spacing)
    others = tuple(a for a in range(mask.ndim) if a != axis)
    index = int((mask > 0).sum(axis=others).argmax())
    return (*_ALL[:axis], index), f"slice {index + 1} of {mask.shape[axis]}"


def fullest_window(mask: Labels, most: int) -> tuple[Cut, str]:
    """The part of a 2D image with the most pixels above 0, and which one that is in words.

    Args:
        mask: shape ``(rows, columns)``.
        most: sides of the window, which is one of those that lie half a side apart, >= 2.

    Returns:
        Nothing to cut, and no words, where the image is no larger.
    """
    if max(mask.shape) <= most:
        return (), ""
    summed = np.pad((mask > 0).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    starts = [sorted({*range(0, max(n - most, 0) + 1, most // 2), max(n - most, 0)})
              for n in mask.shape]  # fmt: skip
    top, left = (np.array(s) for s in starts)
    bottom, right = (np.minimum(s + most, n) for s, n in zip((top, left), mask.shape, strict=True))
    counts = (summed[np.ix_(bottom, right)] - summed[np.ix_(top, right)]
              - summed[np.ix_(bottom, left)] + summed[np.ix_(top, left)])  # fmt: skip
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    rows, columns = slice(top[row], bottom[row]), slice(left[column], right[column])
    words = f"rows {rows.start}-{rows.stop}, columns {columns.start}-{columns.stop}"
    return (rows, columns), words


def middle_slice(case: Case) -> Cut:
    """The middle plane of a volume; nothing to cut for a 2D image."""
    shape = case.image.shape[1:]
    axis = _cut_axis(len(shape), case.native_spacing)
    return (*_ALL[:axis], shape[axis] // 2) if len(shape) == 3 else ()


def _cut_axis(ndim: int, spacing: tuple[float, ...]) -> int:
    uneven = len(spacing) == ndim and max(spacing) > 1.5 * min(spacing)
    return int(np.argmax(spacing)) if uneven else ndim - 1


def segmentation(view: View, truth: Labels | None, predicted: Labels, num_classes: int) -> bytes:
    """PNG of image, outlines and, with a truth, errors; class numbers on the view's grid."""
    known_titles = ["image", "outlines", "errors"]
    figure, axes = _figure(view, ["image", "outline"] if truth is None else known_titles)
    for axis in axes:
        _show(axis, view)
    for number in range(1, num_classes):
        if truth is not None:
            _outline(axes[1], view, truth == number, TRUTH, 2.6)
        _outline(axes[1], view, predicted == number, PREDICTION, 1.2)
    line = Line2D([], [], color=PREDICTION, lw=1.4, label="outline of the prediction")
    if truth is None:
        return _png(figure, [line])
    known, found = truth > 0, (predicted > 0) & (truth >= 0)
    both = known & found
    layers = [(both & (truth == predicted), BOTH, "agree"),
              (known & ~found, TRUTH, "missed (truth only)"),
              (found & ~known, PREDICTION, "extra (prediction only)"),
              (both & (truth != predicted), CONFUSED, "another class")]  # fmt: skip
    axes[2].images[0].set_alpha(0.35)
    for flags, colour, _ in layers:
        _paint(axes[2], view, flags, colour)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=TRUTH, lw=2.6, label="outline of the truth"),
        line,
    ]
    shown = layers if num_classes > 2 else layers[:3]
    handles += [Patch(color=colour, label=label) for _, colour, label in shown]
    return _png(figure, handles)


def anomaly(view: View, error: Array, mask: Labels | None) -> bytes:
    """PNG of image and error map, with the truth's outline on both when it is known."""
    figure, axes = _figure(view, ["image", "squared error"])
    _show(axes[0], view)
    _show(axes[1], view)
    axes[1].images[0].remove()
    top = max(float(np.percentile(error, 99.5)), 1e-12)
    shown = axes[1].imshow(view.turn(error), cmap="inferno", vmin=0, vmax=top,
                           origin=_origin(view), aspect=view.aspect)  # fmt: skip
    bar = figure.colorbar(
        shown, ax=axes[1], fraction=0.046, pad=0.03, anchor=(0.0, 0.0), panchor="S"
    )
    bar.ax.tick_params(colors=SOFT, labelsize=8)
    handles: list[Line2D | Patch] = []
    if mask is not None and (mask > 0).any():
        for axis in axes:
            _outline(axis, view, mask > 0, TRUTH, 1.4)
        handles = [Line2D([], [], color=TRUTH, lw=1.6, label="outline of the true anomaly")]
    return _png(figure, handles)


def classification(view: View, names: tuple[str, ...], label: int, shares: Array) -> bytes:
    """PNG of the image and its most probable classes, the true one always among them.

    Args:
        view: what is seen.
        names: of the classes.
        label: the true class; -1 when nobody knows it.
        shares: probabilities by class.
    """
    figure, axes = _figure(view, ["image", "probability"])
    _show(axes[0], view)
    order = sorted(range(len(names)), key=lambda k: -float(shares[k]))
    top = order[:6] if label < 0 or label in order[:6] else [*order[:5], label]
    colours = [TRUTH if k == label else PREDICTION if k == order[0] else "#5a6672" for k in top]
    bars = axes[1]
    bars.barh(range(len(top)), [float(shares[k]) for k in top], color=colours, height=0.6)
    for row, k in enumerate(top):
        bars.text(
            0.0, row - 0.42, f"{names[k]}  {shares[k]:.2f}", color=INK, fontsize=9, va="bottom"
        )
    bars.set(xlim=(0, 1), ylim=(len(top) - 0.4, -0.9), yticks=[])
    bars.tick_params(colors=SOFT, labelsize=8)
    handles: list[Line2D | Patch] = [Patch(color=TRUTH, label="truth")]
    if label < 0:
        handles = []
    elif order[0] != label:
        handles.append(Patch(color=PREDICTION, label="predicted instead"))
    return _png(figure, handles)


def _figure(view: View, titles: list[str]) -> tuple[Figure, list[Axes]]:
    height, width = view.turn(view.plane).shape[:2]
    ratio = min(max(height * view.aspect / width, 0.5), 1.6)
    side = 3.3 if len(titles) > 2 else 2.18  # one or two pictures fill the width of the page
    figure = Figure(
        figsize=(side * len(titles), 0.97 * side * ratio + 0.75),
        dpi=110,
        facecolor=PAPER,
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
    )
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, color=INK, fontsize=10)
        axis.set_facecolor(PAPER)
        axis.set_anchor("S")  # what is left over comes together above, where it is cut off
        axis.spines[:].set_color("#4a5560")
    return figure, axes


def _origin(view: View) -> Any:
    return "lower" if view.upwards else "upper"


def _show(axis: Axes, view: View) -> None:
    axis.imshow(view.turn(view.plane), cmap="gray", vmin=0, vmax=1, origin=_origin(view),
                aspect=view.aspect, interpolation="nearest")  # fmt: skip
    axis.set(xticks=[], yticks=[])


def _outline(axis: Axes, view: View, flags: Flags, colour: str, width: float) -> None:
    if not flags.any():
        return
    # A rim of zeros closes the outline of what touches the edge.
    padded = np.pad(view.turn(flags).astype(np.float32), 1)
    limits = axis.get_xlim(), axis.get_ylim()
    rows, columns = np.arange(padded.shape[0]) - 1, np.arange(padded.shape[1]) - 1
    axis.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=width)
    axis.set(xlim=limits[0], ylim=limits[1])


def _paint(axis: Axes, view: View, flags: Flags, colour: str) -> None:
    turned = view.turn(flags)
    rgba = np.zeros((*turned.shape, 4), np.float32)
    rgba[turned] = [*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.85]
    axis.imshow(rgba, origin=_origin(view), aspect=view.aspect, interpolation="nearest")


def _png(figure: Figure, handles: list[Line2D | Patch], *, cut: bool = True) -> bytes:
    if handles:
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(handles),
                               fontsize=9, frameon=False, handlelength=1.4)  # fmt: skip
        for text in legend.get_texts():
            text.set_color(INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""}, facecolor=PAPER,
                   bbox_inches="tight" if cut else None, pad_inches=0.06)  # fmt: skip
    return buffer.getvalue()
