"""What an attack showed of a plan's privacy, as it stands in a result beside the claim."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from asterion_shared.privacy.account import Epsilon, epsilon_words
from asterion_shared.settings_files import Rule, Settings, rule

Mechanism = Literal[
    "record at site", "patient at site", "site at site", "site at centre", "site in shares"
]
"""Who is protected, and where the noise is added."""

Share = Annotated[float, Field(gt=0, lt=1)]
Bound = Annotated[float, Field(ge=0)]


class PrivacyAudit(Settings):
    """One attack on the code that protects data, and the claim that it was held against.

    Every epsilon is of one who is asked in every round of the plan, at ``delta``.
    """

    mechanism: Mechanism
    method: Literal["one_run", "repeated_game"]
    """How guesses became a bound: many canaries in few runs, or one in many short games."""

    network: str
    """The network that was attacked, and its input, in words."""

    differs: tuple[str, ...] = ()
    """What the attack put otherwise than the plan, and why; never clip norm, noise, sampling,
    steps or rounds."""

    claimed_epsilon: Epsilon
    lower_bound: Bound
    """Epsilon that the attack refutes."""

    confidence: Share
    """A mechanism that keeps its claim is called broken with probability at most 1 less this."""

    delta: Share
    num_canaries: Annotated[int, Field(ge=1)]
    """Guessed at, in all runs together; of a repeated game, the number of games."""

    broken: bool
    """Whether the attack refutes the claim."""

    blind: bool
    """Whether not even right guesses alone would have refuted it."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        rule(
            lambda a: not (a.broken and a.blind),
            lambda a: "broken and blind are both true; a claim that is refuted can be refuted",
        ),
    )

    @property
    def verdict(self) -> str:
        """What the attack says of the claim, in one sentence without its full stop."""
        claim = f"{epsilon_words(self.claimed_epsilon)} is claimed at delta {self.delta:g}"
        shown = f"an attack shows {shown_words(self)} ({100 * self.confidence:g} % confidence)"
        if self.broken:
            end = "the code does not keep the claim, and the model must not be trusted"
        elif self.blind:
            end = "not even right guesses alone would have contradicted it, so this says little"
        else:
            end = "the attack does not contradict the claim"
        return f"{claim}, {shown}: {end}"


def shown_words(audit: PrivacyAudit) -> str:
    """``epsilon 1.03 or more``, rounded down; ``nothing`` for a bound of 0."""
    floored = math.floor(100 * audit.lower_bound) / 100
    return f"epsilon {floored:g} or more" if floored > 0 else "nothing"


def canary_words(audit: PrivacyAudit) -> str:
    """How the bound was found: ``8,192 canaries, of which each was in by a coin``."""
    if audit.method == "one_run":
        return f"{audit.num_canaries:,} canaries, each in or out by a coin"
    return f"{audit.num_canaries:,} games, half of them with a canary"
