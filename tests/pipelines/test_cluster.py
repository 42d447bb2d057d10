"""Clusters and processes that die or are stopped: one line that says how to go on, and the same bytes after it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import sarsense
from pipelines import cluster
from pipelines.build import build
from pipelines.cluster import default_workers, open_runner
from pipelines.output import remove_litter
from sarsense.errors import SarsenseError
from tests.pipelines.deadly import who
from tests.pipelines.small import CONFIG, OPTIONS, SARSENSE, content

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def dask(folder: Path, workers: int) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A scheduler and workers as a user starts them: the scheduler file, the scheduler's process."""
    file = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(program: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--scheduler-file", str(file), *options]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")]
    processes += [start("worker", "--nthreads", "1", "--no-dashboard", "--no-nanny") for _ in range(workers)]
    try:
        while not file.exists():
            time.sleep(0.05)
        yield file, processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ---------------------------------------------------------------------------------------------- an existing cluster


def test_a_build_on_a_cluster_that_is_there_gives_the_same_bytes(scenes: Path, reference: Path, tmp_path: Path):
    """Joined by its file, then, for nothing new, by its address."""
    with dask(tmp_path, workers=2) as (file, _):
        build([str(scenes)], tmp_path / "corpus", CONFIG, workers=0, scheduler=str(file))
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tcp://127.0.0.1:")
        with open_runner(0, address) as runner:
            outcomes: dict[int, Any] = {}
            runner.run(abs, [(-3,)], outcomes.__setitem__)
    assert outcomes == {0: 3} and content(tmp_path / "corpus") == content(reference)
    assert not list(tmp_path.rglob(".seen-*"))


def test_workers_that_come_later_are_waited_for_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.runner._PATIENCE_SECONDS", 0.5)
    said: list[str] = []
    late: list[subprocess.Popen[bytes]] = []
    with dask(tmp_path, workers=0) as (file, _), open_runner(0, str(file), tmp_path, said.append) as runner:

        def worker_at_last(line: str) -> None:
            said.append(line)
            late.append(
                subprocess.Popen(
                    [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-nanny"],
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stderr=subprocess.DEVNULL,
                )
            )

        monkeypatch.setattr(runner, "_say", worker_at_last)
        outcomes: dict[int, Any] = {}
        try:
            runner.run(who, [(value,) for value in range(30)], outcomes.__setitem__)
        finally:
            for process in late:
                process.kill()
                process.wait()
    assert [outcomes[index][0] for index in range(30)] == list(range(30))
    assert said.pop(0).startswith("dashboard: ")
    assert len(said) == 1 and re.fullmatch(r"waiting for workers of the Dask scheduler at tcp://127.0.0.1:\d+", said[0])


def test_a_scheduler_that_dies_ends_the_run_with_a_line(tmp_path: Path):
    started = time.monotonic()
    with (
        dask(tmp_path, workers=1) as (file, scheduler),
        pytest.raises(SarsenseError, match=r"the Dask scheduler at tcp://127.0.0.1:\d+ is gone; the same command"),
        open_runner(0, str(file), tmp_path) as runner,
    ):
        runner.run(who, [(value,) for value in range(2000)], lambda index, outcome: scheduler.kill())
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_a_build_whose_scheduler_died_goes_on_with_another(scenes: Path, reference: Path, tmp_path: Path):
    out = tmp_path / "corpus"
    (tmp_path / "dask").mkdir()
    with dask(tmp_path / "dask", workers=1) as (file, scheduler):
        command = [*SARSENSE, "build", str(scenes), "--out", str(out), *OPTIONS, "--scheduler", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(process, out, "measure")
        scheduler.kill()
        _, told = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in told
    assert re.search(r"sarsense: error: the Dask scheduler at tcp://\S+ is gone; the same command", told)
    build([str(scenes)], out, CONFIG, workers=0)
    assert content(out) == content(reference)


def test_what_is_no_scheduler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    (tmp_path / "text").write_text("no JSON")
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "stale").write_text('{"address": "tcp://127.0.0.1:9"}')
    expected = {
        tmp_path / "none": r"none: No such file or directory; tcp://host:port, or the file",
        tmp_path / "text": r"text: no address in it .*dask scheduler --scheduler-file",
        tmp_path / "list": r"list: no address in it",
        tmp_path / "stale": r"stale: names tcp://127\.0\.0\.1:9: no Dask scheduler answers there",
        "tcp://127.0.0.1:9": r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there",
        "127.0.0.1:9": r"no Dask scheduler answers there",
        "carrier://pigeon:9": r"no Dask scheduler answers there",
    }
    for scheduler, told in expected.items():
        with pytest.raises(SarsenseError, match=told), open_runner(0, str(scheduler)):
            pass


def test_another_version_of_sarsense_on_a_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = sarsense.__version__
    with dask(tmp_path, workers=1) as (file, _), open_runner(0, str(file), tmp_path) as runner:
        monkeypatch.setattr(sarsense, "__version__", "99.0")
        with pytest.raises(SarsenseError, match=rf"sarsense {here} is on the Dask worker at tcp:.*, 99\.0 here"):
            runner.run(abs, [(-1,)], lambda index, outcome: None)


def test_a_cluster_without_sarsense_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its processes cannot import the task: here, a module that only this process has."""
    (tmp_path / "only_here.py").write_text("def task(value):\n    return value\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    with (
        dask(tmp_path, workers=1) as (file, _),
        open_runner(0, str(file), tmp_path) as runner,
        pytest.raises(SarsenseError, match=r"could not run a batch \(ModuleNotFoundError.*sarsense \S+ expected on"),
    ):
        runner.run(only_here.task, [(1,)], lambda index, outcome: None)


# ------------------------------------------------------------------------------------------------- this machine


def test_workers_are_as_many_as_cores_and_share_the_memory():
    from distributed.system import MEMORY_LIMIT

    assert 1 <= default_workers() <= len(os.sched_getaffinity(0))
    with open_runner(2) as runner:
        found = runner._client.scheduler_info()["workers"].values()  # type: ignore[attr-defined]
        ran = {}
        runner.run(os.environ.get, [(name,) for name in ("OMP_NUM_THREADS", "GDAL_NUM_THREADS")], ran.__setitem__)
    assert [(one["nthreads"], one["memory_limit"]) for one in found] == [(1, MEMORY_LIMIT // 2)] * 2
    assert ran == {0: "1", 1: "1"}


# ------------------------------------------------------------------------------------------------- stopped, killed


def wait_for(process: subprocess.Popen[str], out: Path, stage: str) -> None:
    """Until a stage has left its first record."""
    while process.poll() is None and not list((out / ".build" / stage).glob("*.json")):
        time.sleep(0.01)
    assert process.poll() is None, "too fast to be stopped"


def litter(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.suffix in (".tmp", ".tif")]


@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        (signal.SIGTERM, True, 143),
        pytest.param(signal.SIGTERM, False, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, True, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_build_with_one_line_and_the_same_command_goes_on(
    number: signal.Signals, group: bool, code: int, scenes: Path, reference: Path, tmp_path: Path
):
    """Sent to the main process alone (kill, systemd), or to all (SLURM, a terminal that closes)."""
    out, scratch = tmp_path / "corpus", tmp_path / "scratch"
    scratch.mkdir()
    command = [*SARSENSE, "build", str(scenes), "--out", str(out), "--workers", "2", *OPTIONS]
    for _ in range(5):
        process = subprocess.Popen(
            command,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        wait_for(process, out, "scan")  # what follows takes a second: libraries are loaded
        workers = psutil.Process(process.pid).children(recursive=True)
        (os.killpg if group else os.kill)(process.pid, number)
        printed, told = process.communicate(timeout=120)
        if process.returncode != 0:
            break
        shutil.rmtree(out)  # on a busy machine it was done before it was asked to stop
    assert process.returncode == code and printed == ""
    lines = [line for line in told.splitlines() if not re.match(r"dashboard: |\w+: [\d,/]+ (files|scenes)", line)]
    assert lines == [f"stopped by {number.name}; the same command goes on from here"]
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=20)[1]
    assert litter(out) == [] and list(scratch.glob("sarsense-dask-*")) == []
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert content(out) == content(reference)


def test_workers_end_when_the_build_is_killed(scenes: Path, tmp_path: Path):
    """kill -9 of the main process alone, which can tell nobody."""
    out = tmp_path / "corpus"
    command = [*SARSENSE, "build", str(scenes), "--out", str(out), "--workers", "2", *OPTIONS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    wait_for(process, out, "scan")
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=30)[1]


def test_litter_of_a_killed_build_is_removed_and_nothing_else(scenes: Path, reference: Path, tmp_path: Path):
    out = tmp_path / "corpus"
    left = [
        ".tiles.parquet.123.tmp",
        "train/.x-train-000000.tar.9.tmp",
        ".build/next/val/.x-val-000000.tar.9.tmp",
        ".build/cut/.a.codes.77.tmp",
        ".build/prepare/.b.123.native.tif",
        ".build/prepare/.b.123.warped.tif",
    ]
    kept = ["notes.tmp", "train/a.tmp", ".build/prepare/b.tif", ".build/measure/c.json", ".nfs0001"]
    for name in [*left, *kept]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    remove_litter(out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == set(kept)

    other = tmp_path / "other"
    (other / ".build" / "measure").mkdir(parents=True)
    (other / ".build" / "measure" / ".x.json.99999.tmp").touch()
    build([str(scenes)], other, CONFIG, workers=0)
    assert litter(other) == [] and content(other) == content(reference)
