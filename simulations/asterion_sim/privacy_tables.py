"""Tables of ``asterion privacy`` for the terminal."""

from pathlib import Path

from rich import box
from rich.table import Table

from asterion_shared.plan import Plan
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.reports.audit_section import audit_rows
from asterion_sim.gradient_leakage import (
    BATCH,
    DELTA,
    demonstration_images,
    demonstration_plan,
    images_rebuilt_from_a_batch,
    leak,
)
from asterion_sim.leak_pictures import write_leaks


def audit_table(plan: Plan, audit: PrivacyAudit) -> Table:
    """Claim and bound side by side; the verdict, and what differs from the plan, below."""
    table = Table(
        title=f"{plan.name}: {audit.mechanism}, at delta {audit.delta:g}",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        caption="\n".join([audit.verdict, *audit.differs]), caption_justify="left",
    )  # fmt: skip
    for head in ("", "epsilon", "what it rests on"):
        table.add_column(head)
    for row in audit_rows(audit):
        table.add_row(*row)
    return table


def demonstrate_leak(out: Path, epsilon: float) -> Table:
    """Rebuild the demonstration's images, write ``leak-off.png`` and ``leak-on.png``, and compare.

    Args:
        out: folder of the pictures.
        epsilon: of records, for the protected update.

    Raises:
        MissingExtraError: astropy is not installed.
        DiskProblemError: a picture cannot be written.
    """
    images = demonstration_images()
    off = [leak(demonstration_plan(), name, image) for name, image in images.items()]
    on = [leak(demonstration_plan(epsilon), name, image) for name, image in images.items()]
    protected = f"each record protected: epsilon {epsilon:g}, delta {DELTA:g}"
    write_leaks(off, "no protection: the update in clear", out / "leak-off.png")
    write_leaks(on, protected, out / "leak-on.png")
    table = Table(title="rebuilt from one update", title_justify="left", box=box.SIMPLE_HEAD,
                  pad_edge=False)  # fmt: skip
    table.add_column("")
    table.add_column("no protection", justify="right")
    table.add_column(f"epsilon {epsilon:g}", justify="right")
    for bare, noised in zip(off, on, strict=True):
        table.add_row(
            f"{bare.name}: correlation", *(f"{x.correlation:.3f}" for x in (bare, noised))
        )
    counts = (images_rebuilt_from_a_batch(protection) for protection in (None, epsilon))
    table.add_row(f"of {BATCH} bodies in one step, rebuilt", *map(str, counts))
    return table
