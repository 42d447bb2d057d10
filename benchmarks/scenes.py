"""Scenes to build from: speckled amplitude as providers deliver it, each of its own pixels, far apart on the ground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

_ROWS = 1024
KINDS: dict[str, dict[str, Any]] = {
    "tiled": {"tiled": True, "blockxsize": 512, "blockysize": 512},
    "striped": {"blockysize": 1},
    "deflate": {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2},
    "zstd COG": {"driver": "COG", "compress": "zstd", "predictor": "yes", "overviews": "none"},
}


def write_scenes(folder: Path, number: int, side: int, kind: str = "tiled", dtype: str = "uint16") -> list[Path]:
    """`number` GeoTIFFs of side x side pixels: 4 looks over fields of other levels. Speckle is drawn once, and shifted
    from scene to scene by primes, so that no two tiles are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    fields = np.kron(rng.gamma(2.0, 0.5, (side // 256, side // 256)), np.ones((256, 256)))
    speckle = rng.standard_gamma(4.0, (_ROWS, side)).astype(np.float32) / 4
    paths = []
    for index in range(number):
        path = folder / f"scene{index:04d}_VV.tif"
        profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": dtype}
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 3e5, 0, -10, 8e6 - 1e5 * index)}
        settings = KINDS[kind]
        cog = settings.get("driver") == "COG"
        direct = {"tiled": True} if cog else settings
        with rasterio.open(path, "w", **{**profile, **place, **direct}) as dataset:
            for row in range(0, side, _ROWS):
                rows = min(_ROWS, side - row)
                shifted = np.roll(speckle, (7919 * index + 104_729 * row) % (_ROWS * side))
                power = np.roll(fields, 37 * index, axis=1)[row : row + rows] * shifted[:rows]
                values = 150 * np.sqrt(power) + 1
                if np.issubdtype(np.dtype(dtype), np.floating):
                    values /= 1000  # calibrated, as floats are; integers are digital numbers
                dataset.write(values.astype(dtype), 1, window=Window(0, row, side, rows))  # type: ignore[call-arg]
        if cog:
            plain = path.rename(path.with_suffix(".plain"))
            copy_raster(plain, path, **settings)
            plain.unlink()
        paths.append(path)
    return paths
