"""Tiles of several polarisations: the channels of one file, or of several files of one product and grid."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines.build import build, scan
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.errors import SarsenseError, SettingError
from sarsense.inspection.show import show
from sarsense.inspection.source import Source, open_source
from sarsense.inspection.statistics import statistics
from sarsense.report import histogram_figure
from sarsense.shards import TileReader
from sarsense.simulate import simulate
from sarsense.verify import verify_corpus
from tests.conftest import speckled_power, write_raster

STACK = BuildConfig(tile_size=64, val_share=0.0, bands="stack", polarisations=("VV", "VH"))
SINGLE = BuildConfig(tile_size=64, val_share=0.0)


def db(seed: int, mean: float, shape: tuple[int, int] = (128, 192)) -> np.ndarray:
    return (10 * np.log10(speckled_power(shape, 4.0, seed, mean))).astype(np.float32)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stacks")
    simulate(root, scenes=2, size=192, looks=4.0, seed=2)
    return root / "scenes"


def test_a_stack_holds_the_single_tiles_of_its_polarisations_to_the_bit(scenes: Path, tmp_path: Path):
    build([str(scenes)], tmp_path / "stack", STACK, workers=0)
    build([str(scenes)], tmp_path / "single", SINGLE, workers=0)
    stack, single = open_corpus(tmp_path / "stack"), open_corpus(tmp_path / "single")
    assert stack.tile_shape == (2, 64, 64) and verify_corpus(stack) == []
    alone = {
        (row["scene"], row["polarisation"], row["row"], row["col"]): (pixels[0], row)
        for row, pixels in zip(single.tiles().to_pylist(), TileReader(single).read(np.arange(36)), strict=True)
    }
    rows = stack.tiles().to_pylist()
    assert len(rows) == 18
    for row, pixels in zip(rows, TileReader(stack).read(np.arange(18)), strict=True):
        assert row["polarisation"] == "VV+VH" and pixels.shape == (2, 64, 64)
        for channel, plane in zip(row["channels"], pixels, strict=True):
            other, facts = alone[row["scene"], channel["polarisation"], row["row"], row["col"]]
            np.testing.assert_array_equal(plane, other)
            assert all(
                channel[name] == facts[name] for name in ("group", "mean_db", "std_db", "enl", "enl_bias_db", "band")
            )
    assert stack.manifest["groups"] == single.manifest["groups"]


def test_plain_tar_reads_channels_and_their_normalisation(scenes: Path, tmp_path: Path):
    build([str(scenes)], tmp_path / "stack", STACK, workers=0)
    corpus = open_corpus(tmp_path / "stack")
    with tarfile.open(corpus.root / corpus.shards[0].path) as tar:
        array, text = tar.getmembers()[:2]
        codes = np.load(io.BytesIO(tar.extractfile(array).read()))  # type: ignore[union-attr]
        facts = json.loads(tar.extractfile(text).read())  # type: ignore[union-attr]
    assert codes.shape == (2, 64, 64) and [c["polarisation"] for c in facts["channels"]] == ["VV", "VH"]
    for plane, channel, n in zip(codes, facts["channels"], facts["normalization"], strict=True):
        level = n["lo_db"] + (plane[plane > 0] - 1.0) * (n["hi_db"] - n["lo_db"]) / 254 + n["enl_bias_db"]
        assert 10 * np.log10(np.mean(10 ** (level / 10))) == pytest.approx(channel["mean_db"], abs=0.1)


def test_files_of_one_product_and_grid_are_joined_whatever_the_workers(tmp_path: Path):
    """As in a SAFE: names that differ in more than the polarisation; one scene of another place lacks its partner."""
    folder = tmp_path / "in"
    write_raster(folder / "p" / "iw-grd-vv-001.tif", db(0, -8))
    write_raster(folder / "p" / "iw-grd-vh-002.tif", db(1, -15))
    for name, first in (("a", 2), ("b", 4)):  # one folder, one grid, told apart by their names
        write_raster(folder / "q" / f"{name}_VH.tif", db(first, -15))
        write_raster(folder / "q" / f"{name}_VV.tif", db(first + 1, -8))
    write_raster(folder / "r" / "lonely_VV.tif", db(6, -8))
    write_raster(folder / "s" / "x_VV.tif", db(7, -8))
    write_raster(folder / "s" / "x_VH.tif", db(8, -15, (128, 128)))  # another grid
    build([str(folder)], tmp_path / "one", STACK, workers=0)
    build([str(folder)], tmp_path / "two", STACK, workers=2)
    one, two = open_corpus(tmp_path / "one"), open_corpus(tmp_path / "two")
    assert one.digest == two.digest
    rows = {row["path"]: row for row in one.scenes.to_pylist()}
    assert {path: row["status"] for path, row in rows.items()} == {
        "p/iw-grd-vh-002.tif": "used",
        "p/iw-grd-vv-001.tif": "used",
        "q/a_VH.tif": "used",
        "q/a_VV.tif": "used",
        "q/b_VH.tif": "used",
        "q/b_VV.tif": "used",
        "r/lonely_VV.tif": "refused",
        "s/x_VH.tif": "refused",
        "s/x_VV.tif": "refused",
    }
    assert "VV alone, VV, VH wanted" in rows["r/lonely_VV.tif"]["reason"]
    assert rows["p/iw-grd-vv-001.tif"]["tiles"] == 6 and rows["p/iw-grd-vh-002.tif"]["tiles"] is None
    assert rows["p/iw-grd-vh-002.tif"]["notes"] == ["stacked with p/iw-grd-vv-001.tif, whose row counts the tiles"]
    for tile in one.tiles().to_pylist():
        assert [c["source"].replace("VH", "VV").replace("vh-002", "vv-001") for c in tile["channels"]] == [
            tile["source"]
        ] * 2
        assert [round(c["mean_db"]) for c in tile["channels"]] == [-8, -15]
    told = {row["path"]: row["status"] for row in scan([str(folder)], STACK)}
    assert told["r/lonely_VV.tif"] == "refused" and told["p/iw-grd-vh-002.tif"] == "usable"


def test_a_stack_that_loses_a_file_is_refused_whole(tmp_path: Path):
    folder = tmp_path / "in"
    write_raster(folder / "good_VV.tif", db(0, -8))
    write_raster(folder / "good_VH.tif", db(1, -15))
    write_raster(folder / "bad" / "x_VV.tif", db(2, -8))
    write_raster(folder / "bad" / "x_VH.tif", np.full((128, 192), 40, np.float32) + db(3, 0), units=["dB"])
    write_raster(folder / "again" / "good_VV.tif", db(0, -8))
    write_raster(folder / "again" / "good_VH.tif", db(1, -15))
    build([str(folder)], tmp_path / "corpus", BuildConfig(**{**STACK.__dict__, "unit": "db"}), workers=0)
    rows = {row["path"]: row for row in open_corpus(tmp_path / "corpus").scenes.to_pylist()}
    assert "backscatter of +40" in rows["bad/x_VH.tif"]["reason"]
    assert rows["bad/x_VV.tif"]["reason"].startswith("--bands stack: its partner bad/x_VH.tif is left out: mean VH")
    assert {path: row["status"] for path, row in rows.items() if "good" in path} == {
        "again/good_VH.tif": "used",
        "again/good_VV.tif": "used",
        "good_VH.tif": "duplicate",
        "good_VV.tif": "duplicate",
    }


def test_stack_needs_its_channels_named_and_all_refused_is_an_error(tmp_path: Path):
    with pytest.raises(SettingError, match=r"--bands stack: --polarisations with the channels in order"):
        BuildConfig(bands="stack")
    with pytest.raises(SettingError, match="each once"):
        BuildConfig(bands="stack", polarisations=("VV", "VV"))
    write_raster(tmp_path / "in" / "a_VV.tif", db(0, -8))
    with pytest.raises(SarsenseError, match=r"no usable scene.*VV alone"):
        build([str(tmp_path / "in")], tmp_path / "corpus", STACK, workers=0)


def test_reports_show_every_channel(scenes: Path, tmp_path: Path):
    build([str(scenes)], tmp_path / "stack", STACK, workers=0)
    corpus = open_corpus(tmp_path / "stack")
    (group,) = statistics(open_source(str(corpus.root)))["groups"]
    assert group["group"].count("+") == 1 and len(group["mean_db"]) == len(group["lo_db"]) == 2
    assert group["mean_db"][0] > group["mean_db"][1] + 3  # VV above VH
    show(Source(corpus.name, corpus), tmp_path / "sheet.png", count=4)
    histogram_figure(corpus, tmp_path / "histograms.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    shutil.rmtree(tmp_path / "stack")
