"""Cut a scene into normalised tiles: one read, rows of a table and one file of codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sarsense.codes import code_steps, encode
from sarsense.config import BuildConfig
from sarsense.dedup.fingerprint import MIN_BLOCK, fingerprint
from sarsense.files import atomic_write
from sarsense.measure import Measurement
from sarsense.radiometry import to_db
from sarsense.raster import masked_rows, open_raster, read_rows
from sarsense.scene import Band, Scene, valid_power
from sarsense.shards import tile_hash
from sarsense.speckle import REFINED_LEE_RADIUS, refined_lee
from sarsense.tiling import grid, place_tiles

LEAST_SIDE = 8 * MIN_BLOCK
"""pixels a side that a tile needs to have a look at all"""
FILTERED_AT = 3.0
"""times its nominal looks a scene has when it is taken for filtered"""

_UNPLACED: dict[str, Any] = {
    "lon": None,
    "lat": None,
    "spacing_x_m": None,
    "spacing_y_m": None,
    "transform": None,
    "lonlat_transform": None,
    "ring": None,
}


@dataclass(frozen=True)
class CutTiles:
    """The tiles of a scene: rows as in tiles.parquet, less what depends on other scenes; `ring`, the footprint as lon
    and lat, and `start`, the byte of the first pixel in the file of codes."""

    rows: list[dict[str, Any]]
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


@dataclass(frozen=True)
class Channel:
    """One polarisation of a tile: where its pixels come from, and the dB range of its codes."""

    scene: Scene
    band: Band
    enl: float | None
    lo_db: float
    hi_db: float
    bias_db: float
    """what the log of speckle adds to its dB, taken off before coding"""
    despeckled: bool = False
    """filtered, or as it was seen"""


def cut_scene(stacks: Sequence[Sequence[Channel]], identity: str, config: BuildConfig, codes_path: Path) -> CutTiles:
    """Write the codes of the accepted tiles, one after the other, to `codes_path`; return their rows.

    `stacks`: the channels of each tile in order, a stack after the other; one of them all in most corpora. All lie on
    one grid. `identity`: of the scene, in the tiles' keys. Windows lie on a grid from the scene's first pixel on.
    Raises SceneError when a block cannot be read.
    """
    cutter = _Cutter(stacks[0][0].scene, identity, config)
    with ExitStack() as opened, atomic_write(codes_path) as file:
        paths = {channel.scene.path for channels in stacks for channel in channels}
        datasets = {path: opened.enter_context(open_raster(path))[0] for path in sorted(paths)}
        for channels in stacks:
            cutter.cut_stack([(datasets[channel.scene.path], channel) for channel in channels], file)
    return CutTiles(cutter.rows, cutter.no_data, cutter.flat)


def _look(codes: np.ndarray, channel: dict[str, Any], bits: int) -> dict[str, Any]:
    """What a tile looks like once its speckle is averaged away; nulls for tiles that are too small to tell."""
    if min(codes.shape) < LEAST_SIDE:
        return {"perceptual_hash": None, "structure_db": None, "flat": None}
    found = fingerprint(codes, (channel["hi_db"] - channel["lo_db"]) / code_steps(bits))
    return {
        "perceptual_hash": f"{found.perceptual_hash:016x}",
        "structure_db": round(found.structure, 3),
        "flat": found.flat,
    }


class _Cutter:
    """Collects the rows and the refusals of a scene, stack after stack."""

    def __init__(self, scene: Scene, identity: str, config: BuildConfig) -> None:
        self._scene, self._identity, self._config = scene, identity, config
        self._cols = grid(scene.width, config.tile_size, config.step)
        self._tops = grid(scene.height, config.tile_size, config.step)
        self.rows: list[dict[str, Any]] = []
        self.no_data = self.flat = 0

    def cut_stack(self, channels: Sequence[tuple[Any, Channel]], file: BinaryIO) -> None:
        size = self._config.tile_size
        for top in self._tops:
            strips = read_strips(channels, int(top), int(top) + size, self._config.bits)
            codes = np.stack([strip.codes for strip in strips])
            for col, where in zip(self._cols, self._geography(top), strict=True):
                tile = codes[:, :, col : col + size]
                valid = tile != 0
                fraction = float(valid.mean(axis=(1, 2)).min())
                if fraction < self._config.min_valid:
                    self.no_data += 1
                elif any(np.all(plane[known] == plane[known][0]) for plane, known in zip(tile, valid, strict=True)):
                    self.flat += 1
                else:
                    pixels = np.ascontiguousarray(tile).tobytes()
                    described = [strip.describe(int(col), size) for strip in strips]
                    row = self._row(int(top), int(col), where, described, fraction, pixels)
                    look = _look(tile[0], described[0], self._config.bits)
                    self.rows.append({**row, **look, "start": len(self.rows) * len(pixels)})
                    file.write(pixels)

    def _row(
        self,
        top: int,
        col: int,
        where: dict[str, Any],
        channels: list[dict[str, Any]],
        fraction: float,
        pixels: bytes,
    ) -> dict[str, Any]:
        """As in tiles.parquet. What is of a channel is of the first; names of several are joined by +, each once."""
        scene = self._scene
        polarisation = "+".join(dict.fromkeys(channel["polarisation"] for channel in channels))
        return {
            **channels[0],
            "key": f"{self._identity}-{polarisation}-{top:05d}-{col:05d}",
            "scene": self._identity,
            "polarisation": polarisation,
            "content": "+".join(dict.fromkeys(channel["content"] for channel in channels)),
            "group": "+".join(dict.fromkeys(channel["group"] for channel in channels)),
            "sensor": scene.sensor,
            "mode": scene.mode,
            "datetime": scene.datetime,
            "orbit_direction": scene.orbit_direction,
            "row": top,
            "col": col,
            "crs": scene.crs,
            "valid_fraction": round(fraction, 6),
            "channels": channels,
            "content_hash": tile_hash(pixels),
            **where,
        }

    def _geography(self, top: int) -> list[dict[str, Any]]:
        """Place of each tile of a row of tiles."""
        rows = np.full_like(self._cols, top)
        placed = place_tiles(self._scene, self._cols, rows, self._config.tile_size)
        if placed is None:
            return [_UNPLACED] * len(self._cols)
        return [
            {
                "lon": round((float(placed.centres[index, 0]) + 180.0) % 360.0 - 180.0, 7),
                "lat": round(float(placed.centres[index, 1]), 7),
                "spacing_x_m": round(float(placed.spacing[index, 0]), 4),
                "spacing_y_m": round(float(placed.spacing[index, 1]), 4),
                "transform": _tile_transform(self._scene.transform, int(col), int(top)),
                "lonlat_transform": placed.to_lonlat[index].tolist(),
                "ring": placed.footprints[index].tolist(),
            }
            for index, col in enumerate(self._cols)
        ]


@dataclass(frozen=True)
class Strip:
    """Whole rows of one channel, rows x columns."""

    channel: Channel
    bias_db: float
    """what was taken off before coding"""
    power: np.ndarray
    """float32, linear; NaN where no data"""
    db: np.ndarray
    """float32"""
    codes: np.ndarray
    """uint8 or uint16"""
    filtered: bool
    """by us, here"""

    def describe(self, col: int, size: int) -> dict[str, Any]:
        """What tiles.parquet says of this channel of the tile at `col`."""
        window = np.s_[:, col : col + size]
        band, scene = self.channel.band, self.channel.scene
        return {
            "polarisation": band.polarisation,
            "content": "despeckled" if self.channel.despeckled else "speckled",
            "filtered": self.filtered,
            "source": scene.relative,
            "band": band.index,
            "group": scene.group(band),
            "mean_db": round(10.0 * float(np.log10(np.nanmean(self.power[window], dtype=np.float64))), 3),
            "std_db": round(float(np.nanstd(self.db[window], dtype=np.float64)), 3),
            "enl": self.channel.enl,
            "enl_bias_db": self.bias_db,
            "lo_db": self.channel.lo_db,
            "hi_db": self.channel.hi_db,
        }


def read_strips(channels: Sequence[tuple[Any, Channel]], first: int, last: int, bits: int) -> list[Strip]:
    """Rows `first` to `last` of each channel (with its open dataset). A band that several channels want, one of them
    filtered, is read once, with the rows around that the filter looks at. Raises SceneError."""
    halo = REFINED_LEE_RADIUS if any(channel.despeckled for _, channel in channels) else 0
    bands: dict[tuple[str, int], np.ndarray] = {}
    strips = []
    for dataset, channel in channels:
        band, scene = channel.band, channel.scene
        top, bottom = max(first - halo, 0), min(last + halo, scene.height)
        if (wanted := (scene.path, band.index)) not in bands:
            masked = masked_rows(dataset, band.index, top, bottom)
            values = read_rows(dataset, band.index, top, bottom)
            bands[wanted] = valid_power(values, band, row=top, masked=masked)
        power, bias = bands[wanted], channel.bias_db
        filtered = channel.despeckled and why_not_despeckled(scene, band, channel.enl) is None
        if filtered:
            assert channel.enl is not None
            power = refined_lee(power, channel.enl)
            bias = 0.0  # a filtered pixel is a mean of power: its logarithm has next to none
        power = power[first - top : last - top]
        db = to_db(power)
        codes = encode(db - np.float32(bias), channel.lo_db, channel.hi_db, bits)
        strips.append(Strip(channel, bias, power, db, codes, filtered))
    return strips


def why_not_despeckled(scene: Scene, band: Band, enl: float | None) -> str | None:
    """Why the filter leaves a band alone, for the notes of its scene; None where it does not."""
    if scene.despeckled:
        return "the product's speckle was filtered already"
    if band.quantity == "display":
        return "an 8-bit picture has no speckle that a filter knows"
    if enl is None:
        return "its looks could not be estimated"
    nominal = scene.looks
    if nominal is not None and enl > FILTERED_AT * nominal:
        return f"filtered already, it seems: {enl:.1f} looks found, {nominal:g} nominal"
    return None


def _tile_transform(transform: tuple[float, ...] | None, col: int, row: int) -> list[float] | None:
    """The affine of a tile: that of its scene, moved to the tile's first pixel."""
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    return [a, b, a * col + b * row + c, d, e, d * col + e * row + f]
