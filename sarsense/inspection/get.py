"""One tile as a file: PNG to look at, npy to compute with, GeoTIFF in dB that a GIS opens at its place."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from sarsense.errors import SettingError
from sarsense.files import atomic_write
from sarsense.inspection.picture import png
from sarsense.inspection.query import literal, select
from sarsense.inspection.source import Source
from sarsense.inspection.text import plain
from sarsense.inspection.tile import NEEDED, Tile, read_tile

_CODE_OR_WKT = re.compile(r"[A-Za-z]{2,20}:\d{1,9}|[A-Z0-9_]+\[.*\]\s*", re.DOTALL)
_PROVENANCE = ("scene", "source", "band", "row", "col", "sensor", "mode", "datetime", "orbit_direction", "split", "enl")


def row_of(source: Source, key: str) -> dict[str, Any]:
    """The whole row of the tile of this key. SettingError where there is none, or more than one."""
    found = select(source, where=f"key = {literal(key)}", limit=2).to_pylist()
    if len(found) == 1:
        return found[0]
    if found:
        raise SettingError(
            f"{source.name}: {key} lies in {found[0]['shard']} and in {found[1]['shard']}: name one of them"
        )
    near = select(source, ["key"], where=f"starts_with(key, {literal(key)})", limit=3)["key"].to_pylist()
    hint = f"; there are {', '.join(near)}, ..." if near else "; `sarsense shards ls` lists keys"
    raise SettingError(f"{source.name}: no tile has the key {key!r}{hint}")


def get(source: Source, key: str, out: Path) -> str:
    """Write the tile of this key to `out`, whose ending says as what; a sentence of what was written.

    .npy: the pixels as they lie in the shard, (C, H, W). .png: 8-bit grey, channels side by side, no data blue. .tif:
    dB, float32, a band a channel, no data NaN, in the tile's CRS, or, of a scene in slant range, in WGS 84 by the
    affine map nearest to its control points. SettingError for another ending or key, ShardError.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise SettingError(f"{out}: a name that ends in {', '.join(_WRITERS)} expected")
    row = row_of(source, key)
    content, told = write(read_tile(source, {name: row.get(name) for name in NEEDED}), row)
    with atomic_write(out) as file:
        file.write(content)
    return told


def _npy(tile: Tile, row: Mapping[str, Any]) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    np.save(buffer, tile.pixels, allow_pickle=False)
    return buffer.getvalue(), f"{tile.pixels.dtype} {tile.pixels.shape}" + (", codes" if tile.coded else "")


def _png(tile: Tile, row: Mapping[str, Any]) -> tuple[bytes, str]:
    names = ", ".join(channel.name for channel in tile.channels)
    return png(tile.grey(), tile.coded), f"grey of {names}; {'no data blue' if tile.coded else 'stretched'}"


def _geotiff(tile: Tile, row: Mapping[str, Any]) -> tuple[bytes, str]:
    db = tile.db()
    bands = tile.pixels if db is None else db
    if bands.dtype.kind == "b":
        bands = bands.astype(np.uint8)
    elif bands.dtype.kind == "f" and bands.dtype.itemsize not in (4, 8):  # of others GeoTIFF knows none
        bands = bands.astype(np.float32 if bands.dtype.itemsize == 2 else np.float64)
    place, placed = _placed(row)
    profile = {
        "driver": "GTiff",
        "count": len(bands),
        "height": bands.shape[1],
        "width": bands.shape[2],
        "dtype": bands.dtype.name,
        "nodata": None if db is None else float("nan"),
        "compress": "deflate",
        "predictor": 3 if bands.dtype.kind == "f" else 2,
        **place,
    }
    tags = {name: str(row[name]) for name in _PROVENANCE if row.get(name) is not None}
    with warnings.catch_warnings(), rasterio.Env(GDAL_PAM_ENABLED="NO"), MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # of tiles without a place, which the sentence says
        with file.open(**profile) as dataset:
            dataset.write(bands)
            dataset.update_tags(key=tile.key, **tags)
            for number, channel in enumerate(tile.channels, 1):
                measure = "" if db is None else ", dB of the picture's values" if channel.display else ", dB"
                dataset.set_band_description(number, f"{channel.name}{measure}")
        content = file.read()
    unit = "pixels as they are: nothing says what they mean" if db is None else "dB"
    return content, f"{unit}, {placed}"


def _placed(row: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """CRS and transform for rasterio, and in words. What another program says may be neither."""
    said, transform, lonlat = row.get("crs"), _affine(row.get("transform")), _affine(row.get("lonlat_transform"))
    crs = _crs(said) if said else None
    if crs is not None and transform is not None:
        return {"crs": crs, "transform": transform}, plain(str(said))
    if lonlat is not None:
        told = "WGS 84, by the affine map nearest to the scene's control points"
        return {"crs": "EPSG:4326", "transform": lonlat}, told
    if said and crs is None:
        return {}, f"without a place: its crs is no code and no WKT that can be read: {plain(said, 80)}"
    return {}, "without a place: the tile has none"


def _crs(said: str) -> CRS | None:
    """Of a code or WKT alone: of other texts GDAL opens the file, or the address, that they name."""
    if not _CODE_OR_WKT.fullmatch(said):
        return None
    try:
        with rasterio.Env():
            return CRS.from_user_input(said)
    except (ValueError, OverflowError):  # rasterio's CRSError is a ValueError
        return None


def _affine(values: Sequence[float | None] | None) -> Affine | None:
    """Of six numbers, row by row, or of nine with the last row; None of others."""
    known = [value for value in values or () if value is not None and math.isfinite(value)]
    return Affine(*known[:6]) if len(known) == len(values or ()) and len(known) in (6, 9) else None


_WRITERS: dict[str, Callable[[Tile, Mapping[str, Any]], tuple[bytes, str]]] = {
    ".png": _png,
    ".npy": _npy,
    ".tif": _geotiff,
    ".tiff": _geotiff,
}
