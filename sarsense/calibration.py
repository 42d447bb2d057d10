"""Digital numbers -> backscatter, by what a product delivers: a gain, gains by column, or look-up tables.

All products of the field fit one form, power = (|DN|^2 - noise) x gain, with gain and noise either numbers or tables
over (line, pixel) of the raster. Which numbers, and where they stand, is the product modules' business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from sarsense.remote import is_remote
from sarsense.sidecars import stamp_of

NOISE_FLOOR = 0.1
"""noise-subtracted power is kept above this share of the noise itself: dark water is dark, not missing"""

_RIM_WINDOW = 10
"""pixels"""

Tables = Literal["", "sentinel1", "radarsat", "terrasar"]


@dataclass(frozen=True)
class Calibration:
    """How |DN|^2 of a band becomes backscatter. Plain values, it travels in a `Scene`; tables stay in their files."""

    gain: float = 1.0
    """factor on |DN|^2 (of what the tables give, where there are any)"""
    tables: Tables = ""
    """which product module reads `files`"""
    files: tuple[str, ...] = ()
    variant: str = ""
    """what the module needs beside the files: the name of a look-up table, detected or complex"""


@dataclass(frozen=True)
class Lut:
    """Values at (line, pixel) nodes; each line has its own pixels. Bilinear between, constant outside."""

    lines: np.ndarray
    """float64 (n,), rising"""
    pixels: tuple[np.ndarray, ...]
    """of each line, rising"""
    values: tuple[np.ndarray, ...]

    def rows(self, first: int, last: int, width: int) -> np.ndarray:
        """float32 (last - first, width): the values of whole rows of a raster of `width` columns."""
        at = np.arange(first, last, dtype=np.float64)
        upper = np.clip(np.searchsorted(self.lines, at, side="right"), 1, max(len(self.lines) - 1, 1))
        lower = upper - 1
        upper = np.minimum(upper, len(self.lines) - 1)
        span = np.maximum(self.lines[upper] - self.lines[lower], 1e-9)
        share = np.clip((at - self.lines[lower]) / span, 0.0, 1.0).astype(np.float32)[:, None]
        columns = np.arange(width, dtype=np.float64)
        nodes = {
            int(k): np.interp(columns, self.pixels[k], self.values[k]).astype(np.float32)
            for k in np.unique(np.concatenate([lower, upper]))
        }
        out = np.empty((last - first, width), np.float32)
        for row, (low, high) in enumerate(zip(lower, upper, strict=True)):
            out[row] = nodes[int(low)] + share[row] * (nodes[int(high)] - nodes[int(low)])
        return out


@dataclass(frozen=True)
class NoiseBlock:
    """Scalloping of the noise along azimuth over a part of the raster (Sentinel-1, IPF 2.90 and later)."""

    first_line: int
    last_line: int
    first_pixel: int
    last_pixel: int
    lines: np.ndarray
    factors: np.ndarray


class Rows(NamedTuple):
    """What tables say of whole rows of a raster."""

    gain: np.ndarray
    """float32 (rows, width)"""
    noise: np.ndarray | None = None
    """float32 (rows, width), of |DN|^2; None: no noise to take off"""
    rim: bool = False
    """whether the product may have a rim of border noise, small values where nothing was imaged"""


RowTables = Callable[[int, int, int], Rows]
"""(first row, last row, width) -> the tables of those rows"""


def calibrate(
    power: np.ndarray, calibration: Calibration, row: int = 0, col: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Backscatter of |DN|^2 (float32, rows x columns, whose first pixel is (row, col) of the raster), and its floor.

    Both float32. Where the noise exceeds the signal the backscatter is negative, so that means over pixels are right;
    the floor, `NOISE_FLOOR` of the noise, is what it is kept above once means are taken. None: no noise was taken off.
    """
    if not calibration.tables:
        return power * np.float32(calibration.gain), None
    # a store is asked once a minute, not with each strip
    minute = int(time.monotonic() // 60)
    stamps = tuple(_lately(path, minute) if is_remote(path) else tuple(stamp_of(path)) for path in calibration.files)
    gain, noise, rim = _tables(calibration, stamps)(row, row + power.shape[0], col + power.shape[1])
    gain = gain[:, col:] * np.float32(calibration.gain)
    if noise is None:
        return power * gain, None
    noise = noise[:, col:]
    if rim and col == 0:
        power = np.where(border_noise(power, noise), np.float32(np.nan), power)
    return (power - noise) * gain, np.float32(NOISE_FLOOR) * np.abs(noise) * gain


def border_noise(power: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """True for the rim of a Sentinel-1 GRD of IPF before 2.90, whose borders hold small values instead of zeros.

    `power`: |DN|^2 of whole rows, `noise`: theirs. What was imaged holds at least its thermal noise; so from each end
    of a row pixels are rim while the mean over `_RIM_WINDOW` of them is far under that noise, and as many more, since
    the mean reaches the image before they do; where the end pixel alone is far under it, there is a narrow rim. The
    problem: "Masking 'No-value' Pixels on GRD Products" (MPC-0243, ESA); the rule is ours.
    """
    share = np.where(np.isfinite(power), power, 0) / np.maximum(noise, np.float32(1e-6))
    width = share.shape[1]
    window = min(_RIM_WINDOW, width)
    total = np.cumsum(share, axis=1, dtype=np.float64)
    ends = total[:, window - 1 :] - np.concatenate([np.zeros((len(share), 1)), total[:, :-window]], axis=1)
    imaged = ends >= 0.4 * window  # of the windows that start at each column
    some = imaged.any(axis=1)
    first = np.where(some, imaged.argmax(axis=1), width)
    last = np.where(some, imaged.shape[1] - 1 - imaged[:, ::-1].argmax(axis=1) + window - 1, -1)
    first = np.where((first > 0) | (share[:, 0] < 0.3), first + window, 0)
    last = np.where((last < width - 1) | (share[:, -1] < 0.3), last - window, width - 1)
    columns = np.arange(width)
    return (columns < first[:, None]) | (columns > last[:, None])


@lru_cache(maxsize=64)
def _lately(path: str, _minute: int) -> tuple[int | str, ...]:
    return tuple(stamp_of(path))


@lru_cache(maxsize=8)
def _tables(calibration: Calibration, _stamps: tuple[tuple[int | str, ...], ...]) -> RowTables:
    """The tables, read once a process and state of their files, not once a strip."""
    from sarsense.products import radarsat, sentinel1_safe, terrasar

    modules = {"sentinel1": sentinel1_safe, "radarsat": radarsat, "terrasar": terrasar}
    return modules[calibration.tables].load_tables(calibration)


def scalloped(noise: np.ndarray, first_row: int, blocks: Sequence[NoiseBlock]) -> np.ndarray:
    """Range noise (rows from `first_row` on) times the azimuth factors of the blocks; what no block covers stays."""
    last_row = first_row + noise.shape[0]
    out = noise.copy()
    for block in blocks:
        top, bottom = max(block.first_line, first_row), min(block.last_line + 1, last_row)
        if top >= bottom:
            continue
        factor = np.interp(np.arange(top, bottom), block.lines, block.factors).astype(np.float32)
        out[top - first_row : bottom - first_row, block.first_pixel : block.last_pixel + 1] *= factor[:, None]
    return out
