"""Manifests of older formats, as this version reads them. Nothing is written: a corpus keeps its format until it is
built again.

    1  of versions before 0.5, which were never released: not read
    2  0.5: one digest, that of the order; no word of acquisitions, places, hashes by look, growth
    3  0.6

Columns that a table of an older format lacks are null (`sarsense.corpus.with_missing_columns`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OLDEST = 2
"""format that is read"""

Manifest = dict[str, Any]


def migrated(manifest: Manifest) -> Manifest:
    """A manifest of any format that is read, with the fields of the newest; `format` stays what it is."""
    for step in [_STEPS[found] for found in range(manifest["format"], OLDEST + len(_STEPS))]:
        manifest = step(manifest)
    return manifest


def _from_2(manifest: Manifest) -> Manifest:
    settings = {
        "guard_km": 0.0,
        "val_sensors": [],
        "dedup": ["exact"],
        "overlap": 0.6,
        "max_repeats": None,
        "max_flat": 1.0,
        "distance_km": 2.0,
        "near_evaluation": "drop",
    }
    return {
        **manifest,
        "order_digest": manifest["digest"],
        "config": {**settings, **manifest["config"]},
        "companions": {},
        "growth": [],
        "merged": [],
    }


_STEPS: dict[int, Callable[[Manifest], Manifest]] = {2: _from_2}
