"""All tiles that may be in a corpus, by column: those that it holds already, then those that were cut for it now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from sarsense.codes import code_steps
from sarsense.corpus import Corpus
from sarsense.tiling import EDGE_POINTS

_COLUMNS = (
    "key scene source row col polarisation sensor datetime split content_hash flat enl lo_db hi_db acquisition shard "
    "offset lonlat_transform footprint codes start"
).split()


@dataclass(frozen=True)
class Pool:
    """N tiles. Lists hold one value a tile."""

    keys: list[str]
    scenes: list[str]
    sources: list[str]
    polarisations: list[str]
    sensors: list[str]
    datetimes: list[str | None]
    content_hashes: list[str]
    splits: np.ndarray
    """object (N,): train or val of settled tiles, else None"""
    acquisitions: list[str | None]
    """of settled tiles"""
    settled: np.ndarray
    """bool (N,): the corpus holds it, and it stays"""
    placed: np.ndarray
    """bool (N,)"""
    rings: np.ndarray
    """float64 (N, points, 2): footprint, lon and lat; NaN where unplaced"""
    to_lonlat: np.ndarray
    """float64 (N, 6): affine from pixel edges to lon and lat; NaN where unplaced"""
    flat: np.ndarray
    """bool (N,): no structure above its speckle"""
    enl: np.ndarray
    """float64 (N,): looks; NaN where unknown"""
    step_db: np.ndarray
    """float64 (N,): dB a code"""
    files: list[str]
    starts: list[int]
    """where the codes lie: file, and byte of the first"""
    rank: np.ndarray
    """int64 (N,): which of two tiles of one acquisition is preferred, the lower: that of the scene of more pixels, then
    by path, row, column and key"""

    def __len__(self) -> int:
        return len(self.keys)


def pool_of(base: Corpus | None, tiles: pa.Table, sizes: dict[str, int], bits: int) -> Pool:
    """The tiles of `base` and `tiles` (of `sarsense.corpus.CUT_SCHEMA`). sizes: pixels of each scene that was cut."""
    parts = [tiles.select([name for name in _COLUMNS if name in tiles.column_names])]
    there = 0
    if base is not None:
        settled = base.tiles(columns=[name for name in _COLUMNS if name not in ("codes", "start")])
        there = len(settled)
        codes = pa.array([str(base.root / shard) for shard in texts(settled["shard"])], pa.string())
        parts.insert(0, settled.append_column("codes", codes).append_column("start", settled["offset"]))
        scenes = base.scenes.select(["scene", "width", "height"]).to_pylist()
        sizes = {**{row["scene"]: (row["width"] or 0) * (row["height"] or 0) for row in scenes}, **sizes}
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts], promote_options="default")
    count = len(table)

    def column(name: str) -> list[Any]:
        return texts(table[name]) if name in table.column_names else [None] * count

    def numbers(name: str) -> np.ndarray:
        return table[name].to_numpy(zero_copy_only=False)

    lists = {name: column(name) for name in ("key", "scene", "source")}
    order = np.lexsort(
        (
            ranks(lists["key"]),
            numbers("col"),
            numbers("row"),
            ranks(lists["source"]),
            ranks(lists["scene"]),
            np.array([-sizes.get(scene, 0) for scene in lists["scene"]], np.int64),
        )
    )
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    rings = rings_of(table["footprint"])
    return Pool(
        keys=lists["key"],
        scenes=lists["scene"],
        sources=lists["source"],
        polarisations=column("polarisation"),
        sensors=column("sensor"),
        datetimes=column("datetime"),
        content_hashes=column("content_hash"),
        splits=np.array(column("split"), object),
        acquisitions=column("acquisition"),
        settled=np.arange(count) < there,
        placed=np.asarray(np.isfinite(rings).all(axis=(1, 2))),
        rings=rings,
        to_lonlat=_to_lonlat(table["lonlat_transform"]),
        flat=np.asarray(table["flat"].fill_null(False).to_numpy(zero_copy_only=False), bool),
        enl=numbers("enl").astype(np.float64),
        step_db=(numbers("hi_db") - numbers("lo_db")) / code_steps(bits),
        files=column("codes"),
        starts=numbers("start").tolist(),
        rank=rank,
    )


def texts(column: pa.ChunkedArray) -> list[Any]:
    """The strings of a column, each different one once in memory."""
    encoded = pa.chunked_array(column.dictionary_encode()).unify_dictionaries() if column.num_chunks else column
    found: list[Any] = []
    for chunk in encoded.chunks:
        words = [*chunk.dictionary.to_pylist(), None]
        found += [words[index] for index in chunk.indices.fill_null(len(words) - 1).to_numpy()]
    return found


def ranks(names: list[str]) -> np.ndarray:
    """int64: equal numbers for equal names, which sort as the names do (by code points, not by locale)."""
    place = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.fromiter((place[name] for name in names), np.int64, len(names))


def rings_of(footprints: pa.ChunkedArray) -> np.ndarray:
    """float64 (N, points, 2): lon and lat of WKB polygons, not closed; NaN where there is none."""
    rings = np.full((len(footprints), 4 * EDGE_POINTS, 2), np.nan)
    known = np.flatnonzero(footprints.is_valid().to_numpy(zero_copy_only=False))
    if len(known):
        polygons = shapely.from_wkb(footprints.drop_null().to_numpy(zero_copy_only=False))
        # closed in the table: the last point is the first
        rings[known] = shapely.get_coordinates(polygons).reshape(len(known), -1, 2)[:, :-1]
    return rings


def _to_lonlat(column: pa.ChunkedArray) -> np.ndarray:
    found = np.full((len(column), 6), np.nan)
    known = column.is_valid().to_numpy(zero_copy_only=False)
    found[known] = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, 6)
    return found
