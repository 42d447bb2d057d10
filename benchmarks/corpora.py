"""A corpus to stream from: built, kept warm, of tiles that are all different."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.scenes import write_scenes
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus


@contextmanager
def built_corpus(
    scenes: int = 4, side: int = 8192, tile: int = 512, shard_mib: int = 64, content: str = "speckled"
) -> Iterator[Corpus]:
    """Of (side / tile)**2 tiles a scene, all of them in the train split."""
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_scenes(root / "scenes", scenes, side)
        config = BuildConfig(tile_size=tile, val_share=0, shard_mib=shard_mib, content=content)
        build([str(root / "scenes")], root / "corpus", config, 0)
        yield open_corpus(root / "corpus")
