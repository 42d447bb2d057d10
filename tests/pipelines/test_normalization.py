"""--normalization, --bits, --stats-from and `sarsense stats`: against the formulas, written out here once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from typer.testing import CliRunner

from cli import sarsense_app
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import CorpusError, SarsenseError, SettingError
from sarsense.inspection.show import show
from sarsense.inspection.source import Source
from sarsense.report import histogram_figure, statistics_figure
from sarsense.shards import TileReader
from sarsense.simulate import simulate
from sarsense.speckle import boxcar
from sarsense.verify import verify_corpus
from tests.conftest import speckled_power, write_raster

SETTINGS: dict[str, Any] = {"tile_size": 64, "shard_mib": 1, "val_share": 0.0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("normalization")
    simulate(root / "sim", scenes=3, size=192, looks=4.0, seed=5)
    return root / "sim" / "scenes"


def _build(scenes: Path | str, out: Path, stats_from: Path | None = None, **settings: Any) -> Corpus:
    build([str(scenes)], out, BuildConfig(**{**SETTINGS, **settings}), workers=0, stats_from=stats_from)
    corpus = open_corpus(out)
    assert verify_corpus(corpus) == []
    return corpus


@pytest.fixture(scope="module")
def by_group(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return _build(scenes, tmp_path_factory.mktemp("group") / "corpus")


def _power(scenes: Path, row: dict[str, Any]) -> np.ndarray:
    with rasterio.open(scenes / row["source"]) as dataset:
        power = dataset.read(row["band"])[row["row"] : row["row"] + 64, row["col"] : row["col"] + 64]
    return np.where(power > 0, power, np.nan)


def _tiles(corpus: Corpus) -> list[tuple[dict[str, Any], np.ndarray]]:
    reader = TileReader(corpus)
    return list(zip(corpus.tiles().to_pylist(), reader.read(np.arange(len(reader)))[:, 0], strict=True))


def test_fixed_is_a_plain_clip_of_decibels(scenes: Path, tmp_path: Path) -> None:
    for row, codes in _tiles(_build(scenes, tmp_path / "out", normalization="fixed")):
        low, high = {"VV": (-30, 5), "VH": (-35, 0)}[row["polarisation"]]
        db = 10 * np.log10(_power(scenes, row).astype(np.float64))
        place = np.where(np.isnan(db), 0, 1 + 254 * np.clip((db - low) / (high - low), 0, 1))
        assert np.abs(codes - place).max() <= 0.501
        assert (row["lo_db"], row["hi_db"], row["enl_bias_db"]) == (low, high, 0.0)


def test_fixed_refuses_what_has_no_calibration(tmp_path: Path) -> None:
    dn = np.sqrt(speckled_power((64, 64), 4.0, seed=1)) * 300
    write_raster(tmp_path / "in/dn_VV.tif", dn.astype(np.uint16))
    with pytest.raises(SarsenseError, match=r"VV is uncalibrated .*--normalization group"):
        _build(tmp_path / "in", tmp_path / "out", normalization="fixed")


def test_by_scene_the_darker_of_two_scenes_is_coded_like_the_brighter(tmp_path: Path) -> None:
    power = speckled_power((128, 128), 4.0, seed=1, mean_db=-8.0)
    for name, gain in (("a", 1.0), ("b", 10**-1.033)):
        write_raster(tmp_path / f"in/{name}_VV.tif", (power * np.float32(gain)).astype(np.float32), units=("power",))
    corpus = _build(tmp_path / "in", tmp_path / "out", normalization="scene")
    tiles = {(row["source"], row["row"], row["col"]): (row, codes) for row, codes in _tiles(corpus)}
    assert len(tiles) == 8
    for (name, *place), (row, codes) in tiles.items():
        other, dark = tiles["b_VV.tif", place[0], place[1]]
        assert row["lo_db"] - other["lo_db"] == pytest.approx(10.33 if name == "a_VV.tif" else 0.0, abs=0.15)
        assert np.abs(codes.astype(int) - dark).max() <= 2
    assert corpus.manifest["groups"]["unknown/unknown/VV/backscatter"]["lo_db"] is None


@pytest.mark.parametrize("normalization", ["group", "scene"])
def test_sixteen_bits_come_back_to_half_a_step(scenes: Path, tmp_path: Path, normalization: str) -> None:
    corpus = _build(scenes, tmp_path / "out", bits=16, normalization=normalization)
    assert corpus.dtype == np.uint16
    for row, codes in _tiles(corpus):
        db = 10 * np.log10(_power(scenes, row).astype(np.float64))
        step = (row["hi_db"] - row["lo_db"]) / 65534
        back = row["lo_db"] + (codes - 1.0) * step + row["enl_bias_db"]
        inside = (codes > 1) & (codes < 65535)
        assert inside.mean() > 0.9 and np.abs(back - db)[inside].max() <= 0.5 * step + 1e-5
        np.testing.assert_array_equal(codes == 0, np.isnan(db))


def test_eight_bits_of_a_sixteen_bit_corpus_are_those_of_an_eight_bit_one(scenes, by_group, tmp_path) -> None:
    fine = TileReader(_build(scenes, tmp_path / "out", bits=16), eight_bit=True)
    eight = TileReader(by_group)
    assert fine.keys == eight.keys
    off = np.abs(fine.read(np.arange(len(fine))).astype(int) - eight.read(np.arange(len(eight))))
    assert off.max() <= 1 and np.mean(off > 0) < 0.01


def test_stats_from_codes_a_scene_as_if_it_had_been_there(scenes: Path, by_group: Corpus, tmp_path: Path) -> None:
    one = sorted(scenes.glob("*"))[1]
    alone = _build(one, tmp_path / "out", stats_from=by_group.root)
    whole = dict(zip(by_group.tiles()["key"].to_pylist(), _tiles(by_group), strict=True))
    for row, codes in _tiles(alone):
        np.testing.assert_array_equal(codes, whole[row["key"]][1])
    assert alone.manifest["groups"] == by_group.manifest["groups"]
    assert alone.manifest["stats_from"] == {"corpus": "corpus", "version": "1.0.0", "digest": by_group.digest}
    # what was measured here stays what was measured here
    assert alone.manifest["statistics"]["SIM/simulated/VV/backscatter"]["scenes"] == 1
    again = build([str(one)], tmp_path / "out", BuildConfig(**SETTINGS), workers=0, stats_from=by_group.root)
    assert again.already_built
    with pytest.raises(CorpusError, match=r"made with other settings \(--stats-from\)"):
        build([str(one)], tmp_path / "out", BuildConfig(**SETTINGS), workers=0)


def test_stats_from_refuses_unknown_groups_and_says_what_it_clips(by_group: Corpus, tmp_path: Path) -> None:
    strange = speckled_power((64, 64), 4.0, seed=1)
    write_raster(tmp_path / "in/x_HH.tif", strange, units=("power",))
    with pytest.raises(
        SarsenseError,
        match=r"no dB range for unknown/unknown/HH/backscatter: corpus corpus has SIM.*leave that corpus out",
    ):
        _build(tmp_path / "in", tmp_path / "out", stats_from=by_group.root)
    with pytest.raises(SettingError, match="leave one of the two out"):
        _build(tmp_path / "in", tmp_path / "out", stats_from=by_group.root, normalization="scene")
    bright = _build_like(by_group, tmp_path)
    note = " ".join(note for notes in bright.scenes["notes"].to_pylist() for note in notes or [])
    assert "100.0% of its VV lies above the range" in note


def _build_like(corpus: Corpus, tmp_path: Path) -> Corpus:
    """A scene of a group of `corpus`, far brighter than all of its ground."""
    simulate(tmp_path / "sim", scenes=1, size=64, looks=4.0, seed=9, polarisations=("VV",))
    (path,) = (tmp_path / "sim/scenes").glob("*")
    with rasterio.open(path, "r+") as dataset:
        dataset.write(dataset.read() * np.float32(10**3.0))
    return _build(path, tmp_path / "bright", stats_from=corpus.root, min_valid=0.01)


def test_stats_say_what_the_ground_is(scenes: Path, by_group: Corpus, tmp_path: Path) -> None:
    told = CliRunner().invoke(sarsense_app, ["stats", str(by_group.root), "--json"])
    assert told.exit_code == 0, told.output
    stats = json.loads(told.output)
    assert (stats["normalization"], stats["bits"], stats["stats_from"]) == ("group", 8, None)
    for row in stats["groups"]:
        band = {"VV": 1, "VH": 2}[row["group"].split("/")[2]]
        ground = []
        for path in sorted(scenes.glob("*")):
            with rasterio.open(path) as dataset:
                power = dataset.read(band)
            blurred = boxcar(np.where(power > 0, power, np.nan).astype(np.float32))
            counted = blurred[::2]  # of every second row
            ground.append(10 * np.log10(counted[np.isfinite(counted)]))
        pooled = np.concatenate(ground)
        assert (row["scenes"], row["pixels"]) == (3, pooled.size)
        for percent in (0.1, 50, 99.9):
            assert row[f"db_{percent:g}"] == pytest.approx(np.percentile(pooled, percent), abs=0.11)
    plot = tmp_path / "stats.png"
    told = CliRunner().invoke(sarsense_app, ["stats", str(by_group.root), "--plot", str(plot)])
    assert told.exit_code == 0 and str(plot) in told.output and "normalised by group, speckled, 8 bits" in told.output
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_corpus_of_another_format_is_refused_in_a_sentence(scenes: Path, tmp_path: Path) -> None:
    corpus = _build(scenes, tmp_path / "out")
    manifest = json.loads((corpus.root / "corpus.json").read_text())
    for found, told in ((1, "build the corpus again"), (99, "upgrade sarsense")):
        (corpus.root / "corpus.json").write_text(json.dumps({**manifest, "format": found}))
        with pytest.raises(CorpusError, match=rf"corpus\.json: corpus format {found}, .*{told}"):
            open_corpus(corpus.root)


@pytest.mark.parametrize("normalization", ["group", "scene", "fixed"])
def test_the_codes_of_all_normalisations_can_be_drawn(scenes: Path, tmp_path: Path, normalization: str) -> None:
    corpus = _build(scenes, tmp_path / "out", normalization=normalization, content="both", bits=16)
    histogram_figure(corpus, tmp_path / "histogram.png")
    statistics_figure(corpus, tmp_path / "statistics.png")
    show(Source(corpus.name, corpus), tmp_path / "sheet.png", count=6)
    for name in ("histogram", "statistics", "sheet"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 600
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
