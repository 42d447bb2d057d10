"""Measure a scene in one read: despeckled histograms, looks, valid share, and the hash of its content."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sarsense.compiled import njit
from sarsense.errors import SceneError
from sarsense.histogram import trimmed, whole
from sarsense.normalize import MeasuredBand
from sarsense.power import as_index, fill_power, look_up, power_table
from sarsense.raster import bands_of_rows, masked_rows, open_raster, stored_dtype, strips
from sarsense.scene import Band, Scene
from sarsense.speckle import STRIP, BlockStatistics, LevelHistogram, estimate_enl

_STRIP_PIXELS = 4 * 2**20
_ALL_LOOKED_AT, _EVERY_AT_MOST = 8 * 2**20, 4
"""pixels of a scene whose looks are estimated on all of its blocks; of larger ones, on every second to fourth strip:
a million blocks tell no more than 300,000"""
_PLAUSIBLE_DB = (-50.0, 25.0)


@dataclass(frozen=True)
class BandMeasurement:
    """What was measured of a band. Plain values: it is kept as JSON."""

    first_bin: int
    counts: tuple[int, ...]
    """the histogram of despeckled dB from `first_bin` on, without the empty bins around it"""
    enl: float | None
    enl_by_cv: float | None
    enl_by_log_variance: float | None
    enl_confidence: float | None
    """0 to 1, see `sarsense.speckle.Enl`"""
    mean_db: float
    """10 log10 of the mean power"""
    valid_fraction: float

    def pooled(self, band: Band) -> MeasuredBand:
        """What it gives to the statistics of its group; `band`: which it is of."""
        return MeasuredBand(whole(self.first_bin, self.counts), self.enl, band.quantity == "display")


@dataclass(frozen=True)
class Measurement:
    """A scene as measured."""

    content_hash: str
    """SHA-256 over the stored values of its bands: the same for another name, compression or tiling"""
    bands: tuple[BandMeasurement, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measurement:
        bands = (BandMeasurement(**{**band, "counts": tuple(band["counts"])}) for band in value["bands"])
        return cls(value["content_hash"], tuple(bands))


def measure_scene(scene: Scene) -> Measurement:
    """Read a scene once, strip by strip (memory is bounded by a strip, not by the scene).

    Raises SceneError when a block cannot be read, when nothing is valid, or when the mean backscatter is absurd.
    """
    digest = hashlib.sha256(f"{scene.height}x{scene.width}".encode())
    with open_raster(scene.path) as (dataset, _):
        bands = tuple(_measure_band(dataset, scene, band, digest) for band in scene.bands)
    return Measurement(digest.hexdigest(), bands)


def _measure_band(dataset: Any, scene: Scene, band: Band, digest: Any) -> BandMeasurement:
    table = power_table(band, stored_dtype(dataset, band.index))
    logarithms = None if table is None else _logarithm(table)
    log = np.empty((STRIP, scene.width), np.float32)
    levels, blocks = LevelHistogram(STRIP, scene.width), BlockStatistics()
    total, valid = 0.0, 0
    every = min(max(scene.height * scene.width // _ALL_LOOKED_AT, 1), _EVERY_AT_MOST)
    for first, values in bands_of_rows(dataset, band.index, STRIP, _STRIP_PIXELS):
        digest.update(np.ascontiguousarray(values).data)
        masked = masked_rows(dataset, band.index, first, first + len(values))
        for top, bottom in strips(len(values), STRIP):
            # so few rows at once that they stay in the processor's cache from one step to the next
            rows = slice(top, bottom)
            power = levels.room(bottom - top)
            fill_power(values[rows], band, table, first + top, None if masked is None else masked[rows], power)
            here, known = _sum_of_valid(power)
            total, valid = total + here, valid + known
            levels.add(bottom - top, masked=known < power.size)
            if (first + top) // STRIP % every == 0:
                blocks.add(power, _logarithms(values[rows], power, logarithms, log[: bottom - top]))
    if valid == 0:
        raise SceneError("no valid pixel: every value is no data, zero or NaN")
    mean_db = 10.0 * float(np.log10(total / valid))
    if band.quantity in ("sigma0", "beta0", "gamma0", "backscatter") and not (
        _PLAUSIBLE_DB[0] <= mean_db <= _PLAUSIBLE_DB[1]
    ):
        raise SceneError(
            f"mean {band.polarisation} backscatter of {mean_db:+.1f} dB, read as {band.unit} ({band.evidence}): "
            f"not between {_PLAUSIBLE_DB[0]:g} and {_PLAUSIBLE_DB[1]:g} dB; give the right --unit"
        )
    enl = estimate_enl(blocks)
    first_bin, counts = trimmed(levels.counts())
    return BandMeasurement(
        first_bin=first_bin,
        counts=counts,
        enl=None if enl is None else round(enl.looks, 4),
        enl_by_cv=None if enl is None else round(enl.by_cv, 4),
        enl_by_log_variance=None if enl is None else round(enl.by_log_variance, 4),
        enl_confidence=None if enl is None else round(enl.confidence, 4),
        mean_db=round(mean_db, 4),
        valid_fraction=valid / (scene.height * scene.width),
    )


def _logarithm(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(power)


def _logarithms(values: np.ndarray, power: np.ndarray, table: np.ndarray | None, out: np.ndarray) -> np.ndarray:
    """ln of power, float32 (rows, columns): looked up by the stored values where there is a table."""
    if table is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(power, out=out)
    look_up(as_index(values), table, out)
    return out


@njit
def _sum_of_valid(power: np.ndarray) -> tuple[float, int]:
    """Sum, in float64, and number of the pixels that are not NaN."""
    columns, known = np.zeros(power.shape[1]), 0
    for row in range(power.shape[0]):
        line = power[row]
        for x in range(len(columns)):
            value = line[x]
            columns[x] += np.float64(value) if value == value else 0.0
        for x in range(len(columns)):
            known += 1 if line[x] == line[x] else 0
    return columns.sum(), known
