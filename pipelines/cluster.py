"""Running independent tasks: in this process, or on a Dask cluster, with one interface.

Tasks write their results to disk; only small plain values travel through the scheduler. At most a few tasks a
worker are in flight, so that a million of them never sit in the scheduler at once.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Protocol

from sarsense.errors import SarsenseError

_IN_FLIGHT_PER_WORKER = 4
_RETRIES = 2
_START_SECONDS = 60
_IGNORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""for workers that Dask starts later, in place of dead ones"""


class Runner(Protocol):
    """Calls `task` on each item and hands (item index, result or exception) to `done`, in order of completion."""

    def run(
        self, task: Callable[..., Any], items: Sequence[tuple[Any, ...]], done: Callable[[int, Any], None]
    ) -> None: ...


class InlineRunner:
    """One after the other, in this process."""

    def run(self, task: Callable[..., Any], items: Sequence[tuple[Any, ...]], done: Callable[[int, Any], None]) -> None:
        for index, item in enumerate(items):
            done(index, task(*item))


class DaskRunner:
    """On the workers of a Dask cluster.

    Dask blames every task that a dying worker held, also those that only waited there. So a task that Dask gave up is
    run again at the end, alone: only one that kills its worker then, too, is to blame.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, task: Callable[..., Any], items: Sequence[tuple[Any, ...]], done: Callable[[int, Any], None]) -> None:
        workers = max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)
        everything = range(len(items))
        suspects = self._run(task, items, everything, workers * _IN_FLIGHT_PER_WORKER, done)
        for index, error in sorted(self._run(task, items, sorted(suspects), 1, done).items()):
            done(index, error)

    def _run(
        self,
        task: Callable[..., Any],
        items: Sequence[tuple[Any, ...]],
        indices: Iterable[int],
        in_flight: int,
        done: Callable[[int, Any], None],
    ) -> dict[int, Exception]:
        """Run `task` on the items of `indices`, `in_flight` at once; those that Dask gave up, with its error."""
        from distributed import KilledWorker, as_completed

        waiting = iter(indices)
        pending: dict[str, int] = {}
        suspects: dict[int, Exception] = {}
        completed = as_completed()

        def submit(indices: Iterable[int]) -> None:
            for index in indices:
                future = self._client.submit(task, *items[index], retries=_RETRIES, pure=False)
                pending[future.key] = index
                completed.add(future)

        submit(islice(waiting, in_flight))
        for future in completed:
            index, error = pending.pop(future.key), future.exception()
            if isinstance(error, KilledWorker):
                suspects[index] = error
            else:
                done(index, future.result() if error is None else error)
            submit(islice(waiting, 1))
        return suspects


@contextmanager
def open_runner(workers: int, scheduler: str | None) -> Iterator[Runner]:
    """A runner with `workers` local processes (0: this process), or on the cluster at `scheduler`."""
    if scheduler is None and workers == 0:
        yield InlineRunner()
        return
    import dask.config
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="20s")
        except (OSError, ValueError, ImportError) as error:
            raise SarsenseError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); tcp://host:port expected"
            ) from error
        with client:
            yield DaskRunner(client)
        return
    with (
        _environment_kept(),
        tempfile.TemporaryDirectory(prefix="sarsense-dask-") as scratch,
        dask.config.set({"temporary-directory": scratch}),
    ):
        with _deaf_to_ctrl_c():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,  # GDAL and NumPy keep one core busy; a process each keeps their memory apart
                memory_limit="auto",
                dashboard_address="127.0.0.1:0",  # any free port: the default is taken where another Dask runs
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
                preload=[_IGNORE_SIGINT],
            )
        with cluster, Client(cluster) as client:
            yield DaskRunner(client)
            with suppress(TimeoutError):  # Dask cannot close a worker that it is just starting in a dead one's place
                client.wait_for_workers(workers, timeout=_START_SECONDS)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside never see SIGINT: a terminal sends it to all processes of a command, and the workers
    would answer with tracebacks. The main process hears it and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # of a program of its own, which hears Ctrl-C; only the main thread may change signals
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited from here on, by Python too
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Dask sets variables of its workers (OMP_NUM_THREADS=1 and others) in this process, where they would slow down
    what comes after: at the end all are as they were."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def default_workers() -> int:
    """One process a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
