"""Builds that are killed at random moments: whom, when, and what must hold afterwards."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LATEST = 180.0
"""seconds that a build of a few small scenes may take on a busy machine"""
OPTIONS = "--tile-size 64 --shard-mib 1 --val-share 0.3 --cell-km 3".split()
"""as `tests.pipelines.test_build.CONFIG`"""
SARSENSE = [sys.executable, "-c", "from cli import run_sarsense; run_sarsense()"]
SCENE_STAGES = ("measure", "cut")
LITTER = re.compile(r"^\..*\.(tmp|native\.tif|warped\.tif)$")


def content(corpus: Path) -> dict[str, bytes]:
    """Every file of a finished corpus, but for the records of the build itself and the datasheet."""
    files = [path for path in corpus.rglob("*") if path.is_file() and not {".build", "datasheet"} & set(path.parts)]
    return {path.relative_to(corpus).as_posix(): path.read_bytes() for path in files if path.name != "README.md"}


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


def kill_often(scenes: Path, reference: dict[str, bytes], folder: Path, kills: int, seed: int) -> None:
    """`kills` kills, each at a moment between start and end of an undisturbed build, of the main process, of a worker,
    or of all at once. A build that lost its main process is run again, to be killed again or to end.

    Asserts that every build that ends has the bytes of `reference` and leaves nothing behind; that one that lost only
    a worker ends by itself; and that no result of a scene which was there at a kill is ever made again.
    """
    draw = random.Random(seed)
    temporary = folder / "temporary"
    started = time.monotonic()
    assert Build(scenes, folder / "undisturbed", temporary).run() == reference
    undisturbed = time.monotonic() - started
    killed, number = 0, 0
    while killed < kills:
        job = Build(scenes, folder / f"corpus{number}", temporary)
        number += 1
        for _ in range(3):  # kills in one build, at most, and then it may end
            killed += _run_and_kill(job, draw, draw.uniform(0.0, undisturbed))
            if (job.out / "corpus.json").exists() or killed >= kills:
                break
        kept = job.done()
        ended = _end(job, kept)
        assert ended == reference and litter(job.out) == [], job.out
    leftovers = [path.name for path in temporary.iterdir()]
    assert not [name for name in leftovers if name.startswith("sarsense-")], leftovers


def _run_and_kill(job: Build, draw: random.Random, moment: float) -> int:
    """Start it, kill one of its processes at `moment` seconds; 1 where it was still at it."""
    kept = job.done()
    victim = draw.choice(["main", "worker", "group"])
    process = job.start()
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        pass
    else:
        process.communicate()
        return 0
    if victim == "worker":
        workers = job.workers(process)
        if workers:
            _kill(draw.choice(workers))
        _, told = process.communicate(timeout=LATEST)
        assert process.returncode == 0 and "Traceback" not in told, told
        _assert_kept(job, kept)
        return int(bool(workers))
    if victim == "main":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LATEST)
    _assert_kept(job, kept)
    return 1


def _end(job: Build, kept: dict[Path, int]) -> dict[str, bytes]:
    """Run it to its end, watching that nothing that was done is done again while it still lies there."""
    process = job.start()
    while process.poll() is None:
        _assert_kept(job, kept)
        time.sleep(0.05)
    _, told = process.communicate(timeout=LATEST)
    assert process.returncode == 0 and "Traceback" not in told, told
    return content(job.out)


def _assert_kept(job: Build, kept: dict[Path, int]) -> None:
    now = job.done()
    assert all(now.get(path, inode) == inode for path, inode in kept.items())


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
