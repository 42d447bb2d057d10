"""What the range of each group of a corpus was measured on: plain values, for a table or JSON."""

from __future__ import annotations

from typing import Any

from sarsense.codes import step_db
from sarsense.corpus import Corpus
from sarsense.histogram import LOWEST_DB, percentile_db, whole
from sarsense.normalize import enl_bias_db
from sarsense.speckle import log_std_db

_PERCENTILES = (0.1, 50, 99.9)


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
                "step_db": step_db(bounds["lo_db"], bounds["hi_db"], 8 * corpus.dtype.itemsize),
            }
        )
    return rows
