"""Whether a corpus is what it was: tables against the manifest, shards against both, to the byte.

`corpus` goes through tables and shards; `shard` tells what is wrong with one; `walk` reads the members of a tar that is
damaged, too. What is found is a `Problem`: the file, the tile, the byte, in a sentence.
"""

from sarsense.verify.corpus import verify_corpus, verify_tables
from sarsense.verify.problem import Problem
from sarsense.verify.shard import verify_shard

__all__ = ["Problem", "verify_corpus", "verify_shard", "verify_tables"]
