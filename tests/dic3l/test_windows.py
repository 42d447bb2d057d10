"""Windows joined give what the network gives on the whole image, and each pixel once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dic3l.errors import ConfigError
from dic3l.evaluate.windows import (
    BATCH_PIXELS,
    Block,
    Plan,
    blend_weights,
    plan_windows,
    segment_windows,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Of torch: images are small, and other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Small(nn.Module):
    """Two strided convolutions with zero padding, back to full size bilinearly, and a skip at full size.

    Feature i sees pixels 8 i - 6 ... 8 i + 6 and lies at 8 i + 3.5; pixels 8 i + 4 ... 8 i + 11 are interpolated from
    features i and i + 1, so they see 17 pixels to one side at most, and 10 to the other. Any size: it is filled up with
    code 0 to a multiple of `multiple`, below and on the right.
    """

    stride, reach = 8, 17

    def __init__(self, images: int, classes: int = 3, seed: int = 0, multiple: int = 8) -> None:
        super().__init__()
        self.images, self.multiple = images, multiple
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down = nn.Sequential(
                nn.Conv2d(images, 6, 5, 4, 2), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, classes, 1)
            )
            self.skip = nn.Conv2d(images, classes, 3, 1, 1)

    def forward(self, codes: Tensor) -> Tensor:
        height, width = codes.shape[2:]
        x = F.pad(codes, (0, -width % self.multiple, 0, -height % self.multiple)).float() / 255
        up = F.interpolate(self.down(x), scale_factor=8.0, mode="bilinear", align_corners=False)
        return up[..., :height, :width] + self.skip(x)[..., :height, :width]


class Mean(nn.Module):
    """Looks at the whole image: logits are a pixel's code against the mean of its window."""

    def forward(self, codes: Tensor) -> Tensor:
        x = codes.float().mean(dim=1, keepdim=True)
        return torch.cat([x, x.mean(dim=(2, 3), keepdim=True).expand_as(x)], dim=1)


def codes_of(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, shape, np.uint8)


def joined(network: nn.Module, plan: Plan, images: np.ndarray, classes: int, batch: int | None = None) -> np.ndarray:
    """All blocks in one array, float32 (classes, H, W); NaN where no block gave logits. Each pixel once, from above."""
    found = np.full((classes, *images.shape[1:]), np.nan, np.float32)
    times = np.zeros(images.shape[1:], int)
    row = 0
    for block in segment_windows(network, plan, lambda first, last: images[:, first:last], CPU, batch):
        assert block.row >= row
        row = block.row
        inside = np.s_[block.row : block.row + len(block.valid), block.column : block.column + block.valid.shape[1]]
        times[inside] += 1
        assert (block.valid == (images[(slice(None), *inside)] > 0).any(axis=0)).all()
        if block.logits is not None:
            found[(slice(None), *inside)] = block.logits.numpy()
    assert (times == 1).all()
    return found


@torch.no_grad()
def whole(network: nn.Module, images: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(images)[None])[0].numpy()


@settings(max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(9, 190),
    st.integers(9, 190),
    st.integers(8, 22),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_joined_windows_are_the_whole_image(images: int, height: int, width: int, cells: int, batch: int, seed: int):
    network, codes = Small(images, seed=seed), codes_of((images, height, width), seed)
    plan = plan_windows(height, width, images, network.stride, network.reach, 8 * cells)
    assert max(plan.shape) <= 8 * cells
    np.testing.assert_allclose(joined(network, plan, codes, 3, batch), whole(network, codes), atol=1e-5)


def test_the_reach_is_what_is_needed_and_less_leaves_seams():
    network, codes = Small(1), codes_of((1, 200, 170), 0)
    expected = whole(network, codes)
    for reach, same in ((Small.reach, True), (8, False)):
        plan = plan_windows(200, 170, 1, 8, reach, 64)
        assert plan.windows > 9
        assert (np.abs(joined(network, plan, codes, 3) - expected).max() < 1e-5) == same


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 40), st.integers(0, 3), st.integers(0, 90))
def test_cores_cover_the_image_once_and_keep_their_distance(height: int, width: int, more: int, power: int, reach: int):
    stride = 4 * 2**power
    window = 2 * (-(-reach // stride) * stride) + more * stride
    plan = plan_windows(height, width, 1, stride, reach, window)
    for spans, length in ((plan.rows, height), (plan.columns, width)):
        assert spans[0].first == 0 and spans[-1].last == length
        assert all(a.last == b.first for a, b in pairwise(spans))
        assert spans[0].start == 0 and spans[-1].stop == length
        assert 0 <= spans[0].size - spans[-1].size < stride and spans[0].size <= window
        for span in spans:
            assert span.start % stride == 0 and span.start <= span.first < span.last <= span.stop
            assert span is spans[-1] or span.size == spans[0].size
            assert span.start == 0 or span.first - span.start >= reach
            assert span.stop == length or span.stop - span.last >= reach
    computed = sum(row.size * column.size for row in plan.rows for column in plan.columns)
    assert plan.overhead == pytest.approx(1 - height * width / computed)


@given(st.integers(33, 900), st.sampled_from([128, 160, 256]), st.sampled_from([8, 32]))
def test_blend_weights_sum_to_one_and_are_smooth(length: int, window: int, stride: int):
    plan = plan_windows(length, 40, 1, stride, None, window)
    total = np.zeros(plan.rows[-1].stop)
    for span, weights in zip(plan.rows, blend_weights(plan.rows), strict=True):
        total[span.start : span.stop] += weights
        assert (weights >= 0).all()
        if span.start > 0:
            assert weights[0] < 0.01
        if span.stop < length:
            assert weights[-1] < 0.01
        assert np.abs(np.diff(weights)).max(initial=0) < 8 / window  # a Hann ramp of half a window has pi / window
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_network_that_looks_at_the_whole_image_is_blended_as_the_weights_say():
    codes = codes_of((2, 150, 210), 3)
    codes[:, :, 100:] //= 3  # so that windows differ in their mean
    plan = plan_windows(150, 210, 2, 8, None, 64)
    assert plan.blended and plan.windows > 9
    expected = np.zeros((2, 150, 210))
    for down, weights_down in zip(plan.rows, blend_weights(plan.rows), strict=True):
        for right, weights_right in zip(plan.columns, blend_weights(plan.columns), strict=True):
            inside = np.s_[:, down.start : down.stop, right.start : right.stop]
            logits = Mean()(torch.from_numpy(codes[inside])[None])[0].numpy()
            expected[inside] += logits * weights_down[:, None] * weights_right
    found = joined(Mean(), plan, codes, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(np.diff(found[1], axis=1)).max() < 8  # the mean jumps by 60 between windows: no seam


def test_an_image_in_one_window_is_the_whole_image_whatever_the_network():
    codes = codes_of((1, 60, 50), 0)
    plan = plan_windows(60, 50, 1, 8, None, 64)
    assert plan.windows == 1
    np.testing.assert_allclose(joined(Mean(), plan, codes, 2), whole(Mean(), codes), rtol=1e-6)


@pytest.mark.parametrize("reach", [Small.reach, None])
def test_windows_without_data_are_not_computed_and_change_nothing_elsewhere(reach: int | None):
    network = Small(2)
    codes = codes_of((2, 220, 260), 1)
    codes[:, :, 90:] = 0
    codes[:, 150:] = 0
    codes[1, :40] = 0  # one image has data there: valid
    counted: list[int] = []

    class Counting(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            counted.append(len(windows))
            return network(windows)

    done: list[None] = []
    plan = plan_windows(220, 260, 2, 8, reach, 64)
    blocks = list[Block]()
    for block in segment_windows(
        Counting(), plan, lambda first, last: codes[:, first:last], CPU, advance=lambda: done.append(None)
    ):
        assert (block.logits is None) == (not block.valid.any())
        blocks.append(block)
    assert sum(counted) < plan.windows / 2 and len(done) == plan.windows
    found = joined(network, plan, codes, 3)
    valid = (codes > 0).any(axis=0)
    if reach is not None:
        np.testing.assert_allclose(found[:, valid], whole(network, codes)[:, valid], atol=1e-5)
    assert np.isfinite(found[:, valid]).all() and sum(int(block.valid.sum()) for block in blocks) == valid.sum()


def test_rows_are_read_in_another_thread_while_the_network_computes():
    image = codes_of((1, 300, 64), 0)
    plan = plan_windows(300, 64, 1, 8, Small.reach, 64)
    assert len(plan.rows) > 5
    read_next = threading.Semaphore(0)
    asked: list[tuple[int, int, int]] = []

    def read(first: int, last: int) -> np.ndarray:
        asked.append((threading.get_ident(), first, last))
        read_next.release()
        return image[:, first:last]

    class Waiting(Small):
        def forward(self, codes: Tensor) -> Tensor:
            if len(asked) < len(plan.rows):  # the rows of the next window are being read by now, though none asks
                assert read_next.acquire(timeout=10)
            return super().forward(codes)

    read_next.acquire(blocking=False)
    list(segment_windows(Waiting(1), plan, read, CPU))
    assert [(first, last) for _, first, last in asked] == [(s.start, s.stop) for s in plan.rows]
    assert len({thread for thread, _, _ in asked}) == 1 and asked[0][0] != threading.get_ident()


def test_what_the_reader_raises_ends_the_loop_and_an_abandoned_loop_leaves_no_thread():
    plan = plan_windows(300, 64, 1, 8, Small.reach, 64)

    def fails(first: int, last: int) -> np.ndarray:
        if first > 100:
            raise OSError("the disk is gone")
        return codes_of((1, last - first, 64), 0)

    with pytest.raises(OSError, match="the disk is gone"):
        list(segment_windows(Small(1), plan, fails, CPU))
    before = threading.active_count()
    blocks = segment_windows(Small(1), plan, lambda first, last: codes_of((1, last - first, 64), 0), CPU)
    next(blocks)
    assert threading.active_count() > before
    blocks.close()
    assert threading.active_count() == before


def test_windows_are_batched_up_to_what_memory_holds():
    sizes: list[tuple[int, ...]] = []

    class Spy(Small):
        def forward(self, codes: Tensor) -> Tensor:
            sizes.append(tuple(codes.shape))
            return super().forward(codes)

    image = codes_of((2, 100, 700), 0)
    for batch in (None, 4):
        sizes.clear()
        plan = plan_windows(100, 700, 2, 8, Small.reach, 128)
        list(segment_windows(Spy(2), plan, lambda first, last: image[:, first:last], CPU, batch))
        assert sum(size[0] for size in sizes) == plan.windows
        assert max(np.prod(size) for size in sizes) <= BATCH_PIXELS
        assert max(size[0] for size in sizes) == (plan.windows - 1 if batch is None else 4)  # the last is narrower


def test_the_default_window_is_what_memory_holds_and_no_less_than_four_reaches():
    assert plan_windows(9000, 9000, 1, 32, 100, None).shape[0] <= 1536
    assert plan_windows(9000, 9000, 4, 32, 100, None).shape[0] <= 768
    large = plan_windows(9000, 9000, 1, 32, 700, None)
    assert 2 * 704 < large.shape[0] <= 2800 and large.overhead < 0.8
    assert plan_windows(9000, 9000, 1, 32, None, None).shape[0] <= 512


@pytest.mark.parametrize(("reach", "window"), [(17, 48), (None, 24), (0, 7)])
def test_a_window_without_a_core_is_refused(reach: int | None, window: int):
    with pytest.raises(ConfigError, match=r"--window: \d+ pixels or more expected"):
        plan_windows(300, 40, 1, 8, reach, window)
    if window > 40:
        assert plan_windows(40, 40, 1, 8, reach, window).windows == 1  # but where one holds all, none needs a core
