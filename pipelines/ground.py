"""Which labelled scenes lie on the same ground, so that none of it is both fitted and tested.

Ground is a rectangle in longitude and latitude. What has no place on Earth is told apart by names alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import array_bounds, from_gcps
from rasterio.warp import transform_bounds

from dic3l.evaluate.data import Split
from pipelines.coding import CodedScene
from sarsense.corpus import Corpus

_CROWD, _CELL = 50, 8.0
"""scenes in a row of overlaps that are cut into cells, and the side of a cell in sides of a scene"""
_SLIVER = 1e-3
"""share of the smaller one's ground that two scenes may share and lie beside each other: rounding, warped edges"""


@dataclass(frozen=True)
class Ground:
    """Where the scenes of a data set lie, one entry a scene."""

    footprints: list[shapely.Geometry | None]
    blocks: list[str | None]
    """None: left out, since it lies on the border of two blocks"""
    splits: list[Split | None]
    """the set's own, without the places whose ground a later part of it has too (test before val before train)"""


def footprint(scene: CodedScene) -> shapely.Geometry | None:
    """Bounds in longitude and latitude, -180 to 180; None where the scene is not placed."""
    if scene.crs is None:
        return None
    _, height, width = scene.shape
    if scene.transform is not None:
        a, b, c, d, e, f = scene.transform
        corners = np.array([(a * x + b * y + c, d * x + e * y + f) for x in (0, width) for y in (0, height)])
        (west, south), (east, north) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    else:
        points = [GroundControlPoint(row=row, col=col, x=x, y=y) for row, col, x, y in scene.gcps]
        west, south, east, north = array_bounds(height, width, from_gcps(points))
    west, south, east, north = transform_bounds(CRS.from_user_input(scene.crs), "EPSG:4326", west, south, east, north)
    if west <= east:
        return shapely.box(west, south, east, north)
    # across 180 degrees: what lies on each side of it
    return shapely.union(shapely.box(west, south, 180.0, north), shapely.box(-180.0, south, east, north))


def ground_of(
    footprints: Sequence[shapely.Geometry | None], named: Sequence[str | None], splits: Sequence[Split | None]
) -> Ground:
    """Blocks of scenes: the same for those that share what `named` says or that touch on the ground, directly or
    through others.

    Where one row of overlaps holds most of a large set, as strips do that were flown over one town, cells of the ground
    are the blocks in its place, and scenes across their borders are left out.
    """
    first, second = _pairs(footprints)
    block = _joined(len(footprints), named, first, second)
    names = [named[number] or f"{number:04d}" for number in block]
    found: list[str | None] = list(names)
    most, _ = Counter(block).most_common(1)[0]
    members = [i for i, number in enumerate(block) if number == most and footprints[i] is not None]
    if len(members) >= _CROWD and len(members) > len(block) / 2:
        for i, cell in zip(members, _cells([footprints[i] for i in members]), strict=True):
            found[i] = cell
    return Ground(list(footprints), found, _on_one_side(footprints, splits))


def train_ground(corpus: Corpus) -> shapely.STRtree:
    """Footprints of the train tiles of a corpus."""
    table = corpus.tiles("train", columns=["footprint"])
    return shapely.STRtree(shapely.from_wkb([value for value in table["footprint"].to_pylist() if value is not None]))


def _pairs(footprints: Sequence[shapely.Geometry | None]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the scenes of each pair that meets, in both orders."""
    placed = np.array([i for i, shape in enumerate(footprints) if shape is not None], np.int64)
    shapes = np.array([shape for shape in footprints if shape is not None], object)
    left, right = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    apart = left != right
    return placed[left[apart]], placed[right[apart]]


def _joined(count: int, named: Sequence[str | None], first: np.ndarray, second: np.ndarray) -> list[int]:
    """The smallest number of its component for each of `count` scenes, of the graph of equal names and of pairs."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    of_name: dict[str, int] = {}
    same = [(of_name.setdefault(name, i), i) for i, name in enumerate(named) if name is not None]
    for i, j in [*same, *zip(first.tolist(), second.tolist(), strict=True)]:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return [root(i) for i in range(count)]


def _cells(shapes: Sequence[shapely.Geometry | None]) -> list[str | None]:
    """The cell of each scene in a grid of squares whose side is that of `_CELL` scenes; None: it lies in two."""
    bounds = shapely.bounds(np.array(shapes, object))
    sides = np.median(bounds[:, 2:] - bounds[:, :2], axis=0) * _CELL
    low = np.floor((bounds[:, :2] - bounds[:, :2].min(axis=0)) / sides).astype(int)
    high = np.floor((bounds[:, 2:] - bounds[:, :2].min(axis=0)) / sides).astype(int)
    return [f"cell {a[0]}-{a[1]}" if (a == b).all() else None for a, b in zip(low, high, strict=True)]


def _on_one_side(footprints: Sequence[shapely.Geometry | None], splits: Sequence[Split | None]) -> list[Split | None]:
    rank = {"train": 0, "val": 1, "test": 2, None: -1}
    found = list(splits)
    if not any(splits):
        return found
    for i, j in zip(*(part.tolist() for part in _pairs(footprints)), strict=True):
        if rank[splits[i]] < rank[splits[j]] and splits[i] is not None:
            a, b = footprints[i], footprints[j]
            assert a is not None and b is not None
            if a.intersection(b).area > _SLIVER * min(a.area, b.area):
                found[i] = None
    return found
