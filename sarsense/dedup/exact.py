"""Exact duplicates: the same scene delivered twice, the same tile cut twice.

Which of a set of duplicates is kept does not depend on order or arrival: the smallest path of a scene, the smallest
key of a tile. Repeat passes differ in every speckle, so they are never exact duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def exact_duplicates(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Dropped name -> kept name, for (name, content hash) pairs in any order; the smallest name is kept."""
    kept: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for name, content in sorted(items):
        if content in kept:
            dropped[name] = kept[content]
        else:
            kept[content] = name
    return dropped


def duplicate_row(kind: str, dropped: str, kept: str | None, distance: float | None = 0.0) -> dict[str, Any]:
    """A row of duplicates.parquet. kept: what it repeats, or what it is too near to; None for flat tiles. `distance` is
    0 for exact duplicates; docs/duplicates.md says what it is of the other kinds."""
    return {"kind": kind, "dropped": dropped, "kept": kept, "distance": distance}
