"""--content: what was seen, what a filter makes of it, or both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipelines.build import build
from sarsense.codes import decode
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.shards import TileReader
from sarsense.simulate import simulate
from sarsense.speckle import refined_lee
from sarsense.verify import verify_corpus
from tests.conftest import speckled_power, write_raster

SETTINGS = {"tile_size": 64, "shard_mib": 1, "val_share": 0.0}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Corpus]:
    root = tmp_path_factory.mktemp("content")
    simulate(root / "sim", scenes=2, size=256, looks=4.0, seed=3)
    found = {}
    for content in ("speckled", "despeckled", "both"):
        build([str(root / "sim" / "scenes")], root / content, BuildConfig(**SETTINGS, content=content), workers=0)
        found[content] = open_corpus(root / content)
    found["stack"] = found["both"]
    stack = BuildConfig(**SETTINGS, content="both", bands="stack", polarisations=("VV", "VH"))
    build([str(root / "sim" / "scenes")], root / "stack", stack, workers=0)
    found["stack"] = open_corpus(root / "stack")
    return found


def _tiles(corpus: Corpus) -> dict[str, np.ndarray]:
    reader = TileReader(corpus)
    return dict(zip(reader.keys, reader.read(np.arange(len(reader))), strict=True))


def test_both_are_the_speckled_and_the_despeckled_corpus_side_by_side(corpora):
    speckled, despeckled, both = (_tiles(corpora[name]) for name in ("speckled", "despeckled", "both"))
    assert speckled.keys() == despeckled.keys() == both.keys()
    for key, tile in both.items():
        np.testing.assert_array_equal(tile, np.concatenate((speckled[key], despeckled[key])))
    assert corpora["both"].tile_shape == (2, 64, 64)
    assert not verify_corpus(corpora["both"])


def test_a_stack_of_both_holds_all_speckled_channels_first(corpora):
    stack, both = _tiles(corpora["stack"]), _tiles(corpora["both"])
    key = next(iter(stack))
    vv, vh = both[key.replace("VV+VH", "VV")], both[key.replace("VV+VH", "VH")]
    np.testing.assert_array_equal(stack[key], np.stack((vv[0], vh[0], vv[1], vh[1])))
    row = corpora["stack"].tiles().to_pylist()[0]
    assert [(c["polarisation"], c["content"]) for c in row["channels"]] == [
        ("VV", "speckled"),
        ("VH", "speckled"),
        ("VV", "despeckled"),
        ("VH", "despeckled"),
    ]


def test_despeckled_tiles_are_those_of_the_scene_filtered_whole(corpora):
    corpus = corpora["despeckled"]
    tiles = _tiles(corpus)
    for row in corpus.tiles().to_pylist()[:8]:
        with rasterio.open(corpus.root.parent / "sim" / "scenes" / row["source"]) as dataset:
            power = dataset.read(row["band"])
        whole = refined_lee(np.where(power > 0, power, np.nan).astype(np.float32), row["enl"])
        expected = 10 * np.log10(whole[row["row"] : row["row"] + 64, row["col"] : row["col"] + 64])
        bounds = corpus.manifest["groups"][row["group"]]
        found = decode(tiles[row["key"]][0], bounds["lo_db"], bounds["hi_db"])
        step = (bounds["hi_db"] - bounds["lo_db"]) / 254
        inside = (expected > bounds["lo_db"]) & (expected < bounds["hi_db"])
        assert np.abs(found - expected)[inside].max() <= 0.51 * step
        assert row["enl_bias_db"] == 0.0 and row["content"] == "despeckled"


@pytest.mark.parametrize(
    ("name", "looks", "tags", "reason"),
    [
        (
            "S1A_IW_20180716T004042_DVP_RTC30_G_gpufed_FD5B_VV.tif",
            4.0,
            {},
            "the product's speckle was filtered already",
        ),
        ("smooth_VV.tif", 60.0, {"LOOKS": "4.4"}, "filtered already, it seems"),
    ],
)
def test_scenes_that_were_filtered_already_are_not_filtered_twice(tmp_path: Path, name, looks, tags, reason):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    write_raster(path, speckled_power((128, 128), looks, seed=1, mean_db=-10.0))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**tags)
        dataset.units = ("power",)
    build([str(path.parent)], tmp_path / "out", BuildConfig(**SETTINGS, content="both"), workers=0)
    corpus = open_corpus(tmp_path / "out")
    assert any(reason in note for note in corpus.scenes["notes"].to_pylist()[0])
    for speckled, despeckled in _tiles(corpus).values():
        np.testing.assert_array_equal(speckled, despeckled)
