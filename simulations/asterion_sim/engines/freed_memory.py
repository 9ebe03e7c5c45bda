"""Freed memory stays with the process, so that a training step does not ask for it again.

glibc gives large blocks back to the kernel as soon as they are freed, and every step's
activations then come as fresh pages: a quarter of a small network's processor time on Linux.
"""

import ctypes
import sys

# The numbers of malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_NEVER_BYTES = 2**31 - 1
_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; its memory is its peak from then on.

    Returns:
        Whether the C library can be told so; only glibc can.
    """
    if sys.platform != "linux":
        return False
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is None:
        return False
    wanted = {_MMAP_THRESHOLD: _NEVER_BYTES, _TRIM_THRESHOLD: _NEVER_BYTES, _TOP_PAD: _PAD_BYTES}
    return all(tell(option, value) for option, value in wanted.items())
