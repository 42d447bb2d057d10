"""The graph of a corpus build: scan -> (labels) -> (prepare) -> measure -> cut -> curate -> shard -> seal.

Each stage is a set of independent tasks, one a scene or one a shard, whose results are files under `.build/`, named
by what decides them: a build that was killed goes on where it stopped. Only the order of stages lives here;
what a stage does to one scene is in `sarsense`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from pipelines.cluster import open_runner
from pipelines.companions import CompanionFiles, read_companions
from pipelines.curate import curate
from pipelines.entries import BuildSummary, Entry, list_entries, nothing_usable, scene_row, summarise
from pipelines.exclusion import exclude_scenes, unmatched
from pipelines.growth import confirm, refuse_missing, remember_inputs, settle, settled_digests
from pipelines.labels import label_all, refuse_contradictions, set_apart
from pipelines.lock import locked
from pipelines.needs import refuse_without_room
from pipelines.output import check_output, clean, end_move, existing, litter_removed, next_folder, seal, shard_folder
from pipelines.progress import Silent
from pipelines.ranges import KnownRanges, known_ranges, ranges_from, set_ranges
from pipelines.stages import (
    Progress,
    cut_all,
    drop_duplicate_scenes,
    measure_all,
    note_unfiltered,
    prepare_all,
    scan_all,
    shard_all,
)
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import SarsenseError, SettingError
from sarsense.places import Place, work_folder
from sarsense.stores import CREDENTIALS

STAGES = ("scan", "labels", "prepare", "measure", "cut", "compare", "shard", "seal")
Anew = Literal["shards", "stats"]
"""what is made anew of a finished corpus: its tiles and shards with the dB ranges that it has, or these too"""


def scan(sources: list[str], config: BuildConfig, workers: int = 0) -> list[dict[str, Any]]:
    """What each file of the sources is, as rows of scenes.parquet (nothing is written)."""
    entries = list_entries(sources, None)
    with (
        tempfile.TemporaryDirectory(prefix="sarsense-scan-") as scratch,
        open_runner(workers, None) as runner,
    ):
        scan_all(entries, config, Path(scratch), runner, Silent())
    for entry in entries:
        if entry.scene is not None:
            entry.status = "usable"
    return [scene_row(entry) for entry in entries]


def build(
    sources: list[str],
    out: Place,
    config: BuildConfig,
    workers: int,
    scheduler: str | None = None,
    progress: Progress | None = None,
    stats_from: Place | None = None,
    companions: CompanionFiles | None = None,
    anew: Anew | None = None,
) -> BuildSummary:
    """Build a corpus in `out`, or let the one that is there grow. Bad scenes are recorded and left out; SarsenseError
    where nothing can be built.

    `out`: a folder, or `places.place` of an address in a bucket; `stats_from`: a corpus whose dB ranges are taken;
    `companions`: files that decide about splits, evaluation sets, what is left out; `anew`: make all of a finished
    corpus anew. The bytes depend on the sources' content, `config`, those files, and what the corpus that grows holds,
    not on `workers`, on the order of arrival, on the place, or on how often the build was killed.
    """
    progress = progress or Silent()
    if isinstance(out, Path):
        out = out.absolute()  # workers of a cluster, and who goes on with it, may be in another folder
    if anew is not None and not isinstance(out, Path):
        option = "--reshard" if anew == "shards" else "--refresh-stats"
        raise SettingError(f"{option}: of a corpus in a folder; choose another --out for the one made anew")
    check_output(out)
    with locked(out, progress.say), litter_removed(out):
        return _build(
            sources,
            out,
            config,
            workers,
            scheduler,
            progress,
            stats_from,
            companions or CompanionFiles(),
            anew,
        )


def _build(
    sources: list[str],
    out: Place,
    config: BuildConfig,
    workers: int,
    scheduler: str | None,
    progress: Progress,
    stats_from: Place | None,
    companions: CompanionFiles,
    anew: Anew | None,
) -> BuildSummary:
    started = time.monotonic()
    end_move(out)
    if anew is None:
        shutil.rmtree(next_folder(out), ignore_errors=True)  # of a build that was killed, and was another one
    known = None if stats_from is None else ranges_from(stats_from, config)
    recorded = None if known is None else known.to_json()
    beside = read_companions(companions, config)
    base = existing(out, config, beside, recorded) if anew is None else None
    if anew == "shards":
        known, recorded = _own_ranges(out, known)
    entries = list_entries(sources, out)
    if beside.labels is not None:
        set_apart(entries, beside.labels)
    work = work_folder(out)
    if base is not None:
        settle(base, entries, beside.labels)
        if all(entry.settled for entry in entries):
            clean(work)  # a build killed in its last moment leaves it
            return summarise(base, entries, time.monotonic() - started, already_built=True)
        if config.normalization == "group" and known is None:
            known = known_ranges(base, closed=False)
    try:
        work.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=work).close()  # the folder may be there, and read-only
    except OSError as error:
        where, option = (out, "--out") if isinstance(out, Path) else (work, "--work")
        raise SarsenseError(f"{where}: cannot be written ({error.strerror}); choose another {option}") from error
    fresh = [entry for entry in entries if not entry.settled]
    with open_runner(workers, scheduler, work, progress.say) as runner:
        scan_all(fresh, config, work, runner, progress)
        _end_where_expired(fresh)
        if beside.labels is not None:
            label_all(fresh, beside.labels, base, work, runner, progress)
        refuse_without_room(fresh, config, out, base, progress.say, beside.labels is not None)
        prepare_all(fresh, work, runner, progress)
        measure_all(fresh, work, runner, progress)
        _end_where_expired(fresh)
        if base is not None:
            confirm(base, fresh)
            fresh = [entry for entry in fresh if not entry.settled]
            if not fresh:
                remember_inputs(work, entries)
                clean(work)
                return summarise(base, entries, time.monotonic() - started, already_built=True)
        if anew is not None:
            refuse_missing(out, fresh, anew)
        if beside.labels is not None:
            refuse_contradictions(fresh, base)
        if beside.exclusion is not None:
            exclude_scenes(fresh, beside.exclusion)
        scene_duplicates = drop_duplicate_scenes(fresh, settled_digests(base))
        ranges = set_ranges(fresh, config, known)
        note_unfiltered(fresh, config)
        cut_all(fresh, config, work, runner, progress)
        _end_where_expired(fresh)
        tiles, tile_duplicates = curate(fresh, config, beside, base, work, runner, progress)
        if not len(tiles) and base is None:
            raise SarsenseError(nothing_usable(sources, fresh))
        tiles, shards = shard_all(tiles, shard_folder(out), config, work, runner, progress, base)
    progress.stage("seal", 1)
    remember_inputs(work, entries)
    duplicates = scene_duplicates + tile_duplicates
    corpus = seal(out, fresh, tiles, duplicates, shards, ranges, config, recorded, beside, base)
    clean(work)
    progress.advance()
    nowhere = [] if beside.exclusion is None else unmatched(fresh, beside.exclusion, base)
    return summarise(corpus, entries, time.monotonic() - started, False, nowhere)


def _end_where_expired(entries: list[Entry]) -> None:
    """SarsenseError where a store says that credentials have expired: a corpus of what was read until then would be
    another one than that of all, and nothing is wrong with the scenes."""
    for entry in entries:
        said = entry.reason.partition(CREDENTIALS)[2]
        if entry.status == "refused" and "expired" in said.lower():
            raise SarsenseError(f"{entry.file.relative}: {entry.reason}; what was done until now is kept")


def _own_ranges(out: Place, asked: KnownRanges | None) -> tuple[KnownRanges | None, dict[str, str] | None]:
    """The dB ranges of the corpus in `out`, and whose they were; those asked for, where it is normalised otherwise."""
    corpus: Corpus = open_corpus(out)
    if asked is not None or corpus.manifest["config"]["normalization"] != "group":
        return asked, None if asked is None else asked.to_json()
    return known_ranges(corpus, closed=False), corpus.manifest["stats_from"]
