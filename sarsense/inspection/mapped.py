"""Tiles for a page that draws them: places as few bytes, columns as numbers of a list of names, some with a picture.

A corner is 16 bits from its tile's middle, the middle 32 bits of a turn: a corner is drawn to within `CORNER_ERROR` of
its tile's reach (that of its farthest corner from its middle, in lon or lat), however large the tile is.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sarsense.columns import floats, values
from sarsense.errors import SarsenseError, SettingError
from sarsense.inspection.ground import around_pole, corners
from sarsense.inspection.picture import NO_DATA
from sarsense.inspection.query import NUMBERED, columns_of, condition, database, run
from sarsense.inspection.source import Source
from sarsense.inspection.text import plain
from sarsense.inspection.tile import read_tile
from sarsense.places import readable
from sarsense.report.classes import CLASSES, COLUMNS, with_classes

CORNER_ERROR = 1 / 60_000
_TURN, _WEST_SOUTH = np.array([360.0, 180.0]), np.array([180.0, 90.0])
LONGEST = 300
"""characters of a text in a page; the middle of a longer one is left out"""
_NAMED = (
    "scene source split sensor mode polarisation content datetime orbit_direction shard flat near_evaluation".split()
)
_MEASURED = "mean_db std_db enl valid_fraction spacing_x_m structure_db".split()
_BATCH = 8_192
_NEEDED = ("key", "shard", "offset", "bytes", "pixels", "content_hash", "lo_db", "hi_db")
_KEY = "concat_ws('-', scene, polarisation, printf('%05d', \"row\"), printf('%05d', col))"
_COUNTED = "(SELECT *, row_number() OVER () - 1 AS n FROM tiles) AS tiles"
_DEGREES = ("lon", "lat", "spacing_x_m", "spacing_y_m")
_NONE = np.zeros(0, np.int64)
_PICTURE = 96
"""pixels of a side of a thumbnail, at most"""


@dataclass(frozen=True)
class Places:
    """Of n tiles, quantised."""

    middle: np.ndarray
    """uint32 (n, 2): of a turn of longitude from -180 on, of half a turn of latitude from -90 on"""
    step: np.ndarray
    """float32 (n,): degrees of a step of `corner`"""
    corner: np.ndarray
    """int16 (n, 4, 2): steps from the middle"""
    polar: np.ndarray
    """int64: which tiles go around a pole"""

    def corners(self) -> np.ndarray:
        """float64 (n, 4, 2): what a page draws, in degrees; longitudes within a tile may pass 180."""
        middle = self.middle * (_TURN / 2**32) - _WEST_SOUTH
        return middle[:, None] + self.corner * self.step[:, None, None].astype(np.float64)


def quantised(quads: np.ndarray) -> Places:
    """Of corners, float64 (n, 4, 2), as `ground.corners` has them, none NaN."""
    # numpy is slow along an axis of four
    first, second, third, fourth = (quads[:, corner] for corner in range(4))
    low = np.minimum(np.minimum(first, second), np.minimum(third, fourth))
    high = np.maximum(np.maximum(first, second), np.maximum(third, fourth))
    middle = (low + high) / 2
    turns = ((middle + _WEST_SOUTH) / _TURN) % np.array([1.0, 2.0])
    whole = np.round(turns * 2**32).astype(np.int64)
    whole[:, 0] %= 2**32
    whole[:, 1] = np.minimum(whole[:, 1], 2**32 - 1)
    drawn = whole * (_TURN / 2**32) - _WEST_SOUTH
    drawn[:, 0] += 360.0 * np.round((middle[:, 0] - drawn[:, 0]) / 360.0)
    reach = np.maximum(high - drawn, drawn - low)
    reach = np.maximum(np.maximum(reach[:, 0], reach[:, 1]), 1e-12)
    step = (reach / 32_766).astype(np.float32)
    corner = np.round((quads - drawn[:, None]) / step[:, None, None].astype(np.float64)).astype(np.int16)
    polar = np.flatnonzero(high[:, 0] - low[:, 0] > 60.0)
    return Places(whole.astype(np.uint32), step, corner, polar[around_pole(quads[polar])])


@dataclass(frozen=True)
class Mapped:
    """What a map page is made of."""

    places: Places
    columns: dict[str, tuple[list[Any] | None, np.ndarray]]
    """name -> names and the number of each tile's (0: unknown), or None and float32, NaN where unknown"""
    keys: list[str] | None
    """None: SCENE-POLARISATION-ROW-COL, of the columns"""
    tiles: int
    """for which the condition holds"""
    unplaced: int
    points: bool
    """whether nothing but the middles is known"""
    pictures: list[dict[str, Any]]
    """`tile`, its number, `url` and, where known, `corners`: lon and lat of top left, top right, bottom left"""
    unreadable: int
    """tiles that should have a picture, and cannot be read"""
    color: str | None


def mapped(source: Source, color: str | None, where: str | None, thumbnails: int) -> Mapped:
    """Tiles of `source` for which `where` holds, sorted by scene. `color`: a column or one of CLASSES. SettingError."""
    known = columns_of(source)
    color = _color(source, color, known)
    table, numbers, follows = (_of_corpus if source.corpus is not None else _of_tars)(source, color, known, where)
    places, placed, points = _places(source, table, numbers)
    columns = {name: _column(table[name]) for name in table.column_names if name not in _NOT_SHOWN}
    order = np.flatnonzero(placed)
    if "scene" in columns and order.size:  # what lies together is alike, and packs well
        order = order[np.argsort(columns["scene"][1][order], kind="stable")]
    kept = {name: (names, found[order]) for name, (names, found) in columns.items()}
    chosen = _spread(kept, len(order), thumbnails)
    pictures, unreadable = _pictures(source, numbers, order, chosen)
    keys = None
    if not follows:
        every = _keys(source, table, where)
        keys = [plain(every[row] or "", LONGEST) for row in order.tolist()]
    back = np.argsort(order, kind="stable")  # places are of the placed rows, in the order of the table
    rank = np.empty(len(order), np.int64)
    rank[back] = np.arange(len(order))
    ordered = Places(places.middle[rank], places.step[rank], places.corner[rank], np.sort(back[places.polar]))
    return Mapped(ordered, kept, keys, len(table), len(table) - len(order), points, pictures, unreadable, color)


_NOT_SHOWN = ("key", "lon", "lat", "spacing_y_m")


def _color(source: Source, color: str | None, known: list[str]) -> str | None:
    if color is None:
        return next((name for name in ("split", "sensor", "shard") if name in known), None)
    if color in known or (color in CLASSES and _basis(color) in known):
        return color
    lacking = f"; of these tars nothing says {', '.join(source.unknown)}" if source.unknown else ""
    raise SettingError(f"--color: no column {color}; there are {', '.join((*known, *CLASSES))}{lacking}")


def _basis(name: str) -> str:
    return {"region": "lon", "spacing": "spacing_x_m"}.get(name, "datetime")


def _wanted(color: str | None, known: list[str]) -> list[str]:
    names = [*_NAMED, "row", "col", *_MEASURED, "lon", "lat", "spacing_y_m"]
    if color is not None and color not in CLASSES:
        names.append(color)
    return [name for name in dict.fromkeys(names) if name in known]


def _of_corpus(
    source: Source, color: str | None, known: list[str], where: str | None
) -> tuple[pa.Table, np.ndarray, bool]:
    """Columns of the tiles, texts as codes of a dictionary; the numbers of their rows in tiles.parquet; and whether
    each key follows from scene, polarisation, row and column, as `sarsense build` writes it."""
    assert source.corpus is not None
    with database(source) as connection:
        told = f"SELECT count(*) AS n, bool_and(key = {_KEY}) AS follows FROM tiles{condition(where)}"
        (told,) = run(connection, told, source).to_pylist()
        numbers = np.arange(told["n"])
        if where is not None or source.shards is not None:
            query = f"SELECT file_row_number AS n FROM {NUMBERED} AS tiles{condition(where)}"
            numbers = values(run(connection, query, source)["n"])[0]
    path = source.corpus.root / "tiles.parquet"
    schema = pq.read_schema(readable(path))
    names = [name for name in _wanted(color, known) if name in schema.names]
    texts = [name for name in names if pa.types.is_string(schema.field(name).type)]
    with pq.ParquetFile(readable(path), read_dictionary=texts, buffer_size=2**20, pre_buffer=False) as file:
        table = file.read(names, use_threads=False)
    if len(numbers) < len(table):
        table = table.take(pa.array(numbers))
    return _with_color(table, color), numbers, bool(told["follows"])


def _of_tars(
    source: Source, color: str | None, known: list[str], where: str | None
) -> tuple[pa.Table, np.ndarray, bool]:
    with database(source) as connection:
        names = ", ".join(f'"{name}"' for name in ["key", *_wanted(color, known)])
        table = run(connection, f"SELECT {names}, n FROM {_COUNTED}{condition(where)}", source)
    numbers = values(table["n"])[0]
    table = table.drop_columns(["n"])
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and field.name != "key":
            table = table.set_column(index, field.name, table[field.name].dictionary_encode())
    return _with_color(table, color), numbers, False


def _with_color(table: pa.Table, color: str | None) -> pa.Table:
    if color in CLASSES:
        classed = pa.table(
            {name: table[name] if name in table.column_names else pa.nulls(len(table)) for name in COLUMNS}
        )
        schema = pa.schema([(name, pa.float64() if name in _DEGREES else pa.string()) for name in COLUMNS])
        table = table.append_column(color, with_classes(classed.cast(schema))[color].dictionary_encode())
    elif color is not None and color in table.column_names and pa.types.is_nested(table.schema.field(color).type):
        raise SettingError(f"--color: {color} is a list: name a column of single values")
    return table


def _keys(source: Source, table: pa.Table, where: str | None) -> list[str]:
    if "key" in table.column_names:
        return table["key"].to_pylist()
    tiles = NUMBERED if source.corpus is not None else "tiles"
    with database(source) as connection:
        return run(connection, f"SELECT key FROM {tiles} AS tiles{condition(where)}", source)["key"].to_pylist()


def _places(source: Source, table: pa.Table, numbers: np.ndarray) -> tuple[Places, np.ndarray, bool]:
    """Of the rows that have a place; which have (bool (n,)); and whether no more than their middles is known."""
    if source.corpus is not None:
        parts = list(_footprints(source, numbers))
        placed = np.zeros(len(numbers), bool)
        placed[np.concatenate([rows for rows, _ in parts] or [np.zeros(0, np.int64)])] = True
        if placed.any() or not len(numbers):
            return _joined(parts, placed), placed, False
    quads = np.full((len(table), 4, 2), np.nan)
    if "lon" in table.column_names and "lat" in table.column_names:
        lon, lat = (floats(table[name]) for name in ("lon", "lat"))
        good = (np.abs(lon) <= 360) & (np.abs(lat) <= 90)
        quads[good] = np.stack([lon[good], lat[good]], axis=1)[:, None]
    placed = np.isfinite(quads[:, 0, 0])
    return quantised(quads[placed]), placed, True


def _footprints(source: Source, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, Places]]:
    """Places in `numbers` and what is there, of rows of tiles.parquet by number. Read part by part: all footprints of
    half a million tiles are 160 MB."""
    assert source.corpus is not None
    order = np.argsort(numbers, kind="stable")
    ascending, start = numbers[order], 0

    def place(footprints: pa.BinaryArray, rows: slice, start: int) -> tuple[np.ndarray, Places]:
        quads = corners(footprints)[ascending[rows] - start]
        placed = np.isfinite(quads[:, 0, 0])
        return order[rows][placed], quantised(quads[placed])

    with (
        pq.ParquetFile(readable(source.corpus.root / "tiles.parquet"), buffer_size=2**20, pre_buffer=False) as file,
        ThreadPoolExecutor(1) as pool,
    ):
        before: Future[tuple[np.ndarray, Places]] | None = None
        for batch in file.iter_batches(_BATCH, columns=["footprint"], use_threads=False):
            first, last = np.searchsorted(ascending, (start, start + len(batch)))
            if last > first:
                now = pool.submit(place, batch.column("footprint"), slice(first, last), start)
                if before is not None:  # one part is worked on while the next one is read
                    yield before.result()
                before = now
            start += len(batch)
        if before is not None:
            yield before.result()


def _joined(parts: list[tuple[np.ndarray, Places]], placed: np.ndarray) -> Places:
    """Of the placed rows, in their order."""
    rank = np.cumsum(placed) - 1
    count = int(placed.sum())
    joined = Places(
        np.empty((count, 2), np.uint32), np.empty(count, np.float32), np.empty((count, 4, 2), np.int16), _NONE
    )
    polar = []
    for rows, part in parts:
        where = rank[rows]
        joined.middle[where], joined.step[where], joined.corner[where] = part.middle, part.step, part.corner
        polar.append(where[part.polar])
    return Places(joined.middle, joined.step, joined.corner, np.concatenate([_NONE, *polar]))


def _column(column: pa.ChunkedArray) -> tuple[list[Any] | None, np.ndarray]:
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        numbers, valid = values(column)
        whole = pa.types.is_integer(kind) and valid is None and len(numbers) > 0
        if whole and numbers.min() >= 0 and numbers.max() < 2**32:
            return None, numbers.astype(np.min_scalar_type(numbers.max()))
        numbers = numbers.astype(np.float32 if pa.types.is_floating(kind) else np.float64)
        return None, numbers if valid is None else np.where(valid, numbers, np.nan).astype(numbers.dtype)
    if pa.types.is_boolean(kind):
        return ["false", "true"], _numbered(column.cast(pa.int32()), 2)
    if not pa.types.is_dictionary(kind):
        column = column.cast(pa.string()).dictionary_encode()
    column = column.unify_dictionaries()
    names = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
    whole = pa.chunked_array([chunk.indices for chunk in column.chunks], pa.int32())
    return [plain(name, LONGEST) for name in names], _numbered(whole, len(names))


def _numbered(indices: pa.ChunkedArray, count: int) -> np.ndarray:
    """Numbers from 1 on, 0 where nothing is known, of as few bytes as `count` names need."""
    found, valid = values(indices)
    found = found + 1
    return (found if valid is None else np.where(valid, found, 0)).astype(np.min_scalar_type(count))


def _spread(columns: dict[str, Any], tiles: int, count: int) -> np.ndarray:
    """Up to `count` of the tiles, spread over sensor, polarisation and scene: a tile of each, from amid the scene, and
    of scenes evenly many; more of each where there are fewer scenes."""
    count = min(count, tiles)
    if not count:
        return np.zeros(0, np.int64)
    label = np.zeros(tiles, np.int64)
    for name in ("sensor", "polarisation", "scene"):
        if name in columns and columns[name][0] is not None:
            label = label * (len(columns[name][0]) + 1) + columns[name][1].astype(np.int64)
    _, label, sizes = np.unique(label, return_inverse=True, return_counts=True)
    each = np.argsort(label, kind="stable")
    starts = np.cumsum(sizes) - sizes
    if len(sizes) >= count:
        picked = np.linspace(0, len(sizes) - 1, count).astype(np.int64)
        return np.sort(each[starts[picked] + sizes[picked] // 2])
    share = np.minimum(sizes, -(-count // len(sizes)))
    parts = [each[s + np.linspace(0, n - 1, k).astype(np.int64)] for s, n, k in zip(starts, sizes, share, strict=True)]
    picked = np.concatenate(parts)
    return np.sort(picked[np.linspace(0, len(picked) - 1, min(count, len(picked))).astype(np.int64)])


def _pictures(
    source: Source, numbers: np.ndarray, order: np.ndarray, chosen: np.ndarray
) -> tuple[list[dict[str, Any]], int]:
    """Thumbnails of the tiles at places of `order`, and how many could not be read."""
    if not len(chosen):
        return [], 0
    known = columns_of(source)
    needed = ", ".join(f'"{name}"' for name in (*_NEEDED, "lonlat_transform") if name in known)
    wanted = numbers[order[chosen]].tolist()
    tiles = _COUNTED if source.corpus is None else f"(SELECT *, file_row_number AS n FROM {NUMBERED})"
    with database(source) as connection:
        rows = run(connection, f"SELECT {needed}, n FROM {tiles} WHERE n IN ({', '.join(map(str, wanted))})", source)
        found = {row["n"]: row for row in rows.to_pylist()}
    made, unreadable = [], 0
    for place, number in zip(chosen.tolist(), wanted, strict=True):
        row = found[number]
        try:
            tile = read_tile(source, row)
        except SarsenseError:
            unreadable += 1
            continue
        picture = {"tile": place, "url": _thumbnail(tile.grey()[0], tile.coded)}
        affine = row.get("lonlat_transform") or []
        if len(affine) == 6 and all(value is not None and math.isfinite(value) for value in affine):
            picture["corners"] = _affine_corners(affine, *tile.pixels.shape[1:])
        made.append(picture)
    return made, unreadable


def _affine_corners(affine: list[float], height: int, width: int) -> list[float]:
    a, b, c, d, e, f = affine
    points = [(c, f), (a * width + c, d * width + f), (b * height + c, e * height + f)]
    return [round(float(value), 9) for point in points for value in point]


def _thumbnail(grey: np.ndarray, coded: bool) -> str:
    """A JPEG as a data URL; of codes no data is blue."""
    from PIL import Image

    nothing = (grey == 0) if coded else np.zeros(grey.shape, bool)
    picture = Image.fromarray(grey)
    if nothing.any():
        rgb = np.repeat(grey[..., None], 3, axis=2)
        rgb[nothing] = NO_DATA
        picture = Image.fromarray(rgb)
    picture.thumbnail((_PICTURE, _PICTURE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
