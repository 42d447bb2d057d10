"""Spatially disjoint splits: a tile is train or val by the ground that it covers.

The Earth is cut into cells of about equal size; a cell is val when its hash, with the seed, says so. A tile whose
cells are all of one split belongs to it; a tile that touches both is left out ("guard"), so that no train tile
overlaps a val tile, whatever the scene or the date. Adding scenes moves no tile. Unplaced scenes are split whole, by
their name without polarisation.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

Split = Literal["train", "val", "guard"]
_KM_PER_DEGREE = 111.195


def _is_val(identity: str, seed: int, val_share: float) -> bool:
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < val_share * 2**64


def split_of_footprint(footprint: np.ndarray, seed: int, val_share: float, cell_km: float) -> Split:
    """The split of a tile with this ring (float64 (points, 2), lon and lat in degrees, lon continuous)."""
    height = cell_km / _KM_PER_DEGREE
    south, north = footprint[:, 1].min(), footprint[:, 1].max()
    west, east = footprint[:, 0].min(), footprint[:, 0].max()
    sides: set[bool] = set()
    for row in range(int(np.floor(south / height)), int(np.floor(north / height)) + 1):
        # a whole number of cells around the globe, about as wide as high, none at the poles
        around = max(1, int(360.0 * np.cos(np.radians(min(abs((row + 0.5) * height), 90.0))) / height))
        width = 360.0 / around
        first, last = int(np.floor((west + 180.0) / width)), int(np.floor((east + 180.0) / width))
        for col in range(first, last + 1):
            sides.add(_is_val(f"cell:{cell_km:g}:{row}:{col % around}", seed, val_share))
    if len(sides) > 1:
        return "guard"
    return "val" if sides.pop() else "train"


def split_of_place(place_name: str, seed: int, val_share: float) -> Split:
    """The split of all tiles of an unplaced scene."""
    return "val" if _is_val(f"place:{place_name}", seed, val_share) else "train"
