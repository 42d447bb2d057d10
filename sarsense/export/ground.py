"""Footprints of tiles -> ground of a scene, extent of a corpus: lon and lat, across 180 degrees and around the poles.

Footprints are WKB polygons whose longitudes are continuous: they may pass 180 rather than jump (sarsense.tiling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.polygon import orient

_DIGITS = 6
"""of a degree: a tenth of a metre"""


@dataclass(frozen=True)
class Ground:
    """Where a scene lies."""

    shape: Polygon | MultiPolygon
    """Polygon, or a MultiPolygon cut at 180 degrees; longitudes from -180 to 180, rings as in RFC 7946"""
    bbox: tuple[float, float, float, float]
    """west, south, east, north; west > east where it crosses 180 degrees (RFC 7946, section 5.2)"""


def scene_ground(footprints: np.ndarray) -> Ground | None:
    """The convex hull, in degrees, of WKB polygons (object, (n,)) of one scene; None where there is none.

    A scene around a pole, or of all longitudes, is the cap or band from its lowest latitude on: more than it covers,
    and never less.
    """
    if not len(footprints):
        return None
    polygons = shapely.from_wkb(footprints)
    points = shapely.get_coordinates(polygons)
    lon, lat = points[:, 0], points[:, 1]
    lon = lon[0] + (lon - lon[0] + 180.0) % 360.0 - 180.0
    west, east = float(lon.min()), float(lon.max())
    if east - west >= 180.0 or _around_pole(polygons):
        south, north = _to_pole(float(lat.min()), float(lat.max()))
        south, north = round(south, _DIGITS), round(north, _DIGITS)
        return Ground(_box(-180.0, south, 180.0, north), (-180.0, south, 180.0, north))
    shift = 360.0 * np.floor((west + 180.0) / 360.0)  # west from -180 to 180
    hull = shapely.convex_hull(
        shapely.linestrings(np.stack([lon - shift, lat], axis=-1))
    )  # a line is quicker than points
    west, south, east, north = shapely.bounds(hull)
    shape = _rounded(hull)
    if east > 180.0:
        beyond = shapely.intersection(hull, _box(180, -90, 540, 90))
        here = _rounded(shapely.intersection(hull, _box(-180, -90, 180, 90)))
        there = _rounded(shapely.transform(beyond, lambda xy: xy - [360.0, 0.0]))
        shape = MultiPolygon([here, there])
        east -= 360.0
    west, south, east, north = (round(float(value), _DIGITS) for value in (west, south, east, north))
    return Ground(shape, (west, south, east, north))


def _box(west: float, south: float, east: float, north: float) -> Polygon:
    return Polygon([(west, south), (east, south), (east, north), (west, north)])


def _rounded(polygon: Any) -> Polygon:
    """Counter-clockwise, of a tenth of a metre."""
    return orient(Polygon(np.round(shapely.get_coordinates(polygon), _DIGITS)))


def circular_extent(footprints: np.ndarray) -> tuple[float, float, float, float]:
    """West, south, east, north of WKB polygons (object, (n,), n > 0): the narrowest that holds all of them.

    West > east where it crosses 180 degrees: everything but the widest gap between footprints.
    """
    bounds = shapely.bounds(shapely.from_wkb(footprints))
    south, north = float(bounds[:, 1].min()), float(bounds[:, 3].max())
    width = bounds[:, 2] - bounds[:, 0]
    if (width >= 180.0).any():
        south, north = _to_pole(south, north)
        west, east = -180.0, 180.0
    else:
        west, east = _covering_arc(bounds[:, 0], width)
    return round(west, _DIGITS), round(south, _DIGITS), round(east, _DIGITS), round(north, _DIGITS)


def _covering_arc(starts: np.ndarray, width: np.ndarray) -> tuple[float, float]:
    """The shortest arc of the circle, west to east in degrees, that holds all arcs of these starts and widths."""
    starts = (starts + 180.0) % 360.0 - 180.0
    order = np.argsort(starts)
    starts, ends = starts[order], (starts + width)[order]
    reached = np.maximum.accumulate(ends)
    # after the last start comes the first one again, a turn later
    gaps = np.r_[starts[1:], starts[0] + 360.0] - np.maximum(reached, reached[-1] - 360.0)
    widest = int(np.argmax(gaps))
    if gaps[widest] <= 0.0:
        return -180.0, 180.0
    if widest == len(starts) - 1:
        east = float(reached[-1])
        return float(starts[0]), east if east <= 180.0 else east - 360.0
    east = float(max(reached[widest], reached[-1] - 360.0))
    return float(starts[widest + 1]), east if east <= 180.0 else east - 360.0


def _around_pole(polygons: np.ndarray) -> bool:
    """Whether a single footprint goes around a pole: its ring, unrolled, is wider than half the globe."""
    bounds = shapely.bounds(polygons)
    return bool((bounds[:, 2] - bounds[:, 0] >= 180.0).any())


def _to_pole(south: float, north: float) -> tuple[float, float]:
    """South and north of a cap: what goes around the globe is taken to hold the pole that it is nearer to."""
    return (south, 90.0) if north + south > 0 else (-90.0, north)
