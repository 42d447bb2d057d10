"""Which dB range becomes the codes of each band: its group's, its own, a fixed one, or that of another corpus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipelines.entries import Entry
from pipelines.stacks import refuse_broken
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.histogram import BIN_DB, LOWEST_DB, share_outside, trimmed
from sarsense.measure import BandMeasurement
from sarsense.normalize import GroupRange, MeasuredBand, fixed_range, group_ranges, scene_range
from sarsense.places import Place
from sarsense.scene import Band, Scene

_MUCH = 0.01
"""of a scene's ground outside of its range is worth a note"""


@dataclass(frozen=True)
class KnownRanges:
    """The dB ranges of the groups of a finished corpus."""

    corpus: str
    version: str
    digest: str
    groups: dict[str, GroupRange]
    closed: bool
    """scenes of other groups are refused (`--stats-from`); else their ranges are measured (a corpus that grows)"""

    def to_json(self) -> dict[str, str]:
        return {"corpus": self.corpus, "version": self.version, "digest": self.digest}


@dataclass(frozen=True)
class Ranges:
    """What corpus.json says of the groups, by name."""

    groups: dict[str, dict[str, Any]]
    """`GroupRange`; `lo_db` and `hi_db` are None where each scene has its own"""
    statistics: dict[str, dict[str, Any]]
    """scenes, pixels, looks, and the histogram of despeckled dB"""


def ranges_from(path: Place, config: BuildConfig) -> KnownRanges:
    """The ranges for `--stats-from`. Raises CorpusError, and SettingError where `config` asks for other ranges."""
    if config.normalization != "group":
        raise SettingError(
            f"--stats-from: the ranges of its groups, --normalization {config.normalization} asks for others; "
            "leave one of the two out"
        )
    return known_ranges(open_corpus(path), closed=True)


def known_ranges(corpus: Corpus, closed: bool) -> KnownRanges:
    """The ranges of the groups of a corpus; CorpusError where they have none."""
    if (kind := corpus.manifest["config"]["normalization"]) != "group":
        raise CorpusError(
            f"{corpus.root}: was built with --normalization {kind}, so it has no ranges of groups to take"
        )
    groups = {name: GroupRange(**bounds) for name, bounds in corpus.manifest["groups"].items()}
    return KnownRanges(corpus.name, corpus.manifest["version"], corpus.digest, groups, closed)


def set_ranges(entries: list[Entry], config: BuildConfig, known: KnownRanges | None) -> Ranges:
    """Give each used scene the ranges of its bands; refuse those that have none."""
    if known is not None and known.closed:
        _refuse(entries, lambda scene, band: _why_not_known(scene.group(band), known))
    if config.normalization == "fixed":
        _refuse(entries, lambda _, band: _why_not_fixed(band))
    refuse_broken(entries)
    used = [(entry, entry.scene) for entry in entries if entry.status == "used" and entry.scene is not None]
    pooled: dict[str, list[MeasuredBand]] = defaultdict(list)
    for entry, scene in used:
        for band, measured in entry.measured_bands():
            pooled[scene.group(band)].append(measured.pooled(band))
    settled = {} if known is None else known.groups
    there = {name: settled[name] for name in pooled if name in settled}
    new = {name: bands for name, bands in pooled.items() if name not in settled}
    measured = [bounds.speckle_std_db for name, bounds in settled.items() if not name.endswith("/display")]
    ranges = {**there, **group_ranges(new, max(measured, default=0.0))}
    groups = {name: asdict(bounds) for name, bounds in ranges.items()}
    if config.normalization != "group":
        for name in groups:
            lo, hi = fixed_range(name.split("/")[2]) if config.normalization == "fixed" else (None, None)
            groups[name] |= {"lo_db": lo, "hi_db": hi}
    for entry, scene in used:
        entry.bounds = [_bounds(scene, band, measured, config, ranges) for band, measured in entry.measured_bands()]
        if known is not None or config.normalization == "fixed":
            entry.scene = replace(scene, notes=(*scene.notes, *_clipped(entry)))
    return Ranges(groups, {name: _statistics(bands) for name, bands in sorted(pooled.items())})


def _bounds(
    scene: Scene, band: Band, measured: BandMeasurement, config: BuildConfig, ranges: dict[str, GroupRange]
) -> tuple[float, float]:
    if config.normalization == "fixed":
        return fixed_range(band.polarisation)
    bounds = scene_range(measured.pooled(band)) if config.normalization == "scene" else ranges[scene.group(band)]
    return bounds.lo_db, bounds.hi_db


def _refuse(entries: list[Entry], why_not: Callable[[Scene, Band], str | None]) -> None:
    for entry in entries:
        if entry.status != "used" or entry.scene is None:
            continue
        reasons = [why_not(entry.scene, band) for band in entry.scene.bands]
        if reason := next(filter(None, reasons), None):
            entry.refuse(reason)


def _why_not_known(group: str, known: KnownRanges) -> str | None:
    if group in known.groups:
        return None
    return (
        f"no dB range for {group}: corpus {known.corpus} has {', '.join(sorted(known.groups))}; "
        "leave that corpus out to measure one"
    )


def _why_not_fixed(band: Band) -> str | None:
    if band.quantity in ("uncalibrated", "display"):
        return (
            f"a fixed dB range needs calibrated values: {band.polarisation} is {band.quantity} ({band.evidence}); "
            "--normalization group or scene measures a range"
        )
    return None


def _clipped(entry: Entry) -> list[str]:
    """Where a range that was not measured on the scene clips much of its ground."""
    told = []
    for (band, measured), (lo, hi) in zip(entry.measured_bands(), entry.bounds, strict=True):
        below, above = share_outside(measured.pooled(band).histogram, lo, hi)
        for share, side in ((below, "below"), (above, "above")):
            if share > _MUCH:
                told.append(
                    f"{share:.1%} of its {band.polarisation} lies {side} the range {lo:g} to {hi:g} dB: clipped"
                )
    return told


def _statistics(bands: list[MeasuredBand]) -> dict[str, Any]:
    histogram = np.sum([band.histogram for band in bands], axis=0)
    first_bin, counts = trimmed(histogram)
    looks = sorted(band.enl for band in bands if band.enl is not None)
    return {
        "scenes": len(bands),
        "pixels": int(histogram.sum()),
        "enl": [looks[0], looks[len(looks) // 2], looks[-1]] if looks else None,
        "first_db": round(LOWEST_DB + first_bin * BIN_DB, 2),
        "bin_db": BIN_DB,
        "counts": list(counts),
    }
