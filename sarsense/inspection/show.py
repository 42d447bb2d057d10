"""`shards show`: choose tiles, draw them on a sheet, write it or hand it to a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarsense.errors import CorpusError, SettingError
from sarsense.files import atomic_write
from sarsense.inspection.choice import Choice, near, outliers, spread
from sarsense.inspection.sheet import check_size, draw_sheet, terminal_picture
from sarsense.inspection.source import Source
from sarsense.places import Place

DEFAULT = Path("contact-sheet.png")


@dataclass(frozen=True)
class Shown:
    path: Place | None
    """where the sheet was written; None: `sequence` shows it in the terminal"""
    sequence: str
    choice: Choice

    def to_json(self) -> dict[str, Any]:
        rows = zip(self.choice.rows, self.choice.notes, strict=True)
        tiles = [{"key": row["key"], "shard": row["shard"], "note": note} for row, note in rows]
        return {"out": None if self.path is None else str(self.path), "of": self.choice.of, "tiles": tiles}


def show(
    source: Source,
    out: Place | None,
    count: int = 24,
    columns: int = 6,
    seed: int = 0,
    where: str | None = None,
    by: str | None = None,
    place: str | None = None,
    strangest: bool = False,
    to_terminal: bool = False,
) -> Shown:
    """A sheet of `count` tiles: spread by `seed` over groups, or over the values of column `by`; those nearest to
    `place` ('LON,LAT'); or the strangest. To `out`, or into the terminal where it shows pictures. SettingError,
    CorpusError where there are no tiles."""
    check_size(count, columns)
    if out is not None and out.suffix.lower() != ".png":
        raise SettingError(f"{out}: pictures are PNG; a name that ends in .png expected")
    if sum((by is not None, place is not None, strangest)) > 1:
        raise SettingError("--by, --near and --outliers: one of them expected")
    if place is not None:
        choice, how = near(source, count, *_lonlat(place), where), f"nearest to {place}"
    elif strangest:
        choice, how = outliers(source, count, where), "least like their groups, the strangest first"
    else:
        choice, how = spread(source, count, seed, where, by), f"by {by}" if by else ""
    if not choice.rows:
        told = f"no tile for which {where}" if where else "no tiles: nothing to draw"
        raise CorpusError(f"{source.name}: {told}")
    version = "" if source.corpus is None else f" {source.corpus.manifest['version']}"
    title = ", ".join(part for part in (f"{source.name}{version}", how, where or "") if part)
    sheet = draw_sheet(source, choice, columns, title)
    if out is None and to_terminal and (sequence := terminal_picture(sheet)) is not None:
        return Shown(None, sequence, choice)
    path = out or DEFAULT
    with atomic_write(path) as file:
        file.write(sheet)
    return Shown(path, "", choice)


def _lonlat(text: str) -> tuple[float, float]:
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"--near: LON,LAT in degrees expected, found '{text}'") from error
    return lon, lat
