"""Faults of the machine: full and read-only disks, kills, two builds at once, wrong clocks. One line says what is
wrong, and the same command ends with the bytes of an undisturbed build."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipelines.build import build
from pipelines.lock import locked
from pipelines.merge import merge
from pipelines.progress import Silent
from sarsense.corpus import open_corpus
from sarsense.errors import SarsenseError
from sarsense.simulate import simulate
from sarsense.verify import verify_corpus
from tests.pipelines.chaos import VICTIMS, Build, Cluster, kill_often, litter
from tests.pipelines.small import CONFIG, content

LATEST = 120.0
"""seconds that anything may take on a busy machine"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six simulated scenes of two polarisations: about two workers have some each."""
    root = tmp_path_factory.mktemp("scenes")
    simulate(root, scenes=6, size=256, looks=4.0, seed=1)
    return root / "scenes"


@pytest.fixture(scope="module")
def reference(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "corpus"
    build([str(scenes)], out, CONFIG, workers=0)
    return content(out)


@contextmanager
def mounted(folder: Path, options: str, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system of our own at `folder`; the test is skipped where none can be mounted."""
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system of its own to fill or to lock")
    if subprocess.run(["mount", "-t", kind, "-o", options, kind, str(folder)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here, as in a container without CAP_SYS_ADMIN")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free on its file system; the file that takes them."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


class At:
    """Progress that does something once, when a stage begins."""

    def __init__(self, stage: str, act: Callable[[], object]) -> None:
        self._stage, self._act = stage, act

    def stage(self, name: str, *_: object) -> None:
        if name == self._stage:
            self._act()

    def advance(self, *_: object) -> None: ...
    def say(self, line: str) -> None: ...


def wait_for(holds: Callable[[], object], process: subprocess.Popen[str] | None = None) -> bool:
    """Until it holds (True) or the process is at its end (False)."""
    deadline = time.monotonic() + LATEST
    while not holds():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


# --------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize("stage", ["scan", "measure", "cut", "shard", "seal"])
def test_a_disk_that_fills_up_in_a_stage_is_one_line_and_with_room_the_build_goes_on(
    scenes: Path, reference: dict[str, bytes], tmp_path: Path, stage: str
):
    with mounted(tmp_path / "disk", "size=32m") as disk:
        out = disk / "corpus"
        with pytest.raises((SarsenseError, OSError)) as caught:
            build([str(scenes)], out, CONFIG, workers=0, progress=At(stage, lambda: fill(disk)))
        told = str(caught.value)
        assert "No space left on device" in told and str(out) in told and "\n" not in told
        if stage != "seal":  # the command line adds the remedy to a plain OSError
            assert "free the disk" in told and "run the same command again" in told
        assert not (out / "corpus.json").exists() and litter(out) == []
        (disk / "ballast").unlink()
        build([str(scenes)], out, CONFIG, workers=0)
        assert content(out) == reference and litter(out) == []


@pytest.mark.slow
def test_a_full_disk_with_workers_ends_with_one_line_and_code_1(
    scenes: Path, reference: dict[str, bytes], tmp_path: Path
):
    """The disk holds what is scanned and measured, but not all that is cut; larger, it holds the corpus."""
    with mounted(tmp_path / "disk", "size=32m") as disk:
        job = Build(scenes, disk / "corpus", tmp_path / "temporary")
        process = job.start()
        assert wait_for(lambda: list(job.records("scan")), process)
        fill(disk)
        printed, told = process.communicate(timeout=LATEST)
        lines = [line for line in told.splitlines() if "error" in line]
        assert process.returncode == 1 and printed == "" and "Traceback" not in told, told
        assert len(lines) == 1 and "No space left on device" in lines[0] and str(disk) in lines[0], told
        assert "run the same command again" in lines[0]
        remount(disk, "size=64m")
        build([str(scenes)], job.out, CONFIG, workers=0)
        assert content(job.out) == reference and litter(job.out) == []


def test_a_disk_that_cannot_hold_it_is_told_after_the_scan_and_by_a_dry_run(scenes: Path, tmp_path: Path):
    with mounted(tmp_path / "disk", "size=512k") as disk:
        needed = rf"{disk / 'corpus'}: up to [\d.]+ MB needed, [\d.]+ kB free on {disk}: not enough for half of it; "
        with pytest.raises(SarsenseError, match=needed + "free the disk, choose another --out"):
            build([str(scenes)], disk / "corpus", CONFIG, workers=0)
        assert not (disk / "corpus" / ".build" / "measure").exists()
        shutil.rmtree(disk / "corpus")
        done = Build(scenes, disk / "corpus", tmp_path / "temporary", workers=0).run_raw("--dry-run")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "plan of" in done.stdout and "tiles" in done.stdout and "time: about" in done.stdout
        assert "not enough for half of it" in done.stderr.splitlines()[-1]
        assert list(disk.iterdir()) == []


# ------------------------------------------------------------------------------------------- read-only, vanished


def test_a_read_only_disk_is_one_line(scenes: Path, tmp_path: Path):
    with mounted(tmp_path / "disk", "size=8m") as disk:
        (disk / "begun" / ".build").mkdir(parents=True)
        remount(disk, "ro")
        for name in ("new", "begun"):
            with pytest.raises(SarsenseError, match=r"cannot be written \(Read-only file system\); choose another"):
                build([str(scenes)], disk / name, CONFIG, workers=0)


def test_a_finished_corpus_on_a_read_only_disk_is_still_called_built(
    scenes: Path, reference: dict[str, bytes], tmp_path: Path
):
    with mounted(tmp_path / "disk", "size=32m") as disk:
        build([str(scenes)], disk / "corpus", CONFIG, workers=0)
        remount(disk, "ro")
        assert build([str(scenes)], disk / "corpus", CONFIG, workers=0).already_built
        assert content(disk / "corpus") == reference


def test_sources_on_a_read_only_disk_are_no_matter(scenes: Path, reference: dict[str, bytes], tmp_path: Path):
    with mounted(tmp_path / "disk", "size=32m") as disk:
        shutil.copytree(scenes, disk / "scenes")
        remount(disk, "ro")
        build([str(disk / "scenes")], tmp_path / "corpus", CONFIG, workers=0)
        assert content(tmp_path / "corpus") == reference


@pytest.mark.parametrize("stage", ["scan", "measure", "cut"])
def test_a_source_that_vanishes_midway_is_left_out_and_taken_when_it_is_back(
    scenes: Path, reference: dict[str, bytes], tmp_path: Path, stage: str
):
    """The first build ends without it; it is back before the next one, which makes all of it anew as asked."""
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    lost, away = copy / "sim-002.tif", tmp_path / "away.tif"
    out = tmp_path / "corpus"
    summary = build([str(copy)], out, CONFIG, workers=0, progress=At(stage, lambda: lost.rename(away)))
    assert (summary.scenes_used, summary.scenes_refused, summary.scenes_for_later) == (5, 1, 1)
    row = next(row for row in open_corpus(out).scenes.to_pylist() if row["path"] == "sim-002.tif")
    assert row["status"] == "refused" and row["reason"]
    assert verify_corpus(open_corpus(out)) == []
    away.rename(lost)
    assert build([str(copy)], out, CONFIG, workers=0).scenes_used == 6  # it grows
    build([str(copy)], out, CONFIG, workers=0, anew="stats")
    assert content(out) == reference


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_source_that_may_not_be_read_is_recorded(scenes: Path, tmp_path: Path):
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    (copy / "sim-002.tif").chmod(0)
    summary = build([str(copy)], tmp_path / "corpus", CONFIG, workers=0)
    assert (summary.scenes_used, summary.scenes_refused) == (5, 1)


# --------------------------------------------------------------------------------------------- temporary folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only", "missing"])
def test_a_bad_temporary_folder_is_no_matter(scenes: Path, reference: dict[str, bytes], tmp_path: Path, fault: str):
    """With workers: Dask wants a folder for its scratch."""
    with mounted(tmp_path / "temporary", "size=64k") as temporary:
        if fault == "full":
            fill(temporary)
        elif fault == "read-only":
            remount(temporary, "ro")
        job = Build(scenes, tmp_path / "corpus", temporary / "none" if fault == "missing" else temporary)
        assert job.run(make_temporary=False) == reference


# --------------------------------------------------------------------------------------------- two builds, kills


def test_a_second_build_is_refused_and_the_dead_first_one_stops_nobody(
    scenes: Path, reference: dict[str, bytes], tmp_path: Path
):
    """The first is stopped while it measures; killed, its main process alone, it leaves no worker and no lock."""
    job = Build(scenes, tmp_path / "corpus", tmp_path / "temporary")
    process = job.start()
    assert wait_for(lambda: list(job.records("measure")), process)
    workers = job.workers(process)
    process.send_signal(signal.SIGSTOP)
    try:
        told = rf"another build writes it \(process {process.pid} on .*\); wait for it, or choose another --out"
        started = time.monotonic()
        with pytest.raises(SarsenseError, match=told):
            build([str(scenes)], job.out, CONFIG, workers=0)
        assert time.monotonic() - started < 10.0
    finally:
        process.kill()
    process.communicate(timeout=LATEST)
    build([str(scenes)], job.out, CONFIG, workers=0)  # at once, whether or not the workers know already
    assert content(job.out) == reference and litter(job.out) == []
    assert len(workers) == 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_merge_waits_for_nobody_either(scenes: Path, tmp_path: Path):
    with (
        locked(tmp_path / "corpus", print),
        pytest.raises(SarsenseError, match="another build writes it"),
    ):
        merge(tmp_path / "a", tmp_path / "b", tmp_path / "corpus", None, "1", 0, Silent())


@pytest.mark.slow
def test_kills_at_random_moments_cost_a_scene_a_worker_at_most(scenes: Path, tmp_path: Path):
    assert kill_often(scenes, tmp_path, kills=2, seed=0).total() == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_forty_kills_at_random_moments(tmp_path: Path):
    simulate(tmp_path / "in", scenes=8, size=640, looks=4.0, seed=2)
    hit = kill_often(tmp_path / "in" / "scenes", tmp_path, kills=40, seed=1)
    print(hit)
    assert hit.total() == 40 and min(hit[victim] for victim in VICTIMS) >= 5


@pytest.mark.slow
def test_a_worker_of_a_cluster_is_killed_then_its_scheduler(reference: dict[str, bytes], scenes: Path, tmp_path: Path):
    """The build goes on with the other worker; without a scheduler it ends in a line, within a minute, and goes on
    with a new one."""
    job = Build(scenes, tmp_path / "corpus", tmp_path / "temporary")
    with Cluster(tmp_path / "first", workers=2) as cluster:
        process = job.start("--scheduler", cluster.address)
        assert wait_for(lambda: any(job.records("scan")), process)
        cluster.workers[0].kill()
        assert wait_for(lambda: any(job.records("measure")), process)
        cluster.scheduler.kill()
        kept = job.done()
        _, told = process.communicate(timeout=60)
        lines = [line for line in told.splitlines() if "error" in line]
        assert process.returncode == 1 and "Traceback" not in told, told
        assert len(lines) == 1 and "the same command" in lines[0], told
    with Cluster(tmp_path / "second", workers=1) as cluster:
        process = job.start("--scheduler", cluster.address)
        assert wait_for(lambda: list((job.out / ".build" / "shard").glob("*")), process)
        now = job.done()
        assert all(now.get(path, inode) == inode for path, inode in kept.items())
        _, told = process.communicate(timeout=LATEST)
        assert process.returncode == 0, told
    assert content(job.out) == reference and litter(job.out) == []


# ------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("shift", [-3600.0, 86400.0 * 365])
def test_a_clock_that_was_set_anew_between_two_runs_changes_nothing(
    scenes: Path, reference: dict[str, bytes], tmp_path: Path, monkeypatch, shift: float
):
    """The first run ends while it cuts; everything under .build comes from the future or the past for the second."""
    out = tmp_path / "corpus"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build([str(scenes)], out, CONFIG, workers=0, progress=At("shard", stop))
    for path in (out / ".build").rglob("*"):
        found = path.stat()
        os.utime(path, (found.st_atime + shift, found.st_mtime + shift))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - shift)
    build([str(scenes)], out, CONFIG, workers=0)
    assert content(out) == reference


def test_times_of_sources_that_change_back_and_forth_cost_time_but_no_byte(
    scenes: Path, reference: dict[str, bytes], tmp_path: Path
):
    """Another time is another file, which is measured anew; its own time back, what was measured of it holds."""
    copy, out = tmp_path / "scenes", tmp_path / "corpus"
    shutil.copytree(scenes, copy)

    def stop() -> None:
        raise KeyboardInterrupt

    own = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    for shift in (0, 3600 * 10**9, -3600 * 10**9, 0):
        for path, stamp in own.items():
            os.utime(path, ns=(stamp + shift, stamp + shift))
        with pytest.raises(KeyboardInterrupt):
            build([str(copy)], out, CONFIG, workers=0, progress=At("shard", stop))
    assert len(list((out / ".build" / "measure").glob("*"))) == 3 * len(own)
    build([str(copy)], out, CONFIG, workers=0)
    assert content(out) == reference
