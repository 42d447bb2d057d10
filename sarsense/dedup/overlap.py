"""Footprints on the ground: how large they are, how much of one another they cover, and which of them meet.

All lengths are of the WGS84 ellipsoid. A footprint is looked at in the plane that touches the ellipsoid at its centre:
azimuths are kept and a point lies at its straight-line distance through the Earth. On a sphere that is Lambert's
azimuthal equal-area projection (Snyder, 1987, USGS PP 1395, eq. 24-2 to 24-4); on the ellipsoid areas of footprints up
to 200 km are true to 1e-5, and there are no seams: neither 180 degrees nor the poles are special. Edges of a footprint
are straight in that plane.

`Index` finds the footprints that may meet a given one among those entered *so far*. A greedy rule ("drop what is
covered by what stays") enters only what stays, so that a hundred copies of a tile cost a hundred look-ups and not
ten thousand pairs. It is a hash grid in three dimensions, one grid a size class of factor 2: large footprints do not
make the cells of small ones large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sarsense.compiled import njit
from sarsense.errors import CorpusError

_A, _E2 = 6378.137, 0.00669437999014
"""WGS84: equatorial radius in km, first eccentricity squared"""
_RINGS_A_CELL, _FEW = 4, 8


@dataclass(frozen=True)
class Ground:
    """n footprints with what the index and the overlaps need of them."""

    footprints: np.ndarray
    """float64 (n, points, 2): rings of lon and lat in degrees, not closed, longitude continuous within a ring"""
    centres: np.ndarray
    """float64 (n, 3): Earth-centred coordinates in km of a point of the ellipsoid amid each ring"""
    reach: np.ndarray
    """float64 (n,): km from the centre to the farthest point of the ring, in a straight line"""
    area: np.ndarray
    """float64 (n,): km2"""

    @classmethod
    def of(cls, footprints: np.ndarray) -> Ground:
        """Raises CorpusError where a footprint is no place on Earth or has no area."""
        footprints = np.ascontiguousarray(footprints, np.float64)
        if footprints.ndim != 3 or footprints.shape[1] < 3 or footprints.shape[2] != 2:
            raise CorpusError(f"footprints: expected (n, 3 or more, 2) lon and lat, found {footprints.shape}")
        count = len(footprints)
        centres, reach, area = np.empty((count, 3)), np.empty(count), np.empty(count)
        _measure(footprints, centres, reach, area)
        bad = np.flatnonzero(~(area > 0))
        if len(bad):
            raise CorpusError(
                f"footprint {bad[0]}: expected a ring of lon and lat with an area, found "
                f"{footprints[bad[0], :2].tolist()}, ...; build the corpus again"
            )
        return cls(footprints, centres, reach, area)


def overlap_areas(ground: Ground, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """km2 (float64) of ground that footprints i[k] and j[k] share; i, j: int64 of equal length."""
    out = np.empty(len(i))
    _overlap_areas(ground.footprints, ground.centres, ground.reach, i, j, out)
    return out


def to_degrees(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """lon and lat (float64 (n,) each, degrees) of points of the ellipsoid, Earth-centred km (n, 3)."""
    x, y, z = points.T
    return np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, (1.0 - _E2) * np.hypot(x, y)))


class Index(NamedTuple):
    """Which footprints have been entered, by group, size and place. Arrays only: numba's functions take it whole."""

    edges: np.ndarray
    """float64 (classes,): edge in km of the cells of each size class, twice its largest reach, ascending"""
    level: np.ndarray
    """int64 (n,): size class of each footprint"""
    head: np.ndarray
    """int64 (buckets,): the entry that was put last into each bucket, or -1"""
    link: np.ndarray
    """int64 (n x classes,): the entry before it, or -1. Entry n x classes + c is footprint n in the grid of class c"""


def new_index(ground: Ground) -> Index:
    """An index with room for all footprints of `ground`, none entered. 8 to 24 bytes a footprint and size class."""
    count = len(ground.reach)
    octave = np.floor(np.log2(ground.reach)).astype(np.int64) if count else np.zeros(0, np.int64)
    present, level = np.unique(octave, return_inverse=True)
    edges = np.zeros(max(1, len(present)))
    np.maximum.at(edges, level, 2.0 * ground.reach)
    buckets = 1 << max(4, math.ceil(math.log2(max(1, count * len(present)))))
    return Index(edges, level.astype(np.int64), np.full(buckets, -1), np.full(count * len(edges), -1))


@njit
def enter(index: Index, centres: np.ndarray, group: np.ndarray, i: int) -> None:
    """Enter footprint i: in the grid of its own size class and, for larger ones that look for it, in all above."""
    classes = len(index.edges)
    for c in range(index.level[i], classes):
        x, y, z = _cell(centres[i], index.edges[c])
        bucket = _bucket(group[i], 2 * c + (c == index.level[i]), x, y, z, len(index.head))
        index.link[i * classes + c] = index.head[bucket]
        index.head[bucket] = i * classes + c


@njit
def meeting(
    index: Index, centres: np.ndarray, reach: np.ndarray, group: np.ndarray, i: int, found: np.ndarray
) -> tuple[np.ndarray, int]:
    """The entered footprints of i's group whose reach meets that of i: found[:count]; `found` grows when full."""
    classes, mine, count = len(index.edges), index.level[i], 0
    for c in range(mine, classes):
        edge = index.edges[c]
        around = reach[i] + edge / 2
        x0, y0, z0 = _cell(centres[i] - around, edge)
        x1, y1, z1 = _cell(centres[i] + around, edge)
        # in the grid of its own class also what is smaller; in the grids above only what is of their size
        for own in range(0 if c == mine else 1, 2):
            for x in range(x0, x1 + 1):
                for y in range(y0, y1 + 1):
                    for z in range(z0, z1 + 1):
                        entry = index.head[_bucket(group[i], 2 * c + own, x, y, z, len(index.head))]
                        while entry >= 0:
                            j = entry // classes
                            if (
                                entry - j * classes == c
                                and (index.level[j] == c) == (own == 1)
                                and group[j] == group[i]
                                and _distance(centres[i], centres[j]) <= reach[i] + reach[j]
                                and _cell(centres[j], edge) == (x, y, z)
                            ):
                                if count == len(found):
                                    found = np.concatenate((found, np.empty_like(found)))
                                found[count] = j
                                count += 1
                            entry = index.link[entry]
    return found, count


@njit
def _cell(point: np.ndarray, edge: float) -> tuple[int, int, int]:
    return math.floor(point[0] / edge), math.floor(point[1] / edge), math.floor(point[2] / edge)


@njit
def _bucket(group: int, grid: int, x: int, y: int, z: int, buckets: int) -> int:
    mixed = group * 1_000_003 + grid
    for value in (x, y, z):
        mixed = (mixed ^ (mixed >> 29)) * 6_364_136_223_846_793_005 + value
    mixed = (mixed ^ (mixed >> 31)) * 2_685_821_657_736_338_717
    return (mixed ^ (mixed >> 32)) & (buckets - 1)


@njit
def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2)


@njit
def on_earth(lon: float, lat: float) -> tuple[float, float, float]:
    """Earth-centred coordinates in km of a point of the ellipsoid, from degrees."""
    sin, cos = math.sin(math.radians(lat)), math.cos(math.radians(lat))
    radius = _A / math.sqrt(1.0 - _E2 * sin * sin)
    turn = math.radians(lon)
    return radius * cos * math.cos(turn), radius * cos * math.sin(turn), radius * (1.0 - _E2) * sin


@njit
def frame(centre: np.ndarray) -> tuple[float, float, float, float]:
    """The plane that touches the ellipsoid at a point of it: cos, sin of its longitude and cos, sin of its latitude."""
    across = math.hypot(centre[0], centre[1])
    up = math.hypot(across, centre[2] / (1.0 - _E2))
    if across < 1e-9:  # at a pole any meridian will do
        return 1.0, 0.0, 0.0, math.copysign(1.0, centre[2])
    return centre[0] / across, centre[1] / across, across / up, centre[2] / (1.0 - _E2) / up


@njit
def in_plane(
    x: float, y: float, z: float, centre: np.ndarray, axes: tuple[float, float, float, float]
) -> tuple[float, float]:
    """km east and north of `centre` (with its `frame`) of a point in Earth-centred coordinates."""
    cos_lon, sin_lon, cos_lat, sin_lat = axes
    x, y, z = x - centre[0], y - centre[1], z - centre[2]
    outward = cos_lon * x + sin_lon * y
    east, north = cos_lon * y - sin_lon * x, cos_lat * z - sin_lat * outward
    flat = math.hypot(east, north)
    stretch = math.sqrt(x * x + y * y + z * z) / flat if flat > 0 else 0.0
    return east * stretch, north * stretch


@njit
def draw(footprint: np.ndarray, centre: np.ndarray, out: np.ndarray) -> float:
    """Write the ring (points, 2) in km in the plane at `centre` into `out`, anticlockwise; returns its area in km2."""
    axes, points = frame(centre), len(footprint)
    for k in range(points):
        x, y, z = on_earth(footprint[k, 0], footprint[k, 1])
        out[k, 0], out[k, 1] = in_plane(x, y, z, centre, axes)
    doubled = 0.0
    for k in range(points):
        doubled += out[k - 1, 0] * out[k, 1] - out[k, 0] * out[k - 1, 1]
    if doubled < 0:
        out[:] = out[::-1].copy()
    return abs(doubled) / 2


@njit
def _measure(footprints: np.ndarray, centres: np.ndarray, reach: np.ndarray, area: np.ndarray) -> None:
    count, points = footprints.shape[:2]
    ring = np.empty((points, 2))
    for i in range(count):
        x = y = z = 0.0
        for k in range(points):
            px, py, pz = on_earth(footprints[i, k, 0], footprints[i, k, 1])
            x, y, z = x + px / points, y + py / points, z + pz / points
        # the mean lies within the Earth: up to the ellipsoid, along its normal near enough
        lat = math.degrees(math.atan2(z, (1.0 - _E2) * math.hypot(x, y)))
        centres[i, 0], centres[i, 1], centres[i, 2] = on_earth(math.degrees(math.atan2(y, x)), lat)
        area[i] = draw(footprints[i], centres[i], ring)
        reach[i] = 0.0
        for k in range(points):
            reach[i] = max(reach[i], math.hypot(ring[k, 0], ring[k, 1]))


@njit
def _overlap_areas(
    footprints: np.ndarray, centres: np.ndarray, reach: np.ndarray, i: np.ndarray, j: np.ndarray, out: np.ndarray
) -> None:
    a, b = np.empty(footprints.shape[1:]), np.empty(footprints.shape[1:])
    for k in range(len(i)):
        out[k] = 0.0
        if _distance(centres[i[k]], centres[j[k]]) <= reach[i[k]] + reach[j[k]]:
            draw(footprints[i[k]], centres[i[k]], a)
            draw(footprints[j[k]], centres[i[k]], b)
            out[k] = shared_area(a, b)


@njit
def shared_area(a: np.ndarray, b: np.ndarray) -> float:
    """Area of the intersection of two simple anticlockwise rings (points, 2), convex or not.

    The ground under an edge, down to a common bottom, counts once more for an upper edge and once less for a lower
    one. So the intersection is a sum over pairs of edges of the integral of the lower of two straight lines: no
    intersection points to find, and nothing special about edges that touch or coincide.
    """
    bottom = min(a[:, 1].min(), b[:, 1].min())
    total = 0.0
    for k in range(len(a)):
        ax1, ay1, ax2, ay2 = a[k - 1, 0], a[k - 1, 1] - bottom, a[k, 0], a[k, 1] - bottom
        a_left, a_right = min(ax1, ax2), max(ax1, ax2)
        if a_left == a_right:
            continue
        a_slope, a_sign = (ay2 - ay1) / (ax2 - ax1), 1.0 if ax1 > ax2 else -1.0
        for m in range(len(b)):
            bx1, bx2 = b[m - 1, 0], b[m, 0]
            left, right = max(a_left, min(bx1, bx2)), min(a_right, max(bx1, bx2))
            if left >= right:
                continue
            by1, by2 = b[m - 1, 1] - bottom, b[m, 1] - bottom
            b_slope, sign = (by2 - by1) / (bx2 - bx1), a_sign if bx1 > bx2 else -a_sign
            a_from, a_to = ay1 + (left - ax1) * a_slope, ay1 + (right - ax1) * a_slope
            b_from, b_to = by1 + (left - bx1) * b_slope, by1 + (right - bx1) * b_slope
            total += sign * (right - left) * _mean_of_lower(a_from, a_to, b_from, b_to)
    return max(0.0, total)


@njit
def _mean_of_lower(a_from: float, a_to: float, b_from: float, b_to: float) -> float:
    before, after = a_from - b_from, a_to - b_to
    if before <= 0 and after <= 0:
        return (a_from + a_to) / 2
    if before >= 0 and after >= 0:
        return (b_from + b_to) / 2
    cross = before / (before - after)
    middle = a_from + cross * (a_to - a_from)
    first, last = (a_from, b_to) if before < 0 else (b_from, a_to)
    return cross * (first + middle) / 2 + (1.0 - cross) * (middle + last) / 2


@njit
def united_area(clip: np.ndarray, rings: np.ndarray) -> float:
    """Area of `clip` (points, 2) that the union of `rings` (k, points, 2) covers; all simple and anticlockwise.

    Where no two of a few rings overlap (tiles of one scene), it is the sum of their parts. Otherwise `clip` is cut into
    cells of about four rings each: thousands of small rings in a large one cost their number and not its square.
    """
    if _apart(rings):
        return sum([shared_area(clip, ring) for ring in rings])
    cells = math.ceil(math.sqrt(len(rings) / _RINGS_A_CELL))
    x0, y0 = clip[:, 0].min(), clip[:, 1].min()
    width, height = (clip[:, 0].max() - x0) / cells, (clip[:, 1].max() - y0) / cells
    bounds = np.empty((len(rings), 4))
    for k in range(len(rings)):
        bounds[k, 0], bounds[k, 1] = rings[k, :, 0].min(), rings[k, :, 0].max()
        bounds[k, 2], bounds[k, 3] = rings[k, :, 1].min(), rings[k, :, 1].max()
    total = 0.0
    for row in range(cells):
        for col in range(cells):
            left, low = x0 + col * width, y0 + row * height
            right, high = left + width, low + height
            meets = (bounds[:, 0] < right) & (bounds[:, 1] > left) & (bounds[:, 2] < high) & (bounds[:, 3] > low)
            chosen = np.flatnonzero(meets)
            if len(chosen):
                total += _united_in_box(left, right, low, high, clip, rings, chosen)
    return total


@njit
def _apart(rings: np.ndarray) -> bool:
    if len(rings) > _FEW:
        return False
    for k in range(len(rings)):
        for m in range(k):
            # neighbours on one grid share an edge, but for rounding
            if shared_area(rings[k], rings[m]) > 1e-9 * np.ptp(rings[k, :, 0]) * np.ptp(rings[k, :, 1]):
                return False
    return True


@njit
def _united_in_box(
    left: float, right: float, low: float, high: float, clip: np.ndarray, rings: np.ndarray, chosen: np.ndarray
) -> float:
    """Between two heights at which no edges end or cross, the covered width is linear: one scan line says its mean."""
    box = np.array([[left, low], [right, low], [right, high], [left, high]])
    edges = np.empty((4 + len(clip) + len(chosen) * rings.shape[1], 4))
    owner = np.empty(len(edges), np.int64)
    count = _add_edges(box, 0, low, high, edges, owner, 0)
    count = _add_edges(clip, 1, low, high, edges, owner, count)
    for k in chosen:
        count = _add_edges(rings[k], 2, low, high, edges, owner, count)
    heights = _heights(edges[:count], low, high)
    at, step, who = np.empty(count), np.empty(count, np.int64), np.empty(count, np.int64)
    total = 0.0
    for h in range(1, len(heights)):
        y, events = (heights[h - 1] + heights[h]) / 2, 0
        if not heights[h - 1] < y < heights[h]:
            continue
        for e in range(count):
            x1, y1, x2, y2 = edges[e]
            if (y1 <= y) != (y2 <= y):
                x, k = x1 + (y - y1) / (y2 - y1) * (x2 - x1), events
                while k > 0 and at[k - 1] > x:
                    at[k], step[k], who[k] = at[k - 1], step[k - 1], who[k - 1]
                    k -= 1
                at[k], step[k], who[k] = x, 1 if y2 < y1 else -1, owner[e]
                events += 1
        width, inside = 0.0, np.zeros(3, np.int64)
        for k in range(events):
            if inside[0] > 0 and inside[1] > 0 and inside[2] > 0:
                width += at[k] - at[k - 1]
            inside[who[k]] += step[k]
        total += width * (heights[h] - heights[h - 1])
    return total


@njit
def _add_edges(
    ring: np.ndarray, whose: int, low: float, high: float, edges: np.ndarray, owner: np.ndarray, count: int
) -> int:
    for k in range(len(ring)):
        y1, y2 = ring[k - 1, 1], ring[k, 1]
        if y1 != y2 and max(y1, y2) > low and min(y1, y2) < high:
            edges[count, 0], edges[count, 1], edges[count, 2], edges[count, 3] = ring[k - 1, 0], y1, ring[k, 0], y2
            owner[count] = whose
            count += 1
    return count


@njit
def _heights(edges: np.ndarray, low: float, high: float) -> np.ndarray:
    """The heights from `low` to `high` at which edges (e, 4: x1, y1, x2, y2) end or cross, ascending."""
    out, count = np.empty(4 * len(edges) + 2), 2
    out[0], out[1] = low, high
    for y in edges[:, 1::2].copy().ravel():
        if low < y < high:
            out[count], count = y, count + 1
    for e in range(len(edges)):
        x1, y1, x2, y2 = edges[e]
        for f in range(e):
            x3, y3, x4, y4 = edges[f]
            lower, upper = max(min(y1, y2), min(y3, y4)), min(max(y1, y2), max(y3, y4))
            if lower >= upper:
                continue
            e_slope, f_slope = (x2 - x1) / (y2 - y1), (x4 - x3) / (y4 - y3)
            before = x1 + (lower - y1) * e_slope - x3 - (lower - y3) * f_slope
            after = x1 + (upper - y1) * e_slope - x3 - (upper - y3) * f_slope
            if before * after < 0:
                y = lower + before / (before - after) * (upper - lower)
                if low < y < high:
                    if count == len(out):
                        out = np.concatenate((out, np.empty_like(out)))
                    out[count], count = y, count + 1
    return np.sort(out[:count])
