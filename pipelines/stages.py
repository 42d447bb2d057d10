"""The stages of a build, one function each: what is asked of the workers, and what becomes of their answers.

A stage is a set of independent tasks, one a scene or one a shard, whose results are files under `.build/`, named by
what decides them: what is there already is not done again.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipelines.cluster import Runner
from pipelines.entries import Entry, identity_hash, why_no_tile
from pipelines.stacks import join_stacks, refuse_broken
from pipelines.tasks import MeasuredPart, cut_task, measure_task, prepare_task, scan_task, shard_task
from sarsense.codes import code_dtype
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, array_shape, with_columns
from sarsense.cut import parts_to_cut, scene_digest, scene_id
from sarsense.dedup.exact import duplicate_row, exact_duplicates
from sarsense.errors import SarsenseError, SceneError
from sarsense.files import as_bytes, read_json, read_table, write_table
from sarsense.measure import BandPart, Measurement, joined, parts_of
from sarsense.normalize import enl_bias_db
from sarsense.places import Place, shard_files
from sarsense.scene import Scene
from sarsense.shards import Shard
from sarsense.sidecars import still_holds
from sarsense.sources import SourceFile
from sarsense.strip import Channel, why_not_despeckled


class Progress(Protocol):
    """Who wants to know how far the build is."""

    def say(self, line: str) -> None:
        """Something worth knowing that is no progress."""
        ...

    def stage(self, name: str, total: int, cost: float = 0.0, there: int = 0) -> None:
        """A stage of `total` items begins; `there` of them an earlier run has done, the others cost so many pixels."""
        ...

    def advance(self, cost: float = 0.0) -> None:
        """One more item is done; it cost so many pixels."""
        ...


Job = tuple[Entry, Path, tuple[Any, ...]]
"""whose it is, its result, and its arguments before that"""
_OF_A_HASH = 0.2
"""what it takes to hash a pixel, of what it takes to measure it"""


def run_stage(
    name: str,
    runner: Runner,
    progress: Progress,
    task: Callable[..., None],
    jobs: list[Job],
    costs: list[float] | None = None,
) -> list[tuple[Entry, dict[str, Any]]]:
    """Run `task(*arguments, result)` for the jobs whose result is not there yet; entry and result of those that
    were not refused.

    costs: pixels of each job; None: not known, and all alike.
    """
    open_jobs = [
        number for number, (_, result, _) in enumerate(jobs) if not result.exists() or read_json(result).get("again")
    ]
    todo = [(jobs[number][0], (*jobs[number][2], jobs[number][1])) for number in open_jobs]
    todo_costs = None if costs is None else [costs[number] for number in open_jobs]
    progress.stage(name, len(jobs), sum(todo_costs or []), len(jobs) - len(todo))

    def done(index: int, outcome: Any) -> None:
        if isinstance(outcome, OSError):
            raise SarsenseError(f"{name}: {outcome}; free the disk or mend it, then run the same command again")
        if isinstance(outcome, Exception) and not todo[index][0].file.path:
            raise SarsenseError(f"{name}: {outcome}; the same command goes on from here")  # no scene is to blame
        if isinstance(outcome, Exception):
            todo[index][0].refuse(f"{name} failed ({outcome}): file damaged or too large?")
        progress.advance(todo_costs[index] if todo_costs else 0.0)

    try:
        runner.run(task, [arguments for _, arguments in todo], done, todo_costs)
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


def scan_all(entries: list[Entry], config: BuildConfig, work: Path, runner: Runner, progress: Progress) -> None:
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
            jobs.append((entry, result, (file.path, file.relative, file.stated, config, entry.stamps())))
    for entry, value in run_stage("scan", runner, progress, scan_task, jobs):
        entry.scene = Scene.from_json(value["scene"])
    for entry, result, _ in jobs:
        if result.exists():
            entry.consulted = read_json(result)["consulted"]
    if config.bands == "stack":
        join_stacks(entries, config.polarisations)


def prepare_all(entries: list[Entry], work: Path, runner: Runner, progress: Progress) -> None:
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
    files = {id(entry): arguments[-1] for entry, _, arguments in jobs}
    for entry, value in run_stage("prepare", runner, progress, prepare_task, jobs):
        # also where the work folder was moved since
        entry.scene = replace(Scene.from_json(value["scene"]), path=str(files[id(entry)]))


def measure_all(entries: list[Entry], work: Path, runner: Runner, progress: Progress) -> None:
    """A large scene in parts, which workers share; its hash, which takes all rows in order, is a task of its own."""
    jobs: list[Job] = []
    costs: list[float] = []
    for entry in entries:
        if (scene := entry.scene) is not None:
            ranges = parts_of(scene)
            parts: list[MeasuredPart] = ["hash", *ranges] if len(ranges) > 1 else [None]
            for part in parts:
                identity = [scene.to_json(), entry.stamp, entry.consulted, part]
                result = work / "measure" / f"{identity_hash(identity)}.json"
                jobs.append((entry, result, (scene, part, entry.stamps())))
                share = (part[1] - part[0]) / scene.height if isinstance(part, tuple) else 1.0
                costs.append(_pixels(entry) * (share if part != "hash" else _OF_A_HASH))
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry, value in run_stage("measure", runner, progress, measure_task, jobs, costs):
        found[id(entry)].append(value)
    for entry in entries:
        if (scene := entry.scene) is None or not found[id(entry)] or entry.reason:
            continue
        try:
            entry.measurement = _measurement(scene, found[id(entry)])
        except SceneError as error:
            entry.refuse(str(error))
            continue
        entry.identity = scene_id(scene, entry.measurement)
        entry.status = "used"


def _measurement(scene: Scene, found: list[dict[str, Any]]) -> Measurement:
    """Of what the tasks of a scene say: all at once, or its hash and its parts. SceneError."""
    first, *parts = found
    if "measurement" in first:
        return Measurement.from_json(first["measurement"])
    bands = [[BandPart.from_json(band) for band in part["bands"]] for part in parts]
    return joined(scene, first["content_hash"], bands)


def _pixels(entry: Entry) -> float:
    """Of all bands of its scene, or of all scenes of its stack."""
    scenes = [member.scene for member in entry.stack or [entry] if member.scene is not None]
    return float(sum(scene.width * scene.height * len(scene.bands) for scene in scenes))


def drop_duplicate_scenes(entries: list[Entry], settled: Mapping[str, str]) -> list[Any]:
    """Scenes with the same values at the same place: one that a corpus holds already is kept, else the smallest path.

    settled: digest -> path of the scenes of the corpus that grows.
    """
    rows = []
    for entry in entries:
        if entry.status == "used" and entry.scene and entry.measurement:
            original = settled.get(scene_digest(entry.scene, entry.measurement))
            if original is not None:
                entry.status, entry.reason = "duplicate", f"the same values as {original}"
                rows.append(duplicate_row("exact scene", entry.file.relative, original))
    used = sorted((e for e in entries if e.status == "used"), key=lambda e: (e.file.relative, e.file.path))
    ranked = {f"{rank:09d}": entry for rank, entry in enumerate(used)}
    digests = {r: scene_digest(e.scene, e.measurement) for r, e in ranked.items() if e.scene and e.measurement}
    same = exact_duplicates(digests.items())
    for dropped, kept in sorted(same.items()):
        entry, original = ranked[dropped], ranked[kept]
        entry.status, entry.reason = "duplicate", f"the same values as {original.file.relative}"
        rows.append(duplicate_row("exact scene", entry.file.relative, original.file.relative))
    return rows


def note_unfiltered(entries: list[Entry], config: BuildConfig) -> None:
    """Say of the scenes that --content wants filtered why some are left as they are."""
    for entry in entries:
        if config.content == "speckled" or entry.scene is None:
            continue
        told = []
        for band, measured in entry.measured_bands():
            if reason := why_not_despeckled(entry.scene, band, measured.enl):
                told.append(f"{band.polarisation} is not despeckled: {reason}")
        entry.scene = replace(entry.scene, notes=(*entry.scene.notes, *told))


_CUTS = "tile_size stride content normalization bits multilook spacing min_valid bands polarisations calibrate".split()
"""settings that change tiles"""


def cut_all(
    entries: list[Entry],
    config: BuildConfig,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> None:
    decisive = [getattr(config, name) for name in _CUTS]
    jobs: list[Job] = []
    costs: list[float] = []
    for entry in entries:
        if entry.status == "used" and not entry.follows:
            stacks = channels_of(entry, config)
            contents = [member.measurement.content_hash for member in entry.stack or [entry] if member.measurement]
            channels = [[asdict(channel) for channel in one] for one in stacks]
            sources = [stamp for member in entry.stack or [entry] for stamp in member.stamps()]
            labels = None if entry.labels is None else entry.labels.file
            labelled = [] if entry.labels is None else [entry.labels.file.relative, entry.labels.hash]
            if entry.labels is not None:
                sources = [*sources, tuple(entry.label_seen)]
            parts = parts_to_cut(stacks[0][0].scene, config)
            for part in parts:
                codes = work / "cut" / f"{identity_hash([channels, contents, decisive, part, *labelled])}.codes"
                if not (codes.exists() and codes.with_suffix(".arrow").exists()):
                    codes.with_suffix(".json").unlink(missing_ok=True)  # a kill while a finished build tidied up
                arguments = (stacks, entry.identity, config, part, sources, codes, labels)
                jobs.append((entry, codes.with_suffix(".json"), arguments))
                costs.append(_pixels(entry) * (part[1] - part[0]) / parts[-1][1])
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry, value in run_stage("cut", runner, progress, cut_task, jobs, costs):
        found[id(entry)].append(value)
    for entry in entries:
        if entry.status == "used" and (values := found[id(entry)]):
            entry.cut = {name: sum(value[name] for value in values) for name in ("no_data", "flat")}
            tiles = pa.concat_tables([_cut_table(work / "cut" / f"{value['table']}.arrow") for value in values])
            entry.tiles = tiles
            if not len(tiles):
                entry.refuse(why_no_tile(entry.cut, config))
    refuse_broken(entries)


def _cut_table(path: Path) -> pa.Table:
    """The tiles of a part of a scene; their codes lie beside it, wherever the work folder was when they were cut."""
    table = read_table(path)
    codes = pa.array([str(path.with_suffix(".codes"))] * len(table), pa.string())
    return table.set_column(table.column_names.index("codes"), table.schema.field("codes"), codes)


def channels_of(entry: Entry, config: BuildConfig) -> list[list[Channel]]:
    """The channels of the tiles of an entry: one stack of all, or one a band."""
    found: list[tuple[str, Channel]] = []
    members = {id(member): member for member in entry.stack or [entry]}  # one file may hold all
    for member in members.values():
        assert member.scene is not None
        for (band, measured), (lo, hi) in zip(member.measured_bands(), member.bounds, strict=True):
            bias = 0.0 if config.normalization == "fixed" else enl_bias_db(measured.enl, band.quantity)
            found.append((band.polarisation, Channel(member.scene, band, measured.enl, lo, hi, bias)))
    if config.bands == "single":
        return [_contents([channel], config) for _, channel in found]
    by_polarisation = dict(found)
    return [_contents([by_polarisation[polarisation] for polarisation in config.polarisations], config)]


def _contents(channels: list[Channel], config: BuildConfig) -> list[Channel]:
    """The channels as --content wants them: of both, all speckled ones come first."""
    speckled = channels if config.content != "despeckled" else []
    despeckled = [replace(channel, despeckled=True) for channel in channels] if config.content != "speckled" else []
    return [*speckled, *despeckled]


def shard_all(
    tiles: pa.Table,
    out: Place,
    config: BuildConfig,
    work: Path,
    runner: Runner,
    progress: Progress,
    base: Corpus | None = None,
) -> tuple[pa.Table, list[Shard]]:
    """Put the tiles into shards in `out`, in a seeded order that mixes scenes; behind those of `base`, which stay.

    The tiles in the order of the shards, with shard, offset and bytes, and the shards.
    """
    settled = [] if base is None else base.shards
    shape, labelled = array_shape(config.tile_shape), "label_hash" in tiles.column_names
    size = math.prod(shape) * code_dtype(config.bits).itemsize
    a_tile = size + 4096 + (math.prod(shape[-2:]) if labelled else 0)
    a_shard = max(1, config.shard_mib * 2**20 // a_tile)
    drawn = [hashlib.sha256(f"{config.seed}:{key}".encode()).digest() for key in tiles["key"].to_pylist()]
    splits = np.array(tiles["split"].to_pylist(), object)
    plan: list[tuple[str, str, np.ndarray]] = []
    for split in ("train", "val"):
        mine = np.array(sorted(np.flatnonzero(splits == split).tolist(), key=drawn.__getitem__), np.int64)
        there = sum(shard.split == split for shard in settled)
        for number, first in enumerate(range(0, len(mine), a_shard), there):
            relative = f"{split}/{config.name}-{split}-{number:06d}.tar"
            plan.append((relative, split, mine[first : first + a_shard]))
    jobs = []
    for relative, split, members in plan:
        mine = tiles.take(pa.array(members))
        facts = mine.drop_columns(["codes", "start", *(["label_start"] if labelled else [])]).combine_chunks()
        identity = identity_hash([str(out), relative, hashlib.sha256(as_bytes(facts)).hexdigest()])
        result = work / "shard" / f"{identity}.json"
        if not (result.exists() and (out / relative).exists()):
            result.unlink(missing_ok=True)
            # by file, not through the scheduler: a plan of small tiles is megabytes long
            write_table(result.with_suffix(".plan"), mine)
        arguments = (out, relative, split, result.with_suffix(".plan"), shape, config.bits)
        jobs.append((Entry(SourceFile("", relative, False)), result, arguments))
    named = {relative for relative, _, _ in plan} | {shard.path for shard in settled}
    _clear_other_plans(out, work, named, {result.stem for _, result, _ in jobs})
    run_stage("shard", runner, progress, shard_task, jobs)
    shards: list[Shard] = []
    offsets: list[int] = []
    label_offsets: list[int] = []
    for (relative, _, _), (_, result, _) in zip(plan, jobs, strict=True):
        if not result.exists():
            raise SarsenseError(f"{out / relative}: could not be written; run the same command again")
        value = read_json(result)
        shards.append(Shard(**value["shard"]))
        offsets += value["offsets"]
        label_offsets += value.get("label_offsets", [])
    order = np.concatenate([members for _, _, members in plan]) if plan else np.empty(0, np.int64)
    paths = [shard.path for shard in shards for _ in range(shard.tiles)]
    placed = {"shard": paths, "offset": offsets, "bytes": [size] * len(paths)}
    if labelled:
        placed["label_offset"] = label_offsets
    return with_columns(tiles.take(pa.array(order)), placed), shards


def _clear_other_plans(out: Place, work: Path, shards: set[str], identities: set[str]) -> None:
    """Remove what an earlier, unfinished run with another plan left: its shards, their records, temporary files."""
    for relative, path in shard_files(out).items():
        if relative not in shards:
            path.unlink()
    for path in (work / "shard").glob("*"):
        if path.stem not in identities:
            path.unlink()
