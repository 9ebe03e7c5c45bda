"""Uniform numbers whose digits are drawn only as far as a decision needs them.

A 64-bit word says where an ideal uniform number lies to 2^-64. Most decisions (which grid cell,
accept or reject) follow from that; for the few others more digits are drawn and the question is
put again in interval arithmetic, so that the answer is that of the ideal number itself.
"""

from collections.abc import Callable, Sequence
from threading import local
from typing import Any, TypeVar

# mpmath has no types of its own; an interval and its context are Any below.
from mpmath.ctx_iv import MPIntervalContext  # type: ignore[import-untyped]

from asterion_shared.privacy.secret_stream import SecretStream

Answer = TypeVar("Answer")

_WORD_BITS = 64
_GUARD_BITS = 64

_contexts = local()
"""Of each thread one: an interval context takes longer to make than to use."""


def decide(
    words: Sequence[int],
    stream: SecretStream,
    answer: Callable[[Any, list[Any]], Answer | None],
    *,
    bits: int = _WORD_BITS,
) -> Answer:
    """The answer that ideal uniform numbers beginning with ``words`` give.

    Args:
        words: the first ``bits`` binary digits of each number, 0 to 2^bits - 1.
        stream: where the further digits come from.
        answer: called with an mpmath interval context and an interval in [0, 1] for each number;
            None means that the intervals are still too wide.
        bits: how many digits are drawn already.

    Returns:
        The first answer that is not None. Ends with probability 1, and on average after little
        more than one call, if the answer is unclear on a set of measure 0 only.
    """
    context: Any = getattr(_contexts, "context", None) or MPIntervalContext()
    _contexts.context = context
    digits = list(words)
    while True:
        context.prec = bits + _GUARD_BITS
        numbers = [context.mpf([value, value + 1]) / 2**bits for value in digits]
        found = answer(context, numbers)
        if found is not None:
            return found
        more = stream.words(len(digits)).tolist()
        digits = [value << _WORD_BITS | word for value, word in zip(digits, more, strict=True)]
        bits += _WORD_BITS
