"""The folder that a build writes into: is it free, which corpus is there already, what seals it.

A finished corpus is never half-replaced: new tables and the new manifest are written to `.build/next/` whole, then
moved in their places, the manifest last. A build that is killed while it moves them finds the mark that says so, and
ends the move before anything else.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

import sarsense
from pipelines.companions import Companions
from pipelines.entries import Entry, left_out, scene_row
from pipelines.growth import join
from pipelines.ranges import Ranges
from sarsense.codes import code_dtype
from sarsense.config import BuildConfig
from sarsense.corpus import (
    TABLES,
    Corpus,
    class_names,
    duplicate_table,
    identity,
    open_corpus,
    scene_table,
    tile_table,
    write_manifest,
    write_tables,
)
from sarsense.errors import CorpusError, SarsenseError
from sarsense.files import read_json, write_json
from sarsense.labels import IGNORED
from sarsense.places import Place, shard_sizes, work_folder
from sarsense.shards import Shard
from sarsense.verify import verify_tables

_NEXT, _MOVING = "next", "moving"


def check_output(out: Place) -> None:
    """A build writes into a new or empty folder, or goes on in one of its own."""
    if out.is_file():
        raise SarsenseError(f"{out}: is a file; --out names a folder")
    if work_folder(out).is_dir() or (out / "corpus.json").is_file() or not out.is_dir():
        return
    if any(True for _ in out.iterdir()):
        remedy = "choose a new folder for --out"
        if not isinstance(out, Path):
            remedy = f"give the --work of the build that began it ({out.work} is not there), or choose another --out"
        raise CorpusError(f"{out}: not empty and not a corpus (neither corpus.json nor .build); {remedy}")


def end_move(out: Place) -> None:
    """End a move that was cut off. Only who holds the lock of `out` may: another may be just moving."""
    if (work_folder(out) / _MOVING).exists():
        _move(out)


def existing(
    out: Place, config: BuildConfig, companions: Companions, stats_from: dict[str, str] | None
) -> Corpus | None:
    """The finished corpus in `out`, where these settings made it: it is whole, and can grow. None where there is none.

    CorpusError where it was made with others, or where a shard is missing or of another size.
    """
    if not (out / "corpus.json").is_file():
        return None
    corpus = open_corpus(out)
    made, asked = corpus.manifest["config"], json.loads(json.dumps(asdict(config)))
    other = [name for name in asked if name != "version" and made.get(name) != asked[name]]
    other += ["stats_from"] * (corpus.manifest["stats_from"] != stats_from)
    other += [name for name in companions.facts | corpus.manifest["companions"]
              if companions.facts.get(name) != corpus.manifest["companions"].get(name)]  # fmt: skip
    if other:
        told = ", ".join(f"--{name.removesuffix('_km') if name == 'distance_km' else name}" for name in other)
        told = told.replace("_", "-")
        raise CorpusError(
            f"{out}: holds the finished corpus '{corpus.name}' made with other settings ({told}); give those of "
            "corpus.json, choose another --out, or say --reshard (its dB ranges) or --refresh-stats (new ones) to make "
            "all of it anew"
        )
    _refuse_damaged(corpus)
    _refuse_half_published(corpus)
    return corpus


def _refuse_damaged(corpus: Corpus) -> None:
    """CorpusError where a shard is missing or of another size. What it holds is for `sarsense shards verify` to say."""
    sizes = shard_sizes(corpus.root, [shard.path for shard in corpus.shards])
    for shard in corpus.shards:
        path, found = corpus.root / shard.path, sizes[shard.path]
        if found != shard.bytes:
            what = "missing" if found is None else f"{found} bytes, expected {shard.bytes}"
            raise CorpusError(f"{path}: {what}; restore it, or --reshard, with all sources, makes the corpus anew")


def _refuse_half_published(corpus: Corpus) -> None:
    """CorpusError where the tables of a remote corpus are not those of its corpus.json: a build that let it grow was
    killed while it sent them."""
    if isinstance(corpus.root, Path):
        return  # there they are moved, and a move that was cut off was ended by now
    if problems := verify_tables(corpus):
        raise CorpusError(
            f"{corpus.root}: {problems[0]}; a build that was killed while it sent tables goes on with its --work "
            f"({corpus.root.work} has no such build)"
        )


def seal(
    out: Place,
    entries: list[Entry],
    tiles: pa.Table,
    duplicates: list[dict[str, Any]],
    shards: list[Shard],
    ranges: Ranges,
    config: BuildConfig,
    stats_from: dict[str, str] | None,
    companions: Companions,
    base: Corpus | None = None,
) -> Corpus:
    """Write tables and corpus.json: from here on it is a corpus.

    base: the corpus that grows: its rows, shards, ranges and counts stay, those given come behind them.
    """
    labelled = companions.labels is not None
    scenes = scene_table(map(scene_row, entries), labelled)
    whole = join(base, tile_table(tiles), scenes, duplicate_table(duplicates))
    used = set(tiles["channels"].combine_chunks().flatten().field("group").unique().to_pylist())
    before = {} if base is None else base.manifest
    counts = Counter(before.get("tiles_left_out", {}))
    counts.update(left_out(entries))
    all_shards = [*([] if base is None else base.shards), *shards]
    manifest = {
        "name": config.name,
        "version": config.version,
        **identity(whole.tiles),
        "sarsense": sarsense.__version__,
        "config": asdict(config),
        "companions": companions.facts,
        "stats_from": stats_from,
        "tile_shape": list(config.tile_shape),
        "dtype": code_dtype(config.bits).name,
        "groups": {**{n: v for n, v in ranges.groups.items() if n in used}, **before.get("groups", {})},
        "statistics": {**{n: v for n, v in ranges.statistics.items() if n in used}, **before.get("statistics", {})},
        "scenes": dict(Counter(whole.scenes["status"].to_pylist())),
        "tiles_left_out": dict(counts),
        "growth": [] if base is None else [*base.manifest["growth"], *([_grown(base)] if len(tiles) else [])],
        "merged": before.get("merged", []),
    }
    if labelled:
        manifest["labels"] = _label_facts(whole.tiles, entries, {} if base is None else base.classes or {})
    following, anew = next_folder(out), base is None and (out / "corpus.json").is_file()
    write_tables(following, whole.tiles, whole.scenes, whole.duplicates)
    write_manifest(following, manifest, all_shards)
    write_json(work_folder(out) / _MOVING, {"anew": anew})
    _move(out)
    return open_corpus(out)


def _label_facts(tiles: pa.Table, entries: list[Entry], known: dict[int, str]) -> dict[str, Any]:
    """What corpus.json says of the labels of a corpus: value and name of each class that a raster of it names, or that
    a tile holds; the value that is ignored. known: those of the corpus that grew."""
    used = [entry.labels for entry in entries if entry.status == "used" and entry.labels is not None]
    named = {value: name for raster in used for value, name in raster.classes}
    return {"classes": class_names(tiles, [known, named]), "ignored": IGNORED}


def next_folder(out: Place) -> Path:
    """Where what is to replace a finished corpus, or a part of it, is written."""
    return work_folder(out) / _NEXT


def shard_folder(out: Place) -> Place:
    """Where the new shards of a build are written: beside a finished corpus in a folder; into a bucket at once, under
    names that its corpus.json does not have yet."""
    return next_folder(out) if isinstance(out, Path) and (out / "corpus.json").is_file() else out


def _grown(base: Corpus) -> dict[str, Any]:
    """What a corpus was before it grew."""
    return {
        "version": base.manifest["version"],
        "digest": base.digest,
        "order_digest": base.manifest["order_digest"],
        "tiles": sum(base.manifest["splits"].values()),
        "shards": len(base.shards),
        "sarsense": base.manifest["sarsense"],
    }


def _move(out: Place) -> None:
    """Put what lies in `.build/next` in its place: new shards, and, of a corpus that is made anew, instead of all old
    ones; then the tables, then corpus.json."""
    following, mark = next_folder(out), work_folder(out) / _MOVING
    if (following / "corpus.json").exists():
        named = {shard["path"] for shard in read_json(following / "corpus.json")["shards"]}
        if isinstance(out, Path) and read_json(mark)["anew"]:
            (out / "corpus.json").unlink(missing_ok=True)
            for path in sorted(path for folder in ("train", "val") for path in (out / folder).glob("*")):
                # one that was moved before a kill is named, and lies in `next` no more
                name = path.relative_to(out).as_posix()
                if name not in named or (following / name).exists():
                    path.unlink()
        for name in (*sorted(named), *TABLES, "corpus.json"):
            if (following / name).exists():
                _put(following / name, out / name)
    shutil.rmtree(following, ignore_errors=True)
    mark.unlink(missing_ok=True)


def _put(file: Path, target: Place) -> None:
    """Move a file to its place. Of one that was sent, a kill before it is removed here means that it is sent again."""
    if isinstance(target, Path):
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
    else:
        target.put(file)
        file.unlink()


SCRATCH = "dask"
"""under `.build`: the folder of the workers of a build, which Dask wants to have"""
_LITTER = (".*.tmp", ".*.native.tif", ".*.warped.tif", "way-*")
"""names of files that are being written, or on their way: `sarsense.files`, `sarsense.prepare`, `sarsense.places`"""


def remove_litter(out: Place) -> None:
    """Remove files that were being written when their process was killed, and the workers' scratch. Only who holds the
    lock of `out` may."""
    work = work_folder(out)
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    folders = [work]
    if isinstance(out, Path):
        folders += [out / name for name in ("train", "val", "datasheet")]
    for pattern in _LITTER:
        found = [*out.glob(pattern)] if isinstance(out, Path) else []
        for path in [*found, *(path for folder in folders for path in folder.rglob(pattern))]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def litter_removed(out: Place) -> Iterator[None]:
    """No litter of an earlier build at the start, none of workers that were stopped at the end."""
    remove_litter(out)
    try:
        yield
    finally:
        remove_litter(out)


def clean(work: Path) -> None:
    """Remove what a finished corpus needs no more; what was scanned and measured stays."""
    for name in ("prepare", "cut", "shard", "pairs", _NEXT):
        shutil.rmtree(work / name, ignore_errors=True)
