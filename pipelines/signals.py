"""Being told to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP become one exception, and clean up once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_KEPT_FROM_CHILDREN = {number for number in _STOPPING if number != signal.SIGTERM}
"""SIGTERM is how Dask and multiprocessing end their processes"""


class Stopped(KeyboardInterrupt):
    """The process was told to stop. No `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stop_signals() -> Iterator[None]:
    """Inside, the first signal to stop raises Stopped in the main thread; those that follow are ignored, so that what
    is cleaned up then is cleaned up whole. Signals that were ignored (nohup, background jobs) stay so."""
    if not _in_main_thread():
        yield  # of a program of its own; only the main thread may change signals
        return

    def stop(number: int, _: Any) -> None:
        for each in _STOPPING:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = _handled_by(stop)
    try:
        yield
    finally:
        _restore(before)


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals to stop that come inside are raised at its end, when what was begun is whole.

    Processes started inside, and those that threads started inside will start, never see SIGINT and SIGHUP: a terminal
    sends them to all processes of a command, and workers would answer with tracebacks. The main process ends them.
    """
    if not _in_main_thread():
        yield
        return
    resource_tracker.ensure_running()  # started later, it would lift the mask of the thread that starts it
    came: list[int] = []
    before = _handled_by(lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT_FROM_CHILDREN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # what waited comes now
        _restore(before)
        if came:
            signal.raise_signal(came[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _handled_by(handler: Any) -> dict[int, Any]:
    heard = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
