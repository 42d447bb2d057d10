"""Cut a scene into normalised tiles: one read, rows of a table and one file of codes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from sarsense.codes import code_steps
from sarsense.config import BuildConfig
from sarsense.corpus import cut_schema, footprint_wkb
from sarsense.dedup.fingerprint import MIN_BLOCK, fingerprint
from sarsense.files import atomic_write
from sarsense.labels import HIGHEST, LabelFile, open_labels, read_labels
from sarsense.measure import PART_PIXELS, Measurement
from sarsense.raster import open_raster, strips
from sarsense.scene import Scene
from sarsense.shards import tile_hash
from sarsense.strip import Channel, StripReader
from sarsense.tiling import grid, place_tiles

LEAST_SIDE = 8 * MIN_BLOCK
"""pixels a side that a tile needs to have a look at all"""


@dataclass(frozen=True)
class CutTiles:
    """The tiles of a scene."""

    tiles: pa.Table
    """of `sarsense.corpus.cut_schema`"""
    no_data: int
    """windows refused for too few valid pixels"""
    flat: int
    """windows refused for having one code only"""


def scene_digest(scene: Scene, measurement: Measurement) -> str:
    """SHA-256 of content and place: the same wherever the file lies, and whatever it is packed in."""
    identity = json.dumps([measurement.content_hash, scene.crs, scene.transform, scene.gcps])
    return hashlib.sha256(identity.encode()).hexdigest()


def scene_id(scene: Scene, measurement: Measurement) -> str:
    """Name and the first digits of the digest."""
    return f"{scene.name}-{scene_digest(scene, measurement)[:12]}"


def parts_to_cut(scene: Scene, config: BuildConfig) -> list[tuple[int, int]]:
    """First and last (exclusive) of the rows of windows that one task cuts: of a large scene several."""
    windows = len(grid(scene.height, config.tile_size, config.step))
    return list(strips(windows, max(PART_PIXELS // (scene.width * config.step), 1)))


def cut_scene(
    stacks: Sequence[Sequence[Channel]],
    identity: str,
    config: BuildConfig,
    codes_path: Path,
    part: tuple[int, int] | None = None,
    labels: LabelFile | None = None,
) -> CutTiles:
    """Write the codes of the accepted tiles, one after the other, to `codes_path`; return what is known of them.
    Behind those of each tile lie its labels, uint8, where the scene has a raster of them, `labels`, on its grid.

    part: of `parts_to_cut`; None: the whole scene.

    `stacks`: the channels of each tile in order, a stack after the other; one of them all in most corpora. All lie on
    one grid. `identity`: of the scene, in the tiles' keys. Windows lie on a grid from the scene's first pixel on.
    Raises SceneError when a block cannot be read.
    """
    cutter = _Cutter(stacks[0][0].scene, identity, config, part, labels)
    with ExitStack() as opened, atomic_write(codes_path, read_soon=False) as file:
        paths = {channel.scene.path for channels in stacks for channel in channels}
        datasets = {path: opened.enter_context(open_raster(path))[0] for path in sorted(paths)}
        labelled = None if labels is None else open_labels(opened, labels)
        for channels in stacks:
            reader = StripReader([(datasets[channel.scene.path], channel) for channel in channels], config.bits)
            cutter.cut_stack(reader, file, labelled)
    return CutTiles(cutter.table(str(codes_path)), cutter.no_data, cutter.flat)


class _Cutter:
    """Collects the tiles and the refusals of a scene, stack after stack."""

    def __init__(
        self,
        scene: Scene,
        identity: str,
        config: BuildConfig,
        part: tuple[int, int] | None,
        labels: LabelFile | None,
    ) -> None:
        self._scene, self._identity, self._config, self._labels = scene, identity, config, labels
        self._cols = grid(scene.width, config.tile_size, config.step).tolist()
        self._tops = grid(scene.height, config.tile_size, config.step).tolist()[slice(*part or (None, None))]
        self._schema = cut_schema(labels is not None)
        self._columns: dict[str, list[Any]] = defaultdict(list)
        self._written = 0
        self.no_data = self.flat = 0

    def cut_stack(self, reader: StripReader, file: BinaryIO, labelled: Any) -> None:
        """labelled: the dataset of the labels, where there are some."""
        size = self._config.tile_size
        for top in self._tops:
            strips = reader.read(top, top + size)
            rows = None if self._labels is None else read_labels(labelled, top, top + size, self._labels)
            for col in self._cols:
                seen = [strip.look_at(col, size) for strip in strips]
                fraction = min(window.valid for window in seen) / size**2
                if fraction < self._config.min_valid:
                    self.no_data += 1
                elif not all(window.varied for window in seen):
                    self.flat += 1
                else:
                    tile = np.stack([strip.codes[:, col : col + size] for strip in strips])
                    channels = [strip.describe(window) for strip, window in zip(strips, seen, strict=True)]
                    labels = None if rows is None else np.ascontiguousarray(rows[:, col : col + size])
                    self._add(top, col, channels, tile, fraction, labels)
                    for array in (tile, labels):
                        if array is not None:
                            file.write(array.data)
                            self._written += array.nbytes

    def _add(
        self,
        top: int,
        col: int,
        channels: list[dict[str, Any]],
        tile: np.ndarray,
        fraction: float,
        labels: np.ndarray | None,
    ) -> None:
        """What is of a channel is of the first; names of several are joined by +, each once."""
        names = {
            name: "+".join(dict.fromkeys(channel[name] for channel in channels))
            for name in ("polarisation", "content", "group")
        }
        found = {
            **channels[0],
            **names,
            **look(tile[0], channels[0], self._config.bits),
            "key": f"{self._identity}-{names['polarisation']}-{top:05d}-{col:05d}",
            "row": top,
            "col": col,
            "valid_fraction": round(fraction, 6),
            "channels": channels,
            "content_hash": tile_hash(tile.data),
            "start": self._written,
        }
        if labels is not None:
            found |= {
                "label_hash": tile_hash(labels.data),
                "label_counts": count_labels(labels),
                "label_start": self._written + tile.nbytes,
            }
        for name in self._schema.names:
            if name in found:
                self._columns[name].append(found[name])

    def table(self, codes: str) -> pa.Table:
        """codes: the path of the file of codes."""
        scene, count = self._scene, len(self._columns["key"])
        same = {
            "scene": self._identity,
            "sensor": scene.sensor,
            "mode": scene.mode,
            "datetime": scene.datetime,
            "orbit_direction": scene.orbit_direction,
            "crs": scene.crs,
            "codes": codes,
            "label_source": None if self._labels is None else self._labels.relative,
        }
        columns = {**self._columns, **{name: [value] * count for name, value in same.items()}, **self._geography()}
        return pa.table({name: columns.get(name, []) for name in self._schema.names}, self._schema)

    def _geography(self) -> dict[str, Any]:
        """Columns that say where the tiles lie; nulls of an unplaced scene."""
        names = ("transform", "lonlat_transform", "lon", "lat", "spacing_x_m", "spacing_y_m", "footprint")
        rows, cols = (np.array(self._columns[name], np.int64) for name in ("row", "col"))
        placed = place_tiles(self._scene, cols, rows, self._config.tile_size) if len(rows) else None
        if placed is None:
            return dict.fromkeys(names, [None] * len(rows))
        transforms = _tile_transforms(self._scene.transform, cols, rows)
        values = (
            [None] * len(rows) if transforms is None else transforms.tolist(),
            placed.to_lonlat.tolist(),
            np.round((placed.centres[:, 0] + 180.0) % 360.0 - 180.0, 7),
            np.round(placed.centres[:, 1], 7),
            np.round(placed.spacing[:, 0], 4),
            np.round(placed.spacing[:, 1], 4),
            footprint_wkb(placed.footprints),
        )
        return dict(zip(names, values, strict=True))


def count_labels(labels: np.ndarray) -> list[dict[str, int]]:
    """Pixels of each class that a tile has, of uint8 (H, W), by value; those without a label are not counted."""
    counts = np.bincount(labels.ravel(), minlength=HIGHEST + 1)[: HIGHEST + 1]
    return [{"value": int(value), "pixels": int(counts[value])} for value in np.flatnonzero(counts)]


def look(codes: np.ndarray, channel: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """What a tile looks like once its speckle is averaged away; nulls for tiles that are too small to tell."""
    if min(codes.shape) < LEAST_SIDE:
        return {"perceptual_hash": None, "structure_db": None, "flat": None}
    found = fingerprint(codes, (channel["hi_db"] - channel["lo_db"]) / code_steps(bits))
    return {
        "perceptual_hash": f"{found.perceptual_hash:016x}",
        "structure_db": round(found.structure, 3),
        "flat": found.flat,
    }


def _tile_transforms(transform: tuple[float, ...] | None, cols: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """The affine of each tile, float64 (n, 6): that of its scene, moved to the tile's first pixel."""
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    moved = np.tile(np.array(transform), (len(cols), 1))
    moved[:, 2], moved[:, 5] = a * cols + b * rows + c, d * cols + e * rows + f
    return moved
