"""One build at a time in a folder, and no lock that outlives its owner."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.cluster import open_runner
from pipelines.lock import locked
from sarsense.errors import SarsenseError

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(out: Path) -> subprocess.Popen[str]:
    """A process that holds the lock by now."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_and_told_who_is_at_it_and_the_dead_keep_nothing(tmp_path: Path):
    out = tmp_path / "corpus"
    process = hold(out)
    told = rf"{out}: another build writes it \(process {process.pid} on .*, since \d{{4}}-.*\); wait for it, or choose"
    with pytest.raises(SarsenseError, match=told), locked(out, print):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(out, print):
        assert (out / ".build" / "lock").exists()


def test_a_lock_leaves_nothing_that_was_not_there(tmp_path: Path):
    with locked(tmp_path / "deep" / "corpus", print):
        pass
    assert list((tmp_path / "deep").iterdir()) == []
    with locked(tmp_path / "other", print):
        (tmp_path / "other" / ".build" / "scan").mkdir()
    assert [path.name for path in (tmp_path / "other" / ".build").iterdir()] == ["scan"]


def test_neither_workers_nor_forked_children_keep_a_lock(tmp_path: Path):
    """Each lives on when the lock is given back, and another takes it at once."""
    with open_runner(0, None), locked(tmp_path / "a", print):
        with open_runner(1, None) as runner:
            pids: list[int] = []
            runner.run(os.getpid, [()], lambda _, pid: pids.append(pid))
            links = [f"/proc/{pids[0]}/fd/{name}" for name in os.listdir(f"/proc/{pids[0]}/fd")]  # noqa: PTH208
            assert not [link for link in links if os.path.lexists(link) and os.readlink(link).endswith("/lock")]  # noqa: PTH115
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
    try:
        with locked(tmp_path / "a", print):
            pass
    finally:
        child.kill()
        child.join()


def test_many_at_once_one_at_a_time(tmp_path: Path):
    """Threads that come and go: who holds the lock is alone, also where the file was just removed by the one before."""
    inside, most, got = 0, 0, 0
    counting = threading.Lock()

    def compete() -> None:
        nonlocal inside, most, got
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            try:
                with locked(tmp_path / "corpus", print):
                    with counting:
                        inside, got = inside + 1, got + 1
                        most = max(most, inside)
                    time.sleep(0)
                    with counting:
                        inside -= 1
            except SarsenseError:
                pass

    threads = [threading.Thread(target=compete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and got > 10


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch):
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told: list[str] = []
    with locked(tmp_path / "corpus", told.append):
        pass
    assert told == [
        f"warning: {tmp_path / 'corpus'}: its file system knows no locks: see to it that no other build writes it"
    ]
