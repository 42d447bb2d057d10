"""How fast `shards verify` reads, beside sha256 of the same files.

    python -m benchmarks.verify

Half a gigabyte of tiles, warm. Limit: the files read once by sha256 on one core, as `sha256sum` would; verify takes it
twice, of the file and of each tile, on all cores.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.corpora import built_corpus
from benchmarks.timing import best_seconds, print_rates
from sarsense.corpus import Corpus
from sarsense.verify import verify_corpus


def main() -> None:
    for tile, side in ((512, 8192), (256, 8192), (128, 4096)):
        with built_corpus(2, side, tile) as corpus:
            size = sum(shard.bytes for shard in corpus.shards) / 2**20

            def check(quick: bool, corpus: Corpus = corpus) -> None:
                if problems := verify_corpus(corpus, quick):
                    raise SystemExit(f"a new corpus has problems: {problems[0]}")

            def digest(corpus: Corpus = corpus) -> None:
                for shard in corpus.shards:
                    with (Path(str(corpus.root)) / shard.path).open("rb") as file:
                        hashlib.file_digest(file, "sha256")

            ways = {"verify --quick": lambda: check(True), "verify": lambda: check(False), "sha256": digest}
            tiles = sum(shard.tiles for shard in corpus.shards)
            title = f"{tiles:,} tiles of {tile} px, {len(corpus.shards)} shards, {size:,.0f} MiB"
            print_rates(title, "MiB/s", size, best_seconds(ways))


if __name__ == "__main__":
    main()
