"""Tasks that fail in all ways. A module of its own, so that workers can import it."""

import os
import signal
import threading
import time


class StubbornError(Exception):
    """It holds what cannot be pickled."""

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.lock = threading.Lock()


def deadly(value: int) -> int:
    """The square; 3 and 4 kill their process."""
    if value in (3, 4):
        os._exit(1)
    return value**2


def killed(value: int) -> int:
    """The square; 150 dies as of the kernel's out-of-memory killer."""
    if value == 150:
        os.kill(os.getpid(), signal.SIGKILL)
    return value**2


def failing(value: int) -> int:
    """The square; 5 and 6 raise."""
    if value == 5:
        raise ValueError("five")
    if value == 6:
        raise StubbornError("six")
    return value**2


def who(value: int) -> tuple[int, int]:
    """The value, and the process that ran it, after 20 ms."""
    time.sleep(0.02)
    return value, os.getpid()


def hungry(value: int) -> int:
    """The square; 2 takes a gigabyte, and keeps it until it is found out."""
    if value == 2:
        taken = bytearray(os.urandom(2**20)) * 1024
        time.sleep(30)
        return len(taken)
    return value**2
