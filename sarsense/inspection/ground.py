"""Footprints of tiles (WKB polygons of lon and lat) as four corners, and as what a GIS takes across 180 degrees and
around the poles.

Longitudes of a ring are within 180 degrees of its first one and may pass 180 (`sarsense.tiling`): a ring around a pole
has a jump in it, or unrolled does not come back to where it began.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

_POINTS = 21
"""of the ring of a footprint as `sarsense build` writes it, closed: 5 an edge"""
_HEAD = bytes.fromhex("01 03000000 01000000") + _POINTS.to_bytes(4, "little")
_BYTES = len(_HEAD) + 16 * _POINTS
_FULL_TURN = 180.0
"""degrees that a ring of one side of a pole does not come back by, at least"""


def corners(footprints: pa.BinaryArray) -> np.ndarray:
    """float64 (n, 4, 2): lon and lat of the corners, in the order of the ring, longitudes within 180 degrees of the
    first's; NaN where there is no footprint, or one that is none.

    Of a ring of four equal edges its corners, of another polygon those of the narrowest rectangle around it.
    """
    out = np.full((len(footprints), 4, 2), np.nan)
    footprints = footprints.cast(pa.binary())  # offsets of 32 bits, whoever wrote the table
    raw, starts = _bytes(footprints)
    size = np.diff(starts)
    usual = np.flatnonzero(size == _BYTES)
    others = np.flatnonzero((size > 0) & (size != _BYTES))
    if usual.size:
        whole = not others.size  # a null has no bytes
        block = raw[starts[0] : starts[-1]] if whole else raw[starts[usual][:, None] + np.arange(_BYTES)]
        block = block.reshape(-1, _BYTES)
        same = (block[:, : len(_HEAD)] == np.frombuffer(_HEAD, np.uint8)).all(axis=1)
        if not same.all():
            others = np.concatenate([others, usual[~same]])
            block, usual = block[same], usual[same]
        points = np.empty((len(block), 4, 16), np.uint8)
        for corner in range(4):
            points[:, corner] = block[:, len(_HEAD) + 80 * corner :][:, :16]
        out[usual] = points.view("<f8")
    for index in others.tolist():
        out[index] = _corners_of(footprints[index].as_py())
    lon, lat = out[..., 0], out[..., 1]
    good = np.ones(len(out), bool)
    for corner in range(4):  # numpy is slow along an axis of four
        good &= (np.abs(lat[:, corner]) <= 90.0) & (np.abs(lon[:, corner]) <= 720.0)  # false of NaN, too
    out[~good] = np.nan
    if (np.abs(lon - lon[:, :1]) > 180.0).any():
        out[..., 0] = lon[:, :1] + _wrapped(lon - lon[:, :1])
    return out


def _bytes(footprints: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """All bytes, and where each starts and the last ends; a null has none."""
    _, offsets, data = footprints.buffers()
    start = footprints.offset
    starts = np.frombuffer(offsets, np.int32)[start : start + len(footprints) + 1].astype(np.int64)
    return np.frombuffer(b"" if data is None else data, np.uint8), starts


def _corners_of(wkb: bytes) -> np.ndarray:
    nowhere = np.full((4, 2), np.nan)
    polygon = shapely.from_wkb(wkb, on_invalid="ignore")
    if polygon is None or polygon.is_empty or not np.isfinite(shapely.get_coordinates(polygon)).all():
        return nowhere
    ring = shapely.get_coordinates(shapely.get_exterior_ring(polygon)) if polygon.geom_type == "Polygon" else None
    if ring is not None and (len(ring) - 1) % 4 == 0:
        return ring[: -1 : (len(ring) - 1) // 4]
    box = shapely.minimum_rotated_rectangle(polygon)
    return shapely.get_coordinates(box)[:4] if box.geom_type == "Polygon" else nowhere


def around_pole(quads: np.ndarray) -> np.ndarray:
    """bool (n,): whether four corners (n, 4, 2) go around a pole: from corner to corner, a turn in all."""
    lon = quads[..., 0]
    return np.abs(_wrapped(np.roll(lon, -1, axis=1) - lon).sum(axis=1)) > _FULL_TURN


def _wrapped(degrees: np.ndarray) -> np.ndarray:
    """From -180 to 180."""
    return (degrees + 180.0) % 360.0 - 180.0


def for_gis(polygon: BaseGeometry) -> BaseGeometry:
    """A footprint with longitudes from -180 to 180, cut at 180 degrees where it passes them (RFC 7946, section 3.1.9);
    one around a pole with its edge from 180 to 180 degrees, by way of the pole. Rings counter-clockwise."""
    if polygon.geom_type != "Polygon":
        return polygon
    ring = shapely.get_coordinates(shapely.get_exterior_ring(polygon))[:-1]
    if not len(ring) or not np.isfinite(ring).all():
        return polygon
    steps = _wrapped(np.diff(ring[:, 0], append=ring[0, 0]))
    if abs(steps.sum()) > _FULL_TURN:
        return _cap(ring, np.sign(steps.sum()))
    lon = ring[0, 0] + np.concatenate([[0.0], np.cumsum(steps[:-1])])
    lon -= 360.0 * np.floor((lon.min() + 180.0) / 360.0)
    whole = shapely.orient_polygons(Polygon(np.stack([lon, ring[:, 1]], axis=-1)))
    if lon.max() <= 180.0:
        return whole
    here = shapely.intersection(whole, shapely.box(-180, -90, 180, 90))
    beyond = shapely.intersection(whole, shapely.box(180, -90, 540, 90))
    there = shapely.transform(beyond, lambda points: points - [360.0, 0.0])
    parts = [part for part in shapely.get_parts([here, there]) if part.geom_type == "Polygon" and part.area > 0]
    parts = list(shapely.orient_polygons(np.array(parts, object)))
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _cap(ring: np.ndarray, direction: float) -> Polygon:
    """What lies between a ring around a pole and the pole."""
    pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
    ring = ring if direction > 0 else ring[::-1]
    lon = _wrapped(ring[:, 0])
    first = int(np.argmin(lon))
    lon, lat = np.roll(lon, -first), np.roll(ring[:, 1], -first)
    # the latitude at 180 degrees, between the last point and the first
    gap = lon[0] + 360.0 - lon[-1]
    edge = lat[-1] + (lat[0] - lat[-1]) * (180.0 - lon[-1]) / max(gap, 1e-12)
    points = [
        (-180.0, edge),
        *zip(lon.tolist(), lat.tolist(), strict=True),
        (180.0, edge),
        (180.0, pole),
        (-180.0, pole),
    ]
    return shapely.orient_polygons(Polygon(points))
