"""Which windows become tiles, and where on Earth they lie.

Tiles are cut on a fixed grid of the scene's own pixels (no resampling, so speckle statistics stay true). Pixel
coordinates are (col, row) of pixel edges: a scene spans [0, width] x [0, height].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyproj

from sarsense.errors import SceneError
from sarsense.geometry import to_lonlat
from sarsense.scene import Scene

_TRIFLE = 0.01
"""degrees: less than a pixel of any global grid"""
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
    to_lonlat: np.ndarray
    """float64 (n, 6): affine a, b, c, d, e, f from pixel edges of the tile to lon and lat, fitted to its ring"""


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
    points = _on_earth(scene, np.stack([lon, lat], axis=-1).reshape(count, -1, 2))
    points[..., 0] = _continuous(points[..., 0])
    centre, right, below = points[:, -3], points[:, -2], points[:, -1]
    geod = pyproj.Geod(ellps="WGS84")
    spacing = [geod.inv(*centre.T, *to.T)[2] for to in (right, below)]
    pixels = np.column_stack([ring_cols[:-3], ring_rows[:-3], np.ones(4 * EDGE_POINTS)])
    fitted = np.einsum("kp,npx->nxk", np.linalg.pinv(pixels), points[:, :-3])
    return Placement(points[:, :-3], centre, np.stack(spacing, axis=-1), fitted.reshape(count, 6))


def _on_earth(scene: Scene, points: np.ndarray) -> np.ndarray:
    """The points (n, k, 2); those of a global grid that lie a trifle beyond a pole, on it. SceneError for others that
    lie nowhere."""
    lat = points[..., 1]
    beyond = ~np.isfinite(points).all(axis=-1) | (np.abs(lat) > 90.0 + _TRIFLE)
    if beyond.any():
        lon, lat = points[beyond][0]
        raise SceneError(
            f"georeferencing ({scene.crs}): places pixels on Earth expected, found one at longitude {lon:.6g}, "
            f"latitude {lat:.6g}; mend its CRS or transform"
        )
    points[..., 1] = np.clip(lat, -90.0, 90.0)
    return points


def _continuous(lon: np.ndarray) -> np.ndarray:
    """Longitudes (n, points) without a jump: each within 180 degrees of its tile's first one."""
    first = lon[:, :1]
    return first + (lon - first + 180.0) % 360.0 - 180.0
