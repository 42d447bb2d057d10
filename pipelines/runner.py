"""Running independent items: in this process, or on the workers of a Dask cluster, with one interface.

Items write their results to disk; only small plain values travel. A task of Dask costs two milliseconds and more, an
item of a folder of chips hardly as much: so items travel in batches of about a second of work. At most a few batches a
worker are in flight, so that a million items never sit in the scheduler at once.

Dask blames every task that a dying worker held, also those that only waited there. So the items of a batch that Dask
gave up are run again at the end, one by one and alone: only one that kills its worker then, too, is to blame.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import sarsense
from sarsense.errors import SarsenseError

Task = Callable[..., Any]
Items = Sequence[tuple[Any, ...]]
Done = Callable[[int, Any], None]
Say = Callable[[str], None]

_BATCH_SECONDS = 1.0
"""of work in a batch: a few hundred times what a task of Dask costs, and not long to wait for at the end"""
_BATCH_ITEMS = 256
_BATCHES_PER_WORKER = 8
"""at least, where there are items enough: none idles long while another ends its last one"""
_IN_FLIGHT_PER_WORKER = 2
"""batches: one that runs, one that waits"""
_LOOK_SECONDS = 1.0
"""between two looks at what workers there are"""
_PATIENCE_SECONDS = 60.0
"""without any worker, before this is told"""
_SEEN_SECONDS = 3.0
"""that a new file may take to be seen on another machine (NFS)"""


class Runner(Protocol):
    """Calls `task` on each item and hands (item index, result or exception) to `done`, once an item, in any order.

    costs: of each item, in pixels; None: they are all alike.
    """

    def run(self, task: Task, items: Items, done: Done, costs: Sequence[float] | None = None) -> None: ...


WORKER_LOST = "its worker process died"
"""in the reason of a scene that a machine of more memory, or fewer workers, may well read"""


class WorkerLostError(Exception):
    """Each worker process that ran this item, alone, died of it."""


class InlineRunner:
    """One after the other, in this process."""

    def run(self, task: Task, items: Items, done: Done, costs: Sequence[float] | None = None) -> None:
        for index, item in enumerate(items):
            done(index, task(*item))


class Batches:
    """Cuts items, in their order, into batches of about `_BATCH_SECONDS` of work, as their pace is found out."""

    def __init__(self, indices: Sequence[int], costs: Sequence[float], most: int = _BATCH_ITEMS) -> None:
        """indices: of the items to run; costs: of all items; most: items in a batch."""
        self._indices, self._most = indices, most
        # an empty raster takes its time, too
        self._reached = [0.0, *accumulate(max(costs[index], 1.0) for index in indices)]
        self._next = 0
        self._cost = self._seconds = 0.0

    def take(self, workers: int) -> Sequence[int]:
        """The items of the next batch, for one of `workers`; empty: there are none left."""
        start = self._next
        if start == len(self._indices):
            return ()
        pace = self._cost / max(self._seconds, 1e-6)
        fair = self._reached[-1] / (_BATCHES_PER_WORKER * workers)
        upto = self._reached[start] + min(_BATCH_SECONDS * pace, fair)
        self._next += 1
        while (
            self._next < len(self._indices)
            and self._next - start < self._most
            and self._reached[self._next + 1] <= upto
        ):
            self._next += 1
        return self._indices[start : self._next]

    def learn(self, batch: Sequence[int], costs: Sequence[float], seconds: float) -> None:
        """A batch took so long."""
        self._cost += sum(max(costs[index], 1.0) for index in batch)
        self._seconds += seconds


class DaskRunner:
    """On the workers of a Dask cluster, however many there are at the time."""

    def __init__(self, client: Any, marker: Path | None = None, say: Say = lambda line: None) -> None:
        """marker: a file that workers have to see, as they have to see the sources and the output."""
        self._client, self._marker, self._say = client, marker, say
        self._address = client.scheduler.address
        self._workers = 0
        self._looked = float("-inf")
        self._alone_since: float | None = time.monotonic()

    def run(self, task: Task, items: Items, done: Done, costs: Sequence[float] | None = None) -> None:
        known = [1.0] * len(items) if costs is None else costs
        suspects = self._run(task, items, known, Batches(range(len(items)), known), None, done)
        for index in self._run(task, items, known, Batches(suspects, known, most=1), 1, done):
            done(index, WorkerLostError(f"{WORKER_LOST}, also when nothing else ran there: out of memory?"))

    def _run(
        self, task: Task, items: Items, costs: Sequence[float], batches: Batches, most: int | None, done: Done
    ) -> list[int]:
        """Run all batches, `most` at once (None: a few a worker); items of those that Dask gave up, sorted."""
        from distributed import KilledWorker

        pending: dict[str, tuple[Any, Sequence[int]]] = {}
        finished: SimpleQueue[Any] = SimpleQueue()
        lost: list[int] = []
        while True:
            workers = max(self._look(), 1)  # with none, a few batches wait: a cluster that adapts asks for workers then
            while len(pending) < (most or workers * _IN_FLIGHT_PER_WORKER) and (batch := batches.take(workers)):
                future = self._client.submit(
                    run_batch, task, [items[i] for i in batch], sarsense.__version__, self._marker, pure=False
                )
                pending[future.key] = future, batch
                future.add_done_callback(finished.put)
            if not pending:
                return sorted(lost)
            try:
                future = finished.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
            _, batch = pending.pop(future.key)
            try:
                outcomes, seconds = future.result()
            except KilledWorker:
                lost.extend(batch)
                continue
            except SarsenseError:
                raise
            except Exception as error:  # items' own errors are outcomes: this one is of the cluster
                self._refuse_dead()
                if isinstance(error.__cause__ or error, OSError):  # the connection broke: Dask will know soon
                    raise self._gone() from None
                raise SarsenseError(
                    f"the Dask cluster at {self._address} could not run a batch ({_first_line(error)}); sarsense "
                    f"{sarsense.__version__} expected on its scheduler and workers, under the same Python"
                ) from error
            batches.learn(batch, costs, seconds)
            for index, outcome in zip(batch, outcomes, strict=True):
                done(index, outcome)

    def _look(self) -> int:
        """Threads of the workers that there are, looked up once a second; SarsenseError where the scheduler is gone."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return self._workers
        self._refuse_dead()
        try:
            self._workers = sum(self._client.nthreads().values())
        except OSError:
            raise self._gone() from None
        self._looked = time.monotonic()
        if self._workers:
            self._alone_since = now
        elif self._alone_since is not None and now - self._alone_since > _PATIENCE_SECONDS:
            if self._client.cluster is not None:  # our own: nobody will send more
                raise SarsenseError(
                    f"no worker process of this machine has lived for {_PATIENCE_SECONDS:.0f} s: out of memory? "
                    "the same command with fewer --workers goes on from here"
                )
            self._say(f"waiting for workers of the Dask scheduler at {self._address}")
            self._alone_since = None  # told once, until there are some again
        return self._workers

    def _refuse_dead(self) -> None:
        if self._client.status != "running":
            raise self._gone()

    def _gone(self) -> SarsenseError:
        return SarsenseError(
            f"the Dask scheduler at {self._address} is gone; the same command, with a scheduler that lives, goes on "
            "from here"
        )


def run_batch(task: Task, items: Items, version: str, marker: Path | None) -> tuple[list[Any], float]:
    """On a worker: the result or the exception of `task` on each item, and seconds that all took together.

    Raises SarsenseError where this worker has another version of sarsense, or does not see `marker`.
    """
    if sarsense.__version__ != version:
        raise SarsenseError(
            f"sarsense {sarsense.__version__} is on the Dask worker at {_where()}, {version} here; the same expected: "
            "install one of them on both"
        )
    if marker is not None and not _seen(marker):
        raise SarsenseError(
            f"{marker}: not seen by the Dask worker at {_where()}; sources and --out have to be in a shared folder, "
            "under the same path on all machines"
        )
    started = time.perf_counter()
    outcomes = []
    for item in items:
        try:
            outcomes.append(task(*item))
        except Exception as error:
            outcomes.append(_sendable(error))
    return outcomes, time.perf_counter() - started


def _seen(marker: Path) -> bool:
    deadline = time.monotonic() + _SEEN_SECONDS
    while not marker.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _where() -> str:
    from distributed import get_worker

    try:
        return get_worker().address
    except ValueError:  # no worker at all
        return "this machine"


def _sendable(error: Exception) -> Exception:
    """The exception, or one of its words where it cannot be pickled, or not be made again from its pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error  # Dask hides what could not be imported behind an error of its own
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
