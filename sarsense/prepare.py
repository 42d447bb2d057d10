"""Rasters that cannot be cut as they are -> GeoTIFFs of linear power that can.

Single-look complex rasters are joined burst by burst and multilooked; with a target spacing, scenes are resampled.
Both happen on calibrated power (never on amplitude or dB, whose means are others), strip by strip, into a file of the
build's own, which is measured and cut in place of the source.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from sarsense.geometry import Geometry, Preparation
from sarsense.power import signal_and_floor
from sarsense.raster import masked_rows, open_raster, pixel_window, read_rows, strips
from sarsense.scene import Band, Scene

_STRIP_PIXELS = 8 * 2**20
_BLOCK = 256
_PROFILE: dict[str, Any] = {
    "driver": "GTiff",
    "dtype": "float32",
    "nodata": float("nan"),
    "tiled": True,
    "blockxsize": _BLOCK,
    "blockysize": _BLOCK,
    "compress": "zstd",
    "zstd_level": 1,
    "predictor": 3,
    "BIGTIFF": "IF_SAFER",
    "SPARSE_OK": True,
}


def prepare_scene(scene: Scene, out: Path) -> Scene:
    """Write the scene's power to `out` (float32 GeoTIFF, NaN: no data) as its `preparation` says; the scene of that
    file. Memory is bounded by a strip. Raises SceneError where the source cannot be read, OSError where `out` cannot
    be written.
    """
    plan = scene.preparation
    if plan is None:
        return scene
    out.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    native, warped = (out.with_name(f".{out.stem}.{token}.{kind}.tif") for kind in ("native", "warped"))
    try:
        _write_native(scene, plan, native)
        if plan.resampled:
            _write_resampled(scene, plan, native, warped)
        written = warped if plan.resampled else native
        with written.open("rb") as file:
            os.fsync(file.fileno())  # a record of it will be on the disk
        written.replace(out)
    finally:
        native.unlink(missing_ok=True)
        warped.unlink(missing_ok=True)
    bands = tuple(replace(band, unit="power", scale_factor=1.0, nodata=None, calibration=None) for band in scene.bands)
    return replace(scene, path=str(out), dtype="float32", bands=bands, preparation=None)


def multilooked_rows(source: Any, band: Band, plan: Preparation, first: int, last: int) -> np.ndarray:
    """Rows first..last (exclusive) of the native geometry: mean power of the cells, float32 (rows, width).

    The mean is over the valid pixels of a cell, noise taken off before it and the floor applied after: a floor under
    single looks would lift dark water by decibels. NaN where fewer than half of a cell's pixels are valid.
    """
    parts = [_signal_rows(source, band, plan, *kept) for kept in _kept(plan, first * plan.azimuth, last * plan.azimuth)]
    power = _cell_means(np.concatenate([signal for signal, _ in parts]), plan)
    floors = [floor for _, floor in parts if floor is not None]
    return np.maximum(power, _cell_means(np.concatenate(floors), plan)) if floors else power


def _cell_means(values: np.ndarray, plan: Preparation) -> np.ndarray:
    if plan.azimuth == plan.range == 1:
        return values
    width = plan.native.width
    cells = values[:, : width * plan.range].reshape(-1, plan.azimuth, width, plan.range)
    valid = np.isfinite(cells)
    count = valid.sum(axis=(1, 3))
    total = np.where(valid, cells, 0).sum(axis=(1, 3), dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total / count).astype(np.float32)
    return np.where(2 * count >= plan.azimuth * plan.range, mean, np.float32(np.nan))


def _kept(plan: Preparation, first: int, last: int) -> list[tuple[int, int]]:
    """The rows of the raster that are rows first..last (exclusive) of the joined image, burst by burst."""
    found, start = [], 0
    for top, bottom in plan.segments:
        low, high = max(first, start), min(last, start + bottom - top)
        if low < high:
            found.append((top + low - start, top + high - start))
        start += bottom - top
    return found


def _signal_rows(
    source: Any, band: Band, plan: Preparation, first: int, last: int
) -> tuple[np.ndarray, np.ndarray | None]:
    values = read_rows(source, band.index, first, last)
    if plan.quadrature is not None:
        values = values + np.complex64(1j) * read_rows(source, plan.quadrature, first, last)
    return signal_and_floor(values, band, row=first, masked=masked_rows(source, band.index, first, last))


def _write_native(scene: Scene, plan: Preparation, path: Path) -> None:
    """The scene's power, joined and multilooked, in its own geometry."""
    native = plan.native
    rows = max(_STRIP_PIXELS // (native.width * plan.range * plan.azimuth) // _BLOCK, 1) * _BLOCK
    with open_raster(scene.path) as (source, _), _writer(path, native, scene.bands) as target:
        for band in scene.bands:
            for first, last in strips(native.height, rows):
                _write(target, band, first, multilooked_rows(source, band, plan, first, last))


def _write_resampled(scene: Scene, plan: Preparation, native: Path, path: Path) -> None:
    """Power on the scene's grid: the mean of what a coarser pixel covers, bilinear where the grid is finer.

    GDAL warps block by block. Both files are our own, so an error is no fault of the scene.
    """
    grid = Geometry(scene.height, scene.width, scene.crs, scene.transform)
    settings: dict[str, Any] = {
        "src_nodata": float("nan"),
        "dst_nodata": float("nan"),
        "resampling": Resampling.average if plan.coarser else Resampling.bilinear,
        "warp_mem_limit": 64,
    }
    with rasterio.open(native) as source, _writer(path, grid, scene.bands) as target:
        if plan.native.gcps:
            settings |= {"gcps": source.gcps[0], "src_crs": plan.native.crs, "SRC_METHOD": "GCP_TPS"}
        try:
            for band in scene.bands:
                reproject(rasterio.band(source, band.index), rasterio.band(target, band.index), **settings)
        except RasterioError as error:
            raise OSError(f"{path}: cannot be resampled: {error}") from error


def _writer(path: Path, geometry: Geometry, bands: Sequence[Band]) -> Any:
    """A file whose bands have the numbers that they have in the source; those left out take no space."""
    count = max(band.index for band in bands)
    placed: dict[str, Any] = {}
    if geometry.transform is not None:
        placed = {"crs": geometry.crs, "transform": rasterio.Affine(*geometry.transform)}
    elif geometry.gcps:
        points = [GroundControlPoint(row=row, col=col, x=x, y=y, z=0.0) for row, col, x, y in geometry.gcps]
        placed = {"crs": geometry.crs, "gcps": points}
    return rasterio.open(path, "w", **_PROFILE, **placed, count=count, height=geometry.height, width=geometry.width)


def _write(target: Any, band: Band, first: int, power: np.ndarray) -> None:
    """Our own disk: what fails here is no fault of the scene."""
    try:
        window = pixel_window(0, first, target.width, len(power))
        target.write(power.astype(np.float32, copy=False), band.index, window=window)
    except RasterioError as error:
        raise OSError(f"{target.name}: cannot be written: {error}") from error
