"""Views that know speckle: more of it, less of it, other speckle on the same ground, another level.

Done on the codes of a whole tile, at the pixels that the sensor delivered, before a view is cut from it: what resizing
makes of speckle is then what it makes of the sensor's own. Codes are steps of dB with the mean of log-speckle taken off
(`sarsense.normalize.enl_bias_db`), so each of these leaves the mean code of homogeneous ground where it was; only the
gain moves it. Speckle of L looks on power is a factor Gamma(L, 1/L), of unit mean (Oliver & Quegan, Understanding
Synthetic Aperture Radar Images, 2004, ch. 4); here it is white, a sensor's is correlated over a pixel or two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import cv2
import numpy as np
from scipy.special import gammaincinv

from dic3l.config import SpeckleConfig
from dic3l.draws import pixel_words
from sarsense.shards import TileSpeckle

AS_SEEN, MIXED, RESPECKLED, FEWER_LOOKS = range(4)
DRAWS_PER_VIEW = 6
"""uniform numbers: kind, share of the filtered channel, looks, gain, two words of a seed"""
_DB = 10.0 / math.log(10.0)
LOOKS_STEPS = 32
"""of the looks that are drawn: so many tables are made once"""
QUANTILES = 4096
"""of speckle, equally likely: twelve random bits a pixel choose one"""


@dataclass(frozen=True)
class SpeckleParams:
    """What happens to the speckle of N views."""

    kind: np.ndarray
    """int64 (N,): AS_SEEN, MIXED, RESPECKLED or FEWER_LOOKS"""
    share: np.ndarray
    """float64 (N,): of the filtered channel in the power of a mixed view"""
    looks: np.ndarray
    """float64 (N,): of the speckle that a view is multiplied by"""
    looks_step: np.ndarray
    """int64 (N,): which of the looks that are drawn these are, 0 to LOOKS_STEPS"""
    gain_db: np.ndarray
    """float64 (N,): what is added to the level"""
    seed: np.ndarray
    """uint64 (N,): of the speckle's pixels"""

    def __getitem__(self, index: slice) -> SpeckleParams:
        """Of some of the views."""
        return SpeckleParams(*(getattr(self, field.name)[index] for field in fields(self)))


def draw_speckle(u: np.ndarray, config: SpeckleConfig) -> SpeckleParams:
    """What happens to N views, from uniforms u (N, DRAWS_PER_VIEW) in [0, 1) in steps of 2**-32."""
    ends = np.cumsum([config.mix_probability, config.respeckle_probability, config.fewer_looks_probability])
    kinds = np.array([MIXED, RESPECKLED, FEWER_LOOKS, AS_SEEN])
    looks_step = np.floor(u[:, 2] * (LOOKS_STEPS + 1)).astype(np.int64)
    words = (u[:, 4:6] * 2.0**32).astype(np.uint64)
    return SpeckleParams(
        kind=kinds[np.searchsorted(ends, u[:, 0], side="right")],
        share=u[:, 1],
        looks=_looks(looks_step, config),
        looks_step=looks_step,
        gain_db=config.gain_db * (2.0 * u[:, 3] - 1.0),
        seed=words[:, 0] << np.uint64(32) | words[:, 1],
    )


def _looks(step: np.ndarray, config: SpeckleConfig) -> np.ndarray:
    low, high = config.looks
    return low * (high / low) ** (step / LOOKS_STEPS)


def kinds_of(params: SpeckleParams, known: TileSpeckle, numbers: np.ndarray) -> np.ndarray:
    """int64 (N,): what does happen to N tiles, whose rows in `known` are `numbers` (N,). Tiles whose looks are unknown
    are as seen, and those that were not filtered are not mixed."""
    possible = np.isfinite(known.enl[numbers]) & ((params.kind != MIXED) | known.filtered[numbers])
    return np.where(possible, params.kind, AS_SEEN)


def speckle_view(
    tile: np.ndarray, known: TileSpeckle, number: int, params: SpeckleParams, index: int, out: np.ndarray
) -> None:
    """What view `index` of `params` sees of a tile, before it is cut: codes uint8 (C, H, W), the speckled channel and,
    where there is one, the filtered one, -> `out` uint8 (H, W). Code 0 stays 0, and no other becomes 0.

    `number`: the tile's row in `known`. Tiles whose looks are unknown only get the gain, those that were not filtered
    are not mixed.
    """
    here = slice(index, index + 1)
    kind = int(kinds_of(params[here], known, np.array([number]))[0])
    step, gain = float(known.step_db[number]), float(params.gain_db[index])
    if kind == MIXED:
        _mix(tile, known, number, float(params.share[index]), gain, out)
    elif kind in (RESPECKLED, FEWER_LOOKS):
        plane = tile[-1] if kind == RESPECKLED else tile[0]
        table = np.rint((speckle_db(float(params.looks[index])) + gain) / step).astype(np.int16)
        words = pixel_words(int(params.seed[index]), plane.size).reshape(plane.shape)
        noise = table[words & np.uint16(QUANTILES - 1)]
        _put(noise + plane, plane, out)
    else:
        codes = np.clip(np.rint(np.arange(256) + gain / step), 1, 255).astype(np.uint8)
        codes[0] = 0
        cv2.LUT(tile[0], codes, dst=out)


@lru_cache(maxsize=2 * (LOOKS_STEPS + 1))
def speckle_db(looks: float) -> np.ndarray:
    """Equally likely values of the dB of speckle of so many looks, less their mean: float64 (`QUANTILES`,)."""
    values = _log_power(_unit_gamma(looks, QUANTILES))
    return values - values.mean()


def speckle_table(config: SpeckleConfig) -> np.ndarray:
    """`speckle_db` of all looks that are drawn, float64 (LOOKS_STEPS + 1, QUANTILES), by `SpeckleParams.looks_step`."""
    return np.stack([speckle_db(float(looks)) for looks in _looks(np.arange(LOOKS_STEPS + 1), config)])


@lru_cache(maxsize=1024)
def _unit_gamma(looks: float, count: int) -> np.ndarray:
    return gammaincinv(looks, (np.arange(count) + 0.5) / count) / looks


def mixed_bias_db(looks: float, share: float) -> float:
    """Mean dB of (1 - share) s + share, s speckle of so many looks: what mixing leaves of the mean of log-speckle."""
    return float(_log_power((1.0 - share) * _unit_gamma(looks, 512) + share).mean())


def _log_power(power: np.ndarray) -> np.ndarray:
    return _DB * np.log(power)


def _mix(tile: np.ndarray, known: TileSpeckle, number: int, share: float, gain_db: float, out: np.ndarray) -> None:
    """Power of the speckled channel and of the filtered one, weighted 1 - share and share."""
    step, looks = float(known.step_db[number]), float(known.enl[number])
    level = step * (np.arange(256) - 1.0)  # dB above the lowest code's
    speckled = (1.0 - share) * 10.0 ** ((level + known.bias_db[number]) / 10.0)
    filtered = share * 10.0 ** (level / 10.0)
    power = cv2.LUT(tile[0], speckled.astype(np.float32)) + cv2.LUT(tile[1], filtered.astype(np.float32))
    codes = cv2.log(power)
    codes *= np.float32(_DB / step)
    codes += np.float32(1.0 + (gain_db - mixed_bias_db(looks, share)) / step)
    _put(np.rint(codes, out=codes), tile.min(axis=0), out)


def _put(codes: np.ndarray, data: np.ndarray, out: np.ndarray) -> None:
    """Codes of any kind, clipped to 1..255, to `out`; 0 where `data` is 0."""
    np.clip(codes, 1, 255, out=codes)
    out[...] = codes
    out[data == 0] = 0
