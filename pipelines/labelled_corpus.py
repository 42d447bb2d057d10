"""A labelled corpus (docs/labels.md) -> places for a probe: a tile is a place, with the corpus's own split.

Its images are coded already. What is decided here is which tiles are on one side of any split: those of one cell of the
ground, and those whose ground overlaps, also across cells and scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import shapely

from dic3l.evaluate.data import LabelledPlace, map_labels
from pipelines.ground import train_ground
from sarsense.corpus import Corpus
from sarsense.errors import CorpusError
from sarsense.scene import place_name
from sarsense.shards import TileReader
from sarsense.splits import CellGrid

_SLIVER = 1e-3
"""share of the smaller tile's ground that two may share and lie beside each other: rounding, warped edges"""


def corpus_places(
    corpus: Corpus, pretrained: Corpus | None = None
) -> tuple[list[LabelledPlace], dict[str, tuple[int, ...]]]:
    """A place a tile, in the order of the shards: 8-bit codes of its K channels, labels, the corpus's split; and the
    classes, name -> label values, in the order of their values.

    `pretrained`: the corpus that the encoder was trained on, which tells what ground it has `seen`. Blocks: tiles whose
    middle lies in one cell of the splits, or whose ground overlaps, directly or through others; tiles without a place
    go by their scene. Raises CorpusError for a corpus without labels.
    """
    if corpus.classes is None:
        raise CorpusError(f"{corpus.root}: a labelled corpus expected, this one was built without --labels")
    classes: dict[str, tuple[int, ...]] = {}
    for value, name in corpus.classes.items():
        classes[name] = (*classes.get(name, ()), value)
    table = corpus.tiles(columns=["key", "split", "source", "lon", "lat", "footprint", "crs", "transform"])
    shapes = shapely.from_wkb(np.array(table["footprint"].to_pylist(), object))
    reader = TileReader(corpus, eight_bit=True)
    seen = [None] * len(table) if pretrained is None else _seen(shapes, train_ground(pretrained))
    places = [
        LabelledPlace(
            row["key"],
            block,
            _reader(reader, index, classes),
            seen[index],
            row["split"],
            (row["crs"], None if row["transform"] is None else tuple(row["transform"])),
            _label_reader(reader, index, classes),
        )
        for index, (row, block) in enumerate(
            zip(table.drop_columns("footprint").to_pylist(), _blocks(corpus, table, shapes), strict=True)
        )
    ]
    return places, classes


def _reader(
    reader: TileReader, index: int, classes: Mapping[str, Sequence[int]]
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    labels = _label_reader(reader, index, classes)
    return lambda: (reader.read(np.array([index]))[0], labels())


def _label_reader(reader: TileReader, index: int, classes: Mapping[str, Sequence[int]]) -> Callable[[], np.ndarray]:
    return lambda: map_labels(reader.labels(np.array([index]))[0], classes)


def _seen(shapes: np.ndarray, ground: shapely.STRtree) -> list[bool | None]:
    """Of tiles with a place, whether they touch that ground; None of others."""
    found = [None if shape is None else False for shape in shapes]
    for index in np.unique(ground.query(shapes, predicate="intersects")[0]).tolist():
        found[index] = True
    return found


def _blocks(corpus: Corpus, table: pa.Table, shapes: np.ndarray) -> list[str]:
    """The block of each tile: the first name of the cells, or scenes, that belong together."""
    placed = np.flatnonzero(~shapely.is_missing(shapes))
    names = [place_name(source) for source in table["source"].to_pylist()]
    lon, lat = (table[name].to_numpy()[placed] for name in ("lon", "lat"))
    grid = CellGrid(corpus.manifest["config"]["cell_km"])
    row = grid.row_of(lat)
    column = grid.column_of(lon, row)
    for index, cell in zip(placed.tolist(), zip(row.tolist(), column.tolist(), strict=True), strict=True):
        names[index] = f"cell {cell[0]} {cell[1]}"
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for i, j in _overlapping(shapes[placed], np.array([names[index] for index in placed], object)):
        low, high = sorted((root(names[placed[i]]), root(names[placed[j]])))
        parent[high] = low
    return [root(name) for name in names]


def _overlapping(shapes: np.ndarray, cells: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of tiles of different cells that share ground."""
    if not len(shapes):
        return []
    _, first = np.unique(shapely.to_wkb(shapes), return_index=True)  # repeats of a place have its very footprint
    west, _, east, _ = shapely.bounds(shapes[first]).T
    turns = 360.0 * np.round((west + east) / 720.0)
    turned = [_moved(shape, -turn) for shape, turn in zip(shapes[first], turns, strict=True)]
    # what reaches beyond 180 degrees is there a second time, where others count that ground
    twice = [
        (index, _moved(shape, 360.0 if shape.bounds[0] < -180.0 else -360.0))
        for index, shape in zip(first, turned, strict=True)
        if shape.bounds[0] < -180.0 or shape.bounds[2] > 180.0
    ]
    known = np.array([*turned, *(shape for _, shape in twice)], object)
    owner = np.array([*first, *(index for index, _ in twice)], np.int64)
    i, j = shapely.STRtree(known).query(known, predicate="intersects")
    apart = (i < j) & (cells[owner[i]] != cells[owner[j]])
    i, j = i[apart], j[apart]
    smaller = np.minimum(shapely.area(known[i]), shapely.area(known[j]))
    share = shapely.area(shapely.intersection(known[i], known[j])) > _SLIVER * smaller
    return list(zip(owner[i[share]].tolist(), owner[j[share]].tolist(), strict=True))


def _moved(shape: shapely.Polygon, degrees: float) -> shapely.Polygon:
    return shapely.transform(shape, lambda points: points + np.array([degrees, 0.0])) if degrees else shape
