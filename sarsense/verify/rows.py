"""Which rows of a tiles.parquet that was changed are wrong: those that say a thing otherwise than their channels, their
key, their scene, their pixels or their labels do. What the shards' JSON repeats, `shard` compares.

Of a table that is as it was written nothing here is needed. `near_evaluation` and `place` are told nowhere else.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sarsense.columns import floats
from sarsense.corpus import Corpus, tile_schema
from sarsense.cut import count_labels, look
from sarsense.errors import SarsenseError
from sarsense.inspection.ground import corners
from sarsense.inspection.tile import read_bytes
from sarsense.shards import tile_hash
from sarsense.verify.problem import TABLE, Problem

_OF_CHANNEL = ("source", "band", "mean_db", "std_db", "enl", "enl_bias_db", "lo_db", "hi_db")
"""columns that repeat the first channel"""
_JOINED = ("polarisation", "content", "group")
"""columns that name each channel's once, with + between"""
_OF_SCENE = ("acquisition", "sensor", "mode", "datetime", "orbit_direction", "crs")
_NEEDED = {"key": "", "shard": "", "offset": -1, "content_hash": "", "split": "", "label_offset": -1, "label_hash": ""}
"""columns without which nothing can be said of a row, and what stands for a cell that is empty"""
_MOST = 20
"""empty cells of a column that are told one by one; of more, their number"""
_POLAR = 85.0
"""degrees: a footprint near a pole may go around it"""

Row = Mapping[str, Any]


def contradictions(corpus: Corpus, shards: Sequence[str] | None = None) -> list[Problem]:
    """A problem a column and row, of the tiles of these shards. CorpusError where the table cannot be read."""
    table, _ = typed(corpus, corpus.tiles())
    if shards is not None:
        table = table.filter(pc.field("shard").isin(list(shards)))
    rows: list[dict[str, Any]] = table.to_pylist()
    scenes, size = _of_scenes(rows), math.prod(corpus.tile_shape) * corpus.dtype.itemsize
    found = [
        Problem(TABLE, f"{name} {_short(row[name])}, {where} {_short(said)}", row["key"])
        for row in rows
        for name, where, said in _against_itself(row, scenes[row["scene"]], size)
        if row[name] != said
    ]
    for number, name in _elsewhere(table, corpus.tile_shape):
        what = f"{name} lies elsewhere than lon {rows[number]['lon']}, lat {rows[number]['lat']}"
        found.append(Problem(TABLE, what, rows[number]["key"]))
    return found + _against_shards(corpus, rows)


def typed(corpus: Corpus, table: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """Rows of tiles.parquet of the types that it should have, whoever wrote them, without the empty cells that no row
    of a corpus has; and a problem for each of those, and for each column that cannot be read."""
    schema, problems = tile_schema(corpus.labelled), []
    for index, name in enumerate(table.column_names):
        kind, column = schema.field(name).type, table[name]
        if column.type != kind:
            try:
                column = column.cast(kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
                problems.append(Problem(TABLE, f"{name} is a column of {column.type}, expected {kind}"))
                column = pa.chunked_array([pa.nulls(len(table), kind)])
        if name in (*_NEEDED, "channels") and 0 < column.null_count < len(table):
            empty = np.flatnonzero(column.is_null().to_numpy())
            keys = [table["key"][number].as_py() for number in empty[:_MOST].tolist()]
            problems += [Problem(TABLE, f"{name} is empty", key) for key in keys]
            if len(empty) > _MOST:
                problems.append(Problem(TABLE, f"{name} is empty in {len(empty) - _MOST} more rows"))
        elif name in (*_NEEDED, "channels") and column.null_count:
            problems.append(Problem(TABLE, f"{name} is empty in all rows"))
        if name in _NEEDED:
            column = column.fill_null(pa.scalar(_NEEDED[name], kind))
        table = table.set_column(index, schema.field(name), column)
    return table, problems


def _of_scenes(rows: Sequence[Row]) -> dict[str, Row]:
    """What most tiles of a scene say of it, for each scene."""
    said: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        said[row["scene"]].append(row)
    return {scene: {name: value for name in _OF_SCENE for value in _most(name, of)} for scene, of in said.items()}


def _most(name: str, rows: Sequence[Row]) -> list[Any]:
    """The value that more than half of the rows have, where there is one."""
    value, count = Counter(row[name] for row in rows).most_common(1)[0]
    return [value] if 2 * count > len(rows) else []


def _against_itself(row: Row, scene: Row, size: int) -> Iterator[tuple[str, str, Any]]:
    """Column, who says what it should hold, and what that is."""
    if channels := row["channels"]:
        for name in _OF_CHANNEL:
            yield name, "its channels say", channels[0][name]
        for name in _JOINED:
            yield name, "its channels say", "+".join(dict.fromkeys(str(channel[name]) for channel in channels))
    if row["row"] is not None and row["col"] is not None:
        yield "key", "its columns make", f"{row['scene']}-{row['polarisation']}-{row['row']:05d}-{row['col']:05d}"
    for name, said in scene.items():
        yield name, "most tiles of its scene say", said
    yield "bytes", "a tile of this corpus has", size


def _elsewhere(table: pa.Table, shape: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    """Rows, and which column of theirs is not around the middle of the tile."""
    lon, lat = floats(table["lon"]), floats(table["lat"])
    placed = np.abs(lat) < _POLAR
    affine = np.full((len(table), 6), np.nan)
    for number, one in enumerate(table["lonlat_transform"].to_pylist()):
        if one is not None and len(one) == 6:
            affine[number] = one
    height, width = shape[-2:]
    cols, rows = np.array([0, width, width, 0]), np.array([0, 0, height, height])
    fitted = [affine[:, [at]] * cols + affine[:, [at + 1]] * rows + affine[:, [at + 2]] for at in (0, 3)]
    rings = {"footprint": corners(table["footprint"].combine_chunks()), "lonlat_transform": np.stack(fitted, axis=-1)}
    for name, ring in rings.items():
        with np.errstate(invalid="ignore"):  # a changed table may say that a tile lies at infinity
            east, north = (ring[..., 0] - lon[:, None] + 180.0) % 360.0 - 180.0, ring[..., 1] - lat[:, None]
        around = [(side.min(axis=1) < 0.0) & (side.max(axis=1) > 0.0) for side in (east, north)]
        yield from ((number, name) for number in np.flatnonzero(placed & ~(around[0] & around[1])).tolist())


def _against_shards(corpus: Corpus, rows: Sequence[Row]) -> list[Problem]:
    """What follows from pixels and labels, of tiles whose pixels are those of the row."""
    shards = {shard.path for shard in corpus.shards}
    mine = [row for row in rows if row["shard"] in shards]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [one for found in pool.map(partial(_of_tile, corpus), mine) for one in found]


def _of_tile(corpus: Corpus, row: Row) -> list[Problem]:
    tile = _read(corpus, row, "offset", "content_hash", corpus.dtype, corpus.tile_shape)
    if tile is None:
        return []
    channel = (row["channels"] or [row])[0]
    known = channel["lo_db"] is not None and channel["hi_db"] is not None
    said: dict[str, Any] = look(tile[0], channel, 8 * corpus.dtype.itemsize) if known else {}
    if corpus.labelled:
        labels = _read(corpus, row, "label_offset", "label_hash", np.dtype(np.uint8), corpus.tile_shape[1:])
        if labels is not None:
            said["label_counts"] = count_labels(labels)
    return [
        Problem(TABLE, f"{name} {_short(row[name])}, its pixels say {_short(value)}", row["key"])
        for name, value in said.items()
        if row[name] != value
    ]


def _read(
    corpus: Corpus, row: Row, offset: str, digest: str, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray | None:
    """The array that a row tells by these columns; None where it is another one, or cannot be read."""
    try:
        raw = read_bytes(corpus.root / row["shard"], row[offset], math.prod(shape) * dtype.itemsize)
    except (SarsenseError, ValueError):  # of the shard that is told; of an offset that is none
        return None
    return np.frombuffer(raw, dtype).reshape(shape) if tile_hash(raw) == row[digest] else None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
