"""What becomes of each file of a build: its way through the stages, its row in scenes.parquet, the summary."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import sarsense
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus
from sarsense.cut import scene_digest
from sarsense.errors import CHANGED, NOT_FETCHED
from sarsense.labels import LabelRaster
from sarsense.measure import BandMeasurement, Measurement
from sarsense.places import Place, work_folder
from sarsense.remote import Stamp
from sarsense.scene import Band, Scene
from sarsense.sidecars import Consulted
from sarsense.sources import SourceFile, list_sources, stamps

_VAL_FILES = {"val_region", "val_scenes"}
EXCLUDED = "excluded"
"""status of a scene, and why a tile is left out, that a list of `--exclude` names"""
CURATED = ("guard", "near_evaluation", "duplicate", EXCLUDED)
"""why a tile that was cut is not in the corpus"""


@dataclass
class Entry:
    """A file on its way through the stages. `scene` is None once it is refused, `reason` says why."""

    file: SourceFile
    stamp: Stamp = field(default_factory=list)
    """size and time of the file when the build began, or what a store has in their place"""
    status: str = "refused"
    reason: str = ""
    scene: Scene | None = None
    consulted: Consulted = field(default_factory=list)
    """what was looked at beside it"""
    labels: LabelRaster | None = None
    """its labels, where all are to have some"""
    label_seen: list[Any] = field(default_factory=list)
    """path and stamp of the label raster that was looked at for it; empty: none was"""
    measurement: Measurement | None = None
    identity: str | None = None
    bounds: list[tuple[float, float]] = field(default_factory=list)
    """dB range of each of its bands"""
    tiles: pa.Table | None = field(default=None, repr=False)
    """those cut of it, of `sarsense.corpus.CUT_SCHEMA`"""
    cut: dict[str, int] | None = None
    """windows that were refused, by reason"""
    stack: list[Entry] = field(default_factory=list, repr=False, compare=False)
    """whose bands are the channels of its tiles, in order, where it leads a stack"""
    settled: bool = False
    """whether the corpus that grows knows it already: nothing is done with it"""
    claimed: bool = False
    """whether the corpus knows a file of its name, and only content can tell if it is this one"""
    follows: bool = False
    """whether its bands are channels of another's tiles"""
    left_out: Counter[str] = field(default_factory=Counter)
    """its tiles that are not in the corpus for what else is there: guard, near_evaluation, duplicate; or excluded"""
    excluded: list[str] = field(default_factory=list, repr=False)
    """keys of its tiles that a list excludes"""

    def measured_bands(self) -> list[tuple[Band, BandMeasurement]]:
        """Its bands with what was measured of each; none before it was measured, or where it could not be."""
        if self.scene is None or self.measurement is None:
            return []
        return list(zip(self.scene.bands, self.measurement.bands, strict=True))

    def stamps(self) -> list[tuple[str, Stamp]]:
        """Its file as it was first looked at: stays the same during a build."""
        return [(self.file.path, self.stamp)]

    def refuse(self, reason: str) -> None:
        self.status, self.reason = "refused", reason


def list_entries(sources: list[str], out: Place | None) -> list[Entry]:
    ours = None if out is None else out if isinstance(out, Path) else work_folder(out)
    files = list_sources(sources, exclude=ours)
    if out is not None and not isinstance(out, Path):
        files = [file for file in files if not file.path.startswith(f"{out.path.rstrip('/')}/")]
    entries = [Entry(file, stamp) for file, stamp in zip(files, stamps(files), strict=True)]
    for entry in entries:
        if not entry.file.is_raster:
            entry.status, entry.reason = "sidecar", "not a raster"
    return entries


def scene_row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": entry.file.relative,
        "bytes": entry.stamp[0] if entry.stamp else None,
        "status": entry.status,
        "reason": entry.reason or None,
        "scene": entry.identity,
    }
    scene, measured = entry.scene, entry.measurement
    if scene is not None:
        row |= {
            name: getattr(scene, name)
            for name in ["product", "sensor", "mode", "datetime", "orbit_direction", "width", "height", "dtype", "crs"]
        }
        row |= {
            "geometry": "affine" if scene.transform else "gcps" if scene.gcps else "unplaced",
            "polarisations": [band.polarisation for band in scene.bands],
            "units": [band.unit for band in scene.bands],
            "quantities": [band.quantity for band in scene.bands],
            "evidence": [band.evidence for band in scene.bands],
            "confidence": [band.confidence for band in scene.bands],
            "notes": list(scene.notes),
        }
    if measured is not None:
        row |= {
            "enl": [band.enl for band in measured.bands],
            "enl_by_cv": [band.enl_by_cv for band in measured.bands],
            "enl_by_log_variance": [band.enl_by_log_variance for band in measured.bands],
            "enl_confidence": [band.enl_confidence for band in measured.bands],
            "mean_db": [band.mean_db for band in measured.bands],
            "valid_fraction": float(np.mean([band.valid_fraction for band in measured.bands])),
            "content_hash": measured.content_hash,
        }
    if entry.labels is not None:
        row |= {"labels": entry.labels.file.relative, "labels_hash": entry.labels.hash}
    if scene is not None and measured is not None:
        row["digest"] = scene_digest(scene, measured)
    if entry.cut is not None:
        row |= {f"tiles_{name}": entry.cut[name] for name in ("no_data", "flat")}
        row |= {f"tiles_{name}": entry.left_out[name] for name in CURATED}
        row["tiles"] = (0 if entry.tiles is None else len(entry.tiles)) - entry.left_out.total()
    return row


def inputs_as_read(entries: list[Entry]) -> list[list[Any]]:
    """Stamps of the files and of what was looked at beside them: tells, on the machine of the build, that a source was
    changed since. Not part of the corpus: times differ from copy to copy."""
    return [
        [e.file.path, e.stamp, e.consulted, e.file.relative, *([e.label_seen] if e.label_seen else [])]
        for e in entries
        if e.status != "sidecar"
    ]


def left_out(entries: list[Entry]) -> dict[str, int]:
    total: Counter[str] = Counter(dict.fromkeys(("no_data", "flat", *CURATED), 0))
    for entry in entries:
        total.update(entry.cut or {})
        total.update(entry.left_out)
    return dict(total)


def why_no_tile(cut: dict[str, int], config: BuildConfig) -> str:
    parts = []
    if cut["no_data"]:
        parts.append(f"{cut['no_data']} with less than {config.min_valid:.0%} valid pixels (--min-valid)")
    if cut["flat"]:
        parts.append(f"{cut['flat']} with one value only")
    return f"no window makes a tile: {', '.join(parts)}"


@dataclass(frozen=True)
class BuildSummary:
    """What a build did, for a person or for a machine."""

    out: str
    name: str
    digest: str
    files: int
    sidecars: int
    scenes_used: int
    scenes_duplicate: int
    scenes_refused: int
    scenes_for_later: int
    """of those refused: could not be fetched, or changed while they were read"""
    scenes_excluded: int
    """listed in --exclude"""
    reasons: dict[str, int]
    """a reason without its particulars -> scenes refused for it"""
    tiles: dict[str, int]
    """split -> tiles"""
    tiles_before: int
    """in the corpus before it grew; 0: it is new"""
    duplicates: dict[str, int]
    """kind, as in duplicates.parquet -> tiles (of `exact scene`: scenes)"""
    tiles_left_out: dict[str, int]
    """no_data, flat, guard, near_evaluation, duplicate, excluded -> windows that are not in the corpus"""
    shards: int
    bytes: int
    seconds: float
    val_share: float | None
    """asked for; None where sensors, scenes or a region are val"""
    already_built: bool
    """the corpus was there and whole; nothing was done"""
    unmatched: list[str]
    """what a list of --exclude names that is no tile and no scene; not looked for where nothing was done"""


def summarise(
    corpus: Corpus, entries: list[Entry], seconds: float, already_built: bool, unmatched: Sequence[str] = ()
) -> BuildSummary:
    status = Counter(entry.status for entry in entries)
    reasons = Counter(reason_kind(e.reason) for e in entries if e.status == "refused")
    return BuildSummary(
        out=str(corpus.root),
        name=corpus.name,
        digest=corpus.digest,
        files=len(entries),
        sidecars=status["sidecar"],
        scenes_used=status["used"],
        scenes_duplicate=status["duplicate"],
        scenes_refused=status["refused"],
        scenes_excluded=status[EXCLUDED],
        scenes_for_later=reasons[NOT_FETCHED] + reasons[CHANGED],
        reasons=dict(reasons.most_common()),
        tiles=corpus.manifest["splits"],
        tiles_before=corpus.manifest["growth"][-1]["tiles"] if corpus.manifest["growth"] else 0,
        duplicates=dict(Counter(sorted(corpus.duplicates["kind"].to_pylist()))),
        tiles_left_out=corpus.manifest["tiles_left_out"],
        shards=len(corpus.shards),
        bytes=sum(shard.bytes for shard in corpus.shards),
        seconds=round(seconds, 1),
        val_share=_asked_share(corpus),
        already_built=already_built,
        unmatched=list(unmatched),
    )


def _asked_share(corpus: Corpus) -> float | None:
    otherwise = corpus.manifest["config"]["val_sensors"] or corpus.manifest["companions"].keys() & _VAL_FILES
    return None if otherwise else corpus.manifest["config"]["val_share"]


def reason_kind(reason: str) -> str:
    """A reason without its particulars."""
    return reason.split(":")[0].split(";")[0].split("(")[0].strip()


def nothing_usable(sources: list[str], entries: list[Entry]) -> str:
    refused = [entry for entry in entries if entry.status == "refused"]
    if not refused:
        told = ", ".join(f"{count} {why}" for why, count in left_out(entries).items() if count)
        if scenes := sum(entry.status == EXCLUDED for entry in entries):
            told = ", ".join(filter(None, [told, f"{scenes} scenes excluded"]))
        return (
            f"{', '.join(sources)}: no tile left ({told}); --cell-km, --guard-km, --val-share 0 or --dedup change that"
        )
    first = refused[0]
    more = (
        f" (and {len(refused) - 1} more; `sarsense scan` lists those that it would refuse)" if len(refused) > 1 else ""
    )
    return f"no usable scene in {', '.join(sources)}: {first.file.relative}: {first.reason}{more}"


def identity_hash(value: Any) -> str:
    text = json.dumps([sarsense.__version__, value], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
