"""Randomness is addressed, not consumed: a stream is derived from (run seed, round, site, purpose).

Any site in any round can be replayed alone. These streams serve only what an adversary may know;
whatever a privacy proof needs secret comes from the operating system at the site instead.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed(run: int, *, round_: int, site: str, purpose: str) -> int:
    """The 64-bit seed of one stream; equal addresses give equal seeds, on every machine.

    >>> seed(7, round_=3, site="a", purpose="x") == seed(7, round_=3, site="a", purpose="x")
    True
    >>> seed(7, round_=3, site="a", purpose="x") == seed(7, round_=3, site="b", purpose="x")
    False
    """
    address = "\x1f".join([str(run), str(round_), site, purpose])
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:8], "big") >> 1


def stream(run: int, *, round_: int, site: str, purpose: str) -> np.random.Generator:
    """An independent numpy generator for one (run seed, round, site, purpose).

    ``site`` is ``""`` for what the coordinator draws; ``round_`` counts from 1, 0 is before them.
    """
    return np.random.default_rng(seed(run, round_=round_, site=site, purpose=purpose))


@contextmanager
def torch_stream(run: int, *, round_: int, site: str, purpose: str) -> Iterator[None]:
    """Let torch's global generator be that stream inside the block, and restore it after.

    For what torch draws itself: initial weights and dropout.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed(run, round_=round_, site=site, purpose=purpose))
        yield
