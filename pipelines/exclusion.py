"""What `--exclude` leaves out: scenes whole, before anything is decided of them, and tiles, before any other test.

So nothing that is left out keeps another from the corpus: it is that of sources without what the list names.
"""

from __future__ import annotations

from collections.abc import Container

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.entries import EXCLUDED, Entry
from sarsense.corpus import Corpus
from sarsense.exclusion import Exclusion


def exclude_scenes(entries: list[Entry], exclusion: Exclusion) -> None:
    """Measured scenes that the list names, by scene or by source path; of a stack all files, where it names one."""
    listed = set(exclusion.names)
    for entry in entries:
        members = {id(member): member for member in entry.stack or [entry]}.values()
        if entry.follows or not any(_names_of(member) & listed for member in members):
            continue
        for member in members:
            if member.status == "used":
                member.status, member.reason = EXCLUDED, f"excluded: listed in {exclusion.name}"


def exclude_tiles(entry: Entry, tiles: pa.Table, exclusion: Exclusion) -> pa.Table:
    """The tiles that the list does not name; the entry counts the others."""
    listed = pc.field("key").isin(exclusion.names)
    entry.excluded = tiles.filter(listed)["key"].to_pylist()
    if not entry.excluded:
        return tiles
    entry.left_out[EXCLUDED] += len(entry.excluded)
    return tiles.filter(~listed)


def unmatched(entries: list[Entry], exclusion: Exclusion, base: Corpus | None) -> list[str]:
    """What the list names that is no tile and no scene of these entries, or of the corpus that grows."""
    known: set[str] = set()
    whole: set[str] = set()
    for entry in entries:
        known |= _names_of(entry) | set(entry.excluded)
        if entry.status == EXCLUDED and entry.identity is not None:
            whole.add(entry.identity)
    if base is not None:
        whole |= set(filter(None, base.scenes["scene"].to_pylist()))
        known |= whole | set(base.scenes["path"].to_pylist())
    return [name for name in exclusion.names if name not in known and not _tile_of(name, whole)]


def _names_of(entry: Entry) -> set[str]:
    return {entry.file.relative, *([] if entry.identity is None else [entry.identity])}


def _tile_of(key: str, scenes: Container[str]) -> bool:
    """Whether a key, SCENE-POLARISATION-ROW-COL, may be that of a tile of one of these scenes: of a scene that was
    excluded, or in a corpus that left the tile out, there is no trace of it."""
    return key.rsplit("-", 3)[0] in scenes
