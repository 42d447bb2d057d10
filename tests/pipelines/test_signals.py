"""A signal to stop is heard once, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipelines.signals import Stopped, signals_held, stop_signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_once_and_all_is_as_before(name: str, monkeypatch: pytest.MonkeyPatch):
    number = getattr(signal, name)
    before = signal.signal(number, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    try:
        with pytest.raises(Stopped, match=name) as caught, stop_signals():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), number)  # an impatient second one, while all is cleaned up
        assert caught.value.number == number
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_finds_a_finaliser_is_not_lost():
    """Python prints and forgets what is raised in __del__."""

    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(Stopped, match="SIGTERM"), stop_signals():
        Finalised()
        time.sleep(5)


def test_signals_that_are_held_come_when_what_was_begun_is_whole():
    begun = []
    with pytest.raises(Stopped, match="SIGTERM"), stop_signals(), signals_held():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        begun.append("whole")
    assert begun == ["whole"]


def test_processes_that_are_started_while_signals_are_held_are_deaf_to_a_terminal_and_not_to_sigterm():
    for number, code in ((signal.SIGINT, 7), (signal.SIGHUP, 7), (signal.SIGTERM, -signal.SIGTERM)):
        with signals_held():
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1); raise SystemExit(7)"])
        time.sleep(0.2)
        child.send_signal(number)
        assert child.wait(20) == code
