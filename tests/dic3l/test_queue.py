"""The queue is a ring buffer, as collections.deque says."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dic3l.errors import CheckpointError
from dic3l.queue import KeyQueue


@settings(deadline=None)
@given(size=st.integers(1, 12), batches=st.lists(st.integers(0, 30), max_size=8))
def test_the_queue_holds_the_last_keys_whatever_the_sizes(size, batches):
    queue = KeyQueue(size, 1, seed=0)
    twin = deque((float(row) for row in queue.keys[:, 0]), maxlen=size)
    following = 0
    for count in batches:
        keys = torch.arange(following, following + count, dtype=torch.float32)[:, None] + 10
        queue.enqueue(keys)
        twin.extend(keys[:, 0].tolist())
        following += count
        oldest_first = queue.keys.roll(-queue.pointer, 0)[:, 0].tolist()
        assert oldest_first == list(twin)
        assert queue.filled == min(following, size)


def test_rows_start_as_unit_vectors_that_depend_on_the_seed_alone():
    queue = KeyQueue(50, 8, seed=3)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    torch.rand(1)
    assert queue.keys.equal(KeyQueue(50, 8, seed=3).keys)
    assert not queue.keys.equal(KeyQueue(50, 8, seed=4).keys)


def test_position_and_rows_survive_a_saved_file(tmp_path):
    queue, again = KeyQueue(10, 4, seed=0), KeyQueue(10, 4, seed=1)
    queue.enqueue(torch.randn(7, 4))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    again.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    keys = torch.randn(6, 4)
    queue.enqueue(keys)
    again.enqueue(keys)
    assert again.keys.equal(queue.keys)
    assert (again.pointer, again.filled, again.enqueued) == (3, 10, 13)


def test_a_position_outside_the_queue_is_refused():
    with pytest.raises(CheckpointError, match="position 10 found"):
        KeyQueue(10, 4, seed=0).set_extra_state({"pointer": 10, "enqueued": 10})


def test_half_precision_keys_are_kept_in_the_queues_own():
    queue = KeyQueue(4, 2, seed=0)
    queue.enqueue(torch.ones(2, 2, dtype=torch.bfloat16))
    assert queue.keys.dtype == torch.float32 and queue.keys[:2].eq(1).all()
