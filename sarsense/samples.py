"""The JSON beside each tile in a shard: enough to place it and to undo its normalisation without any other file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sarsense.codes import code_steps
from sarsense.labels import IGNORED

NAMES = (
    "key scene source band polarisation content group sensor mode datetime row col crs transform lon lat "
    "spacing_x_m spacing_y_m valid_fraction mean_db enl split"
).split()


def description(tile: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """Of a row of tiles.parquet. Of a stack, `channels` and `normalization` are lists in the order of the channels;
    `labels` tells of those of a labelled tile."""
    normalization = [_normalization(channel, bits) for channel in tile["channels"]]
    base = {name: tile[name] for name in NAMES}
    if "label_source" in tile:
        base["labels"] = {"source": tile["label_source"], "ignored": IGNORED}
    if len(normalization) == 1:
        return {**base, "normalization": normalization[0]}
    return {**base, "channels": tile["channels"], "normalization": normalization}


def _normalization(channel: Mapping[str, Any], bits: int) -> dict[str, Any]:
    return {
        **{name: channel[name] for name in ("lo_db", "hi_db", "enl_bias_db")},
        "db": f"lo_db + (code - 1) * (hi_db - lo_db) / {code_steps(bits)} + enl_bias_db; code 0 is no data",
    }
