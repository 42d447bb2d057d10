"""What a table of tiles adds up to: counts, bytes, levels, looks and duplicates, by any column and by classes of it.

Aggregated by DuckDB in one pass over the few columns that are needed; no tile is a Python object, and none is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from sarsense.codes import step_db
from sarsense.columns import floats, texts, values
from sarsense.corpus import Corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.inspection.query import columns_of, condition, database, run, select
from sarsense.inspection.source import Source
from sarsense.report.classes import CLASSES, COLUMNS, with_classes

OVERVIEW = ("sensor", "polarisation", "split", "month", "spacing", "region")
_COLUMNS = tuple(name for name in COLUMNS if name not in ("mode", "orbit_direction"))
_MEASURED = ("bytes", "mean_db", "std_db", "enl", "valid_fraction", "group")
_MOST = 3
_ROW = (
    "count(*) AS tiles, count(DISTINCT scene) AS scenes, sum(bytes)::BIGINT AS bytes, "
    # dB of unlike quantities (sigma nought and digital numbers, say) have no mean
    "CASE WHEN count(DISTINCT quantity) = 1 THEN round(avg(mean_db), 2) END AS mean_db, "
    "CASE WHEN count(DISTINCT quantity) = 1 THEN round(stddev_samp(mean_db), 2) END AS spread_db, "
    "round(avg(std_db), 2) AS texture_db, round(median(enl), 2) AS median_enl, round(avg(valid_fraction), 4) AS valid"
)


def statistics(source: Source, by: Sequence[str] | None = None, where: str | None = None) -> dict[str, Any]:
    """Plain values for tables or JSON, of the tiles for which `where` holds.

    `by`: columns or CLASSES; then a row for each combination of their values, under their names with commas; None: a
    table for each of OVERVIEW. In a row: tiles, scenes, bytes of pixels, mean and spread (deviation between tiles) of
    the tiles' mean dB, None where tiles are of unlike quantities; `texture_db`, the mean of the deviations inside
    tiles; median of looks; valid share; duplicates by kind that were dropped in favour of one of these tiles.
    `groups`: by group of codes, of a corpus. `unknown`: columns that tars of another program say nothing of.
    SettingError.
    """
    table, duplicates = _read(source, where, by or ())
    sets = [tuple(by)] if by else [(name,) for name in OVERVIEW]
    connection = duckdb.connect(config={"threads": 2, "memory_limit": "400MB"})
    try:
        connection.register("t", table)
        connection.register("d", duplicates)
        tables = {",".join(names): _rows(connection, names) for names in sets}
        # a table of which nothing is known, of tars of another program, is left out and named in `unknown`
        if not by:
            tables = {name: rows for name, rows in tables.items() if not _is_unknown(source, name)}
        splits = {row["split"]: row["tiles"] for row in _rows(connection, ("split",)) if row["split"] is not None}
        groups = [] if source.corpus is None else _groups(source, where)
    finally:
        connection.close()
    kinds = _kinds(source) if where is None and source.shards is None else _counts(duplicates["kind"])
    told = {
        "name": source.name,
        **_identity(source),
        "where": where,
        "tiles": len(table),
        **_shards(source, table),
        "splits": dict(sorted(splits.items())),
        "groups": groups,
        "by": tables,
        "duplicates": kinds,
        "unknown": list(source.unknown),
    }
    return {name: value for name, value in told.items() if name != "where" or value is not None}


def _read(source: Source, where: str | None, by: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """The tiles with all that is counted, texts as codes of a dictionary; and a row for each duplicate of a tile."""
    known = columns_of(source)
    if bad := [name for name in by if name not in (*known, *CLASSES)]:
        lacking = f"; of these tars nothing says {', '.join(source.unknown)}" if source.unknown else ""
        raise SettingError(f"--by: no column {bad[0]}; there are {', '.join((*known, *CLASSES))}{lacking}")
    if len(by) > _MOST:
        raise SettingError(f"--by: up to {_MOST} columns expected, {len(by)} found")
    wanted = list(dict.fromkeys([*_COLUMNS, *_MEASURED, *(name for name in by if name not in CLASSES)]))
    table = _classed(select(source, wanted, where))
    for name in by:
        if pa.types.is_nested(table.schema.field(name).type) or pa.types.is_binary(table.schema.field(name).type):
            raise SettingError(f"--by: {name} is a list or a geometry: name a column of single values")
    if source.corpus is None:
        return table, _classed(pa.table({"kind": pa.array([], pa.string())}))
    names = ", ".join(f't."{name}"' for name in wanted)
    with database(source) as connection:
        query = (
            f"SELECT d.kind, {names} FROM duplicates d JOIN (SELECT * FROM tiles{condition(where)}) t ON t.key = d.kept"
        )
        return table, _classed(run(connection, query, source))


def _classed(table: pa.Table) -> pa.Table:
    """With CLASSES, `quantity`, and nulls for what is not known at all."""
    for name in (*_COLUMNS, *_MEASURED):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), _type(name)))
    group = table["group"].combine_chunks().dictionary_encode()
    names = [*map(_quantity, group.dictionary.to_pylist()), None]
    which, known = values(pa.chunked_array([group.indices]))
    which = which if known is None else np.where(known, which, len(names) - 1)
    table = table.append_column("quantity", texts(names, which))
    table = with_classes(table)
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(index, field.name, table[field.name].dictionary_encode())
    return table


def _quantity(group: str) -> str:
    """Of the channels of a group of codes."""
    return "+".join(sorted({channel.rpartition("/")[2] for channel in group.split("+")}))


def _type(name: str) -> pa.DataType:
    return pa.float64() if name.endswith(("_db", "_m", "enl", "lon", "lat", "fraction")) else pa.string()


def _rows(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each combination of the values of columns, the most tiles first; of dates by date."""
    columns = ", ".join(f'"{name}"' for name in names)
    order = columns if set(names) <= {"month", "year"} else f"tiles DESC, {columns}"
    rows = connection.sql(f"SELECT {columns}, {_ROW} FROM t GROUP BY {columns} ORDER BY {order}").to_arrow_table()
    kinds = connection.sql(f"SELECT {columns}, kind, count(*) AS n FROM d GROUP BY {columns}, kind").fetchall()
    repeats: dict[tuple[Any, ...], dict[str, int]] = defaultdict(dict)
    for *of, kind, number in kinds:
        repeats[tuple(of)][kind] = number
    return [{**row, "duplicates": repeats.get(tuple(row[n] for n in names), {})} for row in rows.to_pylist()]


def _groups(source: Source, where: str | None) -> list[dict[str, Any]]:
    """A row a group of codes; levels, looks and ranges are lists where a tile has several channels."""
    corpus = source.corpus
    assert corpus is not None
    one = corpus.tile_shape[0] == 1
    channel = (
        "mean_db, enl, 1 AS number" if one else "unnest(channels) AS c, generate_subscripts(channels, 1) AS number"
    )
    of = "" if one else "c."
    tiles = f"(SELECT * FROM tiles{condition(where)})"
    counted = (
        "SELECT \"group\", count(*) AS tiles, count(*) FILTER (WHERE split = 'train') AS train, "
        "count(*) FILTER (WHERE split = 'val') AS val, count(DISTINCT scene) AS scenes, "
        f'round(avg(valid_fraction), 4) AS valid FROM {tiles} t GROUP BY "group" ORDER BY "group"'
    )
    levels = (
        f'SELECT "group", number, round(avg({of}mean_db), 2) AS mean_db, round(median({of}enl), 2) AS median_enl '
        f'FROM (SELECT "group", {channel} FROM {tiles} t) GROUP BY "group", number ORDER BY "group", number'
    )
    with database(source) as connection:
        rows = run(connection, counted, source).to_pylist()
        measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in run(connection, levels, source).to_pylist():
            measured[row["group"]].append(row)
    told, bits = [], 8 * corpus.dtype.itemsize
    for row in rows:
        bounds = _bounds(corpus, row["group"])
        valid = row.pop("valid")
        mine = measured[row["group"]][: len(bounds)]  # of both contents, the channels as seen
        told.append(
            {
                **row,
                "mean_db": _of_channels([channel["mean_db"] for channel in mine]),
                "lo_db": _of_channels([bound["lo_db"] for bound in bounds]),
                "hi_db": _of_channels([bound["hi_db"] for bound in bounds]),
                "step_db": _of_channels([step_db(bound["lo_db"], bound["hi_db"], bits) for bound in bounds]),
                "median_enl": _of_channels([channel["median_enl"] for channel in mine]),
                "valid": valid,
            }
        )
    return told


def _bounds(corpus: Corpus, group: str | None) -> list[dict[str, Any]]:
    """What corpus.json says of the channels of a group of codes. CorpusError where it knows no such group."""
    known = corpus.manifest["groups"]
    names = (group or "").split("+")
    if not all(name in known for name in names):
        raise CorpusError(
            f"{corpus.root / 'tiles.parquet'}: a group of codes of corpus.json expected, found {group!r}: the table "
            "was changed; `sarsense shards verify` tells where, restore it"
        )
    return [known[name] for name in names]


def _of_channels(values: list[Any]) -> Any:
    """The value of a single channel, or those of all."""
    return values[0] if len(values) == 1 else values


def _identity(source: Source) -> dict[str, Any]:
    corpus = source.corpus
    if corpus is None:
        return {"version": None, "digest": None, "tile_shape": None}
    return {"version": corpus.manifest["version"], "digest": corpus.digest, "tile_shape": list(corpus.tile_shape)}


def _shards(source: Source, table: pa.Table) -> dict[str, int]:
    if source.corpus is None:
        return {"shards": _distinct(source, "shard"), "bytes": int(np.nansum(floats(table["bytes"])))}
    shards = [one for one in source.corpus.shards if source.shards is None or one.path in source.shards]
    return {"shards": len(shards), "bytes": sum(shard.bytes for shard in shards)}


def _distinct(source: Source, column: str) -> int:
    """Values of a column that are unlike."""
    with database(source) as connection:
        return run(connection, f'SELECT count(DISTINCT "{column}") AS n FROM tiles', source)["n"][0].as_py()


def _kinds(source: Source) -> dict[str, int]:
    """Rows of duplicates.parquet by kind, scenes too."""
    if source.corpus is None:
        return {}
    with database(source) as connection:
        rows = run(connection, "SELECT kind, count(*) AS n FROM duplicates GROUP BY kind ORDER BY kind", source)
    return {row["kind"]: row["n"] for row in rows.to_pylist()}


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted((row["values"], row["counts"]) for row in column.value_counts().to_pylist()))


def _is_unknown(source: Source, name: str) -> bool:
    needs = {"month": "datetime", "spacing": "spacing_x_m", "region": "lon"}
    return needs.get(name, name) in source.unknown
