"""What changed between two corpora: tiles, splits, ranges, scenes, settings, versions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sarsense.corpus import Corpus


@dataclass(frozen=True)
class Difference:
    """From corpus A to corpus B. Lists of keys are sorted."""

    same_tiles: bool
    """the digests are equal: both hold the same tiles in the same splits"""
    same_order: bool
    """and in the same order, in which plain readers meet them"""
    tiles_in: list[str]
    """in B alone"""
    tiles_out: list[str]
    """in A alone"""
    renormalised: list[str]
    """in both, with another dB range or bias of speckle"""
    changed: list[str]
    """in both, with the same range and other codes"""
    relabelled: list[str]
    """in both, with other labels, or with labels in one alone"""
    moved: list[str]
    """in both, in another split"""
    scenes_in: list[str]
    """paths of files whose tiles B alone holds"""
    scenes_out: list[str]
    groups: dict[str, tuple[Any, Any]]
    """group -> dB range (lo, hi) in A and in B, where they differ; None: not there"""
    settings: dict[str, tuple[Any, Any]]
    """setting -> value in A and in B, where they differ"""
    versions: dict[str, tuple[Any, Any]]
    """name, version, format, sarsense: where they differ"""

    @property
    def nothing(self) -> bool:
        """Nothing differs."""
        return (
            self.same_tiles
            and self.same_order
            and not any(value for name, value in vars(self).items() if not name.startswith("same_"))
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(a: Corpus, b: Corpus) -> Difference:
    """Reads the tables, not the shards. Raises CorpusError where a table cannot be read."""
    before, after = _tiles(a), _tiles(b)
    both = sorted(before.keys() & after.keys())
    renormalised = [key for key in both if before[key][3:] != after[key][3:]]
    other_range = set(renormalised)
    used_before, used_after = _used(a), _used(b)
    return Difference(
        same_tiles=a.digest == b.digest,
        same_order=a.manifest["order_digest"] == b.manifest["order_digest"],
        tiles_in=sorted(after.keys() - before.keys()),
        tiles_out=sorted(before.keys() - after.keys()),
        renormalised=renormalised,
        changed=[key for key in both if key not in other_range and before[key][0] != after[key][0]],
        relabelled=[key for key in both if before[key][2] != after[key][2]],
        moved=[key for key in both if before[key][1] != after[key][1]],
        scenes_in=sorted(used_after - used_before),
        scenes_out=sorted(used_before - used_after),
        groups=_differing(_ranges(a), _ranges(b)),
        settings=_differing(_settings(a), _settings(b)),
        versions=_differing(
            *({name: c.manifest[name] for name in ("name", "version", "format", "sarsense")} for c in (a, b))
        ),
    )


def _tiles(corpus: Corpus) -> dict[str, tuple[Any, ...]]:
    """Key -> content hash, split, label hash (None: no labels), lo_db, hi_db, bias."""
    names = ["key", "content_hash", "split", "label_hash", "lo_db", "hi_db", "enl_bias_db"]
    table = corpus.tiles(columns=names)
    none = [None] * len(table)
    columns = [table[name].to_pylist() if name in table.column_names else none for name in names]
    return {key: tuple(rest) for key, *rest in zip(*columns, strict=True)}


def _used(corpus: Corpus) -> set[str]:
    rows = corpus.scenes.select(["path", "status"]).to_pylist()
    return {row["path"] for row in rows if row["status"] == "used"}


def _settings(corpus: Corpus) -> dict[str, Any]:
    beside = {"stats_from": corpus.manifest["stats_from"], **corpus.manifest["companions"]}
    return {**corpus.manifest["config"], **beside, "classes": corpus.classes}


def _ranges(corpus: Corpus) -> dict[str, tuple[Any, Any]]:
    return {name: (bounds["lo_db"], bounds["hi_db"]) for name, bounds in corpus.manifest["groups"].items()}


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*a, *(name for name in b if name not in a)]
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}
