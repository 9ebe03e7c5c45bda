"""A process without a network: nothing that it reads can leave, whatever it runs."""

import ctypes
import os
import sys
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
BY_KERNEL = "closed by the kernel (a network namespace of its own)"
BY_INTERPRETER = "closed by the interpreter alone (the kernel gives no network namespace here)"


def close_network() -> str:
    """Take this process's network away for good; how it was done.

    To be called before any thread is started, since they keep the network that they had.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWUSER | CLONE_NEWNET
    if libc.unshare(flags) == 0:
        return BY_KERNEL
    sys.addaudithook(_refuse_network)
    return BY_INTERPRETER


def _refuse_network(event: str, _: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg",
                 "socket.getaddrinfo", "socket.gethostbyname"):  # fmt: skip
        msg = "the network is closed in this process"
        raise PermissionError(msg)
