"""A build of a few small scenes, as many tests make it: settings, command line, and what of a corpus is compared."""

from __future__ import annotations

import sys
from pathlib import Path

from sarsense.config import BuildConfig

CONFIG = BuildConfig(tile_size=64, shard_mib=1, val_share=0.3, cell_km=3.0)
OPTIONS = "--tile-size 64 --shard-mib 1 --val-share 0.3 --cell-km 3".split()
"""the same for the command line"""
SARSENSE = [sys.executable, "-c", "from cli import run_sarsense; run_sarsense()"]


def content(corpus: Path) -> dict[str, bytes]:
    """Every file of a finished corpus, but for the records of the build itself, and the datasheet, which is the command
    line's."""
    files = [path for path in corpus.rglob("*") if path.is_file() and not {".build", "datasheet"} & set(path.parts)]
    return {path.relative_to(corpus).as_posix(): path.read_bytes() for path in files if path.name != "README.md"}
