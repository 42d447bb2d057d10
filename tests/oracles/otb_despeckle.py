"""Makes tests/oracles/otb_despeckle.npz: what Orfeo ToolBox makes of a small speckled image.

    apt-get install --no-install-recommends otb-bin
    python -m tests.oracles.otb_despeckle

The image is drawn here, so that the file holds no data of others. `run_otb` is what the live test calls as well.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import rasterio

FROZEN = Path(__file__).with_suffix(".npz")
LOOKS, RADIUS, DAMPING = 4.0, 3, 0.1
OPTIONS = {
    "lee": ["-filter", "lee", "-filter.lee.rad", str(RADIUS), "-filter.lee.nblooks", str(LOOKS)],
    "kuan": ["-filter", "kuan", "-filter.kuan.rad", str(RADIUS), "-filter.kuan.nblooks", str(LOOKS)],
    "gamma_map": ["-filter", "gammamap", "-filter.gammamap.rad", str(RADIUS), "-filter.gammamap.nblooks", str(LOOKS)],
    "frost": ["-filter", "frost", "-filter.frost.rad", str(RADIUS), "-filter.frost.deramp", str(DAMPING)],
}


def image() -> np.ndarray:
    """float32 (56, 64): fields, an edge, texture and a bright point under speckle of four looks."""
    rng = np.random.default_rng(20)
    ground = np.full((56, 64), 0.05)
    ground[:, 30:] = 0.4
    ground[28:, :20] *= rng.gamma(2.0, 0.5, (28, 20))
    ground[12, 12] = 20.0
    return (ground * rng.gamma(LOOKS, 1 / LOOKS, ground.shape)).astype(np.float32)


def run_otb(power: np.ndarray, name: str) -> np.ndarray:
    """The image as OTB filters it, float32."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.tif", Path(folder) / "out.tif"
        profile = {"driver": "GTiff", "height": power.shape[0], "width": power.shape[1], "count": 1, "dtype": "float32"}
        profile |= {"transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000), "crs": "EPSG:32632"}
        with rasterio.open(source, "w", **profile) as dataset:
            dataset.write(power, 1)
        command = ["otbcli_Despeckle", "-in", str(source), "-out", str(out), "float", *OPTIONS[name]]
        subprocess.run(command, check=True, capture_output=True)
        with rasterio.open(out) as dataset:
            return dataset.read(1)


if __name__ == "__main__":
    power = image()
    np.savez_compressed(FROZEN, power=power, **{name: run_otb(power, name) for name in OPTIONS})
    print(FROZEN, FROZEN.stat().st_size, "bytes")
