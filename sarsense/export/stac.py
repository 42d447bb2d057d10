"""A corpus as a STAC 1.1 Collection, and its scenes as Items.

Items are written as stac-geoparquet (specification 1.1), not as files of JSON: a corpus of half a million chips has as
many scenes, and as many files, or a gigabyte of JSON, is what nobody opens. DuckDB, geopandas and QGIS open the one
table, rustac and stac-geoparquet make JSON of it, and `sarsense.catalogue` reads the same format.

Extensions: sar 1.3.2 (its first versions require what not every source says), sat 1.2.0, file 2.1.0, table 1.3.0,
version 1.2.0. What the corpus knows and no extension names has the prefix `sarsense:`. A field that is not known is
left out, never guessed; scenes without a date are no Items, since an Item has to have one, and are counted instead.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from sarsense.corpus import TABLES, Corpus
from sarsense.export.columns import describe
from sarsense.export.ground import circular_extent, scene_ground
from sarsense.places import readable

STAC_VERSION = "1.1.0"
EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
SAR, SAT, FILE, TABLE, VERSION = map(
    EXTENSION.format, ("sar/v1.3.2", "sat/v1.2.0", "file/v2.1.0", "table/v1.3.0", "version/v1.2.0")
)
PARQUET = "application/vnd.apache.parquet"
ITEMS = "items.parquet"
FREQUENCY_BANDS = {
    "S1": "C", "RS1": "C", "RS2": "C", "RCM": "C", "GF3": "C", "ERS": "C", "ENVISAT": "C", "PALSAR": "L",
    "CSK": "X", "TSX": "X", "PAZ": "X", "ICEYE": "X", "Capella": "X", "Umbra": "X",
}  # fmt: skip
"""of sensors that have one band"""
_POLARISATIONS = ("VV", "VH", "HV", "HH")
_SHA256 = "1220"
"""multihash: function 0x12, SHA2-256, of 0x20 bytes"""
_COLUMNS = ("scene", "source", "split", "sensor", "mode", "polarisation", "datetime", "orbit_direction", "footprint")
_TITLES = {
    "tiles.parquet": "Tiles: where each lies on the ground and in its shard (GeoParquet)",
    "scenes.parquet": "Files found in the sources, used or not, with the reason",
    "duplicates.parquet": "Scenes and tiles that repeat others",
}


@dataclass(frozen=True)
class Period:
    """When a scene was taken, in UTC: `start` and `end` are the same where the source says a moment."""

    start: datetime
    end: datetime


def parse_period(text: str | None) -> Period | None:
    """The period that an ISO 8601 text means: a moment, or the whole of a day; None where it means none."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if len(text) <= len("2024-03-03"):
        return Period(moment, moment + timedelta(days=1, seconds=-1))
    return Period(moment, moment)


def stac(corpus: Corpus, base: str = "") -> dict[str, Any]:
    """The Collection of a corpus, as a JSON object.

    base: the corpus's folder as seen from where the Collection will lie, with a final slash; empty: beside corpus.json.
    `ITEMS` lies beside the Collection. Raises CorpusError where a table is missing.
    """
    manifest = corpus.manifest
    table = corpus.tiles(columns=[*_COLUMNS, "lon"])
    periods = [period for text in table["datetime"].unique().to_pylist() if (period := parse_period(text))]
    interval = [min(p.start for p in periods), max(p.end for p in periods)] if periods else [None, None]
    scenes = len(table["scene"].unique())
    undated = sum(item is None for item in _periods_of_scenes(table).values())
    left_out = f" {undated} of {scenes} scenes have no date and are no Items." if undated else ""
    polarisations = {name for text in table["polarisation"].unique().to_pylist() for name in (text or "").split("+")}
    sensors = _known(table, "sensor")
    summaries = {
        "sar:polarizations": [name for name in _POLARISATIONS if name in polarisations],
        "sar:instrument_mode": _known(table, "mode"),
        "sar:frequency_band": sorted({FREQUENCY_BANDS[name] for name in sensors if name in FREQUENCY_BANDS}),
        "sat:orbit_state": _known(table, "orbit_direction"),
        "sarsense:sensor": sensors,
    }
    summaries = {name: values for name, values in summaries.items() if values}
    used = [SAR] * any(name.startswith("sar:") for name in summaries)
    used += [SAT] * ("sat:orbit_state" in summaries)
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [*used, FILE, TABLE, VERSION],
        "id": corpus.name,
        "title": f"{corpus.name} {manifest['version']}",
        "description": (
            f"SAR image corpus built by sarsense {manifest['sarsense']}: {len(table)} tiles of "
            f"{corpus.tile_shape[2]} x {corpus.tile_shape[1]} pixels from {scenes} scenes, in WebDataset tar shards. "
            f"An Item a scene, in {ITEMS}; its geometry is the convex hull of its tiles.{left_out} "
            "Licences are those of the source scenes."
        ),
        "version": manifest["version"],
        "license": "other",
        "keywords": ["SAR", "synthetic aperture radar", "backscatter"],
        "extent": {
            "spatial": {"bbox": [_bbox(table)]},
            "temporal": {"interval": [[None if moment is None else _rfc3339(moment) for moment in interval]]},
        },
        "summaries": summaries,
        "links": [{"rel": "items", "href": f"./{ITEMS}", "type": PARQUET, "title": "Scenes (stac-geoparquet)"}],
        "assets": _assets(corpus, base),
        "sarsense:digest": corpus.digest,
        **({"sarsense:order_digest": manifest["order_digest"]} if "order_digest" in manifest else {}),
        "sarsense:version": manifest["sarsense"],
        "sarsense:tiles": dict(sorted(manifest["splits"].items())),
        "sarsense:tiles_by_sensor": _counts(table, "sensor"),
        "sarsense:tiles_by_polarisation": _counts(table, "polarisation"),
    }


def stac_items(corpus: Corpus, base: str = "") -> Iterator[dict[str, Any]]:
    """An Item of each scene of the tiles, ordered by its name, one after the other: memory is that of the table.

    Geometry: the convex hull of the tiles' footprints, cut at 180 degrees (RFC 7946); null for unplaced scenes. Scenes
    without a date are left out.
    """
    table = corpus.tiles(columns=_COLUMNS)
    table = table.sort_by([("scene", "ascending")]).combine_chunks()
    names = table["scene"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.empty(0, np.int64)
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True):
        rows = table.slice(start, end - start)
        if (period := parse_period(rows["datetime"][0].as_py())) is not None:
            yield _item(corpus, base, rows, period)


def _item(corpus: Corpus, base: str, rows: pa.Table, period: Period) -> dict[str, Any]:
    first = {name: rows[name][0].as_py() for name in _COLUMNS[:-1]}
    whole_moment = period.start == period.end
    found = Counter(name for text in rows["polarisation"].to_pylist() for name in (text or "").split("+"))
    known = {name: value for name, value in first.items() if value not in (None, "unknown")}
    properties: dict[str, Any] = {"datetime": _rfc3339(period.start) if whole_moment else None}
    if not whole_moment:
        properties |= {"start_datetime": _rfc3339(period.start), "end_datetime": _rfc3339(period.end)}
    sar = {
        "sar:instrument_mode": known.get("mode"),
        "sar:frequency_band": FREQUENCY_BANDS.get(first["sensor"]),
        "sar:polarizations": [name for name in _POLARISATIONS if name in found] or None,
    }
    orbit = known.get("orbit_direction")
    sat = {"sat:orbit_state": orbit} if orbit in ("ascending", "descending") else {}
    sar = {name: value for name, value in sar.items() if value is not None}
    ours = {
        "sarsense:sensor": known.get("sensor"),
        "sarsense:sources": sorted(set(rows["source"].to_pylist())),
        "sarsense:tiles": len(rows),
        "sarsense:splits": sorted(set(rows["split"].to_pylist())),
    }
    properties |= sar | sat | {name: value for name, value in ours.items() if value is not None}
    ground = scene_ground(rows["footprint"].drop_null().to_numpy())
    place = {} if ground is None else {"bbox": list(ground.bbox)}
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [SAR] * bool(sar) + [SAT] * bool(sat),
        "id": first["scene"],
        "collection": corpus.name,
        "geometry": None if ground is None else json.loads(shapely.to_geojson(ground.shape)),
        **place,
        "properties": properties,
        "links": [{"rel": "collection", "href": "./collection.json", "type": "application/json"}],
        "assets": {
            "tiles": {
                "href": _href(base, "tiles.parquet"),
                "type": PARQUET,
                "title": "Its tiles: the rows whose scene is this Item's id",
                "roles": ["data"],
            }
        },
    }


def _assets(corpus: Corpus, base: str) -> dict[str, Any]:
    assets: dict[str, Any] = {
        ITEMS: {"href": f"./{ITEMS}", "type": PARQUET, "title": "Scenes", "roles": ["collection-mirror"]},
        "corpus.json": {
            "href": _href(base, "corpus.json"),
            "type": "application/json",
            "title": "Manifest of the corpus",
            "roles": ["metadata"],
        },
    }
    for name in TABLES:
        path = corpus.root / name
        schema = pq.read_schema(readable(path))
        assets[name] = {
            "href": _href(base, name),
            "type": PARQUET,
            "title": _TITLES[name],
            "roles": ["data" if name == "tiles.parquet" else "metadata"],
            "file:checksum": _SHA256 + corpus.manifest["tables"][name],
            "file:size": path.stat().st_size,
            "table:row_count": pq.read_metadata(readable(path)).num_rows,
            "table:columns": [
                {"name": column.name, "type": str(column.type)}
                | ({"description": describe(column.name)} if name == "tiles.parquet" else {})
                for column in schema
            ],
        }
    for shard in corpus.shards:
        assets[shard.path] = {
            "href": _href(base, shard.path),
            "type": "application/x-tar",
            "title": f"{shard.tiles} {shard.split} tiles",
            "roles": ["data", shard.split],
            "file:checksum": _SHA256 + shard.sha256,
            "file:size": shard.bytes,
        }
    return assets


def _href(base: str, name: str) -> str:
    return f"{base}{name}" if base else f"./{name}"


def _bbox(table: pa.Table) -> list[float]:
    """Of all footprints; the whole Earth, which STAC asks for, where nothing is placed."""
    footprints = table["footprint"].drop_null().to_numpy()
    return list(circular_extent(footprints)) if len(footprints) else [-180.0, -90.0, 180.0, 90.0]


def _periods_of_scenes(table: pa.Table) -> dict[str, Period | None]:
    pairs = table.group_by("scene").aggregate([("datetime", "min")])
    return {
        name: parse_period(text)
        for name, text in zip(pairs["scene"].to_pylist(), pairs["datetime_min"].to_pylist(), strict=True)
    }


def _known(table: pa.Table, column: str) -> list[str]:
    return sorted(value for value in table[column].unique().to_pylist() if value not in (None, "unknown"))


def _counts(table: pa.Table, column: str) -> dict[str, int]:
    counts = {one["values"] or "unknown": one["counts"] for one in table[column].value_counts().to_pylist()}
    return dict(sorted(counts.items()))


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
