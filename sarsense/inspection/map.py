"""Where tiles lie, as a page to look at, or for a GIS: HTML, GeoJSON, GeoParquet."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from sarsense.errors import SettingError
from sarsense.files import atomic_write
from sarsense.inspection.ground import for_gis
from sarsense.inspection.mapped import CORNER_ERROR, mapped
from sarsense.inspection.query import batches, columns_of, condition, database, run
from sarsense.inspection.source import Source
from sarsense.inspection.text import plain
from sarsense.report.page import coastline, json_block, packed, page

THUMBNAILS = 400
_BATCH = 20_000
_GEO = "footprint"
_JSON = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class Drawn:
    """What was written."""

    path: Path
    tiles: int
    unplaced: int
    thumbnails: int = 0
    unreadable: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "bytes": self.path.stat().st_size}


def write_map(
    source: Source,
    out: Path,
    color: str | None = None,
    where: str | None = None,
    thumbnails: int = THUMBNAILS,
    address: str = "CORPUS",
) -> Drawn:
    """Write the tiles for which `where` holds to `out`, whose ending says as what: .html, .geojson or .json, .parquet.

    The page colours them by `color`, a column or one of `report.classes.CLASSES`, shows up to `thumbnails` pictures,
    and tells for any tile the command that gets it out of `address`. SettingError, CorpusError.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise SettingError(f"{out}: a name that ends in {', '.join(_WRITERS)} expected")
    return write(source, out, color, where, thumbnails, address)


def map_page(
    source: Source, color: str | None, where: str | None, thumbnails: int, address: str
) -> tuple[str, tuple[int, int, int, int]]:
    """The page; and how many tiles, tiles without a place, thumbnails and tiles that could not be read there are."""
    found = mapped(source, color, where, thumbnails)
    arrays = {
        "middle": found.places.middle,
        "step": found.places.step,
        "corner": found.places.corner,
        **{f"column {name}": values for name, (_, values) in found.columns.items()},
    }
    corpus = source.corpus
    about = {
        "name": plain(source.name),
        "version": None if corpus is None else plain(str(corpus.manifest["version"])),
        "digest": None if corpus is None else corpus.digest,
        "where": None if where is None else plain(where, 300),
        "tiles": found.tiles,
        "unplaced": found.unplaced,
        "points": found.points,
        "polar": found.places.polar.tolist(),
        "unreadable": found.unreadable,
        "unknown": list(source.unknown),
        "color": found.color,
        "columns": {name: names for name, (names, _) in found.columns.items()},
        "keys": found.keys,
        "pictures": found.pictures,
        "address": shlex.quote(plain(address, 4096)),
        "error": CORNER_ERROR,
    }
    title = f"{plain(source.name, 80)}: map of tiles"
    data = json_block("about", about) + json_block("coastline", coastline()) + packed("tiles", arrays)
    counts = (found.tiles, found.unplaced, len(found.pictures), found.unreadable)
    return page(title, _BODY, "map.css", "map.js", data), counts


_BODY = """<canvas id="map" tabindex="0" role="img" aria-label="Map of the tiles"></canvas>
<section id="head" class="card"><h1></h1><p id="counts"></p><p id="notes"></p></section>
<section id="key" class="card"><label>colour by <select id="color"></select></label><div id="legend"></div></section>
<nav id="tools" class="card"><button id="in" title="closer">+</button>
<button id="out" title="farther">\N{MINUS SIGN}</button><button id="all" title="all tiles">all</button>
<select id="view" title="projection"><option value="flat">flat</option>
<option value="north">north pole</option><option value="south">south pole</option></select></nav>
<section id="tile" class="card" hidden></section>
<section id="strip" hidden></section>
<footer id="foot"><span id="cursor"></span><span id="scale"></span><span id="credit"></span></footer>
<noscript>This page draws its map with JavaScript, which is off.</noscript>
"""


def _html(source: Source, out: Path, color: str | None, where: str | None, thumbnails: int, address: str) -> Drawn:
    text, counts = map_page(source, color, where, thumbnails, address)
    with atomic_write(out) as file:
        file.write(text.encode())
    return Drawn(out, *counts)


def _geojson(source: Source, out: Path, *rest: Any) -> Drawn:
    """RFC 7946: a feature a tile, cut at 180 degrees; one without a place has no geometry. Written part by part."""
    where = rest[1]
    tiles = unplaced = 0
    with atomic_write(out) as file:
        file.write(b'{"type":"FeatureCollection","features":[')
        for rows, geometries in _features(source, where):
            missing = shapely.is_missing(geometries)
            texts = np.where(missing, "null", shapely.to_geojson(geometries))
            lines = [
                f'{{"type":"Feature","geometry":{text},"properties":{_JSON.encode(_strict(row))}}}'
                for row, text in zip(rows.to_pylist(), texts, strict=True)
            ]
            file.write(("," if tiles else "").encode() + ("\n" + ",\n".join(lines)).encode() if lines else b"")
            tiles, unplaced = tiles + len(lines), unplaced + int(missing.sum())
        file.write(b"\n]}\n")
    return Drawn(out, tiles, unplaced)


def _geoparquet(source: Source, out: Path, *rest: Any) -> Drawn:
    """GeoParquet 1.1: all columns, and the footprint cut at 180 degrees."""
    where = rest[1]
    tiles = unplaced = 0
    kinds = ["Polygon", "MultiPolygon"] if _GEO in columns_of(source) else ["Point"]
    geo = {
        "version": "1.1.0",
        "primary_column": _GEO,
        "columns": {_GEO: {"encoding": "WKB", "geometry_types": kinds}},
    }
    with atomic_write(out) as file:
        writer: pq.ParquetWriter | None = None
        for rows, geometries in _features(source, where):
            wkb = pa.array(shapely.to_wkb(geometries, byte_order=1).tolist(), pa.binary())
            table = pa.Table.from_batches([rows]).append_column(_GEO, wkb)
            table = table.replace_schema_metadata({"geo": json.dumps(geo, sort_keys=True)})
            if writer is None:
                writer = pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
            tiles, unplaced = tiles + len(table), unplaced + wkb.null_count
        if writer is not None:
            writer.close()
    return Drawn(out, tiles, unplaced)


def _features(source: Source, where: str | None) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """All columns but the geometry, and the geometries (objects, None where there is none), part by part, at least
    one: footprints, or, where none are known, the middles."""
    known = columns_of(source)
    names = [name for name in known if name != _GEO]
    wanted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    with database(source) as connection:
        query = f"SELECT {wanted}{f', {_GEO}' if _GEO in known else ''} FROM tiles{condition(where)}"
        empty = run(connection, f"SELECT * FROM ({query}) LIMIT 0", source)
        count = 0
        for batch in batches(connection, query, _BATCH, source):
            count += len(batch)
            rows = batch.select(names)
            yield rows, _geometries(batch, known)
        if not count:
            rows = pa.RecordBatch.from_pylist([], schema=pa.schema([empty.schema.field(name) for name in names]))
            yield rows, np.zeros(0, object)


def _geometries(batch: pa.RecordBatch, known: list[str]) -> np.ndarray:
    out = np.full(len(batch), None, object)
    if _GEO in known:
        found = np.array(shapely.from_wkb(batch.column(_GEO).to_pylist(), on_invalid="ignore"), object)
        west, _, east, _ = shapely.bounds(found).T
        there = np.isfinite(west) & np.isfinite(east)
        out[there] = found[there]
        for index in np.flatnonzero(there & ((west < -180) | (east > 180) | (east - west >= 90))).tolist():
            out[index] = for_gis(found[index])
    elif "lon" in known and "lat" in known:
        lon, lat = (np.array(batch.column(name).to_pylist(), np.float64) for name in ("lon", "lat"))
        there = (np.abs(lon) <= 360.0) & (np.abs(lat) <= 90.0)
        lon = np.where(np.abs(lon) > 180.0, (lon + 180.0) % 360.0 - 180.0, lon)
        out[there] = np.array(shapely.points(lon[there], lat[there]), object)
    return out


def _strict(value: Any) -> Any:
    """As JSON has it: what is no number is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    return [_strict(one) for one in value] if isinstance(value, list) else value


_WRITERS: dict[str, Callable[..., Drawn]] = {
    ".html": _html,
    ".geojson": _geojson,
    ".json": _geojson,
    ".parquet": _geoparquet,
}
