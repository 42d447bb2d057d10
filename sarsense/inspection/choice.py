"""Which tiles to show: spread over what there is, near a place, or unlike the others of their group.

Each choice is one query: half a million rows take well under a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from sarsense.errors import SettingError
from sarsense.inspection.query import columns_of, condition, database, literal, run
from sarsense.inspection.source import Source
from sarsense.inspection.tile import NEEDED

_SHOWN = ("scene", "sensor", "mode", "datetime", "mean_db", "enl", "split", "lon", "lat")
_EARTH_KM = 6371.0088
"""mean radius (IUGG)"""
_FEATURES = {
    "level": "mean_db",
    "spread": "std_db",
    "looks": "ln(enl)",
    "structure": "structure_db",
    "valid": "valid_fraction",
}
_FEWEST = 8
"""tiles of a group in which one can be unlike the others"""
_LEAST = {"level": 0.1, "spread": 0.1, "looks": 0.05, "structure": 0.1, "valid": 0.01}
"""deviations that are told apart from none: where half of a group is equal, its median deviation is 0"""


@dataclass(frozen=True)
class Choice:
    """Rows to show, in order, and for each why (empty: as one of many)."""

    rows: list[dict[str, Any]]
    notes: list[str]
    heads: list[str]
    """by what they are set apart; equal ones lie together; empty: not set apart"""
    of: int
    """tiles among which was chosen"""


def spread(source: Source, count: int, seed: int = 0, where: str | None = None, by: str | None = None) -> Choice:
    """Up to `count` tiles: values of `by` (default: groups of the corpus) in turn, in each the scenes in turn, in each
    scene tiles drawn by `seed`. In the order of `by` and the scenes. SettingError for a column that is none."""
    known = columns_of(source)
    column = _known(by, known) if by else next(name for name in ("group", "shard") if name in known)
    scene = "scene" if "scene" in known else "shard"
    with database(source) as connection:
        chosen = run(
            connection,
            f"""
            WITH drawn AS (
                SELECT coalesce(CAST("{column}" AS VARCHAR), 'unknown') AS part, count(*) AS n,
                    min({{'draw': md5(key || '{int(seed)}'), 'key': key, 'shard': shard}}, {int(count)}) AS tiles
                FROM tiles{condition(where)} GROUP BY part, "{scene}"
            ), turns AS (
                SELECT part, unnest(tiles) AS tile, generate_subscripts(tiles, 1) AS turn FROM drawn
            ), ranks AS (
                SELECT *, row_number() OVER (PARTITION BY part ORDER BY turn, tile) AS rank FROM turns
                QUALIFY rank <= {int(count)}
            )
            SELECT tile.key AS key, tile.shard AS shard, part, (SELECT sum(n) FROM drawn)::BIGINT AS n
            FROM ranks ORDER BY rank, part LIMIT {int(count)}
            """,
            source,
        )
        rows = _whole(connection, chosen, known, source)
    rows.sort(key=lambda row: (row["part"], row.get(scene) or "", row["key"] or ""))
    heads = [row["part"] for row in rows] if by else []
    return Choice(rows, [""] * len(rows), heads, rows[0]["n"] if rows else 0)


def near(source: Source, count: int, lon: float, lat: float, where: str | None = None) -> Choice:
    """The `count` tiles whose centres are nearest to a place, in degrees, by great circle. SettingError where the place
    is none, or no tile has one."""
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise SettingError(f"--near: longitude -180 to 180 and latitude -90 to 90 expected, found {lon:g},{lat:g}")
    known = columns_of(source)
    if "lon" not in known:
        raise SettingError(f"--near: nothing says where the tiles of {source.name} lie")
    with database(source) as connection:
        chosen = run(
            connection,
            f"""
            WITH far AS (
                SELECT key, shard, {2 * _EARTH_KM} * asin(least(1, sqrt(
                    pow(sin(radians(lat - {float(lat)}) / 2), 2) + cos(radians(lat)) * cos(radians({float(lat)}))
                    * pow(sin(radians(lon - {float(lon)}) / 2), 2)))) AS km
                FROM tiles{condition(where)}
            )
            SELECT *, (SELECT count(*) FROM far WHERE km IS NOT NULL) AS n
            FROM far WHERE km IS NOT NULL ORDER BY km, key LIMIT {int(count)}
            """,
            source,
        )
        rows = _whole(connection, chosen, known, source)
    if not rows:
        raise SettingError(f"--near: no tile of {source.name} has a place")
    return Choice(rows, [f"{row['km']:,.1f} km away" for row in rows], [], rows[0]["n"])


def outliers(source: Source, count: int, where: str | None = None) -> Choice:
    """The `count` tiles least like the others of their group, the strangest first.

    Of each of level, spread, looks, structure (all in dB but looks, the logarithm of ENL) and valid fraction: the
    distance to the group's median in units of its median absolute deviation, times 1.4826 (of a normal distribution the
    standard deviation). A tile's score is the largest; groups of fewer than eight tiles are not judged. SettingError
    where nothing can be judged.
    """
    known = columns_of(source)
    columns = {name: _sql for name, _sql in _FEATURES.items() if _sql.removeprefix("ln(").rstrip(")") in known}
    if not columns or "group" not in known:
        raise SettingError(f"--outliers: nothing says how the tiles of {source.name} differ; name a corpus")
    features = ", ".join(f"{_safe(sql)} AS f_{name}" for name, sql in columns.items())
    medians = ", ".join(f"median(f_{name}) AS m_{name}, mad(f_{name}) AS d_{name}" for name in columns)
    scores = ", ".join(
        f"coalesce((f_{name} - m_{name}) / greatest(1.4826 * d_{name}, {_LEAST[name]}), 0) AS z_{name}"
        for name in columns
    )
    largest = f"greatest({', '.join(f'abs(z_{name})' for name in columns)})"
    with database(source) as connection:
        chosen = run(
            connection,
            f"""
            WITH measured AS (SELECT key, shard, "group", {features} FROM tiles{condition(where)}),
            groups AS (
                SELECT "group" AS g, count(*) AS size, {medians} FROM measured GROUP BY "group"
            ),
            judged AS (
                SELECT key, shard, {scores} FROM measured JOIN groups ON measured."group" = groups.g
                WHERE size >= {_FEWEST}
            )
            SELECT *, (SELECT count(*) FROM judged) AS n
            FROM judged ORDER BY {largest} DESC, key LIMIT {int(count)}
            """,
            source,
        )
        rows = _whole(connection, chosen, known, source)
    if not rows:
        raise SettingError(f"--outliers: no group of {source.name} has {_FEWEST} tiles to tell one from the others")
    return Choice(rows, [_why(row, list(columns)) for row in rows], [], rows[0]["n"])


def _whole(
    connection: duckdb.DuckDBPyConnection, chosen: pa.Table, known: list[str], source: Source
) -> list[dict[str, Any]]:
    """The chosen rows with the columns of a sheet: those are read of few tiles, not carried through the choice."""
    named = [key for key in chosen["key"].to_pylist() if key is not None]
    which = f"key IN ({', '.join(map(literal, named)) or 'NULL'})"
    if len(named) < len(chosen):  # a row of a table that was changed
        which += " OR key IS NULL"
    wanted = ", ".join(f'"{name}"' for name in dict.fromkeys((*NEEDED, *_SHOWN)) if name in known)
    found = run(connection, f"SELECT {wanted} FROM tiles WHERE {which}", source).to_pylist()
    by_name = {(row["key"], row["shard"]): row for row in found}
    return [by_name[row["key"], row["shard"]] | row for row in chosen.to_pylist()]


def _why(row: dict[str, Any], names: list[str]) -> str:
    name = max(names, key=lambda one: abs(row[f"z_{one}"]))
    return f"{name} {row[f'z_{name}']:+.1f} deviations"


def _safe(sql: str) -> str:
    """The logarithm of what is not above 0 is null."""
    column = sql.removeprefix("ln(").rstrip(")")
    return sql if sql == column else f"CASE WHEN {column} > 0 THEN {sql} END"


def _known(column: str, known: list[str]) -> str:
    if column not in known:
        raise SettingError(f"--by: no column {column}; there are {', '.join(known)}")
    return column
