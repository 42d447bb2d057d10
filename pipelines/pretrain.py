"""Corpus and settings -> processes -> trainer.

One process trains here. `nproc` of them are started here too, each running this same command as a rank (the variables
that torchrun would set are set, so that a rank need not know who started it), on this machine; a signal to the parent
goes to all, and no rank outlives the others. Several machines, or restarts of lost workers, are torchrun's business:
inside torchrun this is a rank.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from dic3l import distributed
from dic3l.checkpoint import checkpoints, open_run
from dic3l.config import Config, to_toml
from dic3l.errors import ConfigError, Dic3lError, JointError
from dic3l.gallery import gallery
from dic3l.loggers import check_loggers
from dic3l.stream import Stream
from dic3l.trainer import STOPPING, Outcome, train
from pipelines.shard_source import ShardSource, note_bad_shard, noted_shards, open_tiles
from sarsense.errors import BadShardError
from sarsense.places import Place

_PARENT = "DIC3L_PARENT"
"""process number of the parent, in the environment of the ranks that it starts"""
_GRACE_SECONDS = 20.0
"""from the first rank's failure to the end of the others by force"""
_POLL_SECONDS = 0.1
_FETCHING = 6
"""times the patience of ranks whose shards lie here already"""
_AS_IT_IS = ShardSource()
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""of malloc.h"""


def pretrain(
    corpus: Place,
    run: Path,
    config: Config,
    resume: str = "auto",
    nproc: int = 1,
    allow_corpus_change: bool = False,
    source: ShardSource = _AS_IT_IS,
    profiled: int = 0,
) -> Outcome | None:
    """Train on the train split of `corpus` into the folder `run`.

    Returns how it ended; None for the ranks but the first, and for the parent of `nproc` > 1 ranks, whose first rank
    tells. Raises ConfigError, CheckpointError, Dic3lError, CorpusError.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc: expected 1 or more, found {nproc}")
    inside = "WORLD_SIZE" in os.environ
    if inside and nproc > 1:
        raise ConfigError("--nproc: torchrun already decides how many processes there are; leave it out")
    check_loggers(config.train.logger_names)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and checkpoints(run):
        resume = "auto"  # torchrun gives the same command again
    while True:
        noted = noted_shards(run)
        try:
            if inside or nproc == 1:
                return _train_here(corpus, run, config, resume, allow_corpus_change, source, profiled)
            _train_ranks(corpus, run, config, resume, nproc, allow_corpus_change, source, profiled)
            return None
        except BadShardError as error:
            if not source.skip_bad:
                raise BadShardError(f"{error}; or leave it out: --skip-bad-shards", error.shard) from error
            _tell(f"warning: {error}; it is left out when the run begins again from its last checkpoint")
            if inside:
                sys.exit(1)  # whoever started the ranks starts all of them again
        except _StoppedError:
            raise
        except (SystemExit, Dic3lError):  # of ranks: the first that ended may be one that lost its peer
            if inside or noted_shards(run) == noted:
                raise
        resume = "auto" if checkpoints(run) else resume


class _StoppedError(SystemExit):
    """Ranks that ended after a signal, by which they were asked to."""


def draw_views(corpus: Place, config: Config, out_png: Path, count: int) -> None:
    """A gallery of the views of the first train tiles. Raises ConfigError, Dic3lError, CorpusError."""
    with open_tiles(corpus, out_png.parent, config, _AS_IT_IS, few=True) as opened:
        gallery(opened.tiles, config, out_png, count)


def _train_here(
    corpus: Place,
    run: Path,
    config: Config,
    resume: str,
    allow_corpus_change: bool,
    source: ShardSource,
    profiled: int,
) -> Outcome | None:
    _die_with_parent()
    _open_many_files()
    with (
        open_tiles(corpus, run, config, source) as opened,
        distributed.process_group(config.train.device, _timeout(corpus)) as device,
    ):
        if device.type == "cpu":
            keep_freed_memory()
        if distributed.rank() == 0:
            for line in opened.notes:
                _tell(line)
        try:
            outcome = train(
                opened.tiles, opened.facts, config, run, resume, device, opened.probe, allow_corpus_change, profiled
            )
        except BadShardError as error:
            if source.skip_bad:
                note_bad_shard(run, error)  # now: peers that lose this process may have it killed
            raise
        except JointError:
            if distributed.rank() == 0:
                raise
            sys.exit(1)  # the first rank says it
        return outcome if distributed.rank() == 0 else None


def _timeout(corpus: Place) -> timedelta:
    """After which a silent peer counts as dead: a machine that has to fetch its first shards is long silent."""
    return distributed.TIMEOUT if isinstance(corpus, Path) else _FETCHING * distributed.TIMEOUT


def _open_many_files() -> None:
    """A corpus of half a million tiles has some thousand shards, each of them an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_freed_memory() -> None:
    """glibc: freed blocks of any size stay with the process. Each step frees and takes the same tensors again, and
    gives the larger ones back otherwise, to get their pages anew: a tenth of a step of ResNet-50 on a CPU."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # before glibc 2.35 a threshold of more than 32 MiB is refused
    if mallopt is not None and mallopt(_M_MMAP_THRESHOLD, 2**31 - 1):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _train_ranks(
    corpus: Place,
    run: Path,
    config: Config,
    resume: str,
    nproc: int,
    allow_corpus_change: bool,
    source: ShardSource,
    profiled: int,
) -> None:
    # what is wrong for every rank is said once, before there are any
    with open_tiles(corpus, run, config, source) as opened:
        Stream(opened.tiles, config, world=nproc)
        open_run(run, config, opened.facts, resume, allow_corpus_change)
    with tempfile.TemporaryDirectory(prefix="dic3l-") as scratch:
        settings = Path(scratch) / "config.toml"
        settings.write_text(to_toml(config), encoding="utf-8")
        command = [sys.executable, "-m", "dic3l", "pretrain", str(corpus), "--out", str(run)]
        command += ["--config", str(settings), "--resume", resume]
        command += ["--cache", str(source.cache), "--cache-gib", str(source.limit / 2**30)]
        command += ["--profile", str(profiled)]
        command += ["--allow-corpus-change"] * allow_corpus_change + ["--skip-bad-shards"] * source.skip_bad
        _run_ranks(command, nproc)


# -------------------------------------------------------------------------------------------------------- ranks


def _run_ranks(command: list[str], nproc: int) -> None:
    """Run `command` as each of `nproc` ranks; SystemExit with the code of the one that failed first."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // nproc)),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        _PARENT: str(os.getpid()),
    }
    # a session of their own: Ctrl-C reaches the parent alone, which passes it on once
    ranks = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True
        )
        for rank in range(nproc)
    ]
    with _pass_signals_on(ranks) as passed:
        try:
            code = _wait(ranks)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    if code and passed:
        raise _StoppedError(code if code > 0 else 128 - code)
    if code < 0:
        name = signal.Signals(-code).name
        raise Dic3lError(
            f"a process was ended by {name}; the same command goes on from the last checkpoint"
            + (" (out of memory? a smaller --batch-size needs less)" if name == "SIGKILL" else "")
        )
    if code:
        sys.exit(code)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Until all ranks have ended, or some time after one failed: the exit code of the first that did, else 0."""
    first, deadline = 0, float("inf")
    while True:
        codes = [process.poll() for process in ranks]
        if not first and any(codes):
            first, deadline = next(code for code in codes if code), time.monotonic() + _GRACE_SECONDS
        if None not in codes or time.monotonic() > deadline:
            return first
        time.sleep(_POLL_SECONDS)


@contextmanager
def _pass_signals_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Gives those that were passed on, as they come."""
    passed: list[int] = []

    def send(number: int, _: object) -> None:
        passed.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, send) for number in STOPPING}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    """Linux: a rank started here ends with its parent, even when that is killed; no orphan writes into the run."""
    parent = os.environ.get(_PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before
        sys.exit(1)
