"""Measure a scene in one read: despeckled histograms, looks, valid share, and the hash of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sarsense.compiled import njit
from sarsense.errors import SceneError
from sarsense.histogram import trimmed, whole
from sarsense.normalize import MeasuredBand
from sarsense.power import as_index, fill_power, look_up, power_table
from sarsense.raster import bands_of_rows, masked_rows, open_raster, read_rows, stored_dtype, strips
from sarsense.scene import Band, Scene
from sarsense.speckle import BLOCK_BINS, HALO, STRIP, BlockStatistics, LevelHistogram, estimate_enl

PART_PIXELS = 64 * 2**20
"""of a scene, that are measured, or cut, by one task"""
STRIP_PIXELS = 4 * 2**20
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


@dataclass(frozen=True)
class BandPart:
    """What rows of a band give to its measurement. Parts add up, exactly but for the last digits of the sum."""

    levels: np.ndarray
    """int64 (`BINS`,): histogram of despeckled dB"""
    blocks: tuple[np.ndarray, ...]
    """int64: of `BlockStatistics.counts`"""
    total: float
    """sum of the power of valid pixels"""
    valid: int

    def to_json(self) -> dict[str, Any]:
        first, counts = trimmed(self.levels)
        return {
            "levels": [first, counts],
            "blocks": [trimmed(histogram) for histogram in self.blocks],
            "total": self.total,
            "valid": self.valid,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BandPart:
        blocks = (whole(first, counts, BLOCK_BINS) for first, counts in value["blocks"])
        return cls(whole(*value["levels"]), tuple(blocks), value["total"], value["valid"])


def parts_of(scene: Scene) -> list[tuple[int, int]]:
    """The rows in which a scene is measured: of a large one several ranges, so that workers can share it."""
    rows = max(PART_PIXELS // scene.width // STRIP, 1) * STRIP
    *firsts, last = range(0, scene.height, rows)
    starts = [*firsts, last] if scene.height - last >= STRIP or not firsts else firsts  # no part of a few rows
    return list(pairwise([*starts, scene.height]))


def measure_scene(scene: Scene) -> Measurement:
    """Read a scene once, strip by strip (memory is bounded by a strip, not by the scene).

    Raises SceneError when a block cannot be read, when nothing is valid, or when the mean backscatter is absurd.
    """
    digest = _new_digest(scene)
    parts: list[list[BandPart]] = []
    with open_raster(scene.path) as (dataset, _):
        for band in scene.bands:
            parts.append([_measure_rows(dataset, scene, band, first, last, digest) for first, last in parts_of(scene)])
    return joined(scene, digest.hexdigest(), list(zip(*parts, strict=True)))


def measure_part(scene: Scene, first: int, last: int) -> list[BandPart]:
    """Of each band, rows first..last (exclusive), of `parts_of`. Raises SceneError."""
    with open_raster(scene.path) as (dataset, _):
        return [_measure_rows(dataset, scene, band, first, last, None) for band in scene.bands]


def content_hash(scene: Scene) -> str:
    """`Measurement.content_hash`, of a scene that is measured in parts. Raises SceneError."""
    digest = _new_digest(scene)
    with open_raster(scene.path) as (dataset, _):
        for band in scene.bands:
            for _, values in bands_of_rows(dataset, band.index, 1, STRIP_PIXELS, 0, scene.height):
                digest.update(values.data)
    return digest.hexdigest()


def joined(scene: Scene, content: str, parts: Sequence[Sequence[BandPart]]) -> Measurement:
    """The measurement of a scene from that of its parts, in order, each with its bands. content: the hash."""
    bands = zip(scene.bands, zip(*parts, strict=True), strict=True)
    return Measurement(content, tuple(_joined(scene, band, found) for band, found in bands))


def _new_digest(scene: Scene) -> Any:
    return hashlib.sha256(f"{scene.height}x{scene.width}".encode())


def _measure_rows(dataset: Any, scene: Scene, band: Band, start: int, stop: int, digest: Any) -> BandPart:
    table = power_table(band, stored_dtype(dataset, band.index))
    logarithms = None if table is None else _logarithm(table)

    def power_of(first: int, last: int) -> np.ndarray:
        power = np.empty((last - first, scene.width), np.float32)
        masked = masked_rows(dataset, band.index, first, last)
        fill_power(read_rows(dataset, band.index, first, last), band, table, first, masked, power)
        return power

    log = np.empty((STRIP, scene.width), np.float32)
    levels = LevelHistogram(STRIP, scene.width, power_of(start - HALO, start) if start else None)
    blocks, total, valid = BlockStatistics(), 0.0, 0
    every = min(max(scene.height * scene.width // _ALL_LOOKED_AT, 1), _EVERY_AT_MOST)
    for first, values in bands_of_rows(dataset, band.index, STRIP, STRIP_PIXELS, start, stop):
        if digest is not None:
            digest.update(values.data)
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
    below = power_of(stop, stop + HALO) if stop < scene.height else None
    return BandPart(levels.counts(below), tuple(blocks.counts()), total, valid)


def _joined(scene: Scene, band: Band, parts: Sequence[BandPart]) -> BandMeasurement:
    valid = sum(part.valid for part in parts)
    if valid == 0:
        raise SceneError("no valid pixel: every value is no data, zero or NaN")
    mean_db = 10.0 * float(np.log10(sum(part.total for part in parts) / valid))
    if band.quantity in ("sigma0", "beta0", "gamma0", "backscatter") and not (
        _PLAUSIBLE_DB[0] <= mean_db <= _PLAUSIBLE_DB[1]
    ):
        raise SceneError(
            f"mean {band.polarisation} backscatter of {mean_db:+.1f} dB, read as {band.unit} ({band.evidence}): "
            f"not between {_PLAUSIBLE_DB[0]:g} and {_PLAUSIBLE_DB[1]:g} dB; give the right --unit"
        )
    blocks = [np.sum(counts, axis=0) for counts in zip(*(part.blocks for part in parts), strict=True)]
    enl = estimate_enl(BlockStatistics.of(blocks))
    first_bin, counts = trimmed(np.sum([part.levels for part in parts], axis=0))
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


def _sum_of_valid(power: np.ndarray) -> tuple[float, int]:
    """Sum, in float64, and number of the pixels that are not NaN."""
    total = _sum(power)
    return (total, power.size) if total == total else _sum_of_known(power)


@njit
def _sum(power: np.ndarray) -> float:
    """Column by column; NaN where one pixel is."""
    columns = np.zeros(power.shape[1])
    for row in range(0, power.shape[0] - 1, 2):
        a, b = power[row], power[row + 1]
        for x in range(len(columns)):
            columns[x] += np.float64(a[x]) + np.float64(b[x])
    if power.shape[0] % 2:
        line = power[power.shape[0] - 1]
        for x in range(len(columns)):
            columns[x] += np.float64(line[x])
    return columns.sum()


@njit
def _sum_of_known(power: np.ndarray) -> tuple[float, int]:
    columns, known = np.zeros(power.shape[1]), 0
    for row in range(power.shape[0]):
        line = power[row]
        for x in range(len(columns)):
            value = line[x]
            columns[x] += np.float64(value) if value == value else 0.0
        for x in range(len(columns)):
            known += 1 if line[x] == line[x] else 0
    return columns.sum(), known
