"""All pairs of 64-bit hashes within a Hamming distance: exactly, without comparing all with all.

Two hashes that differ in at most r bits, cut into m > r blocks, agree in at least m - r of them (multi-index hashing:
Norouzi, Punjani and Fleet, 2012, CVPR; with several blocks at once: Manku, Jain and Das Sarma, 2007, WWW). So the
hashes are sorted once for each choice of m - r blocks, and only those that agree there are compared. Few blocks cost
few sorts, many blocks few comparisons: m is chosen for the hashes at hand, from what a sample of them costs.

Memory: 32 bytes a hash beside the hashes themselves, and one chunk of pairs, whatever their number. Time grows with the
pairs that agree in some table, so hashes that share most of their bits without being near are slow, yet never large;
equal ones are as many pairs as they are (g hashes, g^2 / 2 pairs) unless `most` joins them to the first alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from sarsense.compiled import njit
from sarsense.errors import SettingError

CHUNK = 1 << 18
"""pairs of a chunk at most"""

MAX_RADIUS = 7
"""bits: with more, tables are too many or too full to be of use"""

_DIGIT = 16
"""bits that one pass of a sort orders by, at most"""
_MAX_BLOCKS = 8
_SAMPLE = 1 << 16
_SORT_COST = 40.0
"""one hash through one pass of a sort, in comparisons of two hashes (measured: 20 ns and 0.3 to 1 ns)"""
_UNIFORM = 0.2
"""of the collisions that a sample too small to show any may hide, as a share of one pair"""


def near_pairs(
    hashes: np.ndarray, radius: int, bits: int = 64, most: int | None = None, chunk: int = CHUNK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks (i, j), uint32 of equal length, of all pairs i < j of `hashes` that differ in at most `radius` bits.

    hashes: uint64 (n,), of which the lowest `bits` bits count. Each pair comes once, in no order that means anything.
    `most`: where more hashes than this are equal, the first of them stands for all: the others are paired with it
    alone. Raises SettingError.
    """
    _check(hashes, radius, bits)
    hashes = hashes & _counted(bits)
    items = np.arange(len(hashes), dtype=np.uint32)
    if most is not None:
        items, first, rest = _without_crowds(hashes, most)
        for start in range(0, len(rest), chunk):
            yield first[start : start + chunk], rest[start : start + chunk]
    for i, j in _joined(hashes, items, None, None, radius, bits, chunk):
        yield np.minimum(i, j), np.maximum(i, j)


def near_pairs_between(
    a: np.ndarray, b: np.ndarray, radius: int, bits: int = 64, chunk: int = CHUNK
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks (i, j), uint32, of all pairs in which a[i] and b[j], uint64, differ in at most `radius` bits; each once.

    Raises SettingError.
    """
    _check(a, radius, bits)
    _check(b, radius, bits)
    yield from _joined(
        a, np.arange(len(a), dtype=np.uint32), b, np.arange(len(b), dtype=np.uint32), radius, bits, chunk
    )


# ------------------------------------------------------------------------------------------------------- plan


def block_bits(blocks: int, bits: int = 64) -> list[tuple[int, int]]:
    """(lowest bit, width) of each of `blocks` blocks of `bits` bits, as even as may be."""
    edges = [bits * number // blocks for number in range(blocks + 1)]
    return [(low, high - low) for low, high in pairwise(edges)]


def choose_blocks(hashes: np.ndarray, radius: int, bits: int = 64) -> int:
    """The number of blocks, above `radius`, with the least work for these hashes, judged by a sample of them."""
    total = len(hashes)
    sample = hashes[:: max(len(hashes) // _SAMPLE, 1)]
    pairs = max(len(sample) * (len(sample) - 1) / 2, 1.0)
    work = {}
    for blocks in range(radius + 1, max(_MAX_BLOCKS, radius + 1) + 1):
        layout, tables = block_bits(blocks, bits), comb(blocks, blocks - radius)
        chosen = layout[: blocks - radius]
        passes = sum(-(-width // _DIGIT) for _, width in chosen)
        if tables * passes * _SORT_COST * total >= min(work.values(), default=np.inf):
            continue
        keys = np.sort(sample & _mask(chosen))
        runs = np.diff(np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]])))
        share = (float((runs * (runs - 1.0)).sum()) / 2 + _UNIFORM) / pairs
        work[blocks] = tables * (passes * _SORT_COST * total + share * total * (total - 1) / 2)
    return min(work, key=work.__getitem__)


def _tables(blocks: int, radius: int, bits: int) -> Iterator[tuple[int, list[tuple[int, int]], np.ndarray]]:
    """Number of each table, its blocks, and the first table (uint8, 2^blocks) of pairs by the set of equal blocks."""
    layout = block_bits(blocks, bits)
    choices = list(combinations(range(blocks), blocks - radius))
    sets = [sum(1 << number for number in choice) for choice in choices]
    first = np.full(1 << blocks, 255, np.uint8)
    for table in reversed(range(len(sets))):
        equal = np.arange(1 << blocks)
        first[(equal & sets[table]) == sets[table]] = table
    for table, choice in enumerate(choices):
        yield table, [layout[number] for number in choice], first


def _counted(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mask(chosen: list[tuple[int, int]]) -> np.uint64:
    return np.uint64(sum(((1 << width) - 1) << low for low, width in chosen))


def _without_crowds(hashes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of which no hash has more than `most`, or the first alone; and the pairs (first, other) of the others."""
    if most < 1:
        raise SettingError(f"near_pairs: most: 1 or more expected, {most} found")
    order = np.argsort(hashes, kind="stable").astype(np.uint32)
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else np.zeros(0, int)
    sizes = np.diff(np.append(starts, len(order)))
    start = np.repeat(starts, sizes)
    surplus = (np.repeat(sizes, sizes) > most) & (start != np.arange(len(order)))
    return np.sort(order[~surplus]), order[start[surplus]], order[surplus]


def _check(hashes: np.ndarray, radius: int, bits: int) -> None:
    if hashes.ndim != 1 or hashes.dtype != np.uint64:
        raise SettingError(f"near pairs: uint64 (n,) expected, {hashes.dtype} of shape {hashes.shape} found")
    if len(hashes) >= 1 << 32:
        raise SettingError(f"near pairs: fewer than 2^32 hashes expected, {len(hashes)} found; split them")
    if not (0 <= radius <= MAX_RADIUS and radius < bits <= 64):
        raise SettingError(
            f"near pairs: a radius from 0 to {MAX_RADIUS}, below the number of bits, 64 at most, expected; "
            f"{radius} of {bits} found"
        )


# ------------------------------------------------------------------------------------------------------- join


def _joined(
    a: np.ndarray,
    a_items: np.ndarray,
    b: np.ndarray | None,
    b_items: np.ndarray | None,
    radius: int,
    bits: int,
    chunk: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of items of a, or between items of a and of b, table by table."""
    left, left_spare = _Column(a[a_items], a_items), _Column.like(len(a_items))
    blocks = choose_blocks(left.hashes if b is None or len(a) >= len(b) else b, radius, bits)
    layout = np.array(block_bits(blocks, bits), np.uint64)
    right = right_spare = None
    if b is not None and b_items is not None:
        right, right_spare = _Column(b.copy(), b_items), _Column.like(len(b_items))
    out_i, out_j = np.empty(chunk, np.uint32), np.empty(chunk, np.uint32)
    for table, chosen, first in _tables(blocks, radius, bits):
        left, left_spare = _sorted(left, left_spare, chosen)
        if right is not None and right_spare is not None:
            right, right_spare = _sorted(right, right_spare, chosen)
        other = left if right is None else right
        state = np.array([0, 0, 0, -1])
        while state[0] < len(left.hashes):
            found = _join(
                left.hashes,
                left.items,
                other.hashes,
                other.items,
                right is None,
                _mask(chosen),
                radius,
                layout,
                first,
                table,
                state,
                out_i,
                out_j,
            )
            if found:
                yield out_i[:found].copy(), out_j[:found].copy()


class _Column:
    """Hashes and the items that they belong to, in the order of a table."""

    def __init__(self, hashes: np.ndarray, items: np.ndarray) -> None:
        self.hashes, self.items = hashes, items

    @classmethod
    def like(cls, n: int) -> _Column:
        return cls(np.empty(n, np.uint64), np.empty(n, np.uint32))


def _sorted(column: _Column, spare: _Column, chosen: list[tuple[int, int]]) -> tuple[_Column, _Column]:
    """(column by the bits of `chosen`, spare): a radix sort from the lowest digit on."""
    for low, width in chosen:
        for start in range(0, width, _DIGIT):
            digit = min(_DIGIT, width - start)
            _radix_pass(column.hashes, column.items, low + start, digit, spare.hashes, spare.items)
            column, spare = spare, column
    return column, spare


@njit
def _radix_pass(
    hashes: np.ndarray, items: np.ndarray, low: int, width: int, out_hashes: np.ndarray, out_items: np.ndarray
) -> None:
    mask, shift = (np.uint64(1) << np.uint64(width)) - np.uint64(1), np.uint64(low)
    place = np.zeros((1 << width) + 1, np.int64)
    for value in hashes:
        place[((value >> shift) & mask) + np.uint64(1)] += 1
    for digit in range(1, len(place)):
        place[digit] += place[digit - 1]
    for row in range(len(hashes)):
        value = hashes[row]
        digit = (value >> shift) & mask
        to = place[digit]
        place[digit] = to + 1
        out_hashes[to] = value
        out_items[to] = items[row]


def _population_count(typing_context: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return numba.types.uint64(numba.types.uint64), code


_bits_set: Any = intrinsic(_population_count)
"""number of set bits of a uint64, in compiled code: one instruction"""


@njit
def _equal_blocks(difference: np.uint64, layout: np.ndarray) -> int:
    """The blocks in which two hashes agree, as a set of bits. layout: uint64 (blocks, 2), lowest bit and width."""
    equal = 0
    for number in range(len(layout)):
        if ((difference >> layout[number, 0]) << (np.uint64(64) - layout[number, 1])) == 0:
            equal |= 1 << number
    return equal


@njit
def _any_near(value: np.uint64, others: np.ndarray, limit: np.uint64) -> bool:
    """Without branches, so that several are compared at a time: nearly always there is none."""
    near = 0
    for other in range(len(others)):
        near += _bits_set(value ^ others[other]) <= limit
    return near > 0


@njit
def _join(
    a: np.ndarray,
    a_items: np.ndarray,
    b: np.ndarray,
    b_items: np.ndarray,
    same: bool,
    mask: np.uint64,
    radius: int,
    layout: np.ndarray,
    first: np.ndarray,
    table: int,
    state: np.ndarray,
    out_i: np.ndarray,
    out_j: np.ndarray,
) -> int:
    """Pairs that agree under `mask` and differ in `radius` bits at most, into out_i and out_j; returns their number.

    a, b are sorted by their bits under `mask` (one array if `same`). state: (row of a, first and last + 1 row of b with
    its key, next row of b or -1: not begun); the next call goes on from it. A pair that an earlier table shows too is
    left to that.
    """
    found, limit = 0, np.uint64(radius)
    row, low, high, resume = state[0], state[1], state[2], state[3]
    while row < len(a):
        value = a[row]
        key = value & mask
        while low < len(b) and (b[low] & mask) < key:
            low += 1
        high = max(high, low)
        while high < len(b) and (b[high] & mask) == key:
            high += 1
        start = resume if resume >= 0 else (row + 1 if same else low)
        resume = -1
        if not _any_near(value, b[start:high], limit):
            row += 1
            continue
        for other in range(start, high):
            difference = value ^ b[other]
            if _bits_set(difference) <= limit and first[_equal_blocks(difference, layout)] == table:
                if found == len(out_i):
                    state[0], state[1], state[2], state[3] = row, low, high, other
                    return found
                out_i[found] = a_items[row]
                out_j[found] = b_items[other]
                found += 1
        row += 1
    state[0], state[1], state[2], state[3] = row, low, high, -1
    return found
