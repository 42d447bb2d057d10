"""Counts, levels and looks of a corpus and of its groups: plain values, for a table or JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from sarsense.codes import code_steps
from sarsense.corpus import Corpus
from sarsense.histogram import LOWEST_DB, percentile_db, whole
from sarsense.normalize import enl_bias_db
from sarsense.speckle import log_std_db

_PERCENTILES = (0.1, 50, 99.9)


def corpus_statistics(corpus: Corpus) -> dict[str, Any]:
    """Counts, levels and looks of a corpus and of each of its groups: plain values, for a table or JSON."""
    columns = ["group", "split", "scene", "channels", "valid_fraction"]
    rows = corpus.tiles(columns=columns).to_pylist()
    by_group: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_group[row["group"]].append(row)
    groups = []
    for name in sorted(by_group):
        members, bounds = by_group[name], [corpus.manifest["groups"][channel] for channel in name.split("+")]
        channels = [[row["channels"][number] for row in members] for number in range(len(bounds))]
        groups.append(
            {
                "group": name,
                "tiles": len(members),
                "train": sum(row["split"] == "train" for row in members),
                "val": sum(row["split"] == "val" for row in members),
                "scenes": len({row["scene"] for row in members}),
                "mean_db": _of_channels([round(float(np.mean([c["mean_db"] for c in one])), 2) for one in channels]),
                "lo_db": _of_channels([bound["lo_db"] for bound in bounds]),
                "hi_db": _of_channels([bound["hi_db"] for bound in bounds]),
                "step_db": _of_channels([_step_db(bound, corpus) for bound in bounds]),
                "median_enl": _of_channels(
                    [_median([c["enl"] for c in one if c["enl"] is not None]) for one in channels]
                ),
                "valid": round(float(np.mean([row["valid_fraction"] for row in members])), 4),
            }
        )
    return {
        "name": corpus.name,
        "version": corpus.manifest["version"],
        "digest": corpus.digest,
        "tile_shape": list(corpus.tile_shape),
        "tiles": len(rows),
        "shards": len(corpus.shards),
        "bytes": sum(shard.bytes for shard in corpus.shards),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "groups": groups,
    }


def group_statistics(corpus: Corpus) -> list[dict[str, Any]]:
    """What the range of each group was measured on, and what came out: a row a group.

    Of the scenes used: their number, pixels, looks (lowest, median, highest), the bias of the median looks that is
    taken off, and their spread in dB; percentiles of despeckled dB; the range that becomes the codes, None where each
    scene has its own.
    """
    rows = []
    for name, kept in sorted(corpus.manifest["statistics"].items()):
        histogram = whole(round((kept["first_db"] - LOWEST_DB) / kept["bin_db"]), kept["counts"])
        bounds = corpus.manifest["groups"][name]
        looks = kept["enl"]
        rows.append(
            {
                "group": name,
                "scenes": kept["scenes"],
                "pixels": kept["pixels"],
                "enl": looks,
                "bias_db": None if looks is None else enl_bias_db(looks[1], name.rpartition("/")[2]),
                "speckle_std_db": None if looks is None else round(log_std_db(looks[1]), 3),
                **{f"db_{percent:g}": round(percentile_db(histogram, percent), 2) for percent in _PERCENTILES},
                "lo_db": bounds["lo_db"],
                "hi_db": bounds["hi_db"],
                "step_db": _step_db(bounds, corpus),
            }
        )
    return rows


def _step_db(bounds: dict[str, Any], corpus: Corpus) -> float | None:
    if bounds["lo_db"] is None:
        return None
    return round((bounds["hi_db"] - bounds["lo_db"]) / code_steps(8 * corpus.dtype.itemsize), 6)


def _of_channels(values: list[Any]) -> Any:
    """The value of a single channel, or those of all."""
    return values[0] if len(values) == 1 else values


def _median(values: list[float]) -> float | None:
    return round(sorted(values)[len(values) // 2], 2) if values else None
