"""What is like a tile: what was left out for it, what looks like it, what shows the same place.

A tile that a build left out as a duplicate is in no shard: its name is all there is of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sarsense.browse.table import NUMBER, TileTable, text
from sarsense.inspection.query import NUMBERED

ROWS, LOOK_ALIKES, SAME_PLACE = 100, 12, 12
FARTHEST = 14
"""bits of 64 in which hashes of tiles that look alike differ, at most: of unrelated ones half of them do, 32 +- 4"""


def left_out(table: TileTable, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of duplicates.parquet that name the tile, its scene or its file, with `of`: tile or scene; `number` of the
    other where it is a tile of the corpus."""
    if table.source.corpus is None:
        return []
    names = (("source", "scene"), ("scene", "scene"), ("key", "tile"))
    mine = {str(row[name]): what for name, what in names if row.get(name)}
    listed = ", ".join(map(text, mine))
    query = (
        f"SELECT d.*, t.{NUMBER} AS number FROM (SELECT * FROM duplicates WHERE kept IN ({listed}) "
        f"OR dropped IN ({listed}) LIMIT {ROWS}) d LEFT JOIN {NUMBERED} t "
        f"ON t.key = CASE WHEN d.kept IN ({listed}) THEN d.dropped ELSE d.kept END"
    )
    found = []
    for one in table.ask(query).to_pylist():
        kept = one["kept"] in mine
        other = one["dropped"] if kept else one["kept"]
        of = mine[one["kept"] if kept else one["dropped"]]
        found.append({**one, "of": of, "other": other, "role": "left out for it" if kept else "kept in its stead"})
    return found


def look_alikes(table: TileTable, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tiles whose hash by look is nearest: number, key, scene and `distance`, bits of 64."""
    mine = row.get("perceptual_hash")
    if not _is_hash(mine) or "perceptual_hash" not in table.types:
        return []
    theirs = "TRY_CAST('0x' || perceptual_hash AS UBIGINT)"
    return table.ask(
        f"SELECT {NUMBER} AS number, key, scene, bit_count(xor({theirs}, {int(str(mine), 16)}::UBIGINT)) AS distance "
        f"FROM {NUMBERED} WHERE perceptual_hash IS NOT NULL AND {NUMBER} <> {int(row[NUMBER])} "
        f"AND distance <= {FARTHEST} ORDER BY distance, {NUMBER} LIMIT {LOOK_ALIKES}"
    ).to_pylist()


def same_place(table: TileTable, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Other observations of its place: number, key, scene, datetime, polarisation."""
    if not row.get("place") or "place" not in table.types:
        return []
    return table.ask(
        f"SELECT {NUMBER} AS number, key, scene, datetime, polarisation FROM {NUMBERED} "
        f"WHERE place = {text(str(row['place']))} AND {NUMBER} <> {int(row[NUMBER])} "
        f"ORDER BY datetime NULLS LAST, {NUMBER} LIMIT {SAME_PLACE}"
    ).to_pylist()


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 16 and all(c in "0123456789abcdefABCDEF" for c in value)
