"""The graph of a corpus build: scan -> (prepare) -> measure -> cut -> dedup -> shard -> seal.

Each stage is a set of independent tasks, one a scene or one a shard, whose results are files under `.build/`, named
by what decides them: a build that was killed goes on where it stopped. Only the order of stages lives here;
what a stage does to one scene is in `sarsense`.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import sarsense
from pipelines.cluster import Runner, open_runner
from pipelines.entries import (
    BuildSummary,
    Entry,
    identity_hash,
    inputs_as_read,
    inputs_digest,
    left_out,
    list_entries,
    nothing_usable,
    scene_row,
    summarise,
    why_no_tile,
)
from pipelines.stacks import join_stacks, refuse_broken
from pipelines.tasks import cut_task, measure_task, prepare_task, scan_task, shard_task
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, array_shape, corpus_digest, open_corpus, write_manifest, write_tables
from sarsense.cut import Channel, scene_digest, scene_id, why_not_despeckled
from sarsense.dedup import duplicate_row, exact_duplicates
from sarsense.errors import CorpusError, SarsenseError
from sarsense.files import read_json, write_json
from sarsense.measure import Measurement
from sarsense.normalize import GroupRange, group_ranges
from sarsense.scene import Scene
from sarsense.shards import Shard
from sarsense.sidecars import still_holds
from sarsense.sources import SourceFile

_INPUTS = "inputs.json"
STAGES = ("scan", "prepare", "measure", "cut", "shard", "seal")


class Progress(Protocol):
    """Who wants to know how far the build is."""

    def stage(self, name: str, total: int) -> None: ...
    def advance(self) -> None: ...


def scan(sources: list[str], config: BuildConfig, workers: int = 0) -> list[dict[str, Any]]:
    """What each file of the sources is, as rows of scenes.parquet (nothing is written)."""
    import tempfile

    entries = list_entries(sources, None)
    with (
        tempfile.TemporaryDirectory(prefix="sarsense-scan-") as scratch,
        open_runner(workers, None) as runner,
    ):
        _scan_all(entries, config, Path(scratch), runner, _Silent())
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
) -> BuildSummary:
    """Build a corpus in `out`. Bad scenes are recorded and left out; SarsenseError where nothing can be built.

    The bytes depend on the sources' content and `config` alone, not on `workers`, on the order of arrival, or on how
    often the build was killed and run again.
    """
    started = time.monotonic()
    progress = progress or _Silent()
    _check_output(out)
    entries = list_entries(sources, out)
    work = out / ".build"
    finished = _finished(out, entries, config)
    if finished is not None:
        _clean(work)  # a build killed in its last moment leaves it
        return summarise(finished, entries, time.monotonic() - started, already_built=True)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SarsenseError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    with open_runner(workers, scheduler) as runner:
        _scan_all(entries, config, work, runner, progress)
        _prepare_all(entries, work, runner, progress)
        _measure_all(entries, work, runner, progress)
        scene_duplicates = _drop_duplicate_scenes(entries)
        refuse_broken(entries)
        ranges = _ranges(entries)
        _note_unfiltered(entries, config)
        _cut_all(entries, ranges, config, work, runner, progress)
        tiles, tile_duplicates = _drop_duplicate_tiles(entries)
        if not tiles:
            raise SarsenseError(nothing_usable(sources, entries))
        shards = _shard_all(tiles, ranges, out, config, work, runner, progress)
    progress.stage("seal", 1)
    write_json(work / _INPUTS, inputs_as_read(entries))
    corpus = _seal(out, entries, tiles, scene_duplicates + tile_duplicates, shards, ranges, config)
    _clean(work)
    progress.advance()
    return summarise(corpus, entries, time.monotonic() - started, already_built=False)


# --------------------------------------------------------------------------------------------------- stages


def _run_stage(
    name: str,
    runner: Runner,
    progress: Progress,
    task: Callable[..., None],
    jobs: list[tuple[Entry, Path, tuple[Any, ...]]],
) -> list[tuple[Entry, dict[str, Any]]]:
    """Run `task(*arguments, result)` for the jobs whose result is not there yet; entry and result of those that
    were not refused."""
    progress.stage(name, len(jobs))
    todo = []
    for entry, result, arguments in jobs:
        if result.exists() and not read_json(result).get("again"):
            progress.advance()
        else:
            todo.append((entry, (*arguments, result)))

    def done(index: int, outcome: Any) -> None:
        if isinstance(outcome, OSError):
            raise SarsenseError(f"{name}: {outcome}; free the disk or mend it, then run the same command again")
        if isinstance(outcome, Exception):
            todo[index][0].refuse(f"{name} failed on several workers ({outcome}): file damaged or too large?")
        progress.advance()

    try:
        runner.run(task, [arguments for _, arguments in todo], done)
    except OSError as error:
        raise SarsenseError(f"{name}: {error}; free the disk or mend it, then run the same command again") from error
    results = []
    for entry, result, _ in jobs:
        if not result.exists():
            continue
        value = read_json(result)
        if "refused" in value:
            entry.refuse(value["refused"])
        else:
            results.append((entry, value))
    return results


def _scan_all(entries: list[Entry], config: BuildConfig, work: Path, runner: Runner, progress: Progress) -> None:
    decisive = [
        getattr(config, name)
        for name in ("tile_size", "unit", "calibrate", "multilook", "spacing", "allow_unplaced", "polarisations")
    ]
    jobs = []
    for entry in entries:
        if entry.status != "sidecar":
            file = entry.file
            identity = [file.path, file.relative, entry.stamp, asdict(file.stated), decisive]
            result = work / "scan" / f"{identity_hash(identity)}.json"
            if result.exists() and not still_holds(read_json(result)["consulted"]):
                result.unlink()  # metadata beside it came, went or changed
            jobs.append((entry, result, (file.path, file.relative, file.stated, config)))
    for entry, value in _run_stage("scan", runner, progress, scan_task, jobs):
        entry.scene = Scene.from_json(value["scene"])
    for entry, result, _ in jobs:
        if result.exists():
            entry.consulted = read_json(result)["consulted"]
    if config.bands == "stack":
        join_stacks(entries, config.polarisations)


def _prepare_all(entries: list[Entry], work: Path, runner: Runner, progress: Progress) -> None:
    """Complex and resampled scenes: into files of our own, which are measured and cut in their place."""
    jobs = []
    for entry in entries:
        if entry.scene is not None and entry.scene.preparation is not None:
            stem = identity_hash([entry.scene.to_json(), entry.stamp, entry.consulted])
            file, result = work / "prepare" / f"{stem}.tif", work / "prepare" / f"{stem}.json"
            if not file.exists():
                result.unlink(missing_ok=True)  # of a finished build, which keeps no pixels
            jobs.append((entry, result, (entry.scene, entry.stamps(), file)))
    if not jobs:
        return
    for entry, _, _ in jobs:
        entry.scene = None  # unless it is prepared below
    for entry, value in _run_stage("prepare", runner, progress, prepare_task, jobs):
        entry.scene = Scene.from_json(value["scene"])


def _measure_all(entries: list[Entry], work: Path, runner: Runner, progress: Progress) -> None:
    jobs = []
    for entry in entries:
        if entry.scene is not None:
            identity = [entry.scene.to_json(), entry.stamp, entry.consulted]
            jobs.append((entry, work / "measure" / f"{identity_hash(identity)}.json", (entry.scene, entry.stamps())))
    for entry, value in _run_stage("measure", runner, progress, measure_task, jobs):
        assert entry.scene is not None
        entry.measurement = Measurement.from_json(value["measurement"])
        entry.identity = scene_id(entry.scene, entry.measurement)
        entry.status = "used"


def _drop_duplicate_scenes(entries: list[Entry]) -> list[Any]:
    """Scenes with the same values at the same place: the smallest path is kept."""
    used = sorted((e for e in entries if e.status == "used"), key=lambda e: (e.file.relative, e.file.path))
    ranked = {f"{rank:09d}": entry for rank, entry in enumerate(used)}
    digests = {r: scene_digest(e.scene, e.measurement) for r, e in ranked.items() if e.scene and e.measurement}
    same = exact_duplicates(digests.items())
    rows = []
    for dropped, kept in sorted(same.items()):
        entry, original = ranked[dropped], ranked[kept]
        entry.status, entry.reason = "duplicate", f"the same values as {original.file.relative}"
        rows.append(duplicate_row("exact scene", entry.file.relative, original.file.relative))
    return rows


def _ranges(entries: list[Entry]) -> dict[str, GroupRange]:
    groups = defaultdict(list)
    for entry in entries:
        if entry.status == "used" and entry.scene and entry.measurement:
            for band, measured in zip(entry.scene.bands, entry.measurement.bands, strict=True):
                groups[entry.scene.group(band)].append(measured.pooled())
    return group_ranges(groups)


def _note_unfiltered(entries: list[Entry], config: BuildConfig) -> None:
    """Say of the scenes that --content wants filtered why some are left as they are."""
    for entry in entries:
        if config.content == "speckled" or entry.scene is None or entry.measurement is None:
            continue
        told = []
        for band, measured in zip(entry.scene.bands, entry.measurement.bands, strict=True):
            if reason := why_not_despeckled(entry.scene, band, measured.enl):
                told.append(f"{band.polarisation} is not despeckled: {reason}")
        entry.scene = replace(entry.scene, notes=(*entry.scene.notes, *told))


def _cut_all(
    entries: list[Entry],
    ranges: dict[str, GroupRange],
    config: BuildConfig,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> None:
    # what does not change a tile does not cut it again
    decisive = asdict(replace(config, name="corpus", version="", shard_mib=1))
    jobs = []
    for entry in entries:
        if entry.status == "used" and not entry.follows:
            stacks = _channels(entry, ranges, config)
            contents = [member.measurement.content_hash for member in entry.stack or [entry] if member.measurement]
            stem = identity_hash([[[asdict(channel) for channel in one] for one in stacks], contents, decisive])
            entry.codes = work / "cut" / f"{stem}.codes"
            sources = [stamp for member in entry.stack or [entry] for stamp in member.stamps()]
            arguments = (stacks, entry.identity, config, sources, entry.codes)
            jobs.append((entry, work / "cut" / f"{stem}.json", arguments))
    for entry, value in _run_stage("cut", runner, progress, cut_task, jobs):
        entry.rows = value.pop("rows")
        entry.cut = value
        if not entry.rows:
            entry.refuse(why_no_tile(value, config))
    refuse_broken(entries)


def _channels(entry: Entry, ranges: dict[str, GroupRange], config: BuildConfig) -> list[list[Channel]]:
    """The channels of the tiles of an entry: one stack of all, or one a band."""
    found: list[tuple[str, Channel]] = []
    members = {id(member): member for member in entry.stack or [entry]}  # one file may hold all
    for member in members.values():
        assert member.scene is not None and member.measurement is not None
        for band, measured in zip(member.scene.bands, member.measurement.bands, strict=True):
            bounds = ranges[member.scene.group(band)]
            found.append((band.polarisation, Channel(member.scene, band, measured.enl, bounds)))
    if config.bands == "single":
        return [_contents([channel], config) for _, channel in found]
    by_polarisation = dict(found)
    return [_contents([by_polarisation[polarisation] for polarisation in config.polarisations], config)]


def _contents(channels: list[Channel], config: BuildConfig) -> list[Channel]:
    """The channels as --content wants them: of both, all speckled ones come first."""
    speckled = channels if config.content != "despeckled" else []
    despeckled = [replace(channel, despeckled=True) for channel in channels] if config.content != "speckled" else []
    return [*speckled, *despeckled]


def _drop_duplicate_tiles(entries: list[Entry]) -> tuple[list[dict[str, Any]], list[Any]]:
    """All tiles that stay, and rows for those that repeat another to the bit (the smallest key is kept)."""
    tiles = []
    for entry in entries:
        if entry.status == "used" and entry.rows:
            tiles += [{**row, "codes": entry.codes, "entry": entry} for row in entry.rows]
    same = exact_duplicates((tile["key"], tile["content_hash"]) for tile in tiles)
    rows = [duplicate_row("exact tile", dropped, kept) for dropped, kept in sorted(same.items())]
    kept = []
    for tile in tiles:
        if tile["key"] in same:
            tile["entry"].duplicates += 1
        else:
            kept.append(tile)
    return kept, rows


def _shard_all(
    tiles: list[dict[str, Any]],
    ranges: dict[str, GroupRange],
    out: Path,
    config: BuildConfig,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> list[Shard]:
    """Put the tiles into shards, in a seeded order that mixes scenes.

    Replaces the content of `tiles` by the tiles in the order of the shards, with shard, offset and bytes.
    """
    shape = array_shape(config.tile_shape)
    size = math.prod(shape)
    a_shard = max(1, config.shard_mib * 2**20 // (size + 4096))
    plan: list[tuple[str, str, list[dict[str, Any]]]] = []
    for split in ("train", "val"):
        mine = [tile for tile in tiles if tile["split"] == split]
        mine.sort(key=lambda tile: hashlib.sha256(f"{config.seed}:{tile['key']}".encode()).digest())
        for number, first in enumerate(range(0, len(mine), a_shard)):
            relative = f"{split}/{config.name}-{split}-{number:06d}.tar"
            plan.append((relative, split, mine[first : first + a_shard]))
    jobs = []
    for relative, split, members in plan:
        described = [(str(t["codes"]), t["index"], _description(t, ranges)) for t in members]
        identity = identity_hash([relative, [d for _, _, d in described], [t["content_hash"] for t in members]])
        result = work / "shard" / f"{identity}.json"
        if not (result.exists() and (out / relative).exists()):
            result.unlink(missing_ok=True)
            # by file, not through the scheduler: a plan of small tiles is megabytes long
            write_json(result.with_suffix(".plan"), described)
        arguments = (out, relative, split, result.with_suffix(".plan"), shape)
        jobs.append((Entry(SourceFile("", relative, False)), result, arguments))
    _clear_other_plans(out, work, {relative for relative, _, _ in plan}, {result.stem for _, result, _ in jobs})
    _run_stage("shard", runner, progress, shard_task, jobs)
    shards = []
    tiles.clear()
    for (relative, _, members), (_, result, _) in zip(plan, jobs, strict=True):
        if not result.exists():
            raise SarsenseError(f"{out / relative}: could not be written; run the same command again")
        value = read_json(result)
        shards.append(Shard(**value["shard"]))
        for tile, offset in zip(members, value["offsets"], strict=True):
            tiles.append({**tile, "shard": relative, "offset": offset, "bytes": size})
    return shards


def _clear_other_plans(out: Path, work: Path, shards: set[str], identities: set[str]) -> None:
    """Remove what an earlier, unfinished run with another plan left: its shards, their records, temporary files."""
    for path in [*(out / "train").glob("*"), *(out / "val").glob("*")]:
        if path.relative_to(out).as_posix() not in shards:
            path.unlink()
    for path in (work / "shard").glob("*"):
        if path.stem not in identities:
            path.unlink()


def _clean(work: Path) -> None:
    """Remove what a finished corpus needs no more; what was scanned and measured stays."""
    for name in ("prepare", "cut", "shard"):
        shutil.rmtree(work / name, ignore_errors=True)


def _description(tile: dict[str, Any], ranges: dict[str, GroupRange]) -> dict[str, Any]:
    """The JSON of a sample: enough to place it and to undo its normalisation without any other file.

    Of a stack, `channels` and `normalization` are lists in the order of the channels.
    """
    normalization = [_normalization(channel, ranges[channel["group"]]) for channel in tile["channels"]]
    names = (
        "key scene source band polarisation content group sensor mode datetime row col crs transform lon lat "
        "spacing_x_m spacing_y_m valid_fraction mean_db enl split"
    )
    base = {name: tile[name] for name in names.split()}
    if len(normalization) == 1:
        return {**base, "normalization": normalization[0]}
    return {**base, "channels": tile["channels"], "normalization": normalization}


def _normalization(channel: dict[str, Any], bounds: GroupRange) -> dict[str, Any]:
    return {
        "lo_db": bounds.lo_db,
        "hi_db": bounds.hi_db,
        "enl_bias_db": channel["enl_bias_db"],
        "db": "lo_db + (code - 1) * (hi_db - lo_db) / 254 + enl_bias_db; code 0 is no data",
    }


def _seal(
    out: Path,
    entries: list[Entry],
    tiles: list[dict[str, Any]],
    duplicates: list[Any],
    shards: list[Shard],
    ranges: dict[str, GroupRange],
    config: BuildConfig,
) -> Corpus:
    """Write the tables, then corpus.json: from here on it is a corpus."""
    rows = [{**tile, "footprint": bytes.fromhex(tile["footprint"]) if tile["footprint"] else None} for tile in tiles]
    write_tables(out, rows, [scene_row(entry) for entry in entries], duplicates)
    used = {channel["group"] for tile in tiles for channel in tile["channels"]}
    manifest = {
        "name": config.name,
        "version": config.version,
        "digest": corpus_digest((t["key"], t["split"], t["content_hash"]) for t in tiles),
        "sarsense": sarsense.__version__,
        "config": asdict(config),
        "inputs": inputs_digest(entries),
        "tile_shape": list(config.tile_shape),
        "groups": {name: asdict(bounds) for name, bounds in ranges.items() if name in used},
        "splits": dict(Counter(tile["split"] for tile in tiles)),
        "scenes": dict(Counter(entry.status for entry in entries)),
        "tiles_left_out": left_out(entries),
    }
    write_manifest(out, manifest, shards)
    return open_corpus(out)


# ----------------------------------------------------------------------------------------- output and summary


def _check_output(out: Path) -> None:
    """A build writes into a new or empty folder, or goes on in one of its own."""
    if out.exists() and not out.is_dir():
        raise SarsenseError(f"{out}: is a file; --out names a folder")
    if not out.is_dir() or (out / ".build").is_dir() or (out / "corpus.json").is_file():
        return
    if any(out.iterdir()):
        raise CorpusError(
            f"{out}: not empty and not a corpus (neither corpus.json nor .build); choose a new folder for --out"
        )


def _finished(out: Path, entries: list[Entry], config: BuildConfig) -> Corpus | None:
    """The corpus that is already there, when this very build made it; CorpusError when another one did."""
    if not (out / "corpus.json").is_file():
        return None
    corpus = open_corpus(out)
    same_config = corpus.manifest["config"] == json.loads(json.dumps(asdict(config)))
    if same_config and corpus.manifest["inputs"] == inputs_digest(entries):
        _refuse_changed(out / ".build" / _INPUTS, entries)
        _refuse_damaged(corpus)
        for entry, row in zip(entries, corpus.scenes.to_pylist(), strict=True):
            entry.status, entry.reason = row["status"], row["reason"] or ""
        return corpus
    what = "other sources" if same_config else "other settings"
    raise CorpusError(
        f"{out}: holds the finished corpus '{corpus.name}' made from {what}; "
        "choose another --out, or delete the folder first"
    )


def _refuse_damaged(corpus: Corpus) -> None:
    """CorpusError where a shard is missing or of another size. What it holds is for `sarsense shards verify` to say."""
    for shard in corpus.shards:
        path = corpus.root / shard.path
        found = path.stat().st_size if path.is_file() else None
        if found != shard.bytes:
            what = "missing" if found is None else f"{found} bytes, expected {shard.bytes}"
            raise CorpusError(
                f"{path}: {what}; remove {corpus.root / 'corpus.json'} and run the same command to build it again"
            )


def _refuse_changed(path: Path, entries: list[Entry]) -> None:
    """CorpusError where a source is not what it was when the corpus was made, though its name and size are the same."""
    if not path.is_file():  # removed with .build: names and sizes have to do
        return
    was = {name: (stamp, consulted) for name, stamp, consulted in read_json(path)}
    for entry in entries:
        if entry.file.path not in was:  # not a raster; or a copy of the sources, which has times of its own
            continue
        stamp, consulted = was[entry.file.path]
        if stamp != entry.stamp or not still_holds(consulted):
            raise CorpusError(
                f"{entry.file.path}: it, or the metadata beside it, was changed since {path.parent.parent} was made of "
                "it; choose another --out, or delete the folder first"
            )


class _Silent:
    def stage(self, name: str, total: int) -> None: ...
    def advance(self) -> None: ...
