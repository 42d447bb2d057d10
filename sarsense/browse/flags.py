"""Tiles and scenes that a person flagged, as a CSV that `sarsense build --exclude` takes.

Every change reads the file anew under a lock of its folder and replaces it whole: several tabs, several servers and an
editor that saves between two changes lose nothing of one another. Columns and rows that are not ours stay.
"""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarsense.errors import SettingError
from sarsense.exclusion import COLUMNS
from sarsense.files import atomic_write
from sarsense.inspection.text import plain

LONGEST_REASON = 500
LARGEST_FILE = 64 * 2**20
_LONGEST_CELL, _LONGEST_NAME = 2**20, 4096
_FORMULA = ("=", "+", "-", "@")
"""what a cell begins with that a spreadsheet computes"""


@dataclass(frozen=True)
class Flag:
    key: str
    """empty: the whole scene"""
    scene: str
    source: str
    reason: str

    @property
    def name(self) -> str:
        """What is left out."""
        return self.key or self.scene or self.source


class FlagFile:
    """The list at `path`, which need not be there yet. SettingError where it is no such list."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = threading.Lock()
        self.read()

    def read(self) -> list[Flag]:
        """As they stand in the file now."""
        return [_flag(row) for row in self._rows()[1]]

    def add(self, row: Mapping[str, Any], reason: str, whole: bool) -> None:
        """Flag the tile of a row of tiles.parquet, or its whole scene; one that is flagged gets the reason."""
        key, scene, source = (str(row.get(name) or "") for name in ("key", "scene", "source"))
        flag = Flag("" if whole else key, _listable(scene), _listable(source), _one_line(reason))
        if not _listable(flag.name):
            raise SettingError(
                f"the {'scene' if whole else 'tile'} has no name that fits into a line of a list, or one that a "
                "spreadsheet takes for a formula: it cannot be flagged; a plain list takes what is in one line"
            )
        with self._changing() as (_, rows):
            same = next((one for one in rows if _flag(one).name == flag.name), None)
            if same is None:
                rows.append(vars(flag).copy())
            else:
                same["reason"] = flag.reason

    def remove(self, name: str) -> bool:
        """Take back what is listed by this key, scene or source; whether there was one."""
        with self._changing() as (_, rows):
            before = len(rows)
            rows[:] = [row for row in rows if _flag(row).name != name]
            return len(rows) < before

    @contextmanager
    def _changing(self) -> Iterator[tuple[list[str], list[dict[str, str]]]]:
        with self._lock, _folder_locked(self.path.parent):
            header, rows = self._rows()
            yield header, rows
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            with atomic_write(self.path) as file:
                file.write(text.getvalue().encode("utf-8", "replace"))

    def _rows(self) -> tuple[list[str], list[dict[str, str]]]:
        try:
            with self.path.open("rb") as file:
                raw = file.read(LARGEST_FILE + 1)
        except FileNotFoundError:
            return list(COLUMNS), []
        except OSError as error:
            raise SettingError(f"{self.path}: flags cannot be read: {error.strerror}") from None
        if len(raw) > LARGEST_FILE:
            raise SettingError(f"{self.path}: larger than {LARGEST_FILE >> 20} MiB: no list of flags")
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
        try:
            lines = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise SettingError(f"{self.path}: a CSV of flags expected, {error} found; name another --flags") from None
        lines = [line for line in lines if line]
        if not lines:
            return list(COLUMNS), []
        header = [name.strip() for name in lines[0]]
        if "key" not in header or len(set(header)) < len(header):
            raise SettingError(
                f"{self.path}: a CSV with the columns {', '.join(COLUMNS)} expected, {plain(','.join(header), 80)} "
                "found; name another --flags"
            )
        if any(len(line) > len(header) for line in lines):
            raise SettingError(f"{self.path}: a row has more cells than its header; mend it, or name another --flags")
        rows = [dict(zip(header, line, strict=False)) for line in lines[1:]]
        return [*header, *(name for name in COLUMNS if name not in header)], rows


def _flag(row: Mapping[str, str]) -> Flag:
    return Flag(*((row.get(name) or "").strip() for name in COLUMNS))


def _listable(name: str) -> str:
    """The name where it comes out of a CSV as it went in, whoever reads it, and does nothing there; else nothing."""
    fits = name.isprintable() and name == name.strip() and len(name) <= _LONGEST_NAME
    return name if fits and not name.startswith(_FORMULA) else ""


def _one_line(text: str) -> str:
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words[:LONGEST_REASON]


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Against other processes that flag; where a system or its disk knows no such locks, against nobody."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
