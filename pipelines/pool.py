"""All tiles that may be in a corpus, by column: those that it holds already, then those that were cut for it now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from sarsense.codes import code_steps
from sarsense.corpus import Corpus
from sarsense.tiling import EDGE_POINTS

_COLUMNS = (
    "key scene source row col polarisation sensor datetime split content_hash flat enl lo_db hi_db acquisition shard "
    "offset lonlat_transform footprint"
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


def pool_of(base: Corpus | None, rows: list[dict[str, Any]], sizes: dict[str, int], bits: int) -> Pool:
    """The tiles of `base` and those of `rows` (as cut, with `codes`). sizes: pixels of each scene that was cut."""
    settled: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    if base is not None:
        table = base.tiles(columns=_COLUMNS)
        settled = {name: table[name].to_pylist() for name in _COLUMNS}
        scenes = base.scenes.select(["scene", "width", "height"]).to_pylist()
        sizes = {**{row["scene"]: (row["width"] or 0) * (row["height"] or 0) for row in scenes}, **sizes}
    there, count = len(settled["key"]), len(settled["key"]) + len(rows)

    def both(name: str) -> list[Any]:
        return settled[name] + [row.get(name) for row in rows]

    rings = np.full((count, 4 * EDGE_POINTS, 2), np.nan)
    known = [index for index, footprint in enumerate(settled["footprint"]) if footprint is not None]
    if known:
        polygons = shapely.from_wkb([settled["footprint"][index] for index in known])
        # closed in the table: the last point is the first
        rings[known] = shapely.get_coordinates(polygons).reshape(len(known), -1, 2)[:, :-1]
    for index, row in enumerate(rows, there):
        if row["ring"] is not None:
            rings[index] = row["ring"]
    to_lonlat = np.full((count, 6), np.nan)
    for index, value in enumerate(both("lonlat_transform")):
        if value is not None:
            to_lonlat[index] = value
    span = np.array(both("hi_db"), np.float64) - np.array(both("lo_db"), np.float64)
    preference = zip(*(both(name) for name in ("scene", "source", "row", "col", "key")), strict=True)
    ranked = [(-sizes.get(scene, 0), *rest) for scene, *rest in preference]
    order = sorted(range(count), key=ranked.__getitem__)
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    return Pool(
        keys=both("key"),
        scenes=both("scene"),
        sources=both("source"),
        polarisations=both("polarisation"),
        sensors=both("sensor"),
        datetimes=both("datetime"),
        content_hashes=both("content_hash"),
        splits=np.array(settled["split"] + [None] * len(rows), object),
        acquisitions=both("acquisition"),
        settled=np.arange(count) < there,
        placed=np.asarray(np.isfinite(rings).all(axis=(1, 2))),
        rings=rings,
        to_lonlat=to_lonlat,
        flat=np.array([bool(value) for value in both("flat")], bool),
        enl=np.array(both("enl"), np.float64),
        step_db=span / code_steps(bits),
        files=[str(base.root / shard) for shard in settled["shard"] if base] + [str(row["codes"]) for row in rows],
        starts=settled["offset"] + [row["start"] for row in rows],
        rank=rank,
    )
