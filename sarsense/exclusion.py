"""Lists of tiles and scenes that a build leaves out: a plain list, or the CSV that `sarsense shards browse` writes.

A row of the CSV that names a key is of that tile alone; one without key is of its scene, or of its source file.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from sarsense.errors import SettingError

COLUMNS = ("key", "scene", "source", "reason")
"""of the CSV"""
_LONGEST_CELL = 2**20


@dataclass(frozen=True)
class Exclusion:
    """What a list names, each once, in its order."""

    name: str
    """of the file"""
    names: tuple[str, ...]
    """keys of tiles, names of scenes, paths of files inside their source"""
    rows: tuple[dict[str, str], ...]
    """as they stand there, with the COLUMNS; of a plain list all are keys"""


def read_exclusion(path: Path) -> Exclusion:
    """The list in a file. SettingError where it cannot be read, or names nothing at all and is no empty CSV.

    A first line that has a column `key`, `scene` or `source` makes it a CSV; else a name a line, and from # on, at the
    start of a line or after a space, a comment.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: a list of tiles or scenes expected, {error} found: check the path") from None
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    header = [name.strip('" ').lower() for name in first.split(",")]
    if len({"key", "scene", "source"} & set(re.split(r"[;\t]", first.lower()))) > 1:
        raise SettingError(f"{path}: commas between the cells of a CSV expected, others found: save it with commas")
    if {"key", "scene", "source"} & set(header):
        rows = _csv_rows(path, text)
        return Exclusion(path.name, tuple(dict.fromkeys(filter(None, map(named, rows)))), tuple(rows))
    names = tuple(dict.fromkeys(name for line in lines if (name := re.sub(r"(^|\s)#.*", "", line).strip())))
    if not names:
        raise SettingError(f"{path}: a key, scene or source a line expected, none found: list what is to be left out")
    return Exclusion(path.name, names, tuple({**dict.fromkeys(COLUMNS, ""), "key": name} for name in names))


def named(row: dict[str, str]) -> str:
    """What a row of the CSV leaves out: its key, else its scene, else its source; empty: nothing."""
    return row["key"] or row["scene"] or row["source"]


def _csv_rows(path: Path, text: str) -> list[dict[str, str]]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] = []
        while not any(header):
            header = [name.strip().lower() for name in next(reader)]
        found = [dict(zip(header, cells, strict=False)) for cells in reader]
    except csv.Error as error:
        raise SettingError(f"{path}: a CSV with the columns {', '.join(COLUMNS)} expected, {error} found") from None
    rows = [{column: (row.get(column) or "").strip() for column in COLUMNS} for row in found]
    return [row for row in rows if named(row)]
