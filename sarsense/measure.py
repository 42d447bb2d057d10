"""Measure a scene in one read: despeckled histograms, looks, valid share, and the hash of its content."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sarsense.errors import SceneError
from sarsense.histogram import BINS, histogram_db, trimmed, whole
from sarsense.normalize import MeasuredBand
from sarsense.radiometry import to_db
from sarsense.raster import masked_rows, open_raster, read_rows, strips
from sarsense.scene import Band, Scene, valid_power
from sarsense.speckle import SIZE, STRIP, BlockStatistics, boxcar, estimate_enl

_STRIP_PIXELS = 8 * 2**20
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
    histogram = np.zeros(BINS, np.int64)
    blocks = BlockStatistics()
    total, valid = 0.0, 0
    halo = SIZE // 2
    # strips of whole blocks, so that the block statistics do not depend on the strip
    rows = max(_STRIP_PIXELS // scene.width // STRIP, 2) * STRIP
    for first, last in strips(scene.height, rows):
        top, bottom = max(first - halo, 0), min(last + halo, scene.height)
        inner = slice(first - top, last - top)
        values = read_rows(dataset, band.index, top, bottom)
        digest.update(np.ascontiguousarray(values[inner]).data)
        power = valid_power(values, band, row=top, masked=masked_rows(dataset, band.index, top, bottom))
        despeckled = boxcar(power)[inner]
        power = power[inner]
        histogram += histogram_db(to_db(despeckled))
        blocks.add(power)
        finite = np.isfinite(power)
        total += float(power[finite].sum(dtype=np.float64))
        valid += int(finite.sum())
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
    first_bin, counts = trimmed(histogram)
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
