"""What the report says of the attack beside the claimed epsilon."""

from typing import Any

from asterion_shared.privacy.account import epsilon_words
from asterion_shared.privacy.audited import PrivacyAudit, canary_words, shown_words
from asterion_shared.result import Result

COMMAND = "asterion privacy audit PLAN.toml"

_NOT_ATTACKED = {
    "live": "No attack was part of this run: canaries among real data would need each site's "
    f"consent. {COMMAND} attacks the same plan in simulation.",
    "simulation": "The privacy of this run was not attacked; asterion simulate --audit, or "
    f"{COMMAND}, does it.",
}
_LIMITS = (
    "A lower bound below the claim proves nothing: a better attack may show more. One above it "
    "says that the code and its proof do not belong together."
)


def audit_section(result: Result) -> dict[str, Any]:
    """The verdict, claim and bound as rows of one table, and notes; for a run with a claim."""
    audit = result.privacy_audit
    if audit is None:
        return {
            "audit_rows": [],
            "audit_notes": [_NOT_ATTACKED["live" if result.is_live else "simulation"]],
        }
    return {
        "audit_verdict": audit.verdict[:1].upper() + audit.verdict[1:],
        "audit_rows": audit_rows(audit),
        "audit_caption": f"Both for one who is asked in every round, at delta {audit.delta:g}",
        "audit_notes": [*(f"Otherwise than in the plan: {words}." for words in audit.differs),
                        _LIMITS],
    }  # fmt: skip


def audit_rows(audit: PrivacyAudit) -> list[tuple[str, str, str]]:
    """Claim and bound: what, epsilon, what it rests on."""
    sure = f"{100 * audit.confidence:g} % confidence, {canary_words(audit)}, {audit.network}"
    return [
        ("claimed", epsilon_words(audit.claimed_epsilon), "a proof: at most this is lost"),
        ("shown by the attack", shown_words(audit), sure),
    ]
