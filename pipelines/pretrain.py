"""Corpus and settings -> processes -> trainer.

One process trains here. `nproc` of them are started here too, each running this same command as a rank (the variables
that torchrun would set are set, so that a rank need not know who started it), on this machine; a signal to the parent
goes to all, and no rank outlives the others. Several machines, or restarts of lost workers, are torchrun's business:
inside torchrun this is a rank.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dic3l import distributed
from dic3l.checkpoint import CorpusFacts, open_run
from dic3l.config import Config, to_toml
from dic3l.errors import ConfigError, Dic3lError, JointError
from dic3l.gallery import gallery
from dic3l.knn import SceneProbe, scene_probe
from dic3l.loggers import check_loggers
from dic3l.stream import Stream
from dic3l.trainer import STOPPING, Outcome, train
from sarsense.corpus import Corpus, open_corpus
from sarsense.places import Place
from sarsense.shards import TileReader

_PARENT = "DIC3L_PARENT"
"""process number of the parent, in the environment of the ranks that it starts"""
_GRACE_SECONDS = 20.0
"""from the first rank's failure to the end of the others by force"""
_POLL_SECONDS = 0.1


def pretrain(
    corpus: Place,
    run: Path,
    config: Config,
    resume: str = "auto",
    nproc: int = 1,
    allow_corpus_change: bool = False,
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
    if not isinstance(corpus, Path):
        raise ConfigError(f"{corpus}: training reads tiles from a folder; copy the corpus to this machine first")
    check_loggers(config.train.logger_names)
    opened, tiles = _open(corpus)
    if inside or nproc == 1:
        return _train_here(opened, tiles, run, config, resume, allow_corpus_change)
    # what is wrong for every rank is said once, before there are any
    Stream(tiles, config, world=nproc)
    open_run(run, config, _facts(opened), resume, allow_corpus_change)
    with tempfile.TemporaryDirectory(prefix="dic3l-") as scratch:
        settings = Path(scratch) / "config.toml"
        settings.write_text(to_toml(config), encoding="utf-8")
        command = [sys.executable, "-m", "dic3l", "pretrain", str(corpus), "--out", str(run)]
        command += ["--config", str(settings), "--resume", resume]
        _run_ranks([*command, "--allow-corpus-change"] if allow_corpus_change else command, nproc)
    return None


def draw_views(corpus: Place, config: Config, out_png: Path, count: int) -> None:
    """A gallery of the views of the first train tiles. Raises ConfigError, Dic3lError, CorpusError."""
    gallery(_open(corpus)[1], config, out_png, count)


def _open(corpus: Place) -> tuple[Corpus, TileReader]:
    opened = open_corpus(corpus)
    tiles = TileReader(opened, split="train", eight_bit=True)
    if not len(tiles):
        raise ConfigError(f"{corpus}: no tile in the train split; build it again with another --seed or --val-share")
    return opened, tiles


def _train_here(
    corpus: Corpus, tiles: TileReader, run: Path, config: Config, resume: str, allow_corpus_change: bool
) -> Outcome | None:
    _die_with_parent()
    with distributed.process_group(config.train.device) as device:
        try:
            outcome = train(
                tiles, _facts(corpus), config, run, resume, device, _probe(corpus, config), allow_corpus_change
            )
        except JointError:
            if distributed.rank() == 0:
                raise
            sys.exit(1)  # the first rank says it
        return outcome if distributed.rank() == 0 else None


def _probe(corpus: Corpus, config: Config) -> SceneProbe | None:
    val = TileReader(corpus, split="val", eight_bit=True)
    return scene_probe(val, corpus.tiles("val", columns=["scene"])["scene"].to_pylist(), config)


def _facts(corpus: Corpus) -> CorpusFacts:
    manifest = corpus.manifest
    return CorpusFacts(corpus.name, str(manifest.get("version", "")), corpus.digest, manifest.get("groups", {}))


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
    with _pass_signals_on(ranks):
        try:
            code = _wait(ranks)
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                    process.wait()
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
def _pass_signals_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def send(number: int, _: object) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, send) for number in STOPPING}
    try:
        yield
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
