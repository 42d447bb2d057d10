"""Spatially disjoint splits: a tile is train or val by the ground that it covers, and guard (left out) between them.

No train tile comes within a guard distance of a val tile, whatever the scene, the date or the size of the tiles. Four
ways say where val lies: cells of a grid of the Earth, a region of the user's, tiles chosen by scene or sensor, and for
scenes without a place their name. By cells and by region, what a tile becomes depends on its own footprint and the
settings alone, so that adding scenes moves no tile.

Footprints are float64 (n, points, 2): rings of lon and lat in degrees, not closed, with longitudes that may pass 180.
Their edges may be taken as geodesics or as straight in lon and lat; a box of a footprint holds both. Distances are
angles on the sphere of latitude and longitude: with `_SMALLEST_RADIUS_KM` they come out too small rather than too
large, so that a guard holds on the WGS 84 ellipsoid and along great circles of the mean sphere alike.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from scipy.spatial import KDTree
from shapely.geometry.base import BaseGeometry

from sarsense.errors import SceneError, SettingError
from sarsense.geojson import read_geojson

Split = Literal["train", "val", "guard"]
_KM_PER_DEGREE = 111.195
_SMALLEST_RADIUS_KM, _LARGEST_RADIUS_KM = 6335.439, 6399.594
"""of curvature of WGS 84: of the meridian at the equator, and at the poles"""
_SECTORS = 12
"""of longitude, within each of which the columns of all rows are numbered from one meridian"""
_STEPS = tuple(int(fraction * 2**64) for fraction in (0.5698402909980532, 0.7548776662466927, 0.6180339887498949))
"""by which the place in the sequence moves with a row, a column and a sector, as fractions of 2**64 (Roberts, 'The
unreasonable effectiveness of quasirandom sequences', 2018: powers of the plastic number; and the golden ratio)"""


_TURNS = (-360.0, 0.0, 360.0)


def _is_val(identity: str, seed: int, val_share: float) -> bool:
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < val_share * 2**64


def split_of_place(place_name: str, seed: int, val_share: float) -> Split:
    """The split of all tiles of an unplaced scene."""
    return "val" if _is_val(f"place:{place_name}", seed, val_share) else "train"


@dataclass(frozen=True)
class CellGrid:
    """Cells of about equal area: rows of one height, each of a whole number of columns around the globe.

    The count of columns is the one that brings a cell's area nearest to the square of the height: on the sphere all
    are within 5 % of it, and within 1.3 % from five rows off the poles. Rows count northwards from the equator (the
    first south of it is -1), columns eastwards from 180 degrees west.
    """

    cell_km: float
    """side of a cell, of which a whole number must make the way from equator to pole: 50 stands for 50.04"""

    def __post_init__(self) -> None:
        if not 0.1 <= self.cell_km <= 5000.0:
            raise SettingError(f"cells of the splits: a side from 0.1 to 5000 km expected, {self.cell_km:g} km found")

    @property
    def rows(self) -> int:
        """From the equator to a pole."""
        return max(1, round(90.0 * _KM_PER_DEGREE / self.cell_km))

    @property
    def height(self) -> float:
        """Of a row, in degrees."""
        return 90.0 / self.rows

    def row_of(self, lat: np.ndarray) -> np.ndarray:
        """Row (int64) of latitudes from -90 to 90, any shape."""
        return np.clip(np.floor(lat / self.height).astype(np.int64), -self.rows, self.rows - 1)

    def columns(self, row: np.ndarray) -> np.ndarray:
        """How many columns (int64, at least 3) these rows have, any shape."""
        height = np.radians(self.height)
        band = np.sin((row + 1) * height) - np.sin(row * height)
        return np.maximum(np.rint(2 * np.pi * band / height**2).astype(np.int64), 3)

    def column_of(self, lon: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Column (int64) of longitudes in these rows, any shape; not wrapped: longitudes beyond 180 count on."""
        return np.floor((lon + 180.0) / 360.0 * self.columns(row)).astype(np.int64)

    def is_val(self, row: np.ndarray, column: np.ndarray, seed: int, val_share: float) -> np.ndarray:
        """Whether cells (int64, any shape, columns also unwrapped) are val, bool.

        A lattice of low discrepancy, not a hash of each cell: of a few dozen cells side by side about the share asked
        for is val, too. Its place is hashed from the seed. All in integers modulo 2**64, the same on every machine.
        """
        if val_share >= 1.0:
            return np.ones(np.broadcast(row, column).shape, bool)
        around = self.columns(row)
        column = column % around
        # rows differ in their count of columns; counted all from 180 degrees west, the lattice would be sheared, and at
        # some places on Earth so that whole columns of cells are val and none beside them
        sector = (2 * column + 1) * _SECTORS // (2 * around)
        column = column - (2 * sector + 1) * around // (2 * _SECTORS)
        start = int.from_bytes(hashlib.sha256(f"cells:{seed}".encode()).digest()[:8], "big")
        with np.errstate(over="ignore"):
            value = np.full(row.shape, start, np.uint64)
            for step, index in zip(_STEPS, (row, column, sector), strict=True):
                value = value + np.uint64(step) * index.astype(np.uint64)
        return value < np.uint64(int(val_share * 2**64))


def split_of_cells(footprints: np.ndarray, seed: int, val_share: float, cell_km: float, guard_km: float) -> np.ndarray:
    """Splits ('train', 'val' or 'guard'; <U5, (n,)) by the cells of a `CellGrid` that footprints lie in.

    A tile is of the side, train or val, of the cell under the middle of its box. A train tile keeps `guard_km` and
    `reach` from all val cells; a val tile reaches beyond them by no more than `reach`. `reach` is a twentieth of a
    cell for small shares and shrinks for larger ones: along a border both sides then lose tiles in the proportion of
    their shares, with tiles of about a tenth of a cell, so that the share of what is left is the one asked for.
    SettingError for settings out of range.
    """
    if not 0.0 <= val_share <= 1.0:
        raise SettingError(f"splits: a share of val from 0 to 1 expected, {val_share:g} found")
    grid, guard_km = CellGrid(cell_km), _checked_guard(guard_km)
    reach = cell_km / 20 * (1 - 2 * val_share) - guard_km * val_share
    boxes = _boxes(footprints)
    middle = boxes[:, :2] / 2 + boxes[:, 2:] / 2
    row = grid.row_of(middle[:, 1])
    side = grid.is_val(row, grid.column_of(middle[:, 0], row), seed, val_share)
    away_km = np.where(side, -reach, guard_km + reach)
    boxes = np.where(away_km[:, None] < 0, _shrunk(boxes, -away_km), _grown(boxes, away_km))
    clear = _on_one_side(grid, boxes, side, seed, val_share)
    return np.where(clear, np.where(side, "val", "train"), "guard")


def _on_one_side(grid: CellGrid, boxes: np.ndarray, side: np.ndarray, seed: int, val_share: float) -> np.ndarray:
    """Whether all cells that a box (n, 4) touches are val, where `side`, or train, where not: bool (n,)."""
    first, last = grid.row_of(boxes[:, 1]), grid.row_of(boxes[:, 3])
    clear = np.ones(len(boxes), bool)
    if val_share in (0.0, 1.0):
        return clear
    left = np.arange(len(boxes))
    row = first.copy()
    while len(left):
        here = row[left]
        column, end = (grid.column_of(boxes[left, edge], here) for edge in (0, 2))
        active = np.arange(len(left))
        while len(active):
            same = grid.is_val(here[active], column[active], seed, val_share) == side[left[active]]
            clear[left[active[~same]]] = False
            column[active] += 1
            active = active[same]
            active = active[column[active] <= end[active]]
        row[left] += 1
        left = left[clear[left] & (row[left] <= last[left])]
    return clear


def split_of_region(footprints: np.ndarray, region: BaseGeometry, guard_km: float) -> np.ndarray:
    """Splits (<U5, (n,)) by a region in lon and lat, as `read_region` gives it.

    A tile within the region is val, one whose box keeps `guard_km` from it is train.
    """
    guard_km = _checked_guard(guard_km)
    # footprints pass 180 degrees, regions end there
    world = shapely.union_all(
        [shapely.transform(region, lambda xy, turn=turn: xy + np.array([turn, 0.0])) for turn in _TURNS]
    )
    shapely.prepare(world)
    boxes = _boxes(footprints)
    near = np.flatnonzero(shapely.intersects(world, shapely.box(*_grown(boxes, np.full(len(boxes), guard_km)).T)))
    rings = footprints[near] - [1.0, 0.0] * _turn(footprints[near, :, 0])[:, None, None]
    shapes = np.asarray(shapely.polygons(rings))
    around = _global(footprints[near, :, 0])
    shapes[around] = shapely.box(*boxes[near[around]].T)
    split = np.full(len(footprints), "train")
    split[near] = np.where(shapely.covers(world, shapes), "val", "guard")
    return split


def guard_against(footprints: np.ndarray, chosen: np.ndarray, guard_km: float) -> np.ndarray:
    """Splits (<U5, (n,)) by a choice of tiles (bool (n,)): these are val, all others within `guard_km` guard.

    Here, alone, a tile's split hangs on others: choosing more takes tiles from train.
    """
    reach = _checked_guard(guard_km) / _SMALLEST_RADIUS_KM
    rings = _Rings.of(footprints)
    guarded = np.zeros(len(footprints), bool)
    chosen_at = np.flatnonzero(chosen)
    sizes = np.frexp(rings.outer[chosen_at])[1]
    for size in np.unique(sizes):
        members = chosen_at[sizes == size]
        tree = KDTree(rings.centres[members])
        asking = np.flatnonzero(~chosen & ~guarded)
        chord, nearest = tree.query(rings.centres[asking])
        angle = _angle(chord)
        inside = angle <= rings.inner[asking] + rings.inner[members[nearest]] + reach
        guarded[asking[inside]] = True
        limit = rings.outer[asking] + rings.outer[members].max() + reach
        unclear = ~inside & (angle <= limit)
        for tile, other in _pairs(tree, rings, asking[unclear], limit[unclear]):
            guarded[tile[rings.within(tile, members[other], reach)]] = True
    return np.where(chosen, "val", np.where(guarded, "guard", "train"))


def _pairs(
    tree: KDTree, rings: _Rings, tiles: np.ndarray, limit: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles (int64) and the members of the tree whose centres lie within `limit` radians, some pairs at a time."""
    for start in range(0, len(tiles), 256):
        some = tiles[start : start + 256]
        chord = 2 * np.sin(np.minimum(limit[start : start + 256], np.pi) / 2)
        # a little more than the limit, for rounding
        found = tree.query_ball_point(rings.centres[some], chord * (1 + 1e-9) + 1e-15)
        tile = np.repeat(some, [len(members) for members in found])
        other = np.concatenate([np.asarray(members, np.int64) for members in found])
        for first in range(0, len(tile), 20_000):
            yield tile[first : first + 20_000], other[first : first + 20_000]


@dataclass(frozen=True)
class _Rings:
    """n footprints on the unit sphere; radii and slack in radians."""

    points: np.ndarray
    """float64 (n, points, 3)"""
    centres: np.ndarray
    """float64 (n, 3)"""
    outer: np.ndarray
    """radius about the centre that holds the footprint"""
    inner: np.ndarray
    """radius about the centre that the footprint holds"""
    slack: np.ndarray
    """by how much edges straight in lon and lat differ from geodesics"""

    @staticmethod
    def of(footprints: np.ndarray) -> _Rings:
        _check(footprints)
        points = _unit(footprints[..., 0], footprints[..., 1])
        centres = points.mean(axis=1)
        centres /= np.maximum(np.linalg.norm(centres, axis=-1, keepdims=True), 1e-12)
        following = np.roll(points, -1, axis=1)
        step = np.roll(footprints, -1, axis=1) - footprints
        step[..., 0] = (step[..., 0] + 180.0) % 360.0 - 180.0
        halfway = footprints + step / 2
        middle = points + following
        middle /= np.maximum(np.linalg.norm(middle, axis=-1, keepdims=True), 1e-12)
        bend = np.linalg.norm(_unit(halfway[..., 0], halfway[..., 1]) - middle, axis=-1)
        # edges bend most near their middle
        slack = 1.5 * _angle(bend.max(axis=1))
        radii = _angle(np.linalg.norm(points - centres[:, None], axis=-1))
        half_edge = _angle(np.linalg.norm(following - points, axis=-1)).max(axis=1) / 2
        inner = np.sqrt(np.maximum(radii.min(axis=1) ** 2 - half_edge**2, 0.0))
        return _Rings(points, centres, radii.max(axis=1) + slack, inner, slack)

    def within(self, one: np.ndarray, other: np.ndarray, reach: float) -> np.ndarray:
        """Whether footprints `one[i]` and `other[i]` come within `reach` radians (or nearly so), bool."""
        middle = self.centres[one] + self.centres[other]
        middle /= np.maximum(np.linalg.norm(middle, axis=-1, keepdims=True), 1e-12)
        # two directions across: the axis that lies flattest, made perpendicular, and the third
        axis = np.eye(3)[np.abs(middle).argmin(axis=1)]
        right = np.cross(axis, middle)
        right /= np.linalg.norm(right, axis=-1, keepdims=True)
        frame = np.stack([right, np.cross(middle, right), middle], axis=-1)
        # gnomonic: geodesics are straight, and no distance comes out smaller, or larger than 1 / lowest**2 times
        first, second = (self.points[which] @ frame for which in (one, other))
        lowest = np.minimum(first[..., 2].min(axis=1), second[..., 2].min(axis=1))
        near = lowest < 0.9
        flat = np.flatnonzero(~near)
        shape, to = (shapely.polygons(points[flat, :, :2] / points[flat, :, 2:]) for points in (first, second))
        limit = (reach + self.slack[one] + self.slack[other])[flat] / lowest[flat] ** 2
        near[flat] = shapely.dwithin(shape, to, limit)
        return near


def read_region(path: Path) -> BaseGeometry:
    """The union of the polygons of a GeoJSON file, for `split_of_region`. Raises SettingError."""
    names, polygons = read_geojson(path)
    for name, polygon in zip(names, polygons, strict=True):
        if polygon.geom_type not in ("Polygon", "MultiPolygon"):
            raise SettingError(
                f"{path}: {name}: expected Polygon or MultiPolygon, found {polygon.geom_type}; keep the areas of val"
            )
        if not polygon.is_valid:
            reason = shapely.is_valid_reason(polygon)
            raise SettingError(f"{path}: {name}: expected an area without self-intersections, found {reason}; mend it")
    return shapely.union_all(polygons)


def read_names(path: Path) -> tuple[str, ...]:
    """Names or glob patterns of scenes, one a line of a text file; from # on, at a line's start or after a space, a
    comment. SettingError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: a text file of scene names expected, {error} found: check the path") from None
    names = tuple(name for line in lines if (name := re.sub(r"(^|\s)#.*", "", line).strip()))
    if not names:
        raise SettingError(f"{path}: a scene name or pattern a line expected, none found: list the scenes of val")
    return names


def matches(names: Sequence[str], patterns: Sequence[str]) -> np.ndarray:
    """Whether each name is one of the patterns or fits one (* ? [...] as in a shell, * also over /), bool (names,)."""
    listed = set(patterns)
    glob = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)")
    return np.array([name in listed or glob.match(name) is not None for name in names], bool)


def _checked_guard(guard_km: float) -> float:
    if not 0.0 <= guard_km <= 5000.0:
        raise SettingError(f"splits: a guard from 0 to 5000 km expected, {guard_km:g} km found")
    return guard_km


def _check(footprints: np.ndarray) -> None:
    """SceneError where footprints lie nowhere."""
    lost = ~np.isfinite(footprints).all(axis=(1, 2)) | (np.abs(footprints[..., 1]) > 90.0).any(axis=1)
    if lost.any():
        raise SceneError(
            f"footprints: finite lon and lat expected, found none for {lost.sum()} of {len(footprints)} tiles: "
            "check the scene's georeference"
        )


def _turn(lon: np.ndarray) -> np.ndarray:
    """Degrees (n,) to take from longitudes (n, points) for their middle to lie from -180 to 180."""
    return 360.0 * np.floor((lon.min(axis=1) / 2 + lon.max(axis=1) / 2 + 180.0) / 360.0)


def _global(lon: np.ndarray) -> np.ndarray:
    """Whether rings with these longitudes (n, points) go around a pole, bool (n,): somewhere longitude must jump."""
    return _longest_step(lon) >= 180.0


def _longest_step(lon: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(np.diff(lon, axis=1)).max(axis=1), np.abs(lon[:, 0] - lon[:, -1]))


def _boxes(footprints: np.ndarray) -> np.ndarray:
    """West, south, east, north (n, 4) of footprints, the middle from 180 west to 180 east.

    A geodesic edge passes poleward of its ends; a footprint around a pole has all longitudes, up to the pole.
    """
    _check(footprints)
    lon, lat = footprints[..., 0], footprints[..., 1]
    step, turn = _longest_step(lon), _turn(lon)
    west, south, east, north = lon.min(axis=1) - turn, lat.min(axis=1), lon.max(axis=1) - turn, lat.max(axis=1)
    narrowing = np.cos(np.radians(np.minimum(step, 180.0)) / 2)
    bulged_south, bulged_north = (
        np.degrees(np.arctan2(np.tan(np.radians(edge)), narrowing)) for edge in (south, north)
    )
    south, north = np.minimum(south, bulged_south), np.maximum(north, bulged_north)
    around = (step >= 180.0) | (east - west >= 360.0)
    return np.stack([np.where(around, -180.0, west), south, np.where(around, 180.0, east), north], axis=-1)


def _grown(boxes: np.ndarray, km: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) that hold all ground within `km` (n,), where above 0, of these."""
    reach = np.maximum(km, 0.0) / _SMALLEST_RADIUS_KM
    west, south, east, north = boxes.T
    poleward = np.radians(np.maximum(np.abs(south), np.abs(north)))
    over_pole = poleward + reach >= np.pi / 2 - 1e-12
    # what is within reach of a point goes furthest east where its meridian touches the circle, poleward of the point
    wider = np.degrees(np.arcsin(np.minimum(np.sin(reach) / np.maximum(np.cos(poleward), 1e-12), 1.0)))
    west, east = west - wider, east + wider
    around = over_pole | (east - west >= 360.0)
    return np.stack(
        [
            np.where(around, -180.0, west),
            np.maximum(south - np.degrees(reach), -90.0),
            np.where(around, 180.0, east),
            np.minimum(north + np.degrees(reach), 90.0),
        ],
        axis=-1,
    )


def _shrunk(boxes: np.ndarray, km: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) with the same middle, from which all ground of these is within `km` (n,), where above 0."""
    west, south, east, north = boxes.T
    # as much along both axes: a corner moves by their diagonal, 0.99 of what is allowed
    inset = np.degrees(0.7 * np.maximum(km, 0.0) / _LARGEST_RADIUS_KM)
    equatorward = np.where(south * north <= 0, 0.0, np.minimum(np.abs(south), np.abs(north)))
    in_lon = inset / np.maximum(np.cos(np.radians(equatorward)), 1e-12)
    in_lat, in_lon = np.minimum(inset, (north - south) / 2), np.minimum(in_lon, (east - west) / 2)
    return np.stack([west + in_lon, south + in_lat, east - in_lon, north - in_lat], axis=-1)


def _unit(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 3)."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _angle(chord: np.ndarray) -> np.ndarray:
    """Radians under which the unit sphere's centre sees a chord."""
    return 2 * np.arcsin(np.minimum(chord / 2, 1.0))
