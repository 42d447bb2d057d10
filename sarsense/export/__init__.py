"""A corpus described for others: Croissant for machine learning, STAC for Earth observation.

Reads corpora and writes descriptions; no pixel is read or copied, so shards may lie elsewhere.
"""

from sarsense.export.croissant import croissant
from sarsense.export.stac import stac, stac_items
from sarsense.export.write import export

__all__ = ["croissant", "export", "stac", "stac_items"]
