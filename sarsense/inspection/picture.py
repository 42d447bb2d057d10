"""Pixels of a tile as a PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

NO_DATA = (40, 70, 130)
"""a blue that no grey has"""


def png(planes: np.ndarray, coded: bool) -> bytes:
    """A PNG of planes, uint8 (C, H, W), side by side; of codes 0 is blue."""
    grey = np.concatenate(list(planes), axis=1)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    if coded:
        rgb[grey == 0] = NO_DATA
    buffer = io.BytesIO()
    Image.fromarray(rgb if coded and (grey == 0).any() else grey).save(buffer, "PNG")
    return buffer.getvalue()
