"""Cut a scene into normalised tiles: one read, rows of a table and one file of codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sarsense.config import BuildConfig
from sarsense.corpus import footprint_wkb
from sarsense.files import atomic_write
from sarsense.measure import Measurement
from sarsense.normalize import GroupRange, encode, enl_bias_db
from sarsense.radiometry import to_db
from sarsense.raster import masked_rows, open_raster, read_rows
from sarsense.scene import Band, Scene, valid_power
from sarsense.shards import tile_hash
from sarsense.splits import split_of_footprint, split_of_place
from sarsense.tiling import grid, place_tiles

_UNPLACED: dict[str, Any] = {
    "lon": None,
    "lat": None,
    "spacing_x_m": None,
    "spacing_y_m": None,
    "transform": None,
    "footprint": None,
}


@dataclass(frozen=True)
class CutTiles:
    """The tiles of a scene: rows as in tiles.parquet, and `index`, their place in the file of codes."""

    rows: list[dict[str, Any]]
    no_data: int
    """windows refused for too few valid pixels"""
    flat: int
    """windows refused for having one code only"""
    guard: int
    """windows between the splits"""


def scene_digest(scene: Scene, measurement: Measurement) -> str:
    """SHA-256 of content and place: the same wherever the file lies, and whatever it is packed in."""
    identity = json.dumps([measurement.content_hash, scene.crs, scene.transform, scene.gcps])
    return hashlib.sha256(identity.encode()).hexdigest()


def scene_id(scene: Scene, measurement: Measurement) -> str:
    """Name and the first digits of the digest."""
    return f"{scene.name}-{scene_digest(scene, measurement)[:12]}"


def cut_scene(
    scene: Scene,
    measurement: Measurement,
    ranges: Mapping[str, GroupRange],
    config: BuildConfig,
    codes_path: Path,
) -> CutTiles:
    """Write the codes (uint8) of the accepted tiles, one after the other, to `codes_path`; return their rows.

    Windows lie on a grid from the scene's first pixel on. Raises SceneError when a block cannot be read.
    """
    cutter = _Cutter(scene, scene_id(scene, measurement), config)
    with open_raster(scene.path) as (dataset, _), atomic_write(codes_path) as file:
        for band, measured in zip(scene.bands, measurement.bands, strict=True):
            cutter.cut_band(dataset, band, measured.enl, ranges[scene.group(band)], file)
    return CutTiles(cutter.rows, cutter.no_data, cutter.flat, cutter.guard)


class _Cutter:
    """Collects the rows and the refusals of a scene, band after band."""

    def __init__(self, scene: Scene, identity: str, config: BuildConfig) -> None:
        self._scene, self._identity, self._config = scene, identity, config
        self._cols = grid(scene.width, config.tile_size, config.step)
        self._tops = grid(scene.height, config.tile_size, config.step)
        self.rows: list[dict[str, Any]] = []
        self.no_data = self.flat = self.guard = 0

    def cut_band(self, dataset: Any, band: Band, enl: float | None, bounds: GroupRange, file: BinaryIO) -> None:
        size = self._config.tile_size
        bias = enl_bias_db(enl, band.quantity)
        for top in self._tops:
            first, last = int(top), int(top) + size
            masked = masked_rows(dataset, band.index, first, last)
            power = valid_power(read_rows(dataset, band.index, first, last), band, row=first, masked=masked)
            db = to_db(power)
            codes = encode(db - np.float32(bias), bounds.lo_db, bounds.hi_db)
            geography = self._geography(top)
            for col, (split, where) in zip(self._cols, geography, strict=True):
                window = np.s_[:, col : col + size]
                tile = codes[window]
                valid = tile != 0
                fraction = float(valid.mean())
                if fraction < self._config.min_valid:
                    self.no_data += 1
                elif np.all(tile[valid] == tile[valid][0]):
                    self.flat += 1
                elif split == "guard":
                    self.guard += 1
                else:
                    pixels = np.ascontiguousarray(tile).tobytes()
                    file.write(pixels)
                    self.rows.append(
                        {
                            "key": f"{self._identity}-{band.polarisation}-{top:05d}-{col:05d}",
                            "index": len(self.rows),
                            "split": split,
                            "scene": self._identity,
                            "source": self._scene.relative,
                            "band": band.index,
                            "polarisation": band.polarisation,
                            "group": self._scene.group(band),
                            "sensor": self._scene.sensor,
                            "mode": self._scene.mode,
                            "datetime": self._scene.datetime,
                            "orbit_direction": self._scene.orbit_direction,
                            "row": int(top),
                            "col": int(col),
                            "crs": self._scene.crs,
                            "valid_fraction": round(fraction, 6),
                            "mean_db": round(10.0 * float(np.log10(np.nanmean(power[window], dtype=np.float64))), 3),
                            "std_db": round(float(np.nanstd(db[window], dtype=np.float64)), 3),
                            "enl": enl,
                            "enl_bias_db": bias,
                            "content_hash": tile_hash(pixels),
                            **where,
                        }
                    )

    def _geography(self, top: int) -> list[tuple[str, dict[str, Any]]]:
        """Split and place of each tile of a row of tiles."""
        scene, config = self._scene, self._config
        rows = np.full_like(self._cols, top)
        placed = place_tiles(scene, self._cols, rows, config.tile_size)
        if placed is None:
            split = split_of_place(scene.place_name, config.seed, config.val_share)
            return [(split, _UNPLACED)] * len(self._cols)
        found = []
        for index, col in enumerate(self._cols):
            ring = placed.footprints[index]
            split = split_of_footprint(ring, config.seed, config.val_share, config.cell_km)
            where = {
                "lon": round((float(placed.centres[index, 0]) + 180.0) % 360.0 - 180.0, 7),
                "lat": round(float(placed.centres[index, 1]), 7),
                "spacing_x_m": round(float(placed.spacing[index, 0]), 4),
                "spacing_y_m": round(float(placed.spacing[index, 1]), 4),
                "transform": _tile_transform(scene.transform, int(col), int(top)),
                "footprint": footprint_wkb(ring).hex(),
            }
            found.append((split, where))
        return found


def _tile_transform(transform: tuple[float, ...] | None, col: int, row: int) -> list[float] | None:
    """The affine of a tile: that of its scene, moved to the tile's first pixel."""
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    return [a, b, a * col + b * row + c, d, e, d * col + e * row + f]
