"""Running independent tasks: in this process, or on a Dask cluster, with one interface.

Tasks write their results to disk; only small plain values travel through the scheduler. At most a few tasks a
worker are in flight, so that a million of them never sit in the scheduler at once.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from sarsense.errors import SarsenseError

_IN_FLIGHT_PER_WORKER = 4
_RETRIES = 2


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
    """On the workers of a Dask cluster. A task whose worker dies is retried; one that kills several is given up."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, task: Callable[..., Any], items: Sequence[tuple[Any, ...]], done: Callable[[int, Any], None]) -> None:
        from distributed import as_completed

        waiting = iter(enumerate(items))
        pending: dict[str, int] = {}
        completed = as_completed()

        def submit_next() -> None:
            for index, item in waiting:
                future = self._client.submit(task, *item, retries=_RETRIES, pure=False)
                pending[future.key] = index
                completed.add(future)
                return

        workers = max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)
        for _ in range(workers * _IN_FLIGHT_PER_WORKER):
            submit_next()
        for future in completed:
            error = future.exception()
            done(pending.pop(future.key), error if error is not None else future.result())
            submit_next()


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
        except OSError as error:
            raise SarsenseError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
        with client:
            yield DaskRunner(client)
        return
    with (
        tempfile.TemporaryDirectory(prefix="sarsense-dask-") as scratch,
        dask.config.set({"temporary-directory": scratch}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,  # GDAL and NumPy keep one core busy; a process each keeps their memory apart
            memory_limit="auto",
            dashboard_address=None,  # type: ignore[arg-type]  # None: no dashboard, says its docstring
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield DaskRunner(client)


def default_workers() -> int:
    """One process a core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
