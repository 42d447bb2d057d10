"""Two corpora -> one that holds the tiles of both, without duplicates, in shards of its own.

Both have to be made with the same settings, and groups that both have with the same dB ranges, so that a code means
the same in all of them. Splits are those that the tiles have: places depend on the settings alone. The tiles are
curated as those of a build: the merged corpus does not depend on which of the two comes first.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

import sarsense
from pipelines.cluster import open_runner
from pipelines.curate import curate_again
from pipelines.lock import locked
from pipelines.output import check_output, clean, litter_removed
from pipelines.stages import Progress, shard_all
from sarsense.config import BuildConfig
from sarsense.corpus import (
    FORMAT,
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
from sarsense.errors import CorpusError

_FREE = ("name", "version", "shard_mib")
"""settings that may differ"""


def merge(
    a: Path, b: Path, out: Path, name: str | None, version: str, workers: int, progress: Progress
) -> tuple[Corpus, dict[str, int]]:
    """Write the corpus of the tiles of two into `out`; it, and how many tiles were left out, by kind.

    Raises CorpusError where the two do not go together, naming what differs.
    """
    check_output(out)
    with locked(out, progress.say), litter_removed(out):
        return _merge(a, b, out, name, version, workers, progress)


def _merge(
    a: Path, b: Path, out: Path, name: str | None, version: str, workers: int, progress: Progress
) -> tuple[Corpus, dict[str, int]]:
    if (out / "corpus.json").exists():
        raise CorpusError(f"{out}: holds a finished corpus; --out names a new folder")
    parts = sorted((open_corpus(path) for path in (a, b)), key=_sorted_by)
    _refuse_unlike(*parts)
    config = BuildConfig(
        **{**{key: _tuple(value) for key, value in parts[0].manifest["config"].items()},
           "name": name or parts[0].name, "version": version}
    )  # fmt: skip
    scenes = _scenes(*parts)
    tiles, same = _tiles(parts)
    sizes = {row["scene"]: row["width"] * row["height"] for row in scenes.to_pylist() if row["status"] == "used"}
    work = out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    with open_runner(workers, None, work, progress.say) as runner:
        tiles, dropped, guarded = curate_again(tiles, sizes, config, work, runner, progress)
        tiles, shards = shard_all(tiles, out, config, work, runner, progress)
    table = tile_table(tiles)
    duplicates = _duplicates(parts, dropped, set(table["key"].to_pylist()))
    scenes = _recounted(scenes, Counter(table["scene"].to_pylist()))
    write_tables(out, table, scenes, duplicates)
    manifest = {
        **{key: parts[0].manifest[key] for key in ("companions", "tile_shape", "dtype")},
        "name": config.name,
        "version": version,
        **identity(table),
        "sarsense": sarsense.__version__,
        "config": {**parts[0].manifest["config"], "name": config.name, "version": version},
        "stats_from": min((part.manifest["stats_from"] for part in parts), key=str),
        "groups": {**parts[0].manifest["groups"], **parts[1].manifest["groups"]},
        "statistics": _statistics(*parts),
        "scenes": dict(Counter(scenes["status"].to_pylist())),
        "tiles_left_out": _left_out(parts, same + len(dropped), guarded),
        "growth": [],
        **_labels(parts, table),
        "merged": [{key: part.manifest[key] for key in ("name", "version", "digest")} for part in parts],
    }
    write_manifest(out, manifest, shards)
    clean(work)
    left_out = Counter(row["kind"] for row in dropped)
    left_out.update({"in both": same, "guard": guarded})
    return open_corpus(out), {kind: count for kind, count in left_out.items() if count}


def _sorted_by(corpus: Corpus) -> tuple[str, str, str]:
    """So that it does not matter which of two is named first, also where they hold the same tiles."""
    return corpus.digest, corpus.manifest["order_digest"], json.dumps(corpus.manifest, sort_keys=True)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refuse_unlike(a: Corpus, b: Corpus) -> None:
    for corpus in (a, b):
        if corpus.manifest["format"] != FORMAT:
            raise CorpusError(
                f"{corpus.root}: of format {corpus.manifest['format']}, {FORMAT} expected; `sarsense build --reshard` "
                "makes it anew"
            )
    first, second = ({**c.manifest["config"], **c.manifest["companions"]} for c in (a, b))
    other = sorted(key for key in first | second if key not in _FREE and first.get(key) != second.get(key))
    if other:
        raise CorpusError(
            f"{a.root} and {b.root}: the same settings expected, {', '.join(other)} differ; build one of them again"
        )
    groups = a.manifest["groups"].keys() & b.manifest["groups"].keys()
    for group in sorted(groups):
        ranges = [tuple(c.manifest["groups"][group][key] for key in ("lo_db", "hi_db")) for c in (a, b)]
        if ranges[0] != ranges[1]:
            raise CorpusError(
                f"{a.root} and {b.root}: one dB range of {group} expected, {ranges[0]} and {ranges[1]} found; "
                "build one of them again with --stats-from the other"
            )


def _tiles(parts: list[Corpus]) -> tuple[pa.Table, int]:
    """Tiles of both by key, those in both once, with where their codes lie; how many are in both."""
    table = pa.concat_tables([_with_codes(corpus) for corpus in parts])
    names = ["key", "content_hash", "split", *(["label_hash"] if parts[0].labelled else [])]
    facts = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    first: dict[str, int] = {}
    for index, (key, *fact) in enumerate(facts):
        known = first.setdefault(key, index)
        if known != index and list(facts[known][1:]) != fact:
            raise CorpusError(
                f"{parts[0].root} and {parts[1].root}: tile {key} is in both with other codes, labels or splits; build "
                "one of them again"
            )
    return table.take(pa.array([first[key] for key in sorted(first)], pa.int64())), len(table) - len(first)


def _with_codes(corpus: Corpus) -> pa.Table:
    table = corpus.tiles().replace_schema_metadata(None)
    codes = pa.array([str(corpus.root / shard) for shard in table["shard"].to_pylist()], pa.string())
    table = table.append_column("codes", codes).append_column("start", table["offset"])
    return table.append_column("label_start", table["label_offset"]) if corpus.labelled else table


def _scenes(a: Corpus, b: Corpus) -> pa.Table:
    """Rows of both by path; of a file that both have seen, that of the corpus that used it."""
    rows = {row["path"]: row for row in a.scenes.to_pylist()}
    for row in b.scenes.to_pylist():
        known = rows.get(row["path"])
        if known is not None and None not in (known["digest"], row["digest"]) and known["digest"] != row["digest"]:
            raise CorpusError(
                f"{a.root} and {b.root}: have files of one name and other content, {row['path']}; build one of them "
                "again from the folder above, so that names differ"
            )
        if known is None or (row["status"] == "used" and known["status"] != "used"):
            rows[row["path"]] = row
    return pa.Table.from_pylist([rows[path] for path in sorted(rows)], a.scenes.schema)


def _recounted(scenes: pa.Table, kept: Counter[str]) -> pa.Table:
    """The rows, with the tiles that each scene has now; those that it had before are duplicates."""
    rows = scenes.to_pylist()
    for row in rows:
        if row["status"] == "used":
            had = row["tiles"] + row["tiles_duplicate"]
            row["tiles"] = kept[row["scene"]]
            row["tiles_duplicate"] = max(had - row["tiles"], 0)
    return scene_table(rows, "labels" in scenes.column_names)


def _duplicates(parts: list[Corpus], dropped: list[dict[str, Any]], kept: set[str]) -> pa.Table:
    """What was dropped by either, or now; what one dropped and the other has is no duplicate any more."""
    rows = [row for part in parts for row in part.duplicates.to_pylist() if row["dropped"] not in kept] + dropped
    unique = {(row["kind"], row["dropped"]): row for row in rows}
    return duplicate_table(unique[key] for key in sorted(unique))


def _statistics(a: Corpus, b: Corpus) -> dict[str, Any]:
    """Of a group that both have, those of more pixels."""
    found = dict(a.manifest["statistics"])
    for name, value in b.manifest["statistics"].items():
        if name not in found or found[name]["pixels"] < value["pixels"]:
            found[name] = value
    return found


def _labels(parts: list[Corpus], tiles: pa.Table) -> dict[str, Any]:
    """What the manifest says of labels, if anything. CorpusError where the two name a class otherwise."""
    classes = [corpus.classes for corpus in parts if corpus.classes is not None]
    if not classes:
        return {}
    for value in classes[0].keys() & classes[1].keys():
        names = {one[value] for one in classes} - {str(value)}
        if len(names) > 1:
            raise CorpusError(
                f"{parts[0].root} and {parts[1].root}: one name of label {value} expected, "
                f"{' and '.join(sorted(names))} found; mend the CLASSES tags of one of them and build it again"
            )
    return {"labels": {**parts[0].manifest["labels"], "classes": class_names(tiles, classes)}}


def _left_out(parts: list[Corpus], duplicate: int, guarded: int) -> dict[str, int]:
    total: Counter[str] = Counter(duplicate=duplicate, guard=guarded)
    for part in parts:
        total.update(part.manifest["tiles_left_out"])
    return dict(total)
