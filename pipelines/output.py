"""The folder that a build writes into: is it free, is the corpus there already, what seals it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sarsense
from pipelines.entries import Entry, inputs_digest, left_out, scene_row
from pipelines.ranges import KnownRanges, Ranges
from sarsense.codes import code_dtype
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, corpus_digest, open_corpus, write_manifest, write_tables
from sarsense.errors import CorpusError, SarsenseError
from sarsense.files import read_json
from sarsense.shards import Shard
from sarsense.sidecars import still_holds

INPUTS = "inputs.json"


def check_output(out: Path) -> None:
    """A build writes into a new or empty folder, or goes on in one of its own."""
    if out.exists() and not out.is_dir():
        raise SarsenseError(f"{out}: is a file; --out names a folder")
    if not out.is_dir() or (out / ".build").is_dir() or (out / "corpus.json").is_file():
        return
    if any(out.iterdir()):
        raise CorpusError(
            f"{out}: not empty and not a corpus (neither corpus.json nor .build); choose a new folder for --out"
        )


def finished(out: Path, entries: list[Entry], config: BuildConfig, known: KnownRanges | None) -> Corpus | None:
    """The corpus that is already there, when this very build made it; CorpusError when another one did."""
    if not (out / "corpus.json").is_file():
        return None
    corpus = open_corpus(out)
    same_config = corpus.manifest["config"] == json.loads(json.dumps(asdict(config)))
    same_config &= corpus.manifest["stats_from"] == (None if known is None else known.to_json())
    if same_config and corpus.manifest["inputs"] == inputs_digest(entries):
        _refuse_changed(out / ".build" / INPUTS, entries)
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


def seal(
    out: Path,
    entries: list[Entry],
    tiles: list[dict[str, Any]],
    duplicates: list[Any],
    shards: list[Shard],
    ranges: Ranges,
    config: BuildConfig,
    known: KnownRanges | None,
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
        "stats_from": None if known is None else known.to_json(),
        "tile_shape": list(config.tile_shape),
        "dtype": code_dtype(config.bits).name,
        "groups": {name: bounds for name, bounds in ranges.groups.items() if name in used},
        "statistics": {name: found for name, found in ranges.statistics.items() if name in used},
        "splits": dict(Counter(tile["split"] for tile in tiles)),
        "scenes": dict(Counter(entry.status for entry in entries)),
        "tiles_left_out": left_out(entries),
    }
    write_manifest(out, manifest, shards)
    return open_corpus(out)


def clean(work: Path) -> None:
    """Remove what a finished corpus needs no more; what was scanned and measured stays."""
    for name in ("prepare", "cut", "shard"):
        shutil.rmtree(work / name, ignore_errors=True)
