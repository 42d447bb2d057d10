"""Which windows become tiles, and where on Earth they lie.

Tiles are cut on a fixed grid of the scene's own pixels (no resampling, so speckle statistics stay true). Pixel
coordinates are (col, row) of pixel edges: a scene spans [0, width] x [0, height].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
from rasterio.control import GroundControlPoint
from rasterio.transform import GCPTransformer

from sarsense.scene import Scene

_POLAR_LATITUDE = 70.0
EDGE_POINTS = 5
"""points along each edge of a footprint: straight in pixels is curved on the ground"""


def grid(length: int, tile: int, stride: int) -> np.ndarray:
    """First pixels (int64) of the windows along one axis; the remainder that fills no tile is left."""
    return np.arange(0, length - tile + 1, stride, dtype=np.int64)


@dataclass(frozen=True)
class Placement:
    """Where n tiles lie. Longitudes are continuous within a tile: they may pass 180 rather than jump."""

    footprints: np.ndarray
    """float64 (n, 4 x EDGE_POINTS, 2): lon, lat of a ring, from the top left corner clockwise, not closed"""
    centres: np.ndarray
    """float64 (n, 2): lon, lat"""
    spacing: np.ndarray
    """float64 (n, 2): metres on the ground a pixel, along columns (x) and along rows (y), at the centre"""


def place_tiles(scene: Scene, cols: np.ndarray, rows: np.ndarray, tile: int) -> Placement | None:
    """Footprints, centres and ground spacing of the tiles at (cols[i], rows[i]); None for an unplaced scene."""
    if not scene.placed:
        return None
    count = len(cols)
    step = np.arange(EDGE_POINTS) / EDGE_POINTS * tile
    still = np.zeros(EDGE_POINTS)
    ring_cols = np.concatenate([step, still + tile, tile - step, still])
    ring_rows = np.concatenate([still, step, still + tile, tile - step])
    middle = tile / 2
    # the centre, and one pixel to the right of and below it, for the spacing
    ring_cols = np.concatenate([ring_cols, [middle, middle + 1, middle]])
    ring_rows = np.concatenate([ring_rows, [middle, middle, middle + 1]])
    lon, lat = to_lonlat(scene, cols[:, None] + ring_cols, rows[:, None] + ring_rows)
    lon = _continuous(lon)
    points = np.stack([lon, lat], axis=-1).reshape(count, -1, 2)
    centre, right, below = points[:, -3], points[:, -2], points[:, -1]
    geod = pyproj.Geod(ellps="WGS84")
    spacing = [geod.inv(*centre.T, *to.T)[2] for to in (right, below)]
    return Placement(points[:, :-3], centre, np.stack(spacing, axis=-1))


def to_lonlat(scene: Scene, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude (WGS 84 degrees) of pixel-edge coordinates, of any one shape.

    GCP scenes go through GDAL's thin-plate spline: one affine through the GCPs of a Sentinel-1 scene is 2 km off.
    """
    to_wgs84 = pyproj.Transformer.from_crs(scene.crs, "EPSG:4326", always_xy=True)
    if scene.transform is not None:
        a, b, c, d, e, f = scene.transform
        lon, lat = to_wgs84.transform(a * cols + b * rows + c, d * cols + e * rows + f)
        return np.asarray(lon), np.asarray(lat)
    gcps = np.array(scene.gcps)
    into, back = _spline_plane(scene, gcps, to_wgs84)
    points = [
        GroundControlPoint(row=row, col=col, x=x, y=y)
        for row, col, x, y in zip(gcps[:, 0], gcps[:, 1], *into, strict=True)
    ]
    # GDAL's transformer puts (0, 0) at the outer corner when asked for 'ul' of whole pixels
    with GCPTransformer(points, tps=True) as transformer:
        x, y = transformer.xy(rows.ravel(), cols.ravel(), offset="ul")
    lon, lat = back(np.asarray(x, np.float64), np.asarray(y, np.float64))
    return np.asarray(lon).reshape(cols.shape), np.asarray(lat).reshape(cols.shape)


def _spline_plane(
    scene: Scene, gcps: np.ndarray, to_wgs84: pyproj.Transformer
) -> tuple[tuple[np.ndarray, np.ndarray], Callable[..., Any]]:
    """Coordinates of the GCPs in which the spline is drawn, and the way from there to longitude and latitude.

    It is the CRS of the GCPs, as in GDAL, with two cares for degrees: longitudes go on beyond 180, where GDAL would see
    a jump across the whole world; and near the poles, where they run together, metres on a plane take their place.
    """
    x, y = gcps[:, 2], gcps[:, 3]
    if not pyproj.CRS.from_user_input(scene.crs).is_geographic:
        return (x, y), to_wgs84.transform
    if np.abs(y).max() < _POLAR_LATITUDE:
        return (x[0] + (x - x[0] + 180.0) % 360.0 - 180.0, y), to_wgs84.transform
    pole = "+proj=stere +lat_0=90 +k=1 +ellps=WGS84" if y.mean() > 0 else "+proj=stere +lat_0=-90 +k=1 +ellps=WGS84"
    plane = pyproj.Proj(f"{pole} +lon_0={x[0]}")
    return plane(x, y), lambda east, north: plane(east, north, inverse=True)


def _continuous(lon: np.ndarray) -> np.ndarray:
    """Longitudes (n, points) without a jump: each within 180 degrees of its tile's first one."""
    first = lon[:, :1]
    return first + (lon - first + 180.0) % 360.0 - 180.0
