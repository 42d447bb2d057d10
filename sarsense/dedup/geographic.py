"""The same ground twice: by the same acquisition a duplicate, by another one a repeat, which is kept unless capped.

**Duplicates.** Two products of one acquisition (neighbouring slices, GRD and RTC of one pass, a crop of a scene) and
two tiles of one scene at a stride below the tile hold the same speckle. Tiles are taken in order of preference: those
of a corpus that is being grown first (`settled`: they always stay), then by `rank`, which the caller computes from
content. A tile is dropped where, of its ground, `threshold` or more is covered by tiles that stay, of the same
acquisition and polarisation:

- of its own scene: by a single one of them, for who asks for a stride of half a tile wants those tiles;
- of other scenes: by all of them together, for a scene cut again on a shifted grid has each tile covered by four.

**Repeats.** A place is a leader and the tiles of other acquisitions, same polarisation, that overlap it by a share of
both areas: a tile joins the place whose leader it overlaps most, or leads one. A place holds an acquisition once.

A scene of unknown acquisition is an acquisition of its own. All results depend on the ranks and the ground alone, not
on the order of the arrays, and time and memory grow with the tiles, not with their pairs: a tile is compared with
those that stay (or lead) near it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sarsense.compiled import njit
from sarsense.dedup.overlap import Ground, Index, draw, enter, meeting, new_index, shared_area, united_area
from sarsense.errors import SettingError

UNKNOWN = -1
"""the acquisition of a scene that does not say"""
COVERED = 0.6
"""of a tile's ground; above one half, so that a stride of half a tile is left alone"""
SAME_PLACE = 0.25
"""of both areas. A grid of tiles, shifted by whatever the next pass is shifted by, finds that much of a leader: so a
pass joins the places of the passes before it, and a cap holds; at 0.6 two passes of three would lead their own."""
_YEAR = 365.25


@dataclass(frozen=True)
class Dropped:
    """Tiles that yield to others, by index, ascending."""

    index: np.ndarray
    """int64 (d,)"""
    kept: np.ndarray
    """int64 (d,): of those that stay, the one that covers most of the tile, or the nearest in season"""
    share: np.ndarray
    """float64 (d,): of the tile's ground, covered by `kept`, or where that is below the threshold by all that stay of
    other scenes together; NaN for repeats above a cap"""


def covered_by_same_acquisition(
    ground: Ground,
    scene: np.ndarray,
    acquisition: np.ndarray,
    polarisation: np.ndarray,
    rank: np.ndarray,
    settled: np.ndarray,
    threshold: float = COVERED,
) -> Dropped:
    """The duplicates among n tiles, by the rule at the top.

    scene, acquisition (UNKNOWN: the scene's own), polarisation: int64 (n,) numbers of equal things. rank: int64 (n,),
    all different, the lowest is preferred. settled: bool (n,). Raises SettingError.
    """
    _check_threshold(threshold)
    look = _looks(scene, acquisition)
    group = _numbers(look, polarisation)
    order = _order(rank, settled)
    by, share = np.full(len(order), -1), np.zeros(len(order))
    _cover(
        (ground.footprints, ground.centres, ground.reach, ground.area),
        new_index(ground), order, settled, np.ascontiguousarray(scene, np.int64), group, threshold, by, share,
    )  # fmt: skip
    index = np.flatnonzero(by >= 0)
    return Dropped(index, by[index], share[index])


def places(
    ground: Ground,
    scene: np.ndarray,
    acquisition: np.ndarray,
    polarisation: np.ndarray,
    rank: np.ndarray,
    settled: np.ndarray,
    threshold: float = SAME_PLACE,
) -> np.ndarray:
    """The place (int64 (n,), numbered in the order of their leaders) of each tile; arguments as above.

    threshold: share of both areas, the tile's and the leader's, that a tile has to have in common with the leader (so
    their areas differ by a factor of 1 / threshold at most). Raises SettingError.
    """
    _check_threshold(threshold)
    place = np.full(len(rank), -1)
    _, group = np.unique(polarisation, return_inverse=True)
    _place(
        (ground.footprints, ground.centres, ground.reach, ground.area),
        new_index(ground), _order(rank, settled), _looks(scene, acquisition), group.astype(np.int64), threshold, place,
    )  # fmt: skip
    return place


def cap_repeats(
    place: np.ndarray, datetimes: Sequence[str | None], rank: np.ndarray, settled: np.ndarray, most: int
) -> Dropped:
    """The tiles above `most` of each place, those that add least to its seasons.

    Settled tiles stay, whatever their number. Then the earliest date, and again and again the date farthest on the
    circle of the year from those chosen (equally far: of a year not chosen yet, then the lowest rank); undated tiles
    come last, by rank. datetimes: ISO 8601, None (or what is no date) for undated. Raises SettingError.
    """
    if most < 1:
        raise SettingError(f"max-repeats: expected 1 or more, found {most}; leave it out to keep all repeats")
    days, years, day_of_year = _dates(datetimes)
    order = np.lexsort((rank, ~settled, place))
    by = np.full(len(order), -1)
    _cap(order, place, days, years, day_of_year, settled, most, by)
    index = np.flatnonzero(by >= 0)
    return Dropped(index, by[index], np.full(len(index), np.nan))


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise SettingError(f"threshold of overlap: expected above 0 and at most 1, found {threshold:g}; try {COVERED}")


def _order(rank: np.ndarray, settled: np.ndarray) -> np.ndarray:
    return np.lexsort((rank, ~settled))


def _looks(scene: np.ndarray, acquisition: np.ndarray) -> np.ndarray:
    """A number for each acquisition, and one for each scene of unknown acquisition."""
    unknown = acquisition == UNKNOWN
    return _numbers(np.where(unknown, scene, acquisition), unknown.astype(np.int64))


def _numbers(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64 (n,): equal where both are equal."""
    (_, a), (_, b) = np.unique(a, return_inverse=True), np.unique(b, return_inverse=True)
    return a.astype(np.int64) * (int(b.max(initial=0)) + 1) + b


def _dates(datetimes: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64 (n,) each: days since 1970 (the largest number for undated), year, days since 1 January (-1: undated)."""
    codes: dict[str | None, int] = {}
    inverse = np.fromiter((codes.setdefault(text, len(codes)) for text in datetimes), np.int64, len(datetimes))
    day = np.array([_day(text) for text in codes], "datetime64[D]")
    dated = ~np.isnat(day)
    year = day.astype("datetime64[Y]")
    days = np.where(dated, day.astype(np.int64), np.iinfo(np.int64).max)
    of_year = np.where(dated, (day - year.astype("datetime64[D]")).astype(np.int64), -1)
    return days[inverse], year.astype(np.int64)[inverse], of_year[inverse]


def _day(text: str | None) -> np.datetime64:
    try:
        return np.datetime64((text or "")[:10], "D")
    except ValueError:
        return np.datetime64("NaT", "D")


@njit
def _cover(tiles, index: Index, order, settled, scene, group, threshold, by, share) -> None:
    """by[i]: the tile that tile i yields to, or -1; share[i]."""
    footprints, centres, reach, area = tiles
    found, ring = np.empty(16, np.int64), np.empty(footprints.shape[1:])
    others, turn = np.empty((4, *footprints.shape[1:])), np.empty(len(order), np.int64)
    for position, i in enumerate(order):
        turn[i] = position
        count = 0
        if not settled[i]:
            found, count = meeting(index, centres, reach, group, i, found)
        if count > 0:
            draw(footprints[i], centres[i], ring)
        if count > len(others):
            others = np.empty((2 * count, *footprints.shape[1:]))
        # the best single tile of the own scene, and of other scenes with all of them together
        own, own_by, best, best_by, summed, used = 0.0, -1, 0.0, -1, 0.0, 0
        for k in range(count):
            j = found[k]
            draw(footprints[j], centres[i], others[used])
            part = shared_area(ring, others[used]) / area[i]
            if part < 1e-9:
                continue
            if scene[j] == scene[i]:
                if _better(part, j, own, own_by, turn):
                    own, own_by = part, j
            else:
                if _better(part, j, best, best_by, turn):
                    best, best_by = part, j
                summed, used = summed + part, used + 1
        united = best
        if best < threshold <= summed:  # neither bound of the union decides
            united = united_area(ring, others[:used]) / area[i]
        if own >= threshold and (united < threshold or _better(own, own_by, best, best_by, turn)):
            by[i], share[i] = own_by, min(1.0, own)
        elif united >= threshold:
            by[i], share[i] = best_by, min(1.0, united)
        else:
            enter(index, centres, group, i)


@njit
def _better(part: float, j: int, best: float, best_by: int, turn) -> bool:
    """Whether tile j covers more than the best so far; among equals (but for rounding) the preferred tile."""
    if best_by < 0 or part > best + 1e-9:
        return True
    return part > best - 1e-9 and turn[j] < turn[best_by]


@njit
def _place(tiles, index: Index, order, look, group, threshold, place) -> None:
    footprints, centres, reach, area = tiles
    found, ring, other = np.empty(16, np.int64), np.empty(footprints.shape[1:]), np.empty(footprints.shape[1:])
    turn, leaders = np.empty(len(order), np.int64), 0
    # which place holds which look: the last tile of each bucket of (place, look), and the one before it
    head, link = np.full(len(index.head), -1), np.full(len(order), -1)
    for position, i in enumerate(order):
        turn[i] = position
        found, count = meeting(index, centres, reach, group, i, found)
        if count > 0:
            draw(footprints[i], centres[i], ring)
        best, best_by = 0.0, -1
        for k in range(count):
            j = found[k]
            if min(area[i], area[j]) < threshold * max(area[i], area[j]):
                continue
            if _holds(place[j], look[i], place, look, head, link):
                continue
            draw(footprints[j], centres[i], other)
            part = shared_area(ring, other) / max(area[i], area[j])
            if part >= threshold and _better(part, j, best, best_by, turn):
                best, best_by = part, j
        if best_by >= 0:
            place[i] = place[best_by]
        else:
            place[i] = leaders
            leaders += 1
            enter(index, centres, group, i)
        bucket = _bucket_of(place[i], look[i], len(head))
        link[i], head[bucket] = head[bucket], i


@njit
def _holds(number: int, wanted: int, place, look, head, link) -> bool:
    member = head[_bucket_of(number, wanted, len(head))]
    while member >= 0 and not (place[member] == number and look[member] == wanted):
        member = link[member]
    return member >= 0


@njit
def _bucket_of(place: int, look: int, buckets: int) -> int:
    mixed = (place * 1_000_003 + look) * 6_364_136_223_846_793_005
    return (mixed ^ (mixed >> 32)) & (buckets - 1)


@njit
def _cap(order, place, days, years, day_of_year, settled, most, by) -> None:
    start, count = 0, len(order)
    while start < count:
        stop = start + 1
        while stop < count and place[order[stop]] == place[order[start]]:
            stop += 1
        if stop - start > most:
            _cap_place(order[start:stop], days, years, day_of_year, settled, most, by)
        start = stop


@njit
def _cap_place(members, days, years, day_of_year, settled, most, by) -> None:
    """members: the tiles of one place, settled first, then by rank."""
    count = len(members)
    chosen, taken, left = np.empty(count, np.int64), 0, np.ones(count, np.bool_)
    # to the nearest chosen date, in days on the circle of the year
    gap, nearest, new_year = np.full(count, _YEAR), np.full(count, -1), np.ones(count, np.bool_)
    while taken < count:
        pick = -1
        for k in range(count):
            if not left[k]:
                continue
            if settled[members[k]]:
                pick = k
                break
            if pick < 0 or _adds_more(members[k], members[pick], gap[k], gap[pick], new_year[k], new_year[pick], days):
                pick = k
        if pick < 0 or (taken >= most and not settled[members[pick]]):
            break
        left[pick] = False
        chosen[taken] = members[pick]
        taken += 1
        day = day_of_year[members[pick]]
        for k in range(count):
            if day >= 0 and day_of_year[members[k]] >= 0:
                apart = abs(day - day_of_year[members[k]])
                apart = min(apart, _YEAR - apart)
                if nearest[k] < 0 or apart < gap[k]:
                    gap[k], nearest[k] = apart, members[pick]
                new_year[k] = new_year[k] and years[members[k]] != years[members[pick]]
    for k in range(count):
        if left[k]:
            by[members[k]] = nearest[k] if nearest[k] >= 0 else chosen[0]


@njit
def _adds_more(i: int, j: int, gap_i: float, gap_j: float, new_i: bool, new_j: bool, days) -> bool:
    """Whether tile i is chosen before tile j of lower rank."""
    undated = np.iinfo(np.int64).max
    if (days[i] == undated) != (days[j] == undated):
        return days[j] == undated
    if gap_i != gap_j:
        return gap_i > gap_j
    if gap_i == _YEAR:  # nothing to be far from: the earliest
        return days[i] < days[j]
    return new_i and not new_j
