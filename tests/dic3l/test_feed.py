"""A batch in one piece of memory, and the same batch whoever makes its views."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from dic3l.base import StepBatch
from dic3l.feed import feed, packed
from dic3l.stream import Stream
from tests.dic3l.test_stream import KNOWING, BothTiles, FakeTiles, settings


def test_a_packed_batch_is_the_batch_in_one_piece():
    batch = Stream(BothTiles(), settings(**KNOWING)).tile_batch(3)
    whole = packed(batch)
    begin, end = whole.memory.data_ptr(), whole.memory.data_ptr() + whole.memory.nbytes
    for name in ("tiles", "rows", "views"):
        mine, theirs = getattr(whole.batch, name), getattr(batch, name)
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype
        assert begin <= mine.data_ptr() < end
    for mine, theirs in zip(whole.batch.speckle, batch.speckle, strict=True):
        assert mine.counts == theirs.counts and torch.equal(mine.powers, theirs.powers)
    assert torch.equal(whole.batch.rest.perm, batch.rest.perm)
    moved = whole.to(torch.device("meta"))
    assert moved.tiles.shape == batch.tiles.shape and moved.rest.key_boxes.dtype == torch.float32


@pytest.mark.parametrize(("tiles", "changes"), [(FakeTiles(), {}), (BothTiles(), KNOWING)])
def test_views_made_on_the_device_are_those_of_the_host(tiles, changes):
    host, device = (
        dict(feed(Stream(tiles, settings(**changes, train__render=where)), 2, 5, torch.device("cpu")))
        for where in ("host", "device")
    )
    assert host.keys() == device.keys() == {2, 3, 4}
    for step, batch in host.items():
        for field in fields(StepBatch):
            mine, theirs = getattr(batch, field.name), getattr(device[step], field.name)
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            if field.name.endswith("_views"):
                difference = (mine.int() - theirs.int()).abs().float()
                assert difference.mean() < 1.0 and np.quantile(difference.numpy(), 0.99) <= 6
            else:
                assert torch.equal(mine, theirs)


@pytest.mark.gpu
def test_on_cuda_batches_come_one_ahead_and_are_those_of_the_cpu():
    device = torch.device("cuda")
    stream = Stream(BothTiles(), settings(**KNOWING, train__render="device"))
    here = dict(feed(stream, 0, 6, torch.device("cpu")))
    for step, batch in feed(stream, 0, 6, device):
        for field in fields(StepBatch):
            mine, theirs = getattr(batch, field.name), getattr(here[step], field.name)
            assert mine.is_cuda
            if field.name.endswith("_views"):
                assert (mine.cpu().int() - theirs.int()).abs().float().mean() < 1.0
            else:
                assert torch.equal(mine.cpu(), theirs)
