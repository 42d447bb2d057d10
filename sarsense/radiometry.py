"""Stored values -> linear power -> decibel.

Knows the four ways in which SAR values are stored; knows nothing of files, products or calibration tables.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Unit = Literal["power", "amplitude", "db", "complex"]
"""How values are stored: linear power, its square root, 10 log10 of power, or single-look complex."""

POLARISATIONS = ("VV", "VH", "HV", "HH")

Quantity = Literal["sigma0", "beta0", "gamma0", "backscatter", "uncalibrated", "display"]
"""What the power means. `backscatter`: calibrated, but the product does not say to which convention;
`uncalibrated`: digital numbers without their calibration; `display`: an 8-bit picture."""


def to_power(values: np.ndarray, unit: Unit, scale_factor: float = 1.0) -> np.ndarray:
    """Linear power, float32, of values of any shape and real or complex type.

    `scale_factor` is what the stored values were multiplied by (100 for "dB x 100"). NaN stays NaN.
    """
    if unit == "complex":
        scaled = values.astype(np.complex64, copy=False) / np.float32(scale_factor)
        return scaled.real**2 + scaled.imag**2
    scaled = values.astype(np.float32)
    if scale_factor != 1.0:
        scaled /= np.float32(scale_factor)
    if unit == "power":
        return scaled
    if unit == "amplitude":
        return scaled * scaled
    return np.power(np.float32(10.0), scaled / np.float32(10.0))


def to_db(power: np.ndarray) -> np.ndarray:
    """10 log10(power), float32; NaN where the power is not a positive number (never -inf)."""
    positive = np.where(power > 0, power, np.float32(np.nan)).astype(np.float32, copy=False)
    return np.float32(10.0) * np.log10(positive)
