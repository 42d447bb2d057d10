"""A corpus on disk: manifest, tables, shards.

corpus/
  corpus.json           written last: a folder without it is not a corpus
  tiles.parquet         GeoParquet, a row a tile, in the order of the shards
  scenes.parquet        a row a file found, with its status and the reason
  duplicates.parquet    a row a scene or tile dropped as a duplicate
  train/*.tar val/*.tar

A labelled corpus (docs/labels.md) has further columns, and says so in corpus.json; no other corpus knows of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sarsense.errors import CorpusError
from sarsense.files import atomic_write, read_json, write_json
from sarsense.migrations import OLDEST, migrated
from sarsense.places import Place, place, readable, work_folder
from sarsense.shards import Shard

TABLES = ("tiles.parquet", "scenes.parquet", "duplicates.parquet")
FORMAT = 3
"""raised when the layout changes (`sarsense.migrations` reads older ones)"""

_TEXT = pa.string()
CHANNEL_TYPE = pa.struct(
    [
        ("polarisation", _TEXT),
        ("content", _TEXT),
        ("filtered", pa.bool_()),
        ("source", _TEXT),
        ("band", pa.int32()),
        ("group", _TEXT),
        ("mean_db", pa.float64()),
        ("std_db", pa.float64()),
        ("enl", pa.float64()),
        ("enl_bias_db", pa.float64()),
        ("lo_db", pa.float64()),
        ("hi_db", pa.float64()),
    ]
)
TILE_SCHEMA = pa.schema(
    [
        ("key", _TEXT),
        ("shard", _TEXT),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("split", _TEXT),
        ("scene", _TEXT),
        ("acquisition", _TEXT),
        ("place", _TEXT),
        ("near_evaluation", pa.bool_()),
        ("source", _TEXT),
        ("band", pa.int32()),
        ("polarisation", _TEXT),
        ("content", _TEXT),
        ("group", _TEXT),
        ("sensor", _TEXT),
        ("mode", _TEXT),
        ("datetime", _TEXT),
        ("orbit_direction", _TEXT),
        ("row", pa.int32()),
        ("col", pa.int32()),
        ("crs", _TEXT),
        ("transform", pa.list_(pa.float64())),
        ("lonlat_transform", pa.list_(pa.float64())),
        ("lon", pa.float64()),
        ("lat", pa.float64()),
        ("spacing_x_m", pa.float64()),
        ("spacing_y_m", pa.float64()),
        ("valid_fraction", pa.float64()),
        ("mean_db", pa.float64()),
        ("std_db", pa.float64()),
        ("enl", pa.float64()),
        ("enl_bias_db", pa.float64()),
        ("lo_db", pa.float64()),
        ("hi_db", pa.float64()),
        ("channels", pa.list_(CHANNEL_TYPE)),
        ("content_hash", _TEXT),
        ("perceptual_hash", _TEXT),
        ("structure_db", pa.float64()),
        ("flat", pa.bool_()),
        ("footprint", pa.binary()),
    ]
)
_LATER = ("shard", "offset", "bytes", "split", "acquisition", "place", "near_evaluation")
CUT_SCHEMA = pa.schema(
    [
        *(field for field in TILE_SCHEMA if field.name not in _LATER),
        ("codes", _TEXT),
        ("start", pa.int64()),
    ]
)
"""of tiles before they are in a shard: `codes` is the file that holds theirs, from byte `start` on"""
LABEL_SCHEMA = pa.schema(
    [
        ("label_offset", pa.int64()),
        ("label_source", _TEXT),
        ("label_hash", _TEXT),
        ("label_counts", pa.list_(pa.struct([("value", pa.int32()), ("pixels", pa.int64())]))),
    ]
)
"""of tiles.parquet, behind the others, where tiles are labelled"""
CUT_LABEL_SCHEMA = pa.schema(
    [*(field for field in LABEL_SCHEMA if field.name != "label_offset"), ("label_start", pa.int64())]
)
"""of labelled tiles before they are in a shard: their labels lie in `codes` too, from byte `label_start` on"""
SCENE_SCHEMA = pa.schema(
    [
        ("path", _TEXT),
        ("bytes", pa.int64()),
        ("status", _TEXT),
        ("reason", _TEXT),
        ("scene", _TEXT),
        ("product", _TEXT),
        ("sensor", _TEXT),
        ("mode", _TEXT),
        ("datetime", _TEXT),
        ("orbit_direction", _TEXT),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("dtype", _TEXT),
        ("crs", _TEXT),
        ("geometry", _TEXT),
        ("polarisations", pa.list_(_TEXT)),
        ("units", pa.list_(_TEXT)),
        ("quantities", pa.list_(_TEXT)),
        ("evidence", pa.list_(_TEXT)),
        ("confidence", pa.list_(pa.float64())),
        ("enl", pa.list_(pa.float64())),
        ("enl_by_cv", pa.list_(pa.float64())),
        ("enl_by_log_variance", pa.list_(pa.float64())),
        ("enl_confidence", pa.list_(pa.float64())),
        ("mean_db", pa.list_(pa.float64())),
        ("valid_fraction", pa.float64()),
        ("tiles", pa.int32()),
        ("tiles_no_data", pa.int32()),
        ("tiles_flat", pa.int32()),
        ("tiles_guard", pa.int32()),
        ("tiles_near_evaluation", pa.int32()),
        ("tiles_duplicate", pa.int32()),
        ("tiles_excluded", pa.int32()),
        ("notes", pa.list_(_TEXT)),
        ("content_hash", _TEXT),
        ("digest", _TEXT),
    ]
)
SCENE_LABEL_SCHEMA = pa.schema([("labels", _TEXT), ("labels_hash", _TEXT)])
"""of scenes.parquet, behind the others, where tiles are labelled"""
DUPLICATE_SCHEMA = pa.schema([("kind", _TEXT), ("dropped", _TEXT), ("kept", _TEXT), ("distance", pa.float64())])


def tile_schema(labelled: bool) -> pa.Schema:
    """Of tiles.parquet."""
    return pa.schema([*TILE_SCHEMA, *LABEL_SCHEMA]) if labelled else TILE_SCHEMA


def cut_schema(labelled: bool) -> pa.Schema:
    """Of tiles before they are in a shard."""
    return pa.schema([*CUT_SCHEMA, *CUT_LABEL_SCHEMA]) if labelled else CUT_SCHEMA


def scene_schema(labelled: bool) -> pa.Schema:
    """Of scenes.parquet."""
    return pa.schema([*SCENE_SCHEMA, *SCENE_LABEL_SCHEMA]) if labelled else SCENE_SCHEMA


class Corpus:
    """A finished corpus. Tables are read when they are asked for."""

    def __init__(self, root: Place, manifest: dict[str, Any]) -> None:
        self.root = root
        self.manifest = manifest
        self.name: str = manifest["name"]
        self.digest: str = manifest["digest"]
        """of the set of tiles, whatever their order"""
        self.tile_shape: tuple[int, int, int] = tuple(manifest["tile_shape"])
        self.dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        """of the codes: uint8 or uint16"""
        content = manifest["config"]["content"]
        self.contents: tuple[str, ...] = ("speckled", "despeckled") if content == "both" else (content,)
        """of the channels of a polarisation"""
        self.shards = [_shard(said) for said in manifest["shards"]]
        labels = manifest.get("labels")
        named = () if labels is None else ((int(value), name) for value, name in labels["classes"].items())
        self.classes: dict[int, str] | None = None if labels is None else dict(sorted(named))
        """label value -> name of its class; None: tiles have no labels"""

    @property
    def labelled(self) -> bool:
        """Whether each tile has labels."""
        return self.classes is not None

    def tiles(self, split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of tiles.parquet in the order of the shards, of one split or of all. Columns that an older format lacks
        are null."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, "split"]))
        table = read_parquet(self.root / "tiles.parquet", wanted)
        table = with_missing_columns(table, tile_schema(self.labelled), wanted)
        if split is not None:
            table = table.filter(pc.field("split") == split)
        return table

    @cached_property
    def scenes(self) -> pa.Table:
        return with_missing_columns(read_parquet(self.root / "scenes.parquet"), scene_schema(self.labelled))

    @cached_property
    def duplicates(self) -> pa.Table:
        return read_parquet(self.root / "duplicates.parquet")


def _shard(said: Mapping[str, Any]) -> Shard:
    """ValueError where it lies outside the corpus, or its SHA-256 is none: both become names of files."""
    shard = Shard(**said)
    parts = shard.path.split("/")
    if len(parts) < 2 or not {"", ".", ".."}.isdisjoint(parts) or "\\" in shard.path:
        raise ValueError(f"shard {shard.path!r} is no path in the corpus")
    if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
        raise ValueError(f"shard {shard.path!r} has the SHA-256 {shard.sha256[:80]!r}")
    return shard


def open_corpus(path: str | Place) -> Corpus:
    """The corpus in a folder, or at a remote address; CorpusError where there is none, or one that is not finished."""
    root = place(path)
    manifest = root / "corpus.json"
    if not manifest.is_file():
        if not root.is_dir():
            raise CorpusError(f"{root}: no such folder; `sarsense build SOURCE --out {root}` makes a corpus")
        if work_folder(root).is_dir():
            raise CorpusError(
                f"{root}: this build is not finished (no corpus.json); "
                "run the same `sarsense build` command again, it goes on where it stopped"
            )
        raise CorpusError(f"{root}: not a corpus (no corpus.json); `sarsense build SOURCE --out DIR` makes one")
    try:
        content = read_json(manifest)
        found = int(content["format"])
        if OLDEST <= found <= FORMAT:
            return Corpus(root, migrated(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else error
        raise CorpusError(f"{manifest}: not a corpus manifest ({told}); build the corpus again") from error
    remedy = "build the corpus again" if found < OLDEST else "upgrade sarsense"
    raise CorpusError(f"{manifest}: corpus format {found}, this sarsense reads {OLDEST} to {FORMAT}: {remedy}")


def array_shape(tile_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Shape of a sample's array: H x W of one channel, C x H x W of several."""
    return tile_shape[1:] if tile_shape[0] == 1 else tile_shape


def order_digest(tiles: Iterable[tuple[str, str, str]]) -> str:
    """SHA-256 over (key, split, content hash) of every tile, in the order of the shards."""
    digest = hashlib.sha256()
    for key, split, content in tiles:
        digest.update(f"{key}\t{split}\t{content}\n".encode())
    return digest.hexdigest()


def corpus_digest(tiles: Iterable[tuple[str, str, str]]) -> str:
    """The same over the set of tiles, in the order of their keys: what a trainer sees, in whatever shards it lies."""
    return order_digest(sorted(tiles))


def identity(tiles: pa.Table) -> dict[str, Any]:
    """What corpus.json says of tiles.parquet: `digest`, `order_digest`, and the tiles of each split. Of labelled tiles
    the content is codes and labels: the hash of the one behind that of the other."""
    told = list(zip(*(tiles[name].to_pylist() for name in ("key", "split", "content_hash")), strict=True))
    if "label_hash" in tiles.column_names:
        labels = tiles["label_hash"].to_pylist()
        told = [(key, split, f"{codes}{mine}") for (key, split, codes), mine in zip(told, labels, strict=True)]
    return {
        "digest": corpus_digest(told),
        "order_digest": order_digest(told),
        "splits": dict(Counter(split for _, split, _ in told)),
    }


def class_names(tiles: pa.Table, named: Iterable[Mapping[int, str]]) -> dict[str, str]:
    """What corpus.json says of the classes of labelled tiles: value -> name of those that are named, the first name of
    each, and of all others that tiles hold, which go by their value."""
    counts = tiles["label_counts"].combine_chunks().flatten()
    classes = {value: str(value) for value in counts.field("value").unique().to_pylist()}
    for value, name in (pair for one in named for pair in one.items()):
        if classes.get(value, str(value)) == str(value):
            classes[value] = name
    return {str(value): classes[value] for value in sorted(classes)}


def with_columns(tiles: pa.Table, values: Mapping[str, Sequence[Any] | np.ndarray]) -> pa.Table:
    """The table with these columns of tiles.parquet in place of those of their names, or behind all others."""
    schema = tile_schema(labelled=True)
    tiles = tiles.drop_columns([name for name in values if name in tiles.column_names])
    for name, column in values.items():
        tiles = tiles.append_column(schema.field(name), pa.array(column, schema.field(name).type))
    return tiles


def tile_table(tiles: pa.Table) -> pa.Table:
    """The columns of tiles.parquet, in their order."""
    schema = tile_schema("label_offset" in tiles.column_names)
    return tiles.select(schema.names).cast(schema).combine_chunks()


def scene_table(rows: Iterable[Mapping[str, Any]], labelled: bool) -> pa.Table:
    return pa.Table.from_pylist(list(rows), scene_schema(labelled))


def duplicate_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), DUPLICATE_SCHEMA)


def write_tables(root: Place, tiles: pa.Table, scenes: pa.Table, duplicates: pa.Table) -> None:
    """tiles.parquet (GeoParquet 1.1), scenes.parquet and duplicates.parquet, each atomically."""
    _write_parquet(root / "tiles.parquet", _geo(tiles))
    _write_parquet(root / "scenes.parquet", scenes)
    _write_parquet(root / "duplicates.parquet", duplicates)


def write_manifest(root: Place, manifest: dict[str, Any], shards: list[Shard]) -> None:
    """corpus.json: its presence says that everything else is there and whole. The tables are there already."""
    tables = {name: file_digest(root / name) for name in TABLES}
    whole = {**manifest, "format": FORMAT, "tables": tables, "shards": [asdict(shard) for shard in shards]}
    write_json(root / "corpus.json", whole)


def file_digest(path: Place) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_parquet(path: Place, columns: list[str] | None = None) -> pa.Table:
    """A table of a corpus, or those of the columns that it has. CorpusError where it cannot be read."""
    try:
        source = readable(path)
        if columns is not None:
            known = set(pq.read_schema(source).names)
            columns = [name for name in columns if name in known]
        return pq.read_table(source, columns=columns)
    except FileNotFoundError as error:
        raise CorpusError(f"{path}: missing; a corpus has it, so it was removed: restore it or build again") from error
    except (OSError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path}: cannot be read ({reason}); restore it or build the corpus again") from error


def with_missing_columns(table: pa.Table, schema: pa.Schema, wanted: Sequence[str] | None = None) -> pa.Table:
    """The table with the columns of `schema`, or those of them that are `wanted`, in their order; nulls where it has
    none."""
    names = [name for name in schema.names if wanted is None or name in wanted]
    columns = [
        table[name] if name in table.column_names else pa.nulls(len(table), schema.field(name).type) for name in names
    ]
    return pa.table(columns, names=names, metadata=table.schema.metadata)


def _write_parquet(path: Place, table: pa.Table) -> None:
    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")


def _geo(table: pa.Table) -> pa.Table:
    """Add the GeoParquet metadata of the footprint column (WKB polygons, lon/lat, OGC:CRS84 by default)."""
    geo = {
        "version": "1.1.0",
        "primary_column": "footprint",
        "columns": {"footprint": {"encoding": "WKB", "geometry_types": ["Polygon"]}},
    }
    return table.replace_schema_metadata({"geo": json.dumps(geo, sort_keys=True)})


def footprint_wkb(rings: np.ndarray) -> Any:
    """WKB (objects, bytes) of the polygons of rings: float64 (n, points, 2), lon and lat, not closed."""
    import shapely

    return shapely.to_wkb(shapely.orient_polygons(shapely.polygons(rings)), byte_order=1)
