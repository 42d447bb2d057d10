"""Which Dask cluster runs the items: none, one of this machine, or one that is there already (docs/cluster.md)."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.output import SCRATCH
from pipelines.runner import DaskRunner, InlineRunner, Runner, Say
from pipelines.signals import signals_held
from sarsense.errors import SarsenseError

_START_SECONDS = 60
_STARTS = 3
_CONNECT_SECONDS = 20
_WORKER_BYTES = 2**30
"""of memory, that a worker process should have at least"""
_SETTINGS = {
    # Dask's memory is for results that it keeps; ours are on disk, so there is nothing to spill, and a worker that is
    # paused for memory that is not Dask's would wait for ever. One that takes too much dies, and is told so.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.scheduler.allowed-failures": 2,  # deaths that a batch may see, before its items are run alone
    "distributed.scheduler.worker-ttl": None,  # nannies see deaths; a worker that GDAL keeps silent is not dead
    # of a LocalCluster: after 15 s without it, Dask gives up a worker whose nanny is starting it anew, and on a busy
    # machine its libraries take longer; then the build had no worker any more
    "distributed.deploy.lost-worker-timeout": "10 minutes",
    "distributed.comm.timeouts.connect": f"{_CONNECT_SECONDS}s",
    # What Dask does while nothing happens: 3 per cent of two cores as it is, 0.8 so (`python -m benchmarks.scheduler`).
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    # Dask has workers' freed memory go back at 64 KiB (MALLOC_TRIM_THRESHOLD_), for what its results leave behind. Our
    # arrays are freed and taken again for each strip: with all their pages new, a worker ran at 0.88 of its speed.
    "distributed.nanny.pre-spawn-environ": {},
}
_ONE_THREAD = (
    "GDAL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
"""a worker is one core"""


@contextmanager
def open_runner(
    workers: int, scheduler: str | None = None, shared: Path | None = None, say: Say = lambda line: None
) -> Iterator[Runner]:
    """A runner with `workers` local processes (0: this process), or on the cluster of `scheduler`: an address, or the
    path of a scheduler file.

    shared: a folder that all workers have to see, where local ones have their scratch; say: told where the dashboard
    is, and what is waited for. SarsenseError where no scheduler answers.
    """
    if scheduler is None and workers == 0:
        yield InlineRunner()
        return
    with (
        _local(workers, shared) if scheduler is None else _joined(scheduler) as client,
        _marker(None if scheduler is None else shared) as marker,
    ):
        if (link := _dashboard(client)) is not None:
            say(f"dashboard: {link}")
        yield DaskRunner(client, marker, say)


@contextmanager
def _local(workers: int, shared: Path | None) -> Iterator[Any]:
    """A client of a cluster of this machine: a process a worker, of one thread, since GDAL and NumPy keep one core
    busy, and a process each keeps their memory apart."""
    import dask.config
    from distributed import Client
    from distributed.system import MEMORY_LIMIT

    _quiet()
    with (
        _environment_kept(),
        _scratch(shared) as scratch,
        dask.config.set({**_SETTINGS, "temporary-directory": scratch}),
        ExitStack() as stack,
    ):
        for name in _ONE_THREAD:
            os.environ.setdefault(name, "1")
        with signals_held():
            cluster = _started(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=MEMORY_LIMIT // workers,
                dashboard_address="127.0.0.1:0",  # any free port: the default is taken where another Dask runs
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
                preload=["pipelines.tasks"],  # all at once, while they start
            )
            stack.enter_context(cluster)
            client = stack.enter_context(Client(cluster, set_as_default=False))
        try:
            yield client
            with suppress(TimeoutError):  # Dask cannot close a worker that it is just starting in a dead one's place
                client.wait_for_workers(workers, timeout=_START_SECONDS)
        finally:
            with signals_held():
                stack.close()


@contextmanager
def _scratch(shared: Path | None) -> Iterator[str]:
    """A folder for Dask: beside what the build writes, whose litter the next build removes where this one is killed; a
    temporary one, where nothing is built."""
    if shared is None:
        with tempfile.TemporaryDirectory(prefix="sarsense-dask-") as scratch:
            yield scratch
        return
    folder = shared / SCRATCH
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(**settings: Any) -> Any:
    """A LocalCluster. Dask gives up where one worker is killed while it starts: another try is all that it needs."""
    from distributed import LocalCluster

    for left in reversed(range(_STARTS)):
        try:
            return LocalCluster(**settings)
        except RuntimeError as error:
            if not left:
                raise SarsenseError(
                    f"worker processes end while they start ({error}), {_STARTS} times: too little memory? give fewer "
                    "--workers, or 0"
                ) from error
    raise AssertionError


@contextmanager
def _joined(scheduler: str) -> Iterator[Any]:
    """A client of the cluster that is there."""
    import dask.config
    from distributed import Client

    _quiet()
    address = _address(scheduler)
    with dask.config.set({name: value for name, value in _SETTINGS.items() if ".comm." in name}):
        try:
            client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, ImportError) as error:
            where = "" if address == scheduler else f" names {address}:"
            raise SarsenseError(
                f"--scheduler {scheduler}:{where} no Dask scheduler answers there ({error}); tcp://host:port, or the "
                "file of a running `dask scheduler --scheduler-file`, expected"
            ) from error
        with client:
            yield client


def _address(scheduler: str) -> str:
    """Of an address: itself; of a scheduler file (JSON): the address in it."""
    path = Path(scheduler)
    if "://" in scheduler or (re.fullmatch(r"[\w.-]+:\d+", scheduler) and not path.exists()):
        return scheduler
    expected = "tcp://host:port, or the file that `dask scheduler --scheduler-file` writes, expected"
    try:
        address = json.loads(path.read_text(encoding="utf-8"))["address"]
    except OSError as error:
        raise SarsenseError(f"--scheduler {scheduler}: {error.strerror}; {expected}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise SarsenseError(f"--scheduler {scheduler}: no address in it ({error}); {expected}") from error
    return str(address)


@contextmanager
def _marker(shared: Path | None) -> Iterator[Path | None]:
    """A new file in `shared`, which workers have to see."""
    if shared is None:
        yield None
        return
    path = shared.absolute() / f".seen-{uuid.uuid4().hex}.tmp"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _dashboard(client: Any) -> str | None:
    """Its address; None where the scheduler has no bokeh to serve it with, or will not say."""
    try:
        served = client.run_on_scheduler(importlib.util.find_spec, "bokeh") is not None
    except Exception:
        return None
    return client.dashboard_link if served else None


def _quiet() -> None:
    """What goes wrong is told by us, in a line."""
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Variables of the workers (OMP_NUM_THREADS=1 and others) are set in this process, where they would slow down
    what comes after: at the end all are as they were."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def default_workers() -> int:
    """One process a core that this process may use (affinity and quotas told), each with a gigabyte at least."""
    from dask.system import cpu_count
    from distributed.system import MEMORY_LIMIT

    return max(1, min(cpu_count(), MEMORY_LIMIT // _WORKER_BYTES))
