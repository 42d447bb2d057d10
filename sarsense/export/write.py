"""Write the descriptions of a corpus: croissant.json, collection.json and items.parquet, each atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import shapely.geometry

from sarsense.corpus import Corpus
from sarsense.errors import SettingError
from sarsense.export.croissant import croissant
from sarsense.export.stac import ITEMS, stac, stac_items
from sarsense.files import atomic_write, write_json
from sarsense.places import Place

_ROWS = 10_000
"""Items a row group: what is held in memory at once"""
_TEXT = pa.string()
_MOMENT = pa.timestamp("us", tz="UTC")
_LINK = pa.struct([("rel", _TEXT), ("href", _TEXT), ("type", _TEXT)])
_ASSET = pa.struct([("href", _TEXT), ("type", _TEXT), ("title", _TEXT), ("roles", pa.list_(_TEXT))])
_PROPERTIES: dict[str, pa.DataType] = {
    "datetime": _MOMENT,
    "start_datetime": _MOMENT,
    "end_datetime": _MOMENT,
    "sar:instrument_mode": _TEXT,
    "sar:frequency_band": _TEXT,
    "sar:polarizations": pa.list_(_TEXT),
    "sat:orbit_state": _TEXT,
    "sarsense:sensor": _TEXT,
    "sarsense:sources": pa.list_(_TEXT),
    "sarsense:tiles": pa.int32(),
    "sarsense:splits": pa.list_(_TEXT),
}
ITEM_SCHEMA = pa.schema(
    [
        ("type", _TEXT),
        ("stac_version", _TEXT),
        ("stac_extensions", pa.list_(_TEXT)),
        ("id", _TEXT),
        ("collection", _TEXT),
        ("geometry", pa.binary()),
        ("bbox", pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])),
        ("links", pa.list_(_LINK)),
        ("assets", pa.struct([("tiles", _ASSET)])),
        *_PROPERTIES.items(),
    ]
)
"""stac-geoparquet 1.1: properties are columns of their own"""


def export(corpus: Corpus, out: Place, croissant_json: bool, stac_collection: bool) -> list[Place]:
    """Write croissant.json and, or, collection.json with items.parquet into the folder `out`; the paths written.

    Addresses in them are relative, from `out` to the corpus, so that both may move together; of a remote corpus that is
    described elsewhere its own. Raises SettingError where
    neither is asked for.
    """
    if not (croissant_json or stac_collection):
        raise SettingError("--croissant, --stac: at least one of them expected, none found")
    if isinstance(corpus.root, Path) and isinstance(out, Path):
        base = Path(os.path.relpath(corpus.root.resolve(), out.resolve())).as_posix()
        base = "" if base == "." else f"{base}/"
    else:
        base = "" if out == corpus.root else f"{corpus.root}/"
    written: list[Place] = []
    if croissant_json:
        write_json(out / "croissant.json", croissant(corpus, base))
        written.append(out / "croissant.json")
    if stac_collection:
        collection = stac(corpus, base)
        _write_items(out / ITEMS, collection, stac_items(corpus, base))
        write_json(out / "collection.json", collection)  # last: it names the other
        written += [out / "collection.json", out / ITEMS]
    return written


def _write_items(path: Place, collection: dict[str, Any], items: Iterator[dict[str, Any]]) -> None:
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["Polygon", "MultiPolygon"],
                "covering": {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}},
            }
        },
    }
    about = {"version": "1.1.0", "collections": {collection["id"]: collection}}
    metadata = {"geo": json.dumps(geo, sort_keys=True), "stac-geoparquet": json.dumps(about, sort_keys=True)}
    schema = ITEM_SCHEMA.with_metadata(metadata)
    with atomic_write(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(islice(items, _ROWS)):
            writer.write_table(pa.Table.from_pylist([_row(item) for item in batch], schema))


def _row(item: dict[str, Any]) -> dict[str, Any]:
    row = {**item, **item["properties"]}
    for name, kind in _PROPERTIES.items():
        if kind == _MOMENT and (text := row.get(name)) is not None:
            row[name] = datetime.fromisoformat(text)
    if item["geometry"] is not None:
        row["geometry"] = shapely.to_wkb(shapely.geometry.shape(item["geometry"]), byte_order=1)
        row["bbox"] = dict(zip(("xmin", "ymin", "xmax", "ymax"), item["bbox"], strict=True))
    return row
