"""A corpus to look at: counts and levels by group, a contact sheet of tiles, histograms of dB, a map of the footprints.

Knows how a corpus is read and how a picture is drawn; prints nothing.
"""

from sarsense.report.counts import corpus_statistics, group_statistics
from sarsense.report.footprints import footprint_map
from sarsense.report.histograms import histogram_figure, statistics_figure
from sarsense.report.picture import check_picture
from sarsense.report.sheet import contact_sheet, spread_choice

__all__ = [
    "check_picture",
    "contact_sheet",
    "corpus_statistics",
    "footprint_map",
    "group_statistics",
    "histogram_figure",
    "spread_choice",
    "statistics_figure",
]
