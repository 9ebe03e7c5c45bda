"""Pictures of what an update gives away: the image at the site beside the one rebuilt from it."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from asterion_shared.files import write_atomically
from asterion_shared.reports.drawing import INK, PAPER, SOFT, stretch
from asterion_sim.gradient_leakage import Leak

COLUMNS = ("the image at the site", "rebuilt from its update")


def write_leaks(leaks: Sequence[Leak], title: str, out: Path) -> None:
    """Write a PNG with a row for each image: what the site has, and what was rebuilt.

    Args:
        leaks: at least one, of 2D images; the first channel is shown, each picture stretched
            between its own 1st and 99.7th percentile.
        title: a line above all.
        out: the file; replaced atomically.

    Raises:
        DiskProblemError: the file cannot be written.
    """
    figure = Figure(
        figsize=(5.4, 0.7 + 2.75 * len(leaks)),
        dpi=110,
        facecolor=PAPER,
        layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06),
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK, fontsize=11)
    rows = figure.subplots(len(leaks), len(COLUMNS), squeeze=False)
    for axis, head in zip(rows[0], COLUMNS, strict=True):
        axis.set_title(head, color=SOFT, fontsize=9)
    for leak, axes in zip(leaks, rows, strict=True):
        below = (leak.name, f"correlation {leak.correlation:.3f}")
        for axis, image, words in zip(axes, (leak.truth, leak.rebuilt), below, strict=True):
            axis.imshow(stretch(image[0], asinh=False), cmap="gray", vmin=0, vmax=1,
                        interpolation="nearest")  # fmt: skip
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(words, color=INK, fontsize=9)
            axis.spines[:].set_color("#4a5560")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": ""}, facecolor=PAPER)
    write_atomically(out, buffer.getvalue())
