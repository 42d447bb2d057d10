"""dB -> codes of 8 or 16 bits, and back. Code 0 is no data; codes 1 to 255 (or 65535) are equal steps of dB.

Needs numpy alone: a trainer that reads codes has no use for filters.
"""

from __future__ import annotations

import numpy as np


def code_dtype(bits: int) -> np.dtype:
    """uint8 or little-endian uint16."""
    return np.dtype({8: "|u1", 16: "<u2"}[bits])


def step_db(lo_db: float | None, hi_db: float | None, bits: int) -> float | None:
    """dB from code to code of a range, rounded to a millionth; None where there is no range: each scene has its own."""
    return None if lo_db is None or hi_db is None else round((hi_db - lo_db) / code_steps(bits), 6)


def code_steps(bits: int) -> int:
    """Steps between the lowest valid code, 1, and the highest: 254 or 65534."""
    return 2**bits - 2


def encode(db: np.ndarray, lo_db: float, hi_db: float, bits: int = 8) -> np.ndarray:
    """Codes, `code_dtype(bits)`, of dB values (float32) of any shape: 0 where NaN, else 1 + round((dB - lo) / step),
    clipped to 1..255 or 1..65535."""
    steps = code_steps(bits)
    step = np.float32((hi_db - lo_db) / steps)
    codes = np.rint((db - np.float32(lo_db)) / step) + np.float32(1)
    codes = np.clip(codes, 1, steps + 1)
    return np.where(np.isnan(codes), 0, codes).astype(code_dtype(bits))


def decode(codes: np.ndarray, lo_db: float, hi_db: float) -> np.ndarray:
    """dB, float32, of codes (uint8 or uint16) of any shape; NaN where the code is 0. Inverse of `encode` to half a
    step."""
    steps = code_steps(8 * codes.dtype.itemsize)
    step = (hi_db - lo_db) / steps
    table = np.concatenate([[np.nan], lo_db + step * np.arange(steps + 1)]).astype(np.float32)
    return table[codes]


def as_8_bit(codes: np.ndarray) -> np.ndarray:
    """The 8-bit codes of 16-bit ones over the same dB range; 8-bit codes as they are. 0 stays 0, and 0 alone."""
    return codes if codes.dtype == np.uint8 else _TO_8_BIT[codes]


_TO_8_BIT = np.concatenate([[0], 1 + np.rint(np.arange(code_steps(16) + 1) * (code_steps(8) / code_steps(16)))]).astype(
    np.uint8
)
