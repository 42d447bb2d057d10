"""Maps of classes as GeoTIFF, written from top to bottom: on the grid of a scene, with what their values mean.

A map is whole under its name, or not there: it is written beside it, read back, flushed to the disk, and renamed. Read
back, since GDAL says nothing when the disk has no room for the last bytes, which are the directory of a TIFF.
"""

from __future__ import annotations

import colorsys
import json
import logging
import os
import secrets
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from dic3l.errors import Dic3lError
from sarsense.geometry import Placed
from sarsense.raster import pixel_window
from sarsense.simulate import SIGNATURES

BLOCK = 256
"""side in pixels of the blocks of a map"""
PROBABILITY_STEPS = 254
"""a probability p is stored as round(254 p)"""
NO_PROBABILITY = 255
OVERVIEW_SIDE = 512
"""of the smallest overview, at most"""
COLOURS = {cover.name.lower(): signature.colour for cover, signature in SIGNATURES.items()} | {
    "flood": (30, 80, 220),
    "other": (205, 205, 200),
}
"""of classes by name, RGB; others get hues far from each other"""

_ALIKE = 140
"""sum of the differences of RGB of two colours that eyes would take for one"""


@dataclass(frozen=True)
class Legend:
    """What the values of a map mean."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    """0 to 255, one a class"""
    nodata: int
    """of pixels without data; of no class"""

    def to_json(self) -> str:
        """As label rasters have it in their tag CLASSES: value -> name."""
        return json.dumps(dict(zip(self.values, self.names, strict=True)))


def class_colours(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """RGB of classes: of `COLOURS` where their names are known, else hues a golden section apart, without those that
    look like a known one."""
    known = [COLOURS[name.lower()] for name in names if name.lower() in COLOURS]
    hues = (colour for colour in map(_hue, count()) if all(_apart(colour, other) for other in known))
    return [COLOURS[name.lower()] if name.lower() in COLOURS else next(hues) for name in names]


def _hue(index: int) -> tuple[int, int, int]:
    red, green, blue = (
        round(255 * part) for part in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75 - 0.3 * (index % 2), 0.9)
    )
    return red, green, blue


def _apart(colour: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    return sum(abs(a - b) for a, b in zip(colour, other, strict=True)) > _ALIKE


class MapWriter:
    """Takes rectangles of a map, strip by strip from the top, and writes whole rows of its blocks, each once: a block
    that is written twice is packed twice, and leaves a hole in the file."""

    def __init__(self, dataset: Any, nodata: int) -> None:
        self.dataset, self._nodata = dataset, nodata
        self._top = self._row = 0
        self._held = self._empty(0)
        self.written: list[tuple[int, int, int]] = []
        """first row, rows, CRC-32 of the values"""

    def put(self, row: int, column: int, values: np.ndarray) -> None:
        """Values uint8 (bands, h, w) of the pixels from (row, column) on. Rows above `row` are done."""
        if row > self._row:
            self._write((row - self._top) // BLOCK * BLOCK)
            self._row = row
        first = row - self._top
        last = first + values.shape[1]
        if last > self._held.shape[1]:
            self._held = np.concatenate([self._held, self._empty(last - self._held.shape[1])], axis=1)
        self._held[:, first:last, column : column + values.shape[2]] = values

    def finish(self) -> None:
        self._write(self._held.shape[1])

    def _empty(self, rows: int) -> np.ndarray:
        return np.full((self.dataset.count, rows, self.dataset.width), self._nodata, np.uint8)

    def _write(self, rows: int) -> None:
        if not rows:
            return
        values = np.ascontiguousarray(self._held[:, :rows])
        self.dataset.write(values, window=pixel_window(0, self._top, self.dataset.width, rows))
        self.written.append((self._top, rows, zlib.crc32(values.data)))
        self._held = self._held[:, rows:].copy()
        self._top += rows


@contextmanager
def class_map(
    path: Path, place: Placed, shape: tuple[int, int], legend: Legend, tags: Mapping[str, str], overviews: bool
) -> Iterator[MapWriter]:
    """A map of label values, uint8: one band, with a colour table, and its classes in the tag CLASSES. Dic3lError where
    it cannot be written."""
    with _map(path, place, shape, 1, legend.nodata, Resampling.mode if overviews else None) as writer:
        colours = zip(legend.values, class_colours(legend.names), strict=True)
        table = {value: (*colour, 255) for value, colour in colours} | {legend.nodata: (0, 0, 0, 0)}
        writer.dataset.write_colormap(1, {value: table.get(value, (0, 0, 0, 255)) for value in range(256)})
        writer.dataset.descriptions = ("class",)
        writer.dataset.update_tags(CLASSES=legend.to_json(), **tags)
        yield writer


@contextmanager
def probability_map(
    path: Path, place: Placed, shape: tuple[int, int], legend: Legend, tags: Mapping[str, str], overviews: bool
) -> Iterator[MapWriter]:
    """A map of probabilities, uint8: a band a class, `PROBABILITY_STEPS` being 1, as the scale of the bands says."""
    bands = len(legend.names)
    with _map(path, place, shape, bands, NO_PROBABILITY, Resampling.average if overviews else None) as writer:
        writer.dataset.descriptions = legend.names
        writer.dataset.scales = [1 / PROBABILITY_STEPS] * bands
        writer.dataset.update_tags(CLASSES=legend.to_json(), **tags)
        yield writer


@contextmanager
def _map(
    path: Path, place: Placed, shape: tuple[int, int], bands: int, nodata: int, overviews: Resampling | None
) -> Iterator[MapWriter]:
    height, width = shape
    profile: dict[str, Any] = {"driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8"}
    profile |= {"nodata": nodata, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band"}
    profile |= {"compress": "deflate", "zlevel": 6, "bigtiff": "if_safer"}
    if place.transform is not None:
        profile["transform"] = rasterio.Affine(*place.transform)
    if place.crs is not None and not place.gcps:
        profile["crs"] = place.crs
    with _whole(path) as temporary:
        with _open(temporary, "w", **profile) as dataset:
            if place.gcps:
                points = [GroundControlPoint(row=row, col=col, x=x, y=y) for row, col, x, y in place.gcps]
                dataset.gcps = (points, rasterio.CRS.from_user_input(place.crs))
            writer = MapWriter(dataset, nodata)
            yield writer
            writer.finish()
        factors = _factors(max(shape)) if overviews is not None else []
        if factors:
            with _open(temporary, "r+") as dataset:
                dataset.build_overviews(factors, overviews)
        _read_back(temporary, writer.written)


def _factors(side: int) -> list[int]:
    """2, 4, ... until an overview has no more than OVERVIEW_SIDE pixels a side."""
    factors: list[int] = []
    while side > OVERVIEW_SIDE << len(factors):
        factors.append(2 << len(factors))
    return factors


def _open(path: Path, mode: str, **profile: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # of scenes that lie nowhere
        return rasterio.open(path, mode, **profile)


def _read_back(path: Path, written: Sequence[tuple[int, int, int]]) -> None:
    """RasterioError where a file does not hold what was written to it."""
    with _open(path, "r") as dataset:
        for top, rows, crc in written:
            values = dataset.read(window=pixel_window(0, top, dataset.width, rows))
            if zlib.crc32(values.data) != crc:
                raise RasterioError(f"rows {top} to {top + rows} differ from what was written")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, for GDAL, which opens files by name: as `sarsense.files.atomic_write`. What GDAL
    says goes into the error alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    log, silent = logging.getLogger("rasterio"), logging.NullHandler()
    log.addHandler(silent)
    try:
        with rasterio.Env(GDAL_PAM_ENABLED="NO"):  # colours and tags belong into the file, not beside it
            yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise Dic3lError(
            f"{path}: cannot be written whole ({reason}); make room on the disk, then run the same command again"
        ) from error
    finally:
        log.removeHandler(silent)
        temporary.unlink(missing_ok=True)
