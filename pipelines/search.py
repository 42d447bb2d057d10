"""Nearest tiles by embedding: exact, by cosine, of a file that `dic3l embed` wrote; and a picture of them.

Embeddings are read block after block, so that half a million of them need a few seconds and no index. Distances on the
ground are those of the tiles' centres, along the ellipsoid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from matplotlib.figure import Figure

from dic3l.errors import ConfigError, Dic3lError
from pipelines.embeddings import open_embeddings
from sarsense.corpus import open_corpus
from sarsense.places import Place, place
from sarsense.report.picture import DPI, save
from sarsense.shards import TileReader

_BLOCK = 4096
"""embeddings at once"""
_FACTS = ("key", "scene", "split", "polarisation", "lon", "lat")
_INCHES, _CAPTION_INCHES, _HEAD_INCHES, _GAP = 1.9, 0.42, 0.42, 0.1
_COLUMNS = 5
_LETTERS = 30


@dataclass(frozen=True)
class Query:
    """Which tile: exactly one of these."""

    key: str | None = None
    place: tuple[float, float] | None = None
    """longitude and latitude, degrees; of the tiles that cover it, the one whose centre is nearest"""
    row: int | None = None
    """of the file, from 0"""


@dataclass(frozen=True)
class Hit:
    """A tile, and how near it is to that of the query."""

    rank: int
    """0: the query itself"""
    cosine: float
    row: int
    key: str
    scene: str
    split: str | None
    polarisation: str | None
    lon: float | None
    lat: float | None
    distance_km: float | None
    """between the centres; None where one of them lies nowhere"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """The tile of the query, and its nearest ones, the nearest first."""

    query: Hit
    hits: list[Hit]
    facts: dict[str, Any]
    """of the embeddings: digest of weights and of the corpus"""

    def to_json(self) -> dict[str, Any]:
        facts = {name: self.facts[name] for name in ("weights", "corpus", "rasters") if name in self.facts}
        return {"query": self.query.to_json(), "hits": [hit.to_json() for hit in self.hits], **facts}


def search(embeddings: Path, query: Query, count: int = 12, elsewhere_km: float = 0.0) -> Found:
    """The `count` tiles of greatest cosine to that of the query, without itself; equal ones in the order of the file.

    elsewhere_km: without those whose centre lies nearer to it, and those of which nobody knows where they lie. Fewer
    where there are not so many. Raises ConfigError, Dic3lError.
    """
    if count < 1:
        raise ConfigError(f"-k: 1 or more expected, {count} found")
    if not elsewhere_km >= 0:
        raise ConfigError(f"--elsewhere: 0 km or more expected, {elsewhere_km:g} found")
    file, facts = open_embeddings(embeddings)
    table = file.read(columns=list(_FACTS))
    own = _row_of(query, file, table, embeddings)
    distances = _distances_km(table, own)
    cosines = _cosines(file, own, table["key"][own].as_py())
    allowed = np.ones(len(table), bool)
    if elsewhere_km > 0:
        if not np.isfinite(distances[own]):
            raise ConfigError(f"--elsewhere: tile {table['key'][own].as_py()} lies nowhere; leave the option out")
        allowed = distances >= elsewhere_km
    allowed[own] = False
    rows = _largest(np.where(allowed, cosines, -np.inf), min(count, int(allowed.sum())))

    def hit(rank: int, row: int) -> Hit:
        told = {name: table[name][row].as_py() for name in _FACTS}
        distance = float(distances[row]) if np.isfinite(distances[row]) else None
        return Hit(rank=rank, cosine=float(cosines[row]), row=row, distance_km=distance, **told)

    return Found(hit(0, own), [hit(rank, row) for rank, row in enumerate(rows.tolist(), 1)], facts)


def parse_place(text: str) -> tuple[float, float]:
    """'LON,LAT' in degrees. ConfigError where it is not."""
    try:
        lon, lat = (float(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--place: longitude and latitude as 13.4,52.5 expected, '{text}' found") from error
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise ConfigError(f"--place: longitude and latitude in degrees expected, {text} found")
    return lon, lat


# -------------------------------------------------------------------------------------------------------- a tile


def _row_of(query: Query, file: pq.ParquetFile, table: pa.Table, path: Path) -> int:
    if query.key is not None:
        rows = np.flatnonzero(table["key"].to_numpy() == query.key)
        if not len(rows):
            raise Dic3lError(f"{path}: no tile {query.key} among {len(table)}; its column `key` has their names")
        return int(rows[0])
    if query.place is not None:
        return _row_at(query.place, file, table, path)
    row = query.row or 0
    if not 0 <= row < len(table):
        raise ConfigError(f"--tile: from 0 to {len(table) - 1} expected, {row} found")
    return row


def _row_at(wanted: tuple[float, float], file: pq.ParquetFile, table: pa.Table, path: Path) -> int:
    """The tile that covers a place; of several, the one whose centre is nearest, and of these the first."""
    lon, lat = wanted
    distances = _km(lon, lat, *_centres(table))
    if not np.isfinite(distances).any():
        raise Dic3lError(f"{path}: none of its tiles has a place; give --key or --tile")
    covering = _covering(file, lon, lat)
    if not covering.any():
        nearest = int(np.nanargmin(distances))
        raise Dic3lError(
            f"{path}: no tile covers {lon:g},{lat:g}; the nearest is {table['key'][nearest].as_py()}, "
            f"{distances[nearest]:.1f} km away"
        )
    return int(np.nanargmin(np.where(covering, distances, np.inf)))


def _covering(file: pq.ParquetFile, lon: float, lat: float) -> np.ndarray:
    """Whether the footprint of each tile covers a point. Those that pass 180 degrees have longitudes beyond it."""
    points = shapely.points([lon - 360.0, lon, lon + 360.0], [lat] * 3)
    found = []
    for group in range(file.num_row_groups):
        for part in _batches(file, group, "footprint"):
            footprints = shapely.from_wkb(part.to_numpy(zero_copy_only=False))
            found.append(np.any([shapely.covers(footprints, point) for point in points], axis=0))
    return np.concatenate(found)


def _distances_km(table: pa.Table, own: int) -> np.ndarray:
    """Of each tile's centre to that of tile `own`, float64 (N,); NaN where one lies nowhere."""
    lon, lat = _centres(table)
    return _km(lon[own], lat[own], lon, lat)


def _centres(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    lon, lat = (table[name].to_numpy().astype(np.float64) for name in ("lon", "lat"))
    return lon, lat


def _km(lon: float, lat: float, lons: np.ndarray, lats: np.ndarray) -> np.ndarray:
    """Geodesic distances on WGS 84; NaN where a coordinate is."""
    distances = np.full(len(lons), np.nan)
    if np.isfinite([lon, lat]).all():
        known = np.isfinite(lons)
        here = np.full(int(known.sum()), lon), np.full(int(known.sum()), lat)
        distances[known] = pyproj.Geod(ellps="WGS84").inv(*here, lons[known], lats[known])[2] / 1000
    return distances


# ------------------------------------------------------------------------------------------------------- cosines


def _cosines(file: pq.ParquetFile, own: int, key: str) -> np.ndarray:
    """Of each embedding with that of row `own`, float64 (N,); 0 of one that is zero."""
    wanted = _embedding(file, own)
    length = np.linalg.norm(wanted)
    if length == 0:
        raise Dic3lError(f"tile {key}: its embedding is zero, which is like nothing; the weights tell nothing of it")
    parts = []
    for group in range(file.num_row_groups):
        for part in _batches(file, group, "embedding"):
            block = _matrix(part)
            lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
            parts.append(block @ (wanted / length) / np.where(lengths == 0, 1.0, lengths))
    return np.clip(np.concatenate(parts), -1.0, 1.0)


def _embedding(file: pq.ParquetFile, row: int) -> np.ndarray:
    """float64 (D,): from its row group alone."""
    group = 0
    while row >= (rows := file.metadata.row_group(group).num_rows):
        row, group = row - rows, group + 1
    return _matrix(file.read_row_group(group, columns=["embedding"])["embedding"].combine_chunks()[row : row + 1])[0]


def _batches(file: pq.ParquetFile, group: int, column: str) -> Iterator[pa.Array]:
    """Parts of a column of a row group. Several groups asked for at once would be held in memory at once."""
    for batch in file.iter_batches(_BLOCK, row_groups=[group], columns=[column]):
        yield batch[column]


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    """float64 (n, D)."""
    return column.flatten().to_numpy().reshape(len(column), -1).astype(np.float64)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` largest values, the largest first, equal ones in their order."""
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count] if count else np.inf
        rows = np.flatnonzero(values >= least)
    else:
        rows = np.arange(len(values))
    return rows[np.argsort(-values[rows], kind="stable")][:count]


# ------------------------------------------------------------------------------------------------------- picture


def draw(found: Found, out_png: Path, corpus: Place | None = None) -> None:
    """The tile of the query and its nearest ones, side by side, with what is known of them, to a PNG.

    corpus: that has the tiles; default: the one that was embedded, where it lay then. Grey from code 1 to 255, no data
    blue. Raises ConfigError, Dic3lError, CorpusError, SettingError.
    """
    embedded = found.facts.get("corpus")
    if embedded is None:
        raise ConfigError("--picture: these are embeddings of rasters; pictures are made of the tiles of a corpus")
    opened = open_corpus(place(embedded["path"]) if corpus is None else corpus)
    if opened.digest != embedded["digest"]:
        raise Dic3lError(
            f"{opened.root}: corpus {embedded['name']} ({embedded['digest'][:12]}) was embedded, {opened.name} "
            f"({opened.digest[:12]}) found; give --corpus, or embed this one"
        )
    shown = [found.query, *found.hits]
    reader = TileReader(opened, eight_bit=True)
    rows = {key: row for row, key in enumerate(reader.keys)}  # a corpus in other shards has another order
    tiles = reader.read(np.array([rows[hit.key] for hit in shown]))[:, 0]
    columns = min(_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    cell = _INCHES + _CAPTION_INCHES + _GAP
    width, height = columns * (_INCHES + _GAP) + _GAP, lines * cell + _HEAD_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.text(_GAP / width, 1 - 0.18 / height, _shortened(found.query.key, 90), size=9, weight="bold")
    told = f"and its {len(found.hits)} nearest tiles of {len(reader)} by cosine; {opened.name}; grey from code 1 to 255"
    figure.text(_GAP / width, 1 - 0.33 / height, told, size=7, color="0.35")
    for number, (hit, tile) in enumerate(zip(shown, tiles, strict=True)):
        line, column = divmod(number, columns)
        left = _GAP + column * (_INCHES + _GAP)
        bottom = height - _HEAD_INCHES - line * cell - _INCHES
        axes = figure.add_axes((left / width, bottom / height, _INCHES / width, _INCHES / height))
        axes.imshow(_grey(tile), interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(edgecolor="#d62728" if hit.rank == 0 else "0.7", linewidth=2.0 if hit.rank == 0 else 0.5)
        for drop, text, colour in zip((0.13, 0.25, 0.36), _caption(hit), ("0", "0.3", "0.3"), strict=True):
            figure.text(left / width, (bottom - drop) / height, text, size=6.4, color=colour)
    save(figure, out_png)


def _caption(hit: Hit) -> tuple[str, str, str]:
    """Places are written as --place takes them."""
    head = "the query" if hit.rank == 0 else f"{hit.rank}: cosine {hit.cosine:.4f}"
    where = "no place" if hit.lon is None or hit.lat is None else f"{hit.lon:.4f},{hit.lat:.4f}"
    away = "" if hit.rank == 0 or hit.distance_km is None else f"; {hit.distance_km:.1f} km"
    return f"{head}  {hit.polarisation or ''}", _shortened(hit.scene, _LETTERS), f"{where}{away}"


def _grey(codes: np.ndarray) -> np.ndarray:
    """RGB, uint8 (H, W, 3), of codes (H, W)."""
    rgb = np.repeat(codes[..., None], 3, axis=2)
    rgb[codes == 0] = (40, 70, 130)
    return rgb


def _shortened(name: str, letters: int) -> str:
    """Its middle left out where it is too long: names differ at their ends."""
    return name if len(name) <= letters else f"{name[: letters // 2]}…{name[len(name) - letters // 2 :]}"
