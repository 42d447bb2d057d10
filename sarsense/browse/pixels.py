"""Pictures of one tile for the page: thumbnail, values in dB, histogram.

Values are sent as they are and made grey by the page, so that what a person points at can be read to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sarsense.errors import ShardError
from sarsense.inspection.picture import png
from sarsense.inspection.source import Source
from sarsense.inspection.tile import Tile, read_tile

THUMBNAIL = 160
"""longer side at most, pixels"""
LARGEST = 2048
"""longer side of the values that are sent; of larger tiles every second, third, ... pixel"""
_BINS = 96
_CHANNELS = 16
_FILTERED = "despeckled here"


@dataclass(frozen=True)
class Plane:
    """A channel of a tile, or what is made of one."""

    name: str
    unit: str
    """dB; dB of a picture's values; value: nobody knows what it is"""
    values: np.ndarray
    """float32 (H, W), NaN where there is no data"""
    coded: tuple[float, float] | None = None
    """values of the lowest code and of the highest; None: of no corpus"""
    step: float = 0.0
    """between the values of neighbouring codes; 0: not known, or none"""
    note: str = ""


def thumbnail(source: Source, row: Mapping[str, Any], channel: int, own: bool) -> bytes:
    """A PNG, at most THUMBNAIL pixels wide and high. own: from black to white over the tile's own range of grey, else
    as all tiles. ShardError."""
    tile = _read(source, row)
    plane = tile.grey()[min(channel, len(tile.pixels) - 1)]
    step = math.ceil(max(plane.shape) / THUMBNAIL)
    small = _means(plane, step) if step > 1 else plane
    return png((_stretched(small) if own else small)[None], tile.coded)


def planes(source: Source, row: Mapping[str, Any]) -> list[Plane]:
    """The channels of a tile. Where none of them is despeckled, and looks are known, the first as a filter shows it.
    ShardError."""
    tile = _read(source, row)
    found = tile.db()
    layers = tile.pixels if found is None else found
    shown: list[Plane] = []
    for channel, layer in list(zip(tile.channels, layers, strict=True))[:_CHANNELS]:
        unit = "value" if found is None else "dB of the picture's values" if channel.display else "dB"
        name = f"channel {channel.name}" if channel.name.isdigit() else channel.name or "pixels"
        values = layer.astype(np.float32)
        if found is None:
            shown.append(Plane(name, unit, values))
            continue
        low, high = channel.lo_db + channel.bias_db, channel.hi_db + channel.bias_db
        step = (high - low) / (np.iinfo(tile.pixels.dtype).max - 1)
        shown.append(Plane(name, unit, values, (low, high), step))
    looks = row.get("enl")
    despeckled = "despeckled" in str(row.get("content") or "") or any("despeckled" in one.name for one in shown)
    if found is not None and looks and math.isfinite(looks) and looks > 0 and not despeckled:
        shown.append(_filtered(shown[0], float(looks)))
    return shown


def histogram(plane: Plane) -> dict[str, Any]:
    """Counts in equal bins between `edges`, and what is told of the values; no bins where there is no data."""
    valid = plane.values[np.isfinite(plane.values)].astype(np.float64)
    share = valid.size / max(plane.values.size, 1)
    if not valid.size:
        return {"valid": share, "counts": []}
    low, high = float(valid.min()), float(valid.max())
    if plane.step and high > low:  # bins of whole codes, so that none has one more than its neighbour
        bins = math.ceil((high - low) / plane.step / math.ceil((high - low) / plane.step / _BINS) + 0.5)
        width = plane.step * math.ceil((high - low) / plane.step / _BINS)
        edges = (low - plane.step / 2, low - plane.step / 2 + bins * width)
    else:
        bins, edges = _BINS, (low, high if high > low else low + 1)
    counts, _ = np.histogram(valid, bins, edges)
    first, median, last = np.percentile(valid, (1, 50, 99)).tolist()
    told = {"low": low, "high": high, "p1": first, "median": median, "p99": last, "std": float(valid.std())}
    if plane.unit != "value":
        told["mean"] = float(10 * np.log10(np.mean(10 ** (valid / 10))))
    return {"valid": share, "counts": counts.tolist(), "edges": list(edges), **told}


def sent(plane: Plane) -> tuple[np.ndarray, int]:
    """Values as they are sent, little-endian float32, and of how many pixels in each direction every one is taken."""
    step = math.ceil(max(*plane.values.shape, 1) / LARGEST)
    return np.ascontiguousarray(plane.values[::step, ::step], "<f4"), step


def warm_up(source: Source) -> None:
    """Have the filter ready where tiles will want it: compiled code, which takes seconds to load the first time."""
    if source.corpus is not None and "despeckled" not in source.corpus.contents:
        _filtered(Plane("", "dB", np.zeros((16, 16), np.float32)), 4.0)


def _read(source: Source, row: Mapping[str, Any]) -> Tile:
    tile = read_tile(source, row)
    if not tile.pixels.size:
        raise ShardError(f"{row.get('shard')}: {row.get('key')} has no pixels: shape {tile.pixels.shape}")
    return tile


def _filtered(plane: Plane, looks: float) -> Plane:
    from sarsense.speckle import refined_lee

    power = (10 ** (plane.values / 10)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = 10 * np.log10(refined_lee(power, looks))
    note = f"refined Lee, 7 x 7, {looks:.3g} looks, of these pixels alone: the corpus holds no despeckled channel"
    return Plane(_FILTERED, plane.unit, values.astype(np.float32), plane.coded, note=note)


def _means(plane: np.ndarray, step: int) -> np.ndarray:
    """uint8 means of squares of `step` pixels, of those that are data; 0 where none is."""
    rows, columns = (-(-size // step) for size in plane.shape)
    padded = np.zeros((rows * step, columns * step), np.float32)
    padded[: plane.shape[0], : plane.shape[1]] = plane
    squares = padded.reshape(rows, step, columns, step)
    counts = (squares > 0).sum(axis=(1, 3))
    means = squares.sum(axis=(1, 3)) / np.maximum(counts, 1)
    return np.where(counts > 0, np.clip(np.rint(means), 1, 255), 0).astype(np.uint8)


def _stretched(plane: np.ndarray) -> np.ndarray:
    """uint8 from 1 to 255 between the percentiles 1 and 99 of what is data."""
    valid = plane[plane > 0]
    if not valid.size:
        return plane
    low, high = np.percentile(valid, (1, 99))
    scaled = 1 + 254 * (plane.astype(np.float32) - low) / max(float(high - low), 1.0)
    return np.where(plane > 0, np.clip(np.rint(scaled), 1, 255), 0).astype(np.uint8)
