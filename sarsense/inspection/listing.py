"""Rows of a table to read: `ls` and `head`."""

from __future__ import annotations

from typing import Any

from sarsense.errors import SettingError
from sarsense.inspection.query import columns_of, count, select
from sarsense.inspection.source import Source

_SHOWN = "key shard split polarisation lon lat datetime mean_db enl valid_fraction members".split()
_BINARY = ("footprint",)


def listing(
    source: Source, where: str | None, sort: str | None, columns: str | None, limit: int
) -> tuple[list[str], list[dict[str, Any]], int]:
    """Names of the columns, up to `limit` rows (0: all), and how many tiles there are for which `where` holds.
    SettingError for a column, condition or order that is none."""
    known = [name for name in columns_of(source) if name not in _BINARY]
    if columns is None:
        names = [name for name in _SHOWN if name in known]
    elif columns == "all":
        names = known
    else:
        names = list(dict.fromkeys(part.strip() for part in columns.split(",") if part.strip()))
        if not names:
            raise SettingError("--columns: names with commas between expected, found none; all: every one")
        if lacking := [name for name in names if name not in known]:
            of_these = f"; of these tars nothing says {', '.join(source.unknown)}" if source.unknown else ""
            raise SettingError(f"--columns: no column {lacking[0]}; there are {', '.join(known)}{of_these}")
    rows = select(source, names, where, sort, limit).to_pylist()
    return names, rows, len(rows) if limit == 0 or len(rows) < limit else count(source, where)


def heads(source: Source, number: int) -> list[dict[str, Any]]:
    """The first tiles: all columns of their rows but the geometry, and those that nothing is said of."""
    names = [name for name in columns_of(source) if name not in _BINARY]
    rows = select(source, names, limit=number).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]
