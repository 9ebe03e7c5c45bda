"""Tables of ``asterion privacy`` for the terminal."""

from rich import box
from rich.table import Table

from asterion_shared.plan import Plan
from asterion_shared.privacy.audited import PrivacyAudit
from asterion_shared.reports.audit_section import audit_rows


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
