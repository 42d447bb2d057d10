"""Scenes built in code, and the real data where it is there."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import settings

from tests.object_store import ObjectStore, object_store

os.environ["GDAL_HTTP_RETRY_DELAY"] = "0.05"  # what a server does not answer is soon asked again

# the same examples in each run, so that a change is judged by itself; `--hypothesis-profile explore` looks further
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("suite")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_cli.py")  # the longest file first: the others fill up beside it


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def real_data() -> Path:
    if not (REAL_DATA / "README.md").is_file():
        pytest.skip(f"real SAR data is not at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four simulated scenes of two polarisations."""
    from sarsense.simulate import simulate

    root = tmp_path_factory.mktemp("scenes")
    simulate(root, scenes=4, size=320, looks=4.0, seed=1)
    return root / "scenes"


@pytest.fixture(scope="module")
def reference(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of `scenes`, built undisturbed, in this process, with the settings of `tests.pipelines.small`."""
    from pipelines.build import build
    from tests.pipelines.small import CONFIG

    out = tmp_path_factory.mktemp("reference") / "corpus"
    summary = build([str(scenes)], out, CONFIG, workers=0)
    assert summary.scenes_used == 4 and sum(summary.tiles.values()) > 100 and summary.shards >= 2
    return out


def speckled_power(shape: tuple[int, int], looks: float, seed: int, mean_db: float = -10.0) -> np.ndarray:
    """Linear power of homogeneous ground under Gamma(L, 1/L) speckle, float32."""
    rng = np.random.default_rng(seed)
    return (10 ** (mean_db / 10) * rng.gamma(looks, 1 / looks, shape)).astype(np.float32)


def write_raster(path: Path, bands: np.ndarray | list[np.ndarray], **settings: Any) -> Path:
    """A GeoTIFF, placed in UTM 33N at 10 m unless `crs`/`transform` say otherwise (crs=None: unplaced)."""
    layers = [bands] if isinstance(bands, np.ndarray) and bands.ndim == 2 else list(bands)
    extra = {name: settings.pop(name, None) for name in ("descriptions", "units", "tags", "gcps")}
    profile = {
        "driver": "GTiff",
        "height": layers[0].shape[0],
        "width": layers[0].shape[1],
        "count": len(layers),
        "dtype": layers[0].dtype,
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
        **settings,
    }
    if profile["crs"] is None or extra["gcps"]:
        profile.pop("transform")
        profile.pop("crs")
    path.parent.mkdir(parents=True, exist_ok=True)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", **profile) as dataset:
            for index, layer in enumerate(layers, 1):
                dataset.write(layer, index)
            if extra["descriptions"]:
                dataset.descriptions = extra["descriptions"]
            if extra["units"]:
                dataset.units = extra["units"]
            if extra["tags"]:
                dataset.update_tags(**extra["tags"])
            if extra["gcps"]:
                dataset.gcps = extra["gcps"]
    return path


@pytest.fixture
def scene_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a placed scene of homogeneous speckle (dB, so that its unit is plain) and return its path."""

    def write(name: str = "scene_VV.tif", shape: tuple[int, int] = (160, 200), seed: int = 0, **settings: Any) -> Path:
        db = 10 * np.log10(speckled_power(shape, 4.0, seed))
        return write_raster(tmp_path / "in" / name, db.astype(np.float32), **settings)

    return write


@pytest.fixture(scope="session")
def _one_store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def store(_one_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An S3-speaking server, well-behaved at first, and the environment of who uses it."""
    _one_store.behave()
    for name, value in _one_store.environment.items():
        monkeypatch.setenv(name, value)
    return _one_store


@pytest.fixture(scope="session")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 272 train tiles of 128 px in six shards, none of val."""
    from pipelines.build import build
    from sarsense.config import BuildConfig
    from sarsense.corpus import open_corpus
    from sarsense.simulate import simulate

    root = tmp_path_factory.mktemp("many")
    simulate(root / "sim", scenes=4, size=768, looks=4.0, seed=0)
    config = BuildConfig(tile_size=128, val_share=0, shard_mib=1)
    build([str(root / "sim" / "scenes")], root / "corpus", config, workers=0)
    assert len(open_corpus(root / "corpus").shards) == 6
    return root / "corpus"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar as another program writes it: members by name, in order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
