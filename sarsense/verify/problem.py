"""One thing that is wrong with a corpus."""

from __future__ import annotations

from dataclasses import dataclass

TABLE = "tiles.parquet"


@dataclass(frozen=True)
class Problem:
    """As text: 'file: tile key: what (byte n)'."""

    file: str
    """relative to the corpus"""
    what: str
    key: str | None = None
    byte: int | None = None
    """where in the file it begins"""

    def __str__(self) -> str:
        tile = "" if self.key is None else f"tile {self.key}: "
        at = "" if self.byte is None else f" (byte {self.byte})"
        return f"{self.file}: {tile}{self.what}{at}"
