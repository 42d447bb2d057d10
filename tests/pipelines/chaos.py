"""Builds that are killed at random moments: whom, when, and what must hold afterwards."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import count
from pathlib import Path

from pipelines.build import build
from tests.pipelines.small import CONFIG, OPTIONS, SARSENSE, content

LATEST = 180.0
"""seconds that a build of a few small scenes may take on a busy machine"""
_KILLS_OF_ONE = 4
"""build, at most"""
SCENE_STAGES = ("measure", "cut")
VICTIMS = ("main", "worker", "group", "scheduler")
LITTER = re.compile(r"^\..*\.(tmp|native\.tif|warped\.tif)$")


def litter(out: Path) -> list[str]:
    """What an unfinished write left, and the lock of a dead build."""
    names = (path.relative_to(out).as_posix() for path in out.rglob("*"))
    return [name for name in names if LITTER.match(name.rpartition("/")[2]) or name == ".build/lock"]


def children(pid: int) -> list[int]:
    """All below a process, by /proc."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        found += below + [deeper for child in below for deeper in children(child)]
    return found


def is_worker(pid: int) -> bool:
    """A process that multiprocessing spawned for Dask, not its resource tracker."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"spawn_main" in command


class Build:
    """`sarsense build` of a folder as a process of its own group, with a temporary folder of its own."""

    def __init__(self, scenes: Path, out: Path, temporary: Path, workers: int = 2) -> None:
        self.out, self.temporary = out, temporary
        self._command = [*SARSENSE, "build", str(scenes), "--out", str(out), "--workers", str(workers), *OPTIONS]
        self._environment = {**os.environ, "TMPDIR": str(temporary)}

    def start(self, *more: str, make_temporary: bool = True) -> subprocess.Popen[str]:
        if make_temporary:
            self.temporary.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*self._command, *more],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )

    def run_raw(self, *more: str, make_temporary: bool = True) -> subprocess.CompletedProcess[str]:
        process = self.start(*more, make_temporary=make_temporary)
        printed, told = process.communicate(timeout=LATEST)
        return subprocess.CompletedProcess(process.args, process.returncode, printed, told)

    def run(self, make_temporary: bool = True) -> dict[str, bytes]:
        """To its end; what it made."""
        done = self.run_raw(make_temporary=make_temporary)
        assert done.returncode == 0, done.stderr
        return content(self.out)

    def records(self, stage: str) -> Iterator[Path]:
        return (self.out / ".build" / stage).glob("[!.]*.json")

    def workers(self, process: subprocess.Popen[str]) -> list[int]:
        return [pid for pid in children(process.pid) if is_worker(pid)]

    def done(self) -> dict[Path, int]:
        """The results of scenes that are there -> the file that holds each: another one if it is written anew."""
        found = {}
        for path in (path for stage in SCENE_STAGES for path in self.records(stage)):
            try:
                found[path] = path.stat().st_ino
            except FileNotFoundError:  # the build just tidied up
                continue
        return found


class Cluster:
    """A Dask scheduler and its workers, processes of their own."""

    def __init__(self, folder: Path, workers: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._log = folder, (folder / "log").open("w")
        file = folder / "scheduler.json"
        options = ["--scheduler-file", str(file)]
        self.scheduler = self._run("scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0", *options)
        deadline = time.monotonic() + LATEST
        while not file.exists():
            assert self.scheduler.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        self.address: str = json.loads(file.read_text())["address"]
        settings = ["--nthreads", "1", "--no-nanny", "--death-timeout", "20", "--no-dashboard"]
        self.workers = [
            self._run("worker", *options, *settings, "--local-directory", str(folder)) for _ in range(workers)
        ]

    def _run(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *options]
        return subprocess.Popen(command, stdout=self._log, stderr=self._log, cwd=self._folder)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self._log.close()


def kill_often(scenes: Path, folder: Path, kills: int, seed: int) -> Counter[str]:
    """`kills` kills of builds of `scenes`: of the main process, of a worker, of all at once, or of the scheduler of a
    cluster that the build joined; how many of each hit.

    Half of the moments lie anywhere between start and end of an undisturbed build, half in its work on scenes, which is
    short beside the loading of libraries. A build that lost its main process is run again, to be killed again or to
    end. Asserts that every build that ends has the bytes of the undisturbed one and leaves nothing behind; that one
    that lost only a worker ends by itself; and that no result of a scene that was there at a kill is made again: lost
    is what the workers were just at, a scene each.
    """
    draw = random.Random(seed)
    temporary = folder / "temporary"
    reference, whole, work = _undisturbed(Build(scenes, folder / "undisturbed", temporary))
    hit: Counter[str] = Counter()
    for number in count():
        job = Build(scenes, folder / f"corpus{number}", temporary)
        for _ in range(_KILLS_OF_ONE):
            victim = draw.choice(VICTIMS)
            moment = draw.uniform(0.0, whole) if draw.random() < 0.5 else draw.uniform(*work)
            hit[victim] += _run_and_kill(job, victim, moment, draw)
            if (job.out / "corpus.json").exists() or hit.total() == kills:
                break
        _end(scenes, job)
        assert content(job.out) == reference and litter(job.out) == [], job.out
        shutil.rmtree(job.out)
        if hit.total() == kills:
            break
    assert list(temporary.glob("sarsense-*")) == []
    return hit


def _undisturbed(job: Build) -> tuple[dict[str, bytes], float, tuple[float, float]]:
    """What it makes, its seconds, and when it begins and ends to work on scenes."""
    started = time.monotonic()
    process = job.start()
    begun = ended = None
    while process.poll() is None:
        now = time.monotonic() - started
        if begun is None and any(job.records("scan")):
            begun = now
        if ended is None and (job.out / "corpus.json").exists():
            ended = now
        time.sleep(0.01)
    _, told = process.communicate()
    assert process.returncode == 0 and begun is not None and ended is not None, told
    return content(job.out), time.monotonic() - started, (begun, ended)


def _run_and_kill(job: Build, victim: str, moment: float, draw: random.Random) -> bool:
    """Start it, kill one of its processes, or all, at `moment` seconds; whether one was hit."""
    kept = job.done()
    with (
        Cluster(Path(tempfile.mkdtemp(dir=job.temporary)), workers=2)
        if victim == "scheduler"
        else nullcontext() as cluster
    ):
        process = job.start() if cluster is None else job.start("--scheduler", cluster.address)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=moment)
            return False
        if cluster is not None:
            cluster.scheduler.kill()
            _, told = process.communicate(timeout=LATEST)
            assert process.returncode in (0, 1) and "Traceback" not in told, told
            # killed before the build had met it, it only is not there
            assert process.returncode == 0 or "the same command" in told or "no Dask scheduler answers" in told, told
            _assert_kept(job, kept)
            return True
    if victim == "worker":
        workers = job.workers(process)
        for pid in workers and [draw.choice(workers)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, told = process.communicate(timeout=LATEST)
        assert process.returncode == 0 and "Traceback" not in told, told
        return bool(workers)
    if victim == "main":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LATEST)
    _assert_kept(job, kept)
    return True


def _assert_kept(job: Build, kept: dict[Path, int]) -> None:
    """None of these results was made again."""
    now = job.done()
    assert all(now.get(path, inode) == inode for path, inode in kept.items())


def _end(scenes: Path, job: Build) -> None:
    """Run it to its end, here; when all scenes are cut, what had been done lies there untouched."""
    kept = job.done()

    class Watch:
        def stage(self, name: str, *_: object) -> None:
            if name == "shard":
                now = job.done()
                assert all(now[path] == inode for path, inode in kept.items())

        def advance(self, *_: object) -> None: ...
        def say(self, line: str) -> None: ...

    build([str(scenes)], job.out, CONFIG, workers=0, progress=Watch())
