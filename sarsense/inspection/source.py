"""What a person names (a corpus, a tar, a glob, a folder of tars, an address of one of these) -> a table of its tiles.

A corpus has its table. Shards that belong to a corpus are that corpus, narrowed. Tars of other programs are read from
end to end, once, for a table of what can be known of them (`foreign`).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.inspection.foreign import scan_tars
from sarsense.places import Place, RemotePath, place


@dataclass(frozen=True)
class Source:
    """Tiles to look at: of a corpus, or of tars that others wrote."""

    name: str
    corpus: Corpus | None
    """None: tars of another program"""
    shards: tuple[str, ...] | None = None
    """of a corpus: those alone that were named; None: all"""
    scanned: pa.Table | None = None
    """of tars of another program: a row a sample"""
    unknown: tuple[str, ...] = ()
    """columns of a corpus that these tars say nothing of"""
    tars: Mapping[str, Place] = field(default_factory=dict)
    """of tars of another program: those that `shard` names, which does not tell the signature of an address"""


def open_source(named: str | Place) -> Source:
    """What `named` is. CorpusError where there is nothing to look into, SettingError where a glob finds nothing."""
    if isinstance(named, str) and re.search(r"[*?[]", named) and not _is_there(named):
        found = sorted(Path(path) for path in glob.iglob(named, recursive=True) if path.endswith(".tar"))  # noqa: PTH207, of any root
        if not found:
            raise SettingError(f"{named}: expected a glob that finds *.tar, found none; in a shell, put it in quotes")
        return _of_tars(named, found)
    root = place(named)
    if root.suffix == ".tar":
        return _of_tars(str(root), [root])
    if isinstance(root, Path) and root.is_dir() and not (root / "corpus.json").is_file():
        found = sorted(root.rglob("*.tar"))
        if found and not (root / ".build").is_dir():
            return _of_tars(str(root), found)
    if isinstance(root, Path) and root.is_file():
        raise CorpusError(f"{root}: a folder of a corpus, or tars (*.tar, not compressed) expected, found another file")
    corpus = open_corpus(root)
    return Source(corpus.name, corpus)


def _is_there(named: str) -> bool:
    """Whether a name with *, ? or [ is no glob: an address, which may be signed, or a file or folder called so."""
    return not isinstance(found := place(named), Path) or found.exists()


def _of_tars(name: str, tars: Sequence[Place]) -> Source:
    """A corpus narrowed to its shards where all of them are of one; else what the tars themselves say."""
    local = [tar.absolute() for tar in tars if isinstance(tar, Path)]  # absolute: named from within its folder, too
    roots = {tar.parent.parent for tar in local}
    root = roots.pop() if len(roots) == 1 and len(local) == len(tars) else None
    if root is not None and (root / "corpus.json").is_file():
        corpus = open_corpus(root)
        mine = {shard.path for shard in corpus.shards}
        wanted = [tar.relative_to(root).as_posix() for tar in local]
        if mine.issuperset(wanted):
            return Source(f"{corpus.name}, {len(wanted)} of {len(mine)} shards", corpus, tuple(wanted))
    for tar in tars:
        if not (tar.is_file() if isinstance(tar, RemotePath) else tar.exists()):
            raise CorpusError(
                f"{tar}: no such file; a tar, a glob of local tars in quotes, or a corpus or its address expected"
            )
    table, unknown = scan_tars(tars)
    return Source(name, None, None, table, unknown, {str(tar): tar for tar in tars})
