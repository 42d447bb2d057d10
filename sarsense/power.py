"""Stored values of a band -> linear power, pixel by pixel: where there is a measurement, and how much it is.

Integers of 8 or 16 bits have few values: what each of them means is worked out once, and looked up from then on.
"""

from __future__ import annotations

import numpy as np

from sarsense.calibration import calibrate
from sarsense.compiled import njit
from sarsense.radiometry import to_power
from sarsense.scene import Band

_LOOKED_UP = ("uint8", "int8", "uint16", "int16")


def valid_power(
    values: np.ndarray, band: Band, row: int = 0, col: int = 0, masked: np.ndarray | None = None
) -> np.ndarray:
    """Linear power, float32, of stored values of a band; NaN where there is no measurement.

    Power stays above the floor of its noise (`calibrate`). Parameters as of `signal_and_floor`.
    """
    power, floor = signal_and_floor(values, band, row, col, masked)
    return power if floor is None else np.maximum(power, floor)


def signal_and_floor(
    values: np.ndarray, band: Band, row: int = 0, col: int = 0, masked: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Linear power, float32, of stored values of a band, negative where its noise exceeds it; NaN where there is no
    measurement; and the floor that means of it are kept above, None where no noise is taken off.

    `values`: rows x columns whose first pixel is (row, col) of the raster, which only look-up tables want to know;
    `masked`: True where a mask or alpha band says no data.

    Not valid: the declared no-data value, NaN and infinity, zero and negative power, and exact zeros of float
    rasters (a fill value that nobody declared: 0 dB would be very bright). An 8-bit picture's 0 is a dark pixel,
    below half a grey level: it is taken as 0.5.
    """
    stored = np.ascontiguousarray(values)
    display = band.quantity == "display"
    if display:
        values = np.maximum(values.astype(np.float32), np.float32(0.5))
    with np.errstate(over="ignore", invalid="ignore"):
        power = to_power(values, band.unit, band.scale_factor)
    # as it would be stored, where values are floats: a no-data value of 0.1 is no float32
    nodata = np.nan if band.nodata is None else band.nodata
    fill = stored.dtype.type(nodata) if stored.dtype.kind in "fc" else np.float64(nodata)
    zeros = display or stored.dtype.kind not in "fc"
    # squared, a fill value of -9999 would be the brightest of all
    negatives = band.unit != "amplitude"
    (_keep_valid_complex if stored.dtype.kind == "c" else _keep_valid)(stored, fill, zeros, negatives, power)
    if masked is not None:
        power[masked] = np.nan
    return (power, None) if band.calibration is None else calibrate(power, band.calibration, row, col)


@njit
def _keep_valid(stored: np.ndarray, fill: float, zeros: bool, negatives: bool, power: np.ndarray) -> None:
    """NaN in place of power, float32 H x W, that is none: what was stored is the fill value, or a zero or a negative
    number where these are no measurements, or has no power that is a positive number."""
    for row in range(power.shape[0]):
        line, out = stored[row], power[row]
        for x in range(len(out)):
            value, level = line[x], out[x]
            known = (value != fill) & (zeros | (value != 0)) & (negatives | (value >= 0))
            known &= (level > 0) & (level < np.inf)
            out[x] = level if known else np.float32(np.nan)


@njit
def _keep_valid_complex(stored: np.ndarray, fill: complex, zeros: bool, negatives: bool, power: np.ndarray) -> None:
    """The same of complex numbers, none of which is negative, and whose power is 0 where they are."""
    for row in range(power.shape[0]):
        line, out = stored[row], power[row]
        for x in range(len(out)):
            known = (line[x] != fill) & (out[x] > 0) & (out[x] < np.inf)
            out[x] = out[x] if known else np.float32(np.nan)


def power_table(band: Band, dtype: np.dtype) -> np.ndarray | None:
    """Power, float32 (256,) or (65536,), of each value that pixels of a band can have, by the value's bits, as
    `valid_power` says; None where it takes more than the value: other types, look-up tables of a product."""
    if np.dtype(dtype).name not in _LOOKED_UP or (band.calibration is not None and band.calibration.tables):
        return None
    bits = 8 * np.dtype(dtype).itemsize
    return valid_power(np.arange(1 << bits, dtype=f"uint{bits}").view(dtype)[None], band)[0]


def fill_power(
    values: np.ndarray, band: Band, table: np.ndarray | None, row: int, masked: np.ndarray | None, out: np.ndarray
) -> None:
    """`valid_power` of whole rows from row `row` on, into `out`. table: what `power_table` says of the band."""
    if table is None:
        out[:] = valid_power(values, band, row=row, masked=masked)
        return
    look_up(as_index(values), table, out)
    if masked is not None:
        out[masked] = np.nan


def as_index(values: np.ndarray) -> np.ndarray:
    """Integers of 8 or 16 bits as indices into a table of all their values."""
    return np.ascontiguousarray(values).view(f"uint{8 * values.dtype.itemsize}")


@njit
def look_up(index: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out = table[index], H x W; `index`: uint8 or uint16, which need no check."""
    for row in range(index.shape[0]):
        for column in range(index.shape[1]):
            out[row, column] = table[index[row, column]]
