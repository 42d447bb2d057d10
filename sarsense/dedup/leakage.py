"""Tiles near the footprints of evaluation sets: what a model is tested on, it should not have seen.

Evaluation footprints come as GeoJSON (RFC 7946): lon and lat in degrees, edges straight in lon and lat, cut at 180
degrees or written past it. A tile is near where the shortest way over the ellipsoid between its footprint and a
geometry is at most the distance. No near tile is missed; what is called near lies within the distance, 0.5 per cent
and 4 m of it.

Boundaries are cut into short pieces, which a tree of their middles finds. A geometry that has no piece near a tile
either contains the tile whole, and so its centre, or is far from it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import shapely
from scipy.spatial import KDTree

from sarsense.compiled import njit
from sarsense.dedup.overlap import Ground, draw, frame, in_plane, on_earth, to_degrees
from sarsense.errors import SettingError
from sarsense.geojson import lines, read_geojson

_KM_PER_DEGREE = 111.7
"""the longest degree, along a meridian at the poles"""
_RADIUS_KM = 6335.0
"""the smallest radius of curvature of WGS84"""
_PIECE_KM, _SAG_KM = 4.0, 0.001
"""a piece is no longer, and no farther from its chord"""
_MAX_KM = 500.0
_CHUNK, _MAX_PAIRS = 1 << 15, 1 << 21
_DISTANCE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(km|m)?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Evaluation:
    """The places of evaluation sets."""

    names: tuple[str, ...]
    """of each geometry: its feature's `name`, `id` or `title`, or 'feature k', counted from 1"""
    geometries: np.ndarray
    """object (g,): shapely geometries, lon and lat in degrees"""


@dataclass(frozen=True)
class Near:
    """Tiles near an evaluation footprint, by index, ascending."""

    index: np.ndarray
    """int64 (m,)"""
    geometry: np.ndarray
    """int64 (m,): the nearest geometry; of equally near ones (those that overlap the tile) the first"""
    distance: np.ndarray
    """float64 (m,): km, 0 where they touch or overlap"""


def parse_distance(text: str) -> float:
    """Kilometres of '2km', '500 m' or '2'. Raises SettingError."""
    match = _DISTANCE.fullmatch(text)
    km = float(match[1]) * (0.001 if (match[2] or "km").lower() == "m" else 1.0) if match else math.nan
    if not km <= _MAX_KM:
        raise SettingError(
            f"distance: expected kilometres or metres up to {_MAX_KM:g}km, found '{text}'; try 2km or 500m"
        )
    return km


def read_evaluation(path: Path) -> Evaluation:
    """The geometries of a GeoJSON file. Raises SettingError."""
    names, geometries = read_geojson(path)
    out = np.empty(len(geometries), object)
    out[:] = [one if one.is_valid else shapely.make_valid(one) for one in geometries]
    return Evaluation(names, out)


def near(ground: Ground, geometries: np.ndarray, distance_km: float) -> Near:
    """The tiles within `distance_km` of the geometries (object (g,), as read_evaluation gives them)."""
    start, end, owner = _pieces(geometries)
    nearest, distance = np.full(len(ground.reach), -1), np.full(len(ground.reach), np.inf)
    tiles, containing = _containing(ground, geometries)
    nearest[tiles], distance[tiles] = containing, 0.0
    middle = (start + end) / 2
    half = float(np.linalg.norm(end - start, axis=1).max(initial=0.0)) / 2
    tree = KDTree(middle)
    order = np.argsort(ground.reach, kind="stable")  # tiles of like size together, so that chunks are of like pairs
    for begin in range(0, len(order), _CHUNK):
        tiles = order[begin : begin + _CHUNK]
        around = ground.reach[tiles] + distance_km + half + 2 * _SAG_KM
        closest, _ = tree.query(ground.centres[tiles], distance_upper_bound=float(around.max()) + _SAG_KM)
        tiles, around = tiles[closest <= around], around[closest <= around]
        if not len(tiles):
            continue
        counts = np.cumsum(tree.query_ball_point(ground.centres[tiles], around, return_length=True))
        cuts = np.searchsorted(counts, np.arange(_MAX_PAIRS, int(counts[-1]), _MAX_PAIRS))
        for part in np.split(np.arange(len(tiles)), np.unique(cuts)):
            found = tree.query_ball_point(ground.centres[tiles[part]], around[part])
            stops = np.cumsum([len(pieces) for pieces in found], dtype=np.int64)
            beside = np.fromiter(chain.from_iterable(found), np.int64, stops[-1] if len(stops) else 0)
            _measure_pieces(
                ground.footprints, ground.centres, ground.reach, tiles[part], stops, beside, start, end, owner,
                distance_km, nearest, distance,
            )  # fmt: skip
    index = np.flatnonzero(nearest >= 0)
    return Near(index, nearest[index], distance[index])


def _pieces(geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and end (float64 (p, 3), Earth-centred km) of short pieces of all boundaries, and whose they are."""
    owner, boundaries = lines(geometries)
    starts = [line[:-1] if len(line) > 1 else line for line in boundaries]
    ends = [line[1:] if len(line) > 1 else line for line in boundaries]
    owner = np.repeat(owner, [len(start) for start in starts])
    start, end = np.concatenate(starts), np.concatenate(ends)
    step = np.abs(end - start)
    # the widest parallel that the edge meets, and the largest bend of any: no chord is longer, none bends more
    low, high = np.sort(np.abs(np.stack([start[:, 1], end[:, 1]])), axis=0)
    low = np.where(np.sign(start[:, 1]) * np.sign(end[:, 1]) < 0, 0.0, low)
    wide = np.hypot(step[:, 0] * np.cos(np.radians(low)), step[:, 1]) * _KM_PER_DEGREE
    bend = 0.5 * np.where(high < 45, np.sin(np.radians(2 * high)), 1.0)
    sag = 6400.0 * (bend * np.radians(step[:, 0]) ** 2 + np.radians(step[:, 0]) * np.radians(step[:, 1]) * 2) / 8
    count = np.ceil(np.maximum(1.0, np.maximum(wide / _PIECE_KM, np.sqrt(sag / _SAG_KM)))).astype(np.int64)
    edge = np.repeat(np.arange(len(count)), count)
    k = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)

    def at(number: np.ndarray) -> np.ndarray:
        return _on_earth(start[edge] + (end - start)[edge] * (number / count[edge])[:, None])

    return at(k), at(k + 1), owner[edge]


def _containing(ground: Ground, geometries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tiles whose centre lies in a geometry, and the first geometry that it lies in (int64 each)."""
    lon, lat = to_degrees(ground.centres)
    tree = shapely.STRtree(geometries)
    pairs = [tree.query(shapely.points(lon + turn, lat), predicate="intersects") for turn in (-360.0, 0.0, 360.0)]
    tiles, containing = np.concatenate(pairs, axis=1)
    order = np.lexsort((containing, tiles))
    tiles, first = np.unique(tiles[order], return_index=True)
    return tiles, containing[order][first]


@njit
def _on_earth(points: np.ndarray) -> np.ndarray:
    out = np.empty((len(points), 3))
    for k in range(len(points)):
        out[k, 0], out[k, 1], out[k, 2] = on_earth(points[k, 0], points[k, 1])
    return out


@njit
def _measure_pieces(
    footprints: np.ndarray,
    centres: np.ndarray,
    reach: np.ndarray,
    tiles: np.ndarray,
    stops: np.ndarray,
    pieces: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    owner: np.ndarray,
    distance_km: float,
    nearest: np.ndarray,
    distance: np.ndarray,
) -> None:
    """Update `nearest` and `distance` of `tiles`; the pieces beside tile k are pieces[stops[k - 1] : stops[k]]."""
    ring, first = np.empty(footprints.shape[1:]), 0
    for k in range(len(tiles)):
        i = tiles[k]
        draw(footprints[i], centres[i], ring)
        axes = frame(centres[i])
        # the plane shows no way longer than it is by more than this (Lambert's scale across the radius)
        limit = distance_km / math.cos(min(1.0, (reach[i] + distance_km) / (2 * _RADIUS_KM))) + 2 * _SAG_KM
        for piece in pieces[first : stops[k]]:
            p = in_plane(start[piece, 0], start[piece, 1], start[piece, 2], centres[i], axes)
            q = in_plane(end[piece, 0], end[piece, 1], end[piece, 2], centres[i], axes)
            apart = _ring_to_segment(ring, p, q)
            if apart > limit:
                continue
            if apart < distance[i] or (apart == distance[i] and owner[piece] < nearest[i]):
                distance[i], nearest[i] = apart, owner[piece]
        first = stops[k]


@njit
def _ring_to_segment(ring: np.ndarray, p: tuple[float, float], q: tuple[float, float]) -> float:
    """Distance between the area of a simple ring (points, 2) and the segment from p to q; 0 where they meet."""
    closest, inside = math.inf, False
    for k in range(len(ring)):
        a, b = (ring[k - 1, 0], ring[k - 1, 1]), (ring[k, 0], ring[k, 1])
        if (a[1] > p[1]) != (b[1] > p[1]) and p[0] < a[0] + (p[1] - a[1]) / (b[1] - a[1]) * (b[0] - a[0]):
            inside = not inside
        if _side(a, b, p) * _side(a, b, q) < 0 and _side(p, q, a) * _side(p, q, b) < 0:
            return 0.0
        closest = min(
            closest, min(_to_segment(a, p, q), _to_segment(b, p, q)), min(_to_segment(p, a, b), _to_segment(q, a, b))
        )
    return 0.0 if inside else closest


@njit
def _side(a: tuple[float, float], b: tuple[float, float], p: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])


@njit
def _to_segment(p: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    squared = dx * dx + dy * dy
    along = ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / squared if squared > 0 else 0.0
    along = min(1.0, max(0.0, along))
    return math.hypot(p[0] - a[0] - along * dx, p[1] - a[1] - along * dy)
