"""Whole rows of one channel as codes, and the statistics of windows of them.

Where a stored value alone tells the power of a pixel, its code, its power and its dB are looked up; elsewhere they are
computed. Both ways give the same codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sarsense.codes import code_dtype, code_steps, encode
from sarsense.compiled import njit
from sarsense.power import as_index, look_up, power_table, valid_power
from sarsense.radiometry import to_db
from sarsense.raster import masked_rows, read_rows, stored_dtype, strips
from sarsense.scene import Band, Scene
from sarsense.speckle import REFINED_LEE_RADIUS, refined_lee

FILTERED_AT = 3.0
"""times its nominal looks a scene has when it is taken for filtered"""
_ROWS = 16
_LANES = 4
"""histograms that take turns: counting into one place again and again waits for memory"""


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


class Table(NamedTuple):
    """What each of the 256 or 65,536 values that pixels of a channel can have means, by the value's bits."""

    power: np.ndarray
    """float32, linear; NaN where it is no measurement"""
    db: np.ndarray
    """float32"""
    code: np.ndarray
    """uint8 or uint16"""


class Seen(NamedTuple):
    """A window of a strip. Means and variance are of its valid pixels; of none, they are not numbers."""

    valid: int
    """pixels"""
    varied: bool
    """valid pixels have more than one code"""
    mean_power: float
    mean_db: float
    variance_db: float


@dataclass(frozen=True)
class Strip:
    """Whole rows of one channel. Of its pixels either `values` and the table that they are looked up in are known, or
    `power` and `db`."""

    channel: Channel
    bias_db: float
    """what was taken off before coding"""
    filtered: bool
    """by us, here"""
    codes: np.ndarray
    """uint8 or uint16 (rows, columns)"""
    values: np.ndarray | None = None
    """uint8 or uint16"""
    table: Table | None = None
    counts: np.ndarray | None = None
    """uint32 (lanes, values), zeros: scratch for counting values"""
    power: np.ndarray | None = None
    """float32, linear; NaN where no data"""
    db: np.ndarray | None = None
    """float32"""

    def look_at(self, col: int, size: int) -> Seen:
        """The window of `size` columns from `col` on."""
        if self.values is not None and self.table is not None:
            sums = _see_values(self.values, col, size, *self.table, self.counts)
        else:
            sums = _see_levels(self.codes, self.power, self.db, col, np.zeros((3, size)))
        valid, varied, power, db, squares = sums
        number = valid or np.nan
        return Seen(valid, varied, power / number, db / number, max(squares / number - (db / number) ** 2, 0.0))

    def describe(self, seen: Seen) -> dict[str, Any]:
        """What tiles.parquet says of this channel of a tile."""
        band, scene = self.channel.band, self.channel.scene
        return {
            "polarisation": band.polarisation,
            "content": "despeckled" if self.channel.despeckled else "speckled",
            "filtered": self.filtered,
            "source": scene.relative,
            "band": band.index,
            "group": scene.group(band),
            "mean_db": round(10.0 * math.log10(seen.mean_power), 3),
            "std_db": round(math.sqrt(seen.variance_db), 3),
            "enl": self.channel.enl,
            "enl_bias_db": self.bias_db,
            "lo_db": self.channel.lo_db,
            "hi_db": self.channel.hi_db,
        }


class StripReader:
    """Reads strips of channels that lie on one grid. Tables of what stored values mean are made once."""

    def __init__(self, channels: Sequence[tuple[Any, Channel]], bits: int) -> None:
        """channels: each with its open dataset."""
        self._channels, self._bits = channels, bits
        self._tables: dict[int, Table | None] = {}
        self._buffers: dict[tuple[str, int], np.ndarray] = {}
        self._counts = np.zeros((_LANES, 1 << 16), np.uint32)

    def read(self, first: int, last: int) -> list[Strip]:
        """Rows `first` to `last` of each channel, which hold until the next are read. Raises SceneError.

        A band that several channels want, one of them filtered, is read once, with the rows around that the filter
        looks at."""
        halo = REFINED_LEE_RADIUS if any(channel.despeckled for _, channel in self._channels) else 0
        bands: dict[tuple[str, int], tuple[np.ndarray, np.ndarray | None]] = {}
        found = []
        for number, (dataset, channel) in enumerate(self._channels):
            band, scene = channel.band, channel.scene
            top, bottom = max(first - halo, 0), min(last + halo, scene.height)
            if (wanted := (scene.path, band.index)) not in bands:
                values = self._buffer(wanted, dataset, bottom - top)
                read_rows(dataset, band.index, top, bottom, out=values)
                bands[wanted] = values, masked_rows(dataset, band.index, top, bottom)
            values, masked = bands[wanted]
            rows = slice(first - top, last - top)
            table = self._table(number, values.dtype) if masked is None else None
            if table is not None:
                found.append(_looked_up(channel, as_index(values[rows]), table, self._counts))
            else:
                found.append(_computed(channel, values, top, masked, rows, self._bits))
        return found

    def _buffer(self, band: tuple[str, int], dataset: Any, rows: int) -> np.ndarray:
        """Room for rows of a band: the same again and again, since fresh memory costs as much as reading into it."""
        known = self._buffers.get(band)
        if known is None or len(known) < rows:
            known = self._buffers[band] = np.empty((rows, dataset.width), stored_dtype(dataset, band[1]))
        return known[:rows]

    def _table(self, number: int, dtype: np.dtype) -> Table | None:
        """None where the value alone does not tell power and code."""
        if number not in self._tables:
            channel = self._channels[number][1]
            power = None if _is_filtered(channel) else power_table(channel.band, dtype)
            self._tables[number] = None
            if power is not None:
                db = to_db(power)
                codes = encode(db - np.float32(channel.bias_db), channel.lo_db, channel.hi_db, self._bits)
                self._tables[number] = Table(power, db, codes)
        return self._tables[number]


def _looked_up(channel: Channel, values: np.ndarray, table: Table, counts: np.ndarray) -> Strip:
    codes = np.empty(values.shape, table.code.dtype)
    look_up(values, table.code, codes)
    scratch = counts[:, : len(table.code)]
    return Strip(channel, channel.bias_db, False, codes, values=values, table=table, counts=scratch)


def _computed(
    channel: Channel, values: np.ndarray, first: int, masked: np.ndarray | None, rows: slice, bits: int
) -> Strip:
    """`rows` of the values, whose first is row `first` of the raster. A few rows at a time: what is made of them on the
    way stays in the processor's cache."""
    power = np.empty(values.shape, np.float32)
    for top, bottom in strips(len(values), _ROWS):
        mask = None if masked is None else masked[top:bottom]
        power[top:bottom] = valid_power(values[top:bottom], channel.band, row=first + top, masked=mask)
    bias, filtered = channel.bias_db, _is_filtered(channel)
    if filtered:
        assert channel.enl is not None
        power = refined_lee(power, channel.enl)
        bias = 0.0  # a filtered pixel is a mean of power: its logarithm has next to none
    power = power[rows]
    db, codes = np.empty(power.shape, np.float32), np.empty(power.shape, code_dtype(bits))
    step = np.float32((channel.hi_db - channel.lo_db) / code_steps(bits))
    for top, bottom in strips(len(power), _ROWS):
        few = slice(top, bottom)
        db[few] = to_db(power[few])
        highest = np.float32(code_steps(bits) + 1)
        _encode(db[few], np.float32(bias), np.float32(channel.lo_db), step, highest, codes[few])
    return Strip(channel, bias, filtered, codes, power=power, db=db)


def _is_filtered(channel: Channel) -> bool:
    return channel.despeckled and why_not_despeckled(channel.scene, channel.band, channel.enl) is None


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


@njit
def _encode(db: np.ndarray, bias: float, lo: float, step: float, highest: float, out: np.ndarray) -> None:
    """`sarsense.codes.encode` of db - bias, in one pass, in the same steps of float32."""
    for row in range(db.shape[0]):
        line = db[row]
        for x in range(len(line)):
            code = np.rint(((line[x] - bias) - lo) / step) + np.float32(1.0)
            code = min(max(code, np.float32(1.0)), highest)
            out[row, x] = np.uint16(code) if line[x] == line[x] else np.uint16(0)


@njit
def _see_levels(
    codes: np.ndarray, power: np.ndarray, db: np.ndarray, col: int, sums: np.ndarray
) -> tuple[int, bool, float, float, float]:
    """Of the window of sums.shape[1] columns from `col` on: number of its valid pixels, whether their codes differ, sum
    of power, of dB, and of its square. sums: float64 (3, columns), zeros, scratch."""
    end = col + sums.shape[1]
    a, b, c = sums[0], sums[1], sums[2]
    valid, lowest, highest = 0, 65535, 0
    for row in range(codes.shape[0]):
        code, p, d = codes[row, col:end], power[row, col:end], db[row, col:end]
        for x in range(len(a)):
            valid += 1 if code[x] != 0 else 0
        for x in range(len(a)):
            highest = max(highest, np.int64(code[x]))
            lowest = min(lowest, np.int64(code[x]) if code[x] != 0 else 65535)
        for x in range(len(a)):
            a[x] += np.float64(p[x]) if p[x] == p[x] else 0.0
        for x in range(len(a)):
            level = np.float64(d[x]) if d[x] == d[x] else 0.0
            b[x] += level
            c[x] += level * level
    return valid, bool(highest > lowest), a.sum(), b.sum(), c.sum()


@njit
def _largest(values: np.ndarray) -> int:
    found = values[0]
    for x in range(len(values)):
        found = max(found, values[x])
    return int(found)


@njit
def _see_values(
    values: np.ndarray,
    col: int,
    size: int,
    power: np.ndarray,
    db: np.ndarray,
    code: np.ndarray,
    counts: np.ndarray,
) -> tuple[int, bool, float, float, float]:
    """The same of values that are looked up: how often each occurs says all. counts: uint32 (_LANES, values), zeros,
    and zeros again at the end."""
    a, b, c, d = counts[0], counts[1], counts[2], counts[3]
    one, whole, largest = np.uint32(1), size - size % _LANES, 0
    for row in range(values.shape[0]):
        line = values[row, col : col + size]
        for x in range(0, whole, _LANES):
            a[line[x]] += one
            b[line[x + 1]] += one
            c[line[x + 2]] += one
            d[line[x + 3]] += one
        for x in range(whole, size):
            a[line[x]] += one
        largest = max(largest, _largest(line))
    valid, lowest, highest = 0, 65535, 0
    sum_power, sum_db, squares = 0.0, 0.0, 0.0
    for value in range(largest + 1):
        number = np.int64(a[value]) + np.int64(b[value]) + np.int64(c[value]) + np.int64(d[value])
        if number > 0 and code[value] != 0:
            valid += number
            lowest, highest = min(lowest, np.int64(code[value])), max(highest, np.int64(code[value]))
            level = np.float64(db[value])
            sum_power += number * np.float64(power[value])
            sum_db += number * level
            squares += number * level * level
    counts[:, : largest + 1] = 0
    return int(valid), bool(highest > lowest), sum_power, sum_db, squares
