"""How much of this machine other programs use, so that a site can give way to them."""

import time

import psutil

LOOK_SECONDS = 0.5


def percent_of_others(seconds: float = LOOK_SECONDS) -> float:
    """Share of the processors' time that goes to other programs, 0 to 100.

    Args:
        seconds: how long to look.
    """
    busy, own, whole = _times()
    time.sleep(seconds)
    later_busy, later_own, later_whole = _times()
    others = (later_busy - busy) - (later_own - own)
    return max(0.0, min(100.0, 100.0 * others / max(later_whole - whole, 1e-9)))


def _times() -> tuple[float, float, float]:
    """Seconds of processor time since boot: in use, by this process, and in all."""
    cpu = psutil.cpu_times()
    idle = cpu.idle + getattr(cpu, "iowait", 0.0)
    # Guests are in user's time already.
    whole = sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0)
    mine = psutil.Process().cpu_times()
    return whole - idle, mine.user + mine.system, whole
