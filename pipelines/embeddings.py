"""The file of embeddings: GeoParquet, a row a tile, in the order of the tiles.

EMBEDDINGS.parquet
  key, scene, split, polarisation   of the tile; split is null of a raster
  row, col                          of its first pixel in the scene
  lon, lat, footprint               centre, and polygon (WKB), as in tiles.parquet; null of what lies nowhere
  embedding                         float32: features, as many of each tile
  metadata `dic3l`                  JSON: digest of the weights, of the corpus, and how the input was made
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dic3l.errors import Dic3lError
from sarsense.corpus import TILE_SCHEMA

COLUMNS = ("key", "scene", "split", "polarisation", "row", "col", "lon", "lat", "footprint")
"""of a tile, as in tiles.parquet"""
_FACTS = b"dic3l"
"""key of the metadata"""
_GEO = {
    "version": "1.1.0",
    "primary_column": "footprint",
    "columns": {"footprint": {"encoding": "WKB", "geometry_types": ["Polygon"]}},
}


def embedding_schema(dim: int, facts: dict[str, Any]) -> pa.Schema:
    """Of embeddings of `dim` numbers. facts: of all of them, plain values."""
    fields = [TILE_SCHEMA.field(name) for name in COLUMNS]
    told = {"geo": json.dumps(_GEO, sort_keys=True), _FACTS: json.dumps(facts, sort_keys=True, ensure_ascii=False)}
    return pa.schema([*fields, ("embedding", pa.list_(pa.float32(), dim))], metadata=told)


def embedding_writer(file: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    """Of a file of `embedding_schema`. The bytes of its numbers are sorted by their places: 16 per cent smaller, and
    read faster, than a dictionary of numbers that are all different."""
    names = [name for name in COLUMNS if name not in ("lon", "lat", "footprint")]
    encoding = {"embedding.list.element": "BYTE_STREAM_SPLIT"}
    return pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=names,  # type: ignore[arg-type]  # the stub knows of no list
        column_encoding=encoding,
    )


def open_embeddings(path: Path) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """The file, and the facts of its embeddings. Dic3lError where it is none."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise Dic3lError(f"{path}: no such file; `dic3l embed WEIGHTS CORPUS -o {path}` makes it") from error
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise Dic3lError(f"{path}: a Parquet file of `dic3l embed` expected, it cannot be read ({reason})") from error
    if _FACTS not in (file.schema_arrow.metadata or {}):
        raise Dic3lError(f"{path}: embeddings as `dic3l embed` writes them expected, another Parquet file found")
    return file, json.loads(file.schema_arrow.metadata[_FACTS])
