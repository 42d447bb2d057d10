"""What a tile is counted under: region, season, year and class of pixel spacing, from its row of tiles.parquet."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pyarrow as pa

from sarsense.columns import floats, texts, values
from sarsense.report.regions import SEASONS, UNKNOWN, numbered_seasons, numbered_zones

_SPACING_EDGES = (0.7, 1.7, 4.0, 7.0, 15.0, 35.0, 70.0)
"""metres: none near a spacing that products have, so that 10.002 m and 9.998 m are of one class"""
CLASSES = ("month", "year", "season", "region", "spacing")
"""that no column holds, but date, place and spacing tell"""
COLUMNS = (
    "scene",
    "split",
    "sensor",
    "mode",
    "polarisation",
    "datetime",
    "orbit_direction",
    "lon",
    "lat",
    "spacing_x_m",
    "spacing_y_m",
)


def with_classes(table: pa.Table) -> pa.Table:
    """Tiles (COLUMNS of tiles.parquet) with region, season, year, month and spacing class; null becomes unknown."""
    lat, lon = (floats(table[name]) for name in ("lat", "lon"))
    month, dates, which = _months(table["datetime"])
    x, y = (floats(table[name]) for name in ("spacing_x_m", "spacing_y_m"))
    classes = {
        "region": texts(*numbered_zones(lon, lat)),
        "season": texts([*SEASONS, UNKNOWN], numbered_seasons(month, lat)),
        "year": texts([date[:4] if date != UNKNOWN else UNKNOWN for date in dates], which),
        "month": texts(dates, which),
        "spacing": texts([*spacing_names(), UNKNOWN], _spacing_classes(np.sqrt(x * y))),
    }
    for name, column in classes.items():
        table = table.append_column(name, column)
    for name in ("sensor", "mode", "polarisation", "orbit_direction"):
        if name in table.column_names and table[name].null_count:
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table[name].cast(pa.string()).fill_null(UNKNOWN))
    return table


def _months(dates: pa.ChunkedArray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Of ISO 8601 texts: the number of the month (int (n,), 0 unknown); the months that there are, as 2024-03 or
    unknown, and which of them each is. Half a million tiles have few dates."""
    encoded = dates.combine_chunks().dictionary_encode()
    found = [re.match(r"(\d{4})-(0[1-9]|1[0-2])(?!\d)", date or "") for date in encoded.dictionary.to_pylist()]
    month = np.array([int(match[2]) if match else 0 for match in found] + [0])
    named = [f"{match[1]}-{match[2]}" if match else UNKNOWN for match in found] + [UNKNOWN]
    index, known = values(pa.chunked_array([encoded.indices]))
    index = index if known is None else np.where(known, index, len(found))
    return month[index], named, index


def _spacing_classes(spacing: np.ndarray) -> np.ndarray:
    """The number (int) of the class of pixel spacings in metres, float64 (n,), in the order of their names; one more is
    unknown."""
    known = np.isfinite(spacing)
    found = np.searchsorted(_SPACING_EDGES, np.where(known, spacing, 0.0), "right")
    return np.where(known, found, len(_SPACING_EDGES) + 1)


def spacing_names() -> list[str]:
    """The classes of pixel spacing, from fine to coarse."""
    between = [f"{lo:g} to {hi:g} m" for lo, hi in pairwise(_SPACING_EDGES)]
    return [f"under {_SPACING_EDGES[0]:g} m", *between, f"{_SPACING_EDGES[-1]:g} m and more"]
