"""Runners: every item once, whatever dies; never many tasks at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sarsense
from pipelines.cluster import open_runner
from pipelines.runner import Batches, DaskRunner, WorkerLostError, run_batch
from sarsense.errors import SarsenseError
from tests.pipelines.deadly import deadly, failing, hungry, killed, who

COSTS = st.lists(st.floats(0, 1e10), max_size=400)


@given(COSTS, st.integers(1, 50), st.floats(1e-9, 100))
def test_batches_hold_every_item_once_in_order_and_never_too_many(costs: list[float], workers: int, seconds: float):
    batches = Batches(range(len(costs)), costs, most=64)
    taken: list[int] = []
    while batch := batches.take(workers):
        assert 1 <= len(batch) <= 64
        taken += batch
        batches.learn(batch, costs, seconds)
    assert taken == list(range(len(costs)))


@given(st.integers(1, 3000), st.integers(1, 20))
def test_there_are_eight_batches_a_worker_where_there_are_items_enough(count: int, workers: int):
    """However fast the items are, and whatever their number."""
    costs = [100.0] * count
    batches = Batches(range(count), costs)
    sizes = []
    while batch := batches.take(workers):
        sizes.append(len(batch))
        batches.learn(batch, costs, 1e-6)
    assert len(sizes) >= min(count, 8 * workers)


def test_batches_last_about_a_second():
    """Files of 2 Mpx at 20 Mpx/s, after one first file: ten a batch; a file of a minute is alone."""
    costs = [2e6] * 1000 + [1.2e9] + [2e6] * 1000
    batches = Batches(range(len(costs)), costs)
    assert len(batches.take(2)) == 1  # nothing is known yet
    batches.learn([0], costs, 0.1)
    sizes = {}
    while batch := batches.take(2):
        sizes[batch[0]] = len(batch)
        batches.learn(batch, costs, sum(costs[i] for i in batch) / 2e7)
    assert sizes[1000] == 1 and sizes[1] == 10
    assert {size for start, size in sizes.items() if start != 1000} <= {9, 10}
    assert all(b - a == sizes[a] for a, b in pairwise(sizes))


class Outcomes(dict[int, Any]):
    """What `done` was told, once an item."""

    def __call__(self, index: int, outcome: Any) -> None:
        assert index not in self
        self[index] = outcome


@contextmanager
def threads(workers: int) -> Iterator[Any]:
    """A client of a cluster inside this process."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_five_thousand_items_are_never_in_the_scheduler_at_once():
    """Items of a few milliseconds, so that they are not all in a few batches; counted in the scheduler itself."""
    most = 0
    with threads(2) as client:
        tasks = client.cluster.scheduler.tasks

        class Counted(Outcomes):
            def __call__(self, index: int, outcome: Any) -> None:
                nonlocal most
                most = max(most, len(tasks))
                super().__call__(index, outcome)

        outcomes = Counted()
        DaskRunner(client).run(abs, [(-value,) for value in range(5000)], outcomes)
    assert outcomes == {value: value for value in range(5000)}
    assert 0 < most <= 2 * 3 + 2  # two that are finished may not be forgotten yet


def test_an_item_that_raises_does_not_take_the_others_of_its_batch_with_it():
    outcomes = Outcomes()
    with threads(1) as client:
        DaskRunner(client).run(failing, [(value,) for value in range(100)], outcomes)
    assert {index: outcome for index, outcome in outcomes.items() if index not in (5, 6)} == {
        value: value**2 for value in range(100) if value not in (5, 6)
    }
    assert isinstance(outcomes[5], ValueError) and str(outcomes[5]) == "five"
    assert isinstance(outcomes[6], RuntimeError) and str(outcomes[6]) == "StubbornError: six"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "poison"), [(deadly, {3, 4}), (killed, {150})])
def test_items_that_kill_their_worker_are_told_from_those_in_their_batch(task: Any, poison: set[int]):
    outcomes = Outcomes()
    with open_runner(2) as runner:
        runner.run(task, [(value,) for value in range(200)], outcomes)
    assert {index for index, outcome in outcomes.items() if isinstance(outcome, WorkerLostError)} == poison
    assert {i: o for i, o in outcomes.items() if i not in poison} == {i: i**2 for i in range(200) if i not in poison}


def test_a_worker_killed_from_outside_costs_nothing():
    """kill -9 of one of two, as soon as its process is known: every item has its value all the same."""
    victims: list[int] = []

    class Killing(Outcomes):
        def __call__(self, index: int, outcome: Any) -> None:
            super().__call__(index, outcome)
            if not victims and index > 20:
                victims.append(outcome[1])
                os.kill(outcome[1], signal.SIGKILL)

    outcomes = Killing()
    with open_runner(2) as runner:
        runner.run(who, [(value,) for value in range(150)], outcomes)
    assert victims and [outcomes[index][0] for index in range(150)] == list(range(150))


@pytest.mark.slow
def test_an_item_that_takes_too_much_memory_is_to_blame_and_nobody_else(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 1000 * 2**20)  # of two workers
    outcomes = Outcomes()
    with open_runner(2) as runner:
        runner.run(hungry, [(value,) for value in range(20)], outcomes)
    assert isinstance(outcomes[2], WorkerLostError) and "out of memory?" in str(outcomes[2])
    assert [outcomes[index] for index in range(20) if index != 2] == [i**2 for i in range(20) if i != 2]


def test_a_worker_that_does_not_see_the_folder_is_told(tmp_path):
    with (
        threads(1) as client,
        pytest.raises(SarsenseError, match=r"nowhere/mark: not seen by the Dask worker at .*shared folder"),
    ):
        DaskRunner(client, tmp_path / "nowhere/mark").run(abs, [(-1,)], Outcomes())


def test_a_worker_of_another_version_is_told():
    with pytest.raises(SarsenseError, match=rf"sarsense {sarsense.__version__} is on the Dask worker.*, 0\.0\.0 here"):
        run_batch(abs, [(-1,)], "0.0.0", None)
