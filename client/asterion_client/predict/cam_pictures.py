"""Pictures of where a classifier looked. They show the site's images and stay at the site."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from asterion_client.predict.gradcam import ALIKE, RANDOM_NETWORKS, Attention
from asterion_client.predict.results import CaseResult
from asterion_shared.cases import Case
from asterion_shared.plan import Plan
from asterion_shared.reports.drawing import INK, PAPER, PREDICTION, SOFT, fullest_slice, view

OVERLAY = 0.7
"""Opacity of the map on the image where it is 1."""


def draw_attention(plan: Plan, case: Case, attention: Attention, result: CaseResult) -> bytes:
    """PNG of the image, the map on it, and the map of a network with random weights on it.

    Args:
        plan: of the release.
        case: its image is the one that the network saw; of a volume the plane with most of the
            map is shown.
        attention: on the grid of that image.
        result: its call and uncertainty are written below.
    """
    shape, words = case.image.shape[1:], ""
    cut: tuple[slice | int, ...] = ()
    if len(shape) == 3:
        cut, words = fullest_slice(attention.heat > 0.5, case.native_spacing)
    seen = view(plan, case, shape, cut)
    height, width = seen.turn(seen.plane).shape[:2]
    ratio = min(max(height * seen.aspect / width, 0.5), 1.6)
    figure = Figure(
        figsize=(8.4, 2.75 * ratio + 1.0),
        dpi=110,
        facecolor=PAPER,
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
    )
    FigureCanvasAgg(figure)
    speaks = "speaks" if attention.heat.any() else "nothing speaks"
    titles = ("image", f"{speaks} for {result.call}", "the same with random weights")
    origin = "lower" if seen.upwards else "upper"
    heats = (None, attention.heat, attention.random_heat)
    for axis, title, heat in zip(figure.subplots(1, 3), titles, heats, strict=True):
        axis.imshow(seen.turn(seen.plane), cmap="gray", vmin=0, vmax=1, origin=origin,
                    aspect=seen.aspect, interpolation="nearest")  # fmt: skip
        if heat is not None:
            laid = seen.turn(heat[cut] if cut else heat)
            # One colour, the more of it the hotter: a map of colours would hide the image's own.
            colour = np.broadcast_to(np.array(to_rgb(PREDICTION), np.float32), (*laid.shape, 3))
            axis.imshow(np.dstack([colour, OVERLAY * laid]), origin=origin, aspect=seen.aspect,
                        interpolation="bilinear")  # fmt: skip
        axis.set_title(title, color=INK, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#4a5560")
    figure.supxlabel(
        f"{result.why}{'; ' + words if words else ''}\n{check_words(attention)}",
        color=PREDICTION if attention.flagged else SOFT,
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""}, facecolor=PAPER)
    return buffer.getvalue()


def check_words(attention: Attention) -> str:
    """The check against random weights in a sentence."""
    if attention.likeness is None:
        return "the map is the same everywhere, so that it shows nothing"
    compared = f"rank correlation with {RANDOM_NETWORKS} random networks {attention.likeness:.2f}"
    if attention.flagged:
        return f"{compared}, {ALIKE} or more: the map does not show what was learnt"
    return f"{compared}, below {ALIKE}"
