"""What a build would do, without doing it: scenes, tiles, disk, memory, time. Writes nothing into the corpus's folder.

Time is that of the stages' work at the speeds measured (`pipelines.speed`), shared out evenly to the workers that have
a core, and of the disk, as if neither waited for the other's end: an estimate for a quiet machine (docs/faults.md).
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.cluster import default_workers, open_runner
from pipelines.companions import CompanionFiles, read_companions
from pipelines.entries import list_entries
from pipelines.growth import settle
from pipelines.labels import label_all, set_apart
from pipelines.needs import Needs, free_of, needs_of, short_of_room
from pipelines.output import check_output, existing
from pipelines.ranges import ranges_from
from pipelines.speed import Speed, measure_speed
from pipelines.stages import Progress, scan_all
from sarsense.config import BuildConfig
from sarsense.errors import SarsenseError
from sarsense.places import Place

_START_SECONDS = 6.0
"""until the libraries are loaded and the workers are up"""
_CURATE_SECONDS = 0.002
"""a tile, in the main process: duplicates, splits, tables"""
_ASSUMED_RATE = 100e6
"""bytes a second, where the disk has no room to try"""


@dataclass(frozen=True)
class Plan:
    """What `sarsense build --dry-run` says."""

    out: str
    files: int
    known: int
    """files that the corpus has seen already, or that are not rasters"""
    needs: Needs
    free: str
    """on the file system of `out`"""
    workers: int
    at_once: int
    """workers that have a core"""
    speed: Speed
    scan_seconds: float
    seconds: float
    """of the whole build"""
    warning: str | None
    refusal: str | None
    """why a build would not start"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    sources: list[str],
    out: Place,
    config: BuildConfig,
    workers: int,
    progress: Progress,
    stats_from: Place | None,
    companions: CompanionFiles,
    anew: bool,
) -> Plan:
    """The plan of `pipelines.build.build` with the same arguments. SarsenseError where that would end so at once."""
    check_output(out)
    known = None if stats_from is None else ranges_from(stats_from, config)
    recorded = None if known is None else known.to_json()
    beside = read_companions(companions, config)
    base = None if anew else existing(out, config, beside, recorded)
    entries = list_entries(sources, out)
    if beside.labels is not None:
        set_apart(entries, beside.labels)
    if base is not None:
        settle(base, entries, beside.labels)
    fresh = [entry for entry in entries if not entry.settled]
    with (
        tempfile.TemporaryDirectory(prefix="sarsense-scan-") as scratch,
        open_runner(workers, None) as runner,
    ):
        started = time.monotonic()
        scan_all(fresh, config, Path(scratch), runner, progress)
        if beside.labels is not None:
            label_all(fresh, beside.labels, base, Path(scratch), runner, progress)
        scanned = time.monotonic() - started
    needs = needs_of(fresh, config, beside.labels is not None)
    speed = measure_speed(config, out)
    at_once = max(min(workers, default_workers()), 1)
    warning = refusal = None
    try:
        warning = short_of_room(needs, out, base)
    except SarsenseError as error:
        refusal = str(error)
    return Plan(
        out=str(out),
        files=len(entries),
        known=len(entries) - needs.files,
        needs=needs,
        free=free_of(out),
        workers=workers,
        at_once=at_once,
        speed=speed,
        scan_seconds=round(scanned, 1),
        seconds=round(_seconds(needs, speed, at_once, scanned, config), 1),
        warning=warning,
        refusal=refusal,
    )


def _seconds(needs: Needs, speed: Speed, at_once: int, scanned: float, config: BuildConfig) -> float:
    """Sources are read twice, codes written and read; preparing is taken to cost what measuring and cutting do."""
    if not needs.usable:
        return scanned
    each = speed.measure_ns + speed.cut_ns
    work = 1e-9 * (needs.pixels * each + needs.prepared_pixels * each)
    # of overlapping tiles a pixel is in several
    work += 1e-9 * needs.tiles * math.prod(config.tile_shape) * speed.shard_ns
    moved = needs.disk_bytes / (speed.write or _ASSUMED_RATE)
    moved += (2 * needs.source_bytes + needs.temporary_bytes) / (speed.read or _ASSUMED_RATE)
    return _START_SECONDS + scanned + work / at_once + moved + needs.tiles * _CURATE_SECONDS
