"""Everything about a corpus that is not as it was written: its tables, its folders, and shard after shard."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sarsense.corpus import FORMAT, TABLES, Corpus, array_shape, file_digest, identity
from sarsense.errors import CorpusError
from sarsense.places import shard_files
from sarsense.samples import NAMES
from sarsense.shards import Shard
from sarsense.verify.problem import TABLE, Problem
from sarsense.verify.rows import contradictions, typed
from sarsense.verify.shard import verify_shard


def verify_tables(corpus: Corpus) -> list[Problem]:
    """What about the tables is not as corpus.json says."""
    return [problem for name in TABLES for problem in _verify_table(corpus, name)]


def _verify_table(corpus: Corpus, name: str) -> Iterator[Problem]:
    path, expected = corpus.root / name, corpus.manifest.get("tables", {}).get(name, "")
    if not path.is_file():
        yield Problem(name, "missing")
    elif (found := file_digest(path)) != expected:
        said = f"{expected[:12] or 'nothing'}..."
        yield Problem(name, f"sha256 {found[:12]}..., corpus.json says {said}: it was changed")


def verify_corpus(
    corpus: Corpus,
    quick: bool = False,
    shards: Sequence[str] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Problem]:
    """Everything that is not as it was written; empty when all is well.

    quick: tables, sizes, and the first and the last tile of each shard alone. shards: these alone, by their paths in
    the corpus. progress: called after each shard. Shards are read by as many threads as there are cores: hashing leaves
    the others alone.
    """
    problems = verify_tables(corpus)
    named = {shard.path for shard in corpus.shards}
    for name in sorted(shard_files(corpus.root)):
        if name not in named:
            folder = name.partition("/")[0]
            problems.append(
                Problem(name, f"a file that corpus.json does not name; readers of {folder}/*.tar would take it")
            )
    try:
        table = corpus.tiles(columns=_columns(corpus))
    except CorpusError as error:
        return [*problems, Problem(TABLE, f"{error}; no tile could be checked")]
    table, empty_cells = typed(corpus, table)
    problems += empty_cells
    problems += _verify_identity(corpus, table)
    of_shard = _by_shard(table)
    for name in of_shard.keys() - named:
        keys = of_shard[name]["key"]
        problems.append(
            Problem(TABLE, f"lies in {name}, which corpus.json does not name, as do {len(keys)} tiles", keys[0].as_py())
        )
    wanted = [shard for shard in corpus.shards if shards is None or shard.path in shards]
    empty = table.slice(0, 0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def check(shard: Shard) -> list[Problem]:
            return _verify_one(corpus, shard, of_shard.get(shard.path, empty), quick)

        for found in pool.map(check, wanted):
            problems += found
            progress()
    if not quick and corpus.manifest["format"] == FORMAT and any(one.file == TABLE for one in problems):
        named = {problem.key for problem in problems}
        problems += [one for one in contradictions(corpus, shards) if one.key not in named]
    return problems


def _verify_one(corpus: Corpus, shard: Shard, rows: pa.Table, quick: bool) -> list[Problem]:
    shape = array_shape(corpus.tile_shape)
    listed = (rows if not quick else _ends(rows)).to_pylist()
    return verify_shard(corpus.root, shard, listed, shape, corpus.dtype, quick)


def _ends(rows: pa.Table) -> pa.Table:
    return rows if len(rows) < 2 else pa.concat_tables([rows.slice(0, 1), rows.slice(len(rows) - 1)])


def _columns(corpus: Corpus) -> list[str]:
    labels = ["label_offset", "label_hash", "label_source"] if corpus.labelled else []
    # of older formats the JSON had other columns: there it is parsed, not compared
    told = [*NAMES, "channels"] if corpus.manifest["format"] == FORMAT else []
    return list(dict.fromkeys(["key", "shard", "offset", "content_hash", "split", *told, *labels]))


def _by_shard(table: pa.Table) -> dict[str, pa.Table]:
    """Rows by shard; those of a shard lie together, else they are brought together."""
    encoded = table["shard"].combine_chunks().dictionary_encode()
    index = encoded.indices.to_numpy()
    changes = np.flatnonzero(np.diff(index)) + 1
    ends = [*changes.tolist(), len(index)] if len(index) else []
    names = [encoded.dictionary[index[end - 1]].as_py() for end in ends]
    if len(set(names)) != len(names):
        return {name: table.filter(pc.field("shard") == name) for name in dict.fromkeys(names)}
    starts = [0, *ends[:-1]]
    return {name: table.slice(start, end - start) for name, start, end in zip(names, starts, ends, strict=True)}


def _verify_identity(corpus: Corpus, table: pa.Table) -> Iterator[Problem]:
    found = identity(table)
    for name in ("digest", "order_digest"):
        # of format 2 the digest was that of the order
        expected, digest = corpus.manifest[name], found[name]
        if expected != digest and not (name == "digest" and corpus.manifest["format"] == 2):
            yield Problem(TABLE, f"its {name} is {digest[:12]}..., corpus.json says {expected[:12]}...")
