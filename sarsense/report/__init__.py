"""A corpus to look at: counts and levels by group, histograms of dB, a map of the footprints.

Knows how a corpus is read and how a picture is drawn; prints nothing. What is named here is loaded when it is asked
for: a page needs no matplotlib, and numbers need no picture.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sarsense.report.counts import group_statistics
    from sarsense.report.footprints import footprint_map
    from sarsense.report.histograms import histogram_figure, statistics_figure
    from sarsense.report.picture import check_picture

__all__ = [
    "check_picture",
    "footprint_map",
    "group_statistics",
    "histogram_figure",
    "statistics_figure",
]
_MODULES = {
    "check_picture": "picture",
    "footprint_map": "footprints",
    "group_statistics": "counts",
    "histogram_figure": "histograms",
    "statistics_figure": "histograms",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
