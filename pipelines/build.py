"""The graph of a corpus build: scan -> (prepare) -> measure -> cut -> dedup -> shard -> seal.

Each stage is a set of independent tasks, one a scene or one a shard, whose results are files under `.build/`, named
by what decides them: a build that was killed goes on where it stopped. Only the order of stages lives here;
what a stage does to one scene is in `sarsense`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.cluster import open_runner
from pipelines.entries import BuildSummary, inputs_as_read, list_entries, nothing_usable, scene_row, summarise
from pipelines.output import INPUTS, check_output, clean, finished, seal
from pipelines.ranges import ranges_from, set_ranges
from pipelines.stages import (
    Progress,
    cut_all,
    drop_duplicate_scenes,
    drop_duplicate_tiles,
    measure_all,
    note_unfiltered,
    prepare_all,
    scan_all,
    shard_all,
)
from sarsense.config import BuildConfig
from sarsense.errors import SarsenseError
from sarsense.files import write_json

STAGES = ("scan", "prepare", "measure", "cut", "shard", "seal")


def scan(sources: list[str], config: BuildConfig, workers: int = 0) -> list[dict[str, Any]]:
    """What each file of the sources is, as rows of scenes.parquet (nothing is written)."""
    entries = list_entries(sources, None)
    with (
        tempfile.TemporaryDirectory(prefix="sarsense-scan-") as scratch,
        open_runner(workers, None) as runner,
    ):
        scan_all(entries, config, Path(scratch), runner, _Silent())
    for entry in entries:
        if entry.scene is not None:
            entry.status = "usable"
    return [scene_row(entry) for entry in entries]


def build(
    sources: list[str],
    out: Path,
    config: BuildConfig,
    workers: int,
    scheduler: str | None = None,
    progress: Progress | None = None,
    stats_from: Path | None = None,
) -> BuildSummary:
    """Build a corpus in `out`. Bad scenes are recorded and left out; SarsenseError where nothing can be built.

    `stats_from`: a corpus whose dB ranges are taken. The bytes depend on the sources' content, `config` and those
    ranges alone, not on `workers`, on the order of arrival, or on how often the build was killed and run again.
    """
    started = time.monotonic()
    progress = progress or _Silent()
    check_output(out)
    known = None if stats_from is None else ranges_from(stats_from, config)
    entries = list_entries(sources, out)
    work = out / ".build"
    if (done := finished(out, entries, config, known)) is not None:
        clean(work)  # a build killed in its last moment leaves it
        return summarise(done, entries, time.monotonic() - started, already_built=True)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SarsenseError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    with open_runner(workers, scheduler) as runner:
        scan_all(entries, config, work, runner, progress)
        prepare_all(entries, work, runner, progress)
        measure_all(entries, work, runner, progress)
        scene_duplicates = drop_duplicate_scenes(entries)
        ranges = set_ranges(entries, config, known)
        note_unfiltered(entries, config)
        cut_all(entries, config, work, runner, progress)
        tiles, tile_duplicates = drop_duplicate_tiles(entries)
        if not tiles:
            raise SarsenseError(nothing_usable(sources, entries))
        shards = shard_all(tiles, out, config, work, runner, progress)
    progress.stage("seal", 1)
    write_json(work / INPUTS, inputs_as_read(entries))
    corpus = seal(out, entries, tiles, scene_duplicates + tile_duplicates, shards, ranges, config, known)
    clean(work)
    progress.advance()
    return summarise(corpus, entries, time.monotonic() - started, already_built=False)


class _Silent:
    def stage(self, name: str, total: int) -> None: ...
    def advance(self) -> None: ...
