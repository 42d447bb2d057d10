"""Segmenting an image that is too large for memory, by overlapping windows: which windows, and how their logits are
joined.

A network whose logits depend on no pixel further away than its *reach* gives, well inside a window, the logits that it
gives on the whole image. So windows start at multiples of the network's largest stride (its grids of features are
those of the whole image), and of each only the core is kept, whose margin is the reach, rounded up to the stride. At
the image's border there is no margin: a window ends there as the image does, and zero padding inside the network is
that of the whole image. Cores cover the image once: no seam.

A network that looks at the whole image (global pooling, attention) has no such core. Its windows overlap by half, and
their logits are averaged under Hann weights, smooth across the overlap; the result is not that of the whole image,
which would not fit, but has no edge at a window's.

Knows nothing of files: rows are asked for, blocks of logits are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from dic3l.errors import ConfigError

WINDOW_PIXELS = 1536 * 1536
"""of all images of a window where it has a core of at least half its side: what bounds memory, with the network"""
BATCH_PIXELS = 1 << 20
"""of all images of the windows that are computed at once, where these are smaller"""
BLENDED_WINDOW = 512
"""side of the windows of a network that looks at the whole image: what it looks at is then about as large as the crops
that it was fitted to"""

Rows = Callable[[int, int], np.ndarray]
"""first, last (exclusive) -> codes of these rows of the image, all columns, uint8 (K, last - first, W)"""
Network = Callable[[Tensor], Tensor]
"""codes uint8 (N, K, h, w) of any size -> logits (N, classes, h, w)"""


@dataclass(frozen=True)
class Span:
    """A window along one axis of the image."""

    start: int
    stop: int
    """exclusive"""
    first: int
    last: int
    """exclusive; the part that is kept"""

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """The windows of an image: each of `rows` with each of `columns`. All are of one size, but for those at the bottom
    and on the right, which lack what the image lacks to a multiple of the stride."""

    height: int
    width: int
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    stride: int
    margin: int
    """around a core; where blended, half of the overlap"""
    blended: bool

    @property
    def windows(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a window, at most."""
        return self.rows[0].size, self.columns[0].size

    @property
    def overhead(self) -> float:
        """Share of the pixels of windows that are margin or overlap."""
        computed = sum(span.size for span in self.rows) * sum(span.size for span in self.columns)
        return 1 - self.height * self.width / computed


@dataclass(frozen=True)
class Block:
    """A rectangle of the result. Blocks cover the image once, from top to bottom: the rows above the last one given are
    done."""

    row: int
    column: int
    valid: np.ndarray
    """bool (h, w): some image has data there"""
    logits: Tensor | None
    """float32 (classes, h, w), on the CPU, which hold until the next block is asked for; None where nothing is valid"""


def plan_windows(height: int, width: int, images: int, stride: int, reach: int | None, window: int | None) -> Plan:
    """Windows for an image of `height` x `width` pixels, for a network of this reach (None: the whole image), whose
    grids of features are the same where a window starts at multiples of `stride`.

    window: largest side of a window in pixels; None: what WINDOW_PIXELS holds of `images` images, but no less than
    four reaches, below which most of the work would be margin; BLENDED_WINDOW where windows are blended. Windows are
    no larger than is needed for as many of them. ConfigError where a window would have no core.
    """
    if reach is None:
        window = (BLENDED_WINDOW if window is None else window) // stride * stride
        margin, least, why = window // 4 // stride * stride, 4 * stride, "four strides"
    else:
        window = max(math.isqrt(WINDOW_PIXELS // images), 4 * reach) if window is None else window
        window, margin = window // stride * stride, -(-reach // stride) * stride
        least, why = 2 * margin + stride, f"a stride of {stride}, and its reach of {reach} pixels on both sides of it"
    if window < least and max(height, width) > window:
        raise ConfigError(f"--window: {least} pixels or more expected for this network ({why}), {window} found")
    blended = reach is None
    rows = _spans(height, window, margin, stride, blended)
    columns = _spans(width, window, margin, stride, blended)
    return Plan(height, width, rows, columns, stride, margin, blended)


def _spans(length: int, window: int, margin: int, stride: int, blended: bool) -> tuple[Span, ...]:
    if length <= window:
        return (Span(0, length, 0, length),)
    padded = -(-length // stride) * stride
    inner = padded - 2 * margin
    count = -(-inner // (window - 2 * margin))
    step = -(-inner // (count * stride)) * stride  # as many windows, no larger than they need to be
    window = step + 2 * margin
    starts = [min(index * step, padded - window) for index in range(count)]
    stops = [min(start + window, length) for start in starts]
    if blended:
        return tuple(map(Span, starts, stops, starts, stops))
    edges = [0, *(start + margin for start in starts[1:]), length]
    return tuple(map(Span, starts, stops, edges[:-1], edges[1:]))


def blend_weights(spans: Sequence[Span]) -> list[np.ndarray]:
    """Weights float32 (size of the window,) of the windows along one axis, whose sum is 1 at every pixel: Hann windows
    (sin^2), divided by their sum; so a pixel that one window alone has, at the border, has weight 1."""
    full = spans[0].size
    hann = np.sin(np.pi * (np.arange(full) + 0.5) / full) ** 2
    total = np.zeros(spans[-1].stop)
    for span in spans:
        total[span.start : span.stop] += hann[: span.size]
    return [(hann[: span.size] / total[span.start : span.stop]).astype(np.float32) for span in spans]


def segment_windows(
    network: Network,
    plan: Plan,
    read: Rows,
    device: torch.device,
    batch: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Generator[Block, None, None]:
    """Logits of the image, block by block. Windows without data in their core are not computed.

    read: called in one thread of its own, for the next rows while the network computes; rows that two windows share
    are asked for twice. batch: windows at once; None: as many as BATCH_PIXELS holds. advance: called for each window
    that is done. Memory: the network's, of a batch; codes of three rows of windows; where
    blended, the logits of one (float32).
    """
    join = _blended if plan.blended else _cores
    with ThreadPoolExecutor(1) as pool:
        yield from join(network, plan, _strips(plan, read, pool), device, batch, advance)


def _strips(plan: Plan, read: Rows, pool: ThreadPoolExecutor) -> Iterator[tuple[Span, np.ndarray]]:
    """The codes of each row of windows, uint8 (K, h, W); the next one is read meanwhile."""
    ahead = pool.submit(read, plan.rows[0].start, plan.rows[0].stop)
    for index, span in enumerate(plan.rows):
        codes = ahead.result()
        if index + 1 < len(plan.rows):
            ahead = pool.submit(read, plan.rows[index + 1].start, plan.rows[index + 1].stop)
        yield span, codes


def _has_data(codes: np.ndarray) -> np.ndarray:
    """bool (h, w): where some image has another code than 0."""
    return np.asarray(codes.any(axis=0))


def _logits(
    network: Network, codes: np.ndarray, spans: Sequence[Span], device: torch.device, batch: int | None
) -> Iterator[tuple[Span, Tensor]]:
    """Logits (classes, h, w) of windows of a strip, on the device."""
    for size, alike in groupby(spans, key=lambda span: span.size):
        same = list(alike)
        at_once = batch or max(BATCH_PIXELS // (codes.shape[0] * codes.shape[1] * size), 1)
        for start in range(0, len(same), at_once):
            some = same[start : start + at_once]
            windows = torch.from_numpy(np.stack([codes[:, :, span.start : span.stop] for span in some]))
            with torch.inference_mode():
                found = network(windows.to(device))
            yield from zip(some, found, strict=True)


def _cores(
    network: Network,
    plan: Plan,
    strips: Iterator[tuple[Span, np.ndarray]],
    device: torch.device,
    batch: int | None,
    advance: Callable[[], None],
) -> Iterator[Block]:
    for row, codes in strips:
        rows = slice(row.first - row.start, row.last - row.start)
        valid = _has_data(codes[:, rows])
        seen = {span: valid[:, span.first : span.last] for span in plan.columns}
        for span, there in seen.items():
            if not there.any():
                yield Block(row.first, span.first, there, None)
                advance()
        for span, found in _logits(network, codes, [s for s in seen if seen[s].any()], device, batch):
            core = found[:, rows, span.first - span.start : span.last - span.start]
            yield Block(row.first, span.first, seen[span], core.float().cpu())
            advance()


def _blended(
    network: Network,
    plan: Plan,
    strips: Iterator[tuple[Span, np.ndarray]],
    device: torch.device,
    batch: int | None,
    advance: Callable[[], None],
) -> Iterator[Block]:
    down, right = blend_weights(plan.rows), blend_weights(plan.columns)
    across = dict(zip(plan.columns, right, strict=True))
    ends = [span.start for span in plan.rows[1:]] + [plan.height]
    sums: Tensor | None = None  # weighted, of the rows of the strip at hand, all columns
    for (row, codes), weights, end in zip(strips, down, ends, strict=True):
        wanted = [s for s in plan.columns if codes[:, :, s.start : s.stop].any()]
        for span, found in _logits(network, codes, wanted, device, batch):
            if sums is None:
                sums = torch.zeros(found.shape[0], plan.shape[0], plan.width)
            weight = torch.from_numpy(weights[:, None] * across[span])
            sums[:, : row.size, span.start : span.stop] += found.float().cpu() * weight
            advance()
        done = end - row.start
        valid = _has_data(codes[:, :done])
        yield Block(row.start, 0, valid, None if sums is None or not valid.any() else sums[:, :done])
        if sums is not None:
            for plane in sums:  # one class at a time: a copy of all would double the memory
                kept = plane[done:].clone()
                plane[: len(kept)] = kept
                plane[len(kept) :] = 0
        for _ in range(len(plan.columns) - len(wanted)):
            advance()
