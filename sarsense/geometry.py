"""Where a raster lies, and the grid on which it will be cut: its own, a multilooked one, or a resampled one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyproj
from rasterio.control import GroundControlPoint
from rasterio.errors import RasterioError
from rasterio.transform import GCPTransformer, RPCTransformer
from rasterio.warp import aligned_target, calculate_default_transform

from sarsense.errors import SceneError
from sarsense.products import Facts

_MAX_GCPS = 400
_NODES = 21
"""points along each side of a grid of control points"""
_POLAR_LATITUDE = 70.0
_LOOKS = re.compile(r"(\d{1,3})x(\d{1,3})")


@dataclass(frozen=True)
class Geometry:
    """Size and place of a raster: an affine, or ground control points, or neither."""

    height: int
    width: int
    crs: str | None = None
    """of the affine or of the GCPs: 'EPSG:n' or WKT; None: unplaced"""
    transform: tuple[float, ...] | None = None
    """affine a, b, c, d, e, f (pixel edge -> CRS)"""
    gcps: tuple[tuple[float, ...], ...] = ()
    """row, col, x, y of each ground control point"""


@dataclass(frozen=True)
class Preparation:
    """What is done to a raster before it is cut (`sarsense.prepare`)."""

    native: Geometry
    """joined and multilooked, before any resampling"""
    segments: tuple[tuple[int, int], ...]
    """rows first..last (exclusive) of the raster that are kept, in order: a range a burst"""
    azimuth: int = 1
    """rows averaged into one"""
    range: int = 1
    """columns averaged into one"""
    quadrature: int | None = None
    """the band that holds Q, where I and Q are bands of their own"""
    resampled: bool = False
    """to the scene's own grid, which is another than the native one then"""
    coarser: bool = False
    """whether that grid is the coarser one"""


class Placed(Protocol):
    """What has a place, as a `Geometry` or a scene has."""

    @property
    def crs(self) -> str | None: ...
    @property
    def transform(self) -> tuple[float, ...] | None: ...
    @property
    def gcps(self) -> tuple[tuple[float, ...], ...]: ...


def to_lonlat(place: Placed, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude (WGS 84 degrees) of pixel-edge coordinates, of any one shape.

    GCP scenes go through GDAL's thin-plate spline: one affine through the GCPs of a Sentinel-1 scene is 2 km off.
    """
    to_wgs84 = pyproj.Transformer.from_crs(place.crs, "EPSG:4326", always_xy=True)
    if place.transform is not None:
        a, b, c, d, e, f = place.transform
        lon, lat = to_wgs84.transform(a * cols + b * rows + c, d * cols + e * rows + f)
        return np.asarray(lon), np.asarray(lat)
    gcps = np.array(place.gcps)
    into, back = _spline_plane(place, gcps, to_wgs84)
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
    place: Placed, gcps: np.ndarray, to_wgs84: pyproj.Transformer
) -> tuple[tuple[np.ndarray, np.ndarray], Callable[..., Any]]:
    """Coordinates of the GCPs in which the spline is drawn, and the way from there to longitude and latitude.

    It is the CRS of the GCPs, as in GDAL, with two cares for degrees: longitudes go on beyond 180, where GDAL would see
    a jump across the whole world; and near the poles, where they run together, metres on a plane take their place.
    """
    x, y = gcps[:, 2], gcps[:, 3]
    if not pyproj.CRS.from_user_input(place.crs).is_geographic:
        return (x, y), to_wgs84.transform
    if np.abs(y).max() < _POLAR_LATITUDE:
        return (x[0] + (x - x[0] + 180.0) % 360.0 - 180.0, y), to_wgs84.transform
    pole = "+proj=stere +lat_0=90 +k=1 +ellps=WGS84" if y.mean() > 0 else "+proj=stere +lat_0=-90 +k=1 +ellps=WGS84"
    plane = pyproj.Proj(f"{pole} +lon_0={x[0]}")
    return plane(x, y), lambda east, north: plane(east, north, inverse=True)


def read_geometry(dataset: Any, facts: Facts) -> tuple[Geometry, str]:
    """Geometry of an open raster, and a note where it holds only roughly.

    The first of: facts of a product whose rows are joined, affine, GCPs, GCPs of the metadata, RPC. RPC are taken at
    their own height offset, without a terrain model.
    """
    geometry = Geometry(dataset.height, dataset.width)
    if facts.segments:
        height = sum(last - first for first, last in facts.segments)
        return replace(geometry, height=height, crs="EPSG:4326" if facts.gcps else None, gcps=facts.gcps), ""
    if dataset.crs is not None and not dataset.transform.is_identity:
        return replace(geometry, crs=_crs_name(dataset.crs), transform=tuple(dataset.transform)[:6]), ""
    gcps, gcp_crs = dataset.gcps
    if len(gcps) >= 4 and gcp_crs is not None:
        every = max(1, len(gcps) // _MAX_GCPS)
        points = tuple((p.row, p.col, p.x, p.y) for p in gcps[::every])
        return replace(geometry, crs=_crs_name(gcp_crs), gcps=points), ""
    if len(facts.gcps) >= 4:
        return replace(geometry, crs="EPSG:4326", gcps=facts.gcps), ""
    if dataset.rpcs is not None:
        height = dataset.rpcs.height_off
        note = f"placed by its RPC at a height of {height:g} m, without a terrain model: relief shifts it"
        return replace(geometry, crs="EPSG:4326", gcps=_rpc_grid(dataset)), note
    return geometry, ""


def plan_preparation(
    geometry: Geometry, facts: Facts, single_look: bool, multilook: str, spacing: float | None, source_height: int
) -> tuple[Geometry, Preparation | None]:
    """The geometry that tiles are cut in, and what has to be done to the raster for it; None: nothing.

    `multilook`: 'auto' or 'AxR'; of single-look complex rasters alone. `spacing`: metres, None: the raster's own.
    """
    azimuth, range_ = looks_of(multilook, facts.multilook) if single_look else (1, 1)
    native = replace(
        geometry,
        height=geometry.height // azimuth,
        width=geometry.width // range_,
        transform=_scaled(geometry.transform, azimuth, range_),
        gcps=tuple((row / azimuth, col / range_, x, y) for row, col, x, y in geometry.gcps),
    )
    if min(native.height, native.width) < 1:
        raise SceneError(f"{geometry.height} x {geometry.width} pixels are too few for {azimuth} x {range_} looks")
    segments = facts.segments or ((0, source_height),)
    plan = Preparation(native, segments, azimuth, range_, 2 if facts.quadrature else None)
    if spacing is not None:
        native, grid, coarser = _resampled(native, spacing)
        return grid, replace(plan, native=native, resampled=True, coarser=coarser)
    if (azimuth, range_) == (1, 1) and not facts.segments and not facts.quadrature:
        return native, None
    return native, plan


def looks_of(text: str, default: tuple[int, int]) -> tuple[int, int]:
    """'auto' or 'AxR' (azimuth x range) -> looks; ValueError where it is neither."""
    if text == "auto":
        return default
    match = _LOOKS.fullmatch(text)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise ValueError(text)
    return int(match[1]), int(match[2])


def _scaled(transform: tuple[float, ...] | None, azimuth: int, range_: int) -> tuple[float, ...] | None:
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    return a * range_, b * azimuth, c, d * range_, e * azimuth, f


def _crs_name(crs: Any) -> str:
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.to_wkt()


def _rpc_grid(dataset: Any) -> tuple[tuple[float, ...], ...]:
    rows, cols = (np.linspace(0, size, _NODES) for size in dataset.shape)
    row, col = (array.ravel() for array in np.meshgrid(rows, cols, indexing="ij"))
    try:
        with RPCTransformer(dataset.rpcs, RPC_HEIGHT=dataset.rpcs.height_off) as transformer:
            lon, lat = transformer.xy(row, col, offset="ul")
    except (RasterioError, ValueError) as error:
        raise SceneError(f"its RPC place no pixel: {error}; remove them, or fetch the file again") from error
    points = np.stack([row, col, np.asarray(lon), np.asarray(lat)], axis=1)
    if not np.isfinite(points).all() or np.abs(points[:, 3]).max() > 90:
        raise SceneError("its RPC place pixels nowhere on Earth; remove them, or fetch the file again")
    return tuple(tuple(point) for point in points.tolist())


def _resampled(native: Geometry, spacing: float) -> tuple[Geometry, Geometry, bool]:
    """The native geometry in the CRS of the new grid, a north-up grid of `spacing` metres over it, aligned to multiples
    of it, and whether that is the coarser one.

    Its CRS is the raster's own where that is in metres, else UTM (above 84 and below -80 degrees: UPS).
    """
    if native.crs is None:
        raise SceneError("--spacing needs georeferencing, of which it has none; leave --spacing out for it")
    crs = _metric_crs(native)
    points = control_points(native, crs)
    try:
        transform, width, height = calculate_default_transform(
            crs, crs, native.width, native.height, gcps=points, resolution=spacing
        )
        transform, width, height = aligned_target(transform, width, height, spacing)
    except (RasterioError, ValueError) as error:
        raise SceneError(f"cannot be resampled to {spacing:g} m in {crs}: {error}") from error
    own = math.sqrt(width * height * spacing**2 / (native.width * native.height))
    if native.crs != crs or native.transform is None:
        gcps = tuple((p.row, p.col, p.x, p.y) for p in points)
        native = replace(native, crs=crs, transform=None, gcps=gcps)
    return native, Geometry(int(height), int(width), crs, tuple(transform)[:6]), spacing > own


def control_points(native: Geometry, crs: str) -> list[GroundControlPoint]:
    """A grid of points over a raster, corners included, with their places in `crs`: it need not know of 180 degrees."""
    rows, cols = (np.linspace(0, size, _NODES) for size in (native.height, native.width))
    row, col = (array.ravel() for array in np.meshgrid(rows, cols, indexing="ij"))
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_crs.transform(*to_lonlat(native, col, row))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SceneError(f"parts of it lie nowhere in {crs}; leave --spacing out for it")
    return [
        GroundControlPoint(row=r, col=c, x=east, y=north, z=0.0)
        for r, c, east, north in zip(row.tolist(), col.tolist(), x.tolist(), y.tolist(), strict=True)
    ]


def _metric_crs(native: Geometry) -> str:
    crs = pyproj.CRS.from_user_input(native.crs)
    if crs.is_projected and all(axis.unit_name == "metre" for axis in crs.axis_info):
        return str(native.crs)
    lon, lat = (float(value) for value in to_lonlat(native, np.array(native.width / 2), np.array(native.height / 2)))
    if lat > 84 or lat < -80:
        return "EPSG:32661" if lat > 0 else "EPSG:32761"
    zone = int((lon + 180) % 360 // 6) + 1
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"
