"""The tiles that a run is trained on: of a folder, or of a store by way of a folder that keeps its shards; and which
shards are left out because they are bad.

A shard that is bad is an error, unless the user said that such shards are to be skipped. Then it is noted in the run
folder, which all processes share, and the run goes on from its last checkpoint with all of them leaving it out: one
that skips what another one reads would contrast views of different tiles without anybody knowing.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dic3l.checkpoint import CorpusFacts, write_text
from dic3l.config import Config
from dic3l.errors import ConfigError
from dic3l.knn import SceneProbe, scene_probe
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import BadShardError
from sarsense.places import Place, shard_sizes
from sarsense.shard_cache import ShardCache
from sarsense.shards import TileReader

_NOTED = "bad-shards"
"""folder of a run: a file a shard"""


@dataclass(frozen=True)
class ShardSource:
    """How shards are read."""

    cache: Path = Path("~/.cache/sarsense/shards") / platform.node()
    """folder of this machine where shards of a remote corpus are kept; a home folder may be that of others, too"""
    limit: int = 50 * 2**30
    """bytes of it"""
    skip_bad: bool = False
    """leave out shards that are missing or damaged; else they are an error"""


@dataclass(frozen=True)
class TrainTiles:
    """What a run is trained on, and told by."""

    facts: CorpusFacts
    tiles: TileReader
    probe: SceneProbe | None
    notes: tuple[str, ...]
    """for the user"""


@contextmanager
def open_tiles(
    corpus: Place, run: Path, config: Config, source: ShardSource, few: bool = False
) -> Iterator[TrainTiles]:
    """The train tiles of a corpus, and the probe of its val tiles. Raises CorpusError, ConfigError.

    few: hardly any of them are read, of a remote corpus by a request each.
    """
    opened = open_corpus(corpus)
    bad = _bad_shards(opened, run) if source.skip_bad else {}
    cache = None
    if not isinstance(opened.root, Path) and not few:
        on_bad = (lambda error: note_bad_shard(run, error)) if source.skip_bad else None
        cache = ShardCache(opened.root, source.cache.expanduser(), source.limit, on_bad)
    try:
        tiles = TileReader(opened, split="train", eight_bit=True, cache=cache, leave_out=bad)
        if bad and not len(tiles):
            raise ConfigError(f"{corpus}: all train shards are bad ({next(iter(bad.values()))}, ...); is it all there?")
        if not len(tiles):
            raise ConfigError(
                f"{corpus}: no tile in the train split; build it again with another --seed or --val-share"
            )
        if cache is not None:
            _refuse_small_cache(tiles, config.train.window, cache)
        # some hundred tiles of the probe, by a request each: their shards would drive those of the steps out
        val = TileReader(opened, split="val", eight_bit=True, leave_out=bad)
        scenes = opened.tiles("val", columns=["scene", "shard"])
        kept = [row["scene"] for row in scenes.to_pylist() if row["shard"] not in bad]
        yield TrainTiles(_facts(opened, bad), tiles, scene_probe(val, kept, config), tuple(_notes(opened, bad)))
    finally:
        if cache is not None:
            cache.close()


def _refuse_small_cache(tiles: TileReader, window: int, cache: ShardCache) -> None:
    """ConfigError where shards that are read at once do not fit: each would be fetched again and again."""
    sizes = sorted((shard.bytes for shard in tiles.shards), reverse=True)
    at_once = len(sizes) if not window else min(len(sizes), 2 * window)  # one is read, the next one is fetched
    if (needed := sum(sizes[:at_once])) <= cache.limit:
        return
    fits = int(cache.limit / 2 // sizes[0])
    raise ConfigError(
        f"--cache-gib: {needed / 2**30:.3g} expected, {cache.limit / 2**30:.3g} found: "
        + (f"two windows of {window} shards" if window else f"all {len(sizes)} shards, whose tiles are mixed at once,")
        + " have to fit; give more"
        + (f", or mix tiles of fewer shards: --set train.window={fits}" if fits else "")
    )


def note_bad_shard(run: Path, error: BadShardError) -> None:
    """Remember, for all processes, that a shard is to be left out."""
    run.joinpath(_NOTED).mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(error.shard.encode()).hexdigest()[:16]
    write_text(run / _NOTED / f"{name}.json", json.dumps({"shard": error.shard, "reason": str(error)}, indent=2) + "\n")


def noted_shards(run: Path) -> set[str]:
    """Names of the notes."""
    return {path.name for path in (run / _NOTED).glob("*.json")}


def _bad_shards(corpus: Corpus, run: Path) -> dict[str, str]:
    """Shard -> why it is left out: those noted in the run, and those that are missing or of another length."""
    noted = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / _NOTED).glob("*.json"))]
    bad = {str(value["shard"]): str(value["reason"]) for value in noted}
    sizes = shard_sizes(corpus.root, [shard.path for shard in corpus.shards])
    for shard in corpus.shards:
        if (found := sizes[shard.path]) != shard.bytes:
            told = "missing" if found is None else f"{found} bytes, the corpus says {shard.bytes}"
            bad.setdefault(shard.path, told)
    return bad


def _facts(corpus: Corpus, bad: dict[str, str]) -> CorpusFacts:
    manifest, digest = corpus.manifest, corpus.digest
    if bad:  # without them it is another corpus
        digest = hashlib.sha256("\n".join([digest, *sorted(bad)]).encode()).hexdigest()
    groups = manifest.get("groups", {})
    return CorpusFacts(corpus.name, str(manifest.get("version", "")), digest, groups, corpus.digest)


def _notes(corpus: Corpus, bad: dict[str, str]) -> Iterator[str]:
    if bad:
        tiles = sum(shard.tiles for shard in corpus.shards if shard.path in bad)
        are = "shard of {} is" if len(bad) == 1 else "shards of {} are"
        yield f"warning: {len(bad)} bad {are.format(len(corpus.shards))} left out, with {tiles} tiles:"
        for shard, reason in sorted(bad.items()):
            yield f"  {shard}: {reason}"
