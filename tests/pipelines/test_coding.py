"""Scenes that no corpus holds are coded as a corpus would have coded them, window by window."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS

from dic3l.errors import ConfigError, Dic3lError
from pipelines.build import build
from pipelines.coding import AS_THEY_ARE, CodedScene, Coding, coded_scene, coded_scenes, coding_of
from sarsense.catalogue import Stated
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import SceneError
from sarsense.raster import pixel_window
from sarsense.shards import TileReader
from sarsense.simulate import simulate
from tests.conftest import speckled_power, write_raster


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of VV and VH, 256 x 256."""
    root = tmp_path_factory.mktemp("simulated")
    simulate(root, scenes=3, size=256, looks=4.0, seed=0)
    return root / "scenes"


def _corpus(simulated: Path, out: Path, **settings: Any) -> Corpus:
    build([str(simulated)], out, BuildConfig(tile_size=128, val_share=0.0, **settings), workers=0)
    return open_corpus(out)


def _whole(scene: CodedScene) -> np.ndarray:
    _, height, width = scene.shape
    return scene.read(pixel_window(0, 0, width, height))


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"content": "despeckled"},
        {"content": "both"},
        {"normalization": "fixed"},
        {"normalization": "scene"},
        {"calibrate": "gamma0"},
    ],
    ids=lambda made: "-".join(map(str, made.values())) or "default",
)
def test_a_coding_that_was_saved_gives_the_codes_of_the_corpus(simulated: Path, tmp_path: Path, made: Any) -> None:
    corpus = _corpus(simulated, tmp_path / "corpus", **made)
    coding = Coding.from_json(json.loads(json.dumps(coding_of(corpus).to_json())))
    assert coding == coding_of(corpus)
    tiles, reader = corpus.tiles().to_pylist(), TileReader(corpus)
    channel = 0  # of `both`, what was seen comes first
    compared = 0
    for path in sorted(simulated.glob("*.tif")):
        codes = _whole(coded_scene(path, coding))
        for index, tile in enumerate(tiles):
            if tile["source"] == path.name:
                band = ["VV", "VH"].index(tile["polarisation"])
                expected = reader.read(np.array([index]))[0]
                at = np.s_[tile["row"] : tile["row"] + 128, tile["col"] : tile["col"] + 128]
                np.testing.assert_array_equal(codes[band][at], expected[channel])
                compared += 1
    assert compared == len(tiles) >= 20


@pytest.fixture(scope="module")
def despeckled(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CodedScene, np.ndarray]:
    corpus = _corpus(simulated, tmp_path_factory.mktemp("despeckled") / "corpus", content="despeckled")
    scene = coded_scene(simulated / "sim-000.tif", coding_of(corpus))
    return scene, _whole(coded_scene(simulated / "sim-000.tif", coding_of(corpus)))


@settings(max_examples=60)
@given(data=st.data())
def test_windows_are_parts_of_the_whole_in_any_order(
    despeckled: tuple[CodedScene, np.ndarray], data: st.DataObject
) -> None:
    """Also where a filter looks beyond the window, and whichever rows were read before."""
    scene, whole = despeckled
    for _ in range(3):
        top, left = data.draw(st.integers(0, 255)), data.draw(st.integers(0, 255))
        height, width = data.draw(st.integers(1, 256 - top)), data.draw(st.integers(1, 256 - left))
        codes = scene.read(pixel_window(left, top, width, height))
        np.testing.assert_array_equal(codes, whole[:, top : top + height, left : left + width])
        codes[:] = 7  # what is handed out is the caller's


def test_memory_is_that_of_the_rows_of_a_window(tmp_path: Path) -> None:
    tile = speckled_power((512, 1024), 4.0, 0)
    path = tmp_path / "wide_VV.tif"
    profile = {"driver": "GTiff", "width": 8192, "height": 5120, "count": 1, "dtype": "float32", "crs": "EPSG:32633"}
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", **profile, transform=transform, tiled=True, blockxsize=512, blockysize=512) as file:
        for row in range(0, 5120, 512):
            file.write(np.tile(tile, (1, 8)), 1, window=pixel_window(0, row, 8192, 512))
        file.units = ("power",)
    scene = coded_scene(path, Coding("fixed"))
    reads = 0
    read_codes = scene.read_codes

    def counted(first: int, last: int, out: np.ndarray) -> None:
        nonlocal reads
        reads += last - first
        read_codes(first, last, out)

    scene.read_codes = counted
    tracemalloc.start()
    for row in range(0, 5120 - 256, 256):
        for col in range(0, 8192, 512):
            assert scene.read(pixel_window(col, row, 512, 512)).shape == (1, 512, 512)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reads == 5120  # windows overlap by half, and each row is read once
    assert peak < 50e6  # the scene is 168 MB, a strip of 128 rows in float32 4 MB


def test_ranges_measured_on_scenes_are_those_of_a_corpus_of_them(simulated: Path, tmp_path: Path) -> None:
    corpus = _corpus(simulated, tmp_path / "corpus")
    measured, scenes = coded_scenes(sorted(simulated.glob("*.tif")), None)
    assert measured.groups == coding_of(corpus).groups
    again = coded_scene(simulated / "sim-001.tif", measured)
    np.testing.assert_array_equal(_whole(scenes[1]), _whole(again))
    assert again.polarisations == ("VV", "VH")
    with rasterio.open(simulated / "sim-001.tif") as dataset:
        assert again.transform == tuple(dataset.transform)[:6]
        assert CRS.from_user_input(again.crs) == dataset.crs


def _coding(*groups: str) -> Coding:
    """Ranges that tell the groups apart: from -30 dB, each 10 dB wider than the one before."""
    bounds = {"pixels": 1, "speckle_std_db": 1.0}
    return Coding("group", "speckled", {g: {"lo_db": -30.0, "hi_db": 10.0 * n, **bounds} for n, g in enumerate(groups)})


def test_a_file_that_says_less_than_the_corpus_takes_the_range_that_alone_may_be_its(tmp_path: Path) -> None:
    db = (10 * np.log10(speckled_power((64, 64), 4.0, 0))).astype(np.float32)
    path = write_raster(tmp_path / "chip.tif", [db, db], units=("dB", "dB"))
    coding = _coding("S1/IW/VV/sigma0", "S1/IW/VH/sigma0", "TSX/SM/HH/sigma0")
    scene = coded_scene(path, coding, polarisations=("VV", "VH"))
    assert scene.polarisations == ("VV", "VH")
    wide, wider = _whole(scene).astype(float)
    np.testing.assert_allclose((wide - 1) * 30 / 254, (wider - 1) * 40 / 254, atol=0.2)  # dB above -30

    named = write_raster(tmp_path / "chip_VV.tif", db, units=("dB",))
    with pytest.raises(ConfigError, match=r"chip_VV\.tif: unknown/unknown/VV/backscatter may be any of S1/IW.*TSX/SM"):
        coded_scene(named, _coding("S1/IW/VV/sigma0", "TSX/SM/VV/sigma0"))
    stated = coded_scene(named, _coding("S1/IW/VV/sigma0", "TSX/SM/VV/sigma0"), Stated(sensor="S1", mode="IW"))
    np.testing.assert_array_equal(_whole(stated)[0], wide)
    for other in ("S1/IW/VH/sigma0", "S1/IW/VV/uncalibrated", "S1/IW/VV/display"):
        with pytest.raises(ConfigError, match="no dB range for unknown/unknown/VV/backscatter"):
            coded_scene(named, _coding(other))
    with pytest.raises(ConfigError, match="no dB range for S1/IW/VV/backscatter"):
        coded_scene(named, _coding("TSX/SM/VV/sigma0"), Stated(sensor="S1", mode="IW"))


def test_pictures_are_codes_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_raster(tmp_path / "b_HH.tif", pixels, nodata=3)
    plain, tagged = (coded_scene(tmp_path / name, AS_THEY_ARE) for name in ("a.png", "b_HH.tif"))
    np.testing.assert_array_equal(_whole(plain)[0], pixels)
    np.testing.assert_array_equal(_whole(tagged)[0], np.where(pixels == 3, 0, pixels))
    assert (plain.polarisations, plain.crs, plain.transform) == (("b1",), None, None)
    assert tagged.polarisations == ("HH",) and tagged.crs == "EPSG:32633"
    Image.fromarray(np.stack([pixels] * 3, axis=2)).save(tmp_path / "c.png")
    with pytest.raises(SceneError, match=r"c\.png: 8-bit grey values expected, a colour picture"):
        coded_scene(tmp_path / "c.png", AS_THEY_ARE)
    write_raster(tmp_path / "d.tif", pixels.astype(np.float32))
    with pytest.raises(SceneError, match=r"d\.tif: 8-bit pixels.*float32 found"):
        coded_scene(tmp_path / "d.tif", AS_THEY_ARE)
    write_raster(tmp_path / "e.tif", (pixels > 99).astype(np.uint8))
    with pytest.raises(SceneError, match=r"e\.tif: looks like a class map"):
        coded_scene(tmp_path / "e.tif", AS_THEY_ARE)


def test_what_is_no_coding_and_what_is_no_window_are_refused(simulated: Path) -> None:
    for value in ({}, {"normalization": "group", "more": 1}, {"normalization": "group", "groups": {"a": {"lo_db": 0}}}):
        with pytest.raises(Dic3lError, match="not a coding"):
            Coding.from_json(value)
    with pytest.raises(Dic3lError, match="'histogram'"):
        Coding.from_json({"normalization": "histogram"})
    scene = coded_scene(simulated / "sim-000.tif", Coding("fixed"))
    with pytest.raises(SceneError, match=r"sim-000\.tif: rows 200 to 300.*256 x 256"):
        scene.read(pixel_window(0, 200, 10, 100))
    with pytest.raises(SceneError, match=r"nowhere\.tif"):
        coded_scene(simulated / "nowhere.tif", Coding("fixed"))
