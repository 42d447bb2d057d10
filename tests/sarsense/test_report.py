"""Pictures of a corpus: what is on them is checked here, how they look was judged by eye."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.report import contact_sheet, corpus_statistics, footprint_map, histogram_figure, spread_choice
from sarsense.simulate import simulate
from tests.conftest import speckled_power, write_raster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four simulated scenes, two polarisations, tiles of 64 pixels."""
    root = tmp_path_factory.mktemp("report")
    simulate(root / "in", scenes=4, size=256, seed=0)
    build([str(root / "in")], root / "corpus", BuildConfig(tile_size=64, val_share=0.3, name="sheet"), workers=0)
    return open_corpus(root / "corpus")


def test_statistics_add_up(corpus: Corpus) -> None:
    statistics = corpus_statistics(corpus)
    table = corpus.tiles()
    assert statistics["tiles"] == len(table) == sum(group["tiles"] for group in statistics["groups"])
    assert statistics["digest"] == corpus.digest
    assert [g["group"] for g in statistics["groups"]] == sorted(corpus.manifest["groups"])
    for group in statistics["groups"]:
        rows = [row for row in table.to_pylist() if row["group"] == group["group"]]
        assert group["train"] + group["val"] == group["tiles"] == len(rows)
        assert group["scenes"] == 4
        assert group["mean_db"] == pytest.approx(np.mean([row["mean_db"] for row in rows]), abs=0.01)
        assert group["step_db"] == pytest.approx((group["hi_db"] - group["lo_db"]) / 254, abs=1e-4)
    assert statistics["bytes"] == sum((corpus.root / s.path).stat().st_size for s in corpus.shards)


def test_choice_is_spread_over_groups_and_scenes() -> None:
    labels = [(group, f"{group}{scene}") for group in "ab" for scene in range(3) for _ in range(50)] + [("c", "c0")]
    chosen = spread_choice(labels, 13, seed=0)
    assert len(set(chosen)) == 13
    assert Counter(labels[i][0] for i in chosen) == {"a": 6, "b": 6, "c": 1}
    assert set(Counter(labels[i] for i in chosen).values()) == {1, 2}
    assert chosen == spread_choice(labels, 13, seed=0) != spread_choice(labels, 13, seed=1)
    assert sorted(spread_choice(labels, 10_000, seed=0)) == list(range(len(labels)))


def test_contact_sheet_shows_the_codes_and_is_the_same_twice(corpus: Corpus, tmp_path: Path) -> None:
    contact_sheet(corpus, tmp_path / "a.png", count=7, columns=3, seed=1)
    contact_sheet(corpus, tmp_path / "b.png", count=7, columns=3, seed=1)
    contact_sheet(corpus, tmp_path / "c.png", count=7, columns=3, seed=2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # 7 tiles of 3 a row: three rows; greys fill about 7 tile areas of the sheet
    grey = (np.ptp(pixels, axis=2) == 0) & (pixels[..., 0] > 20) & (pixels[..., 0] < 235)
    assert grey.mean() == pytest.approx(7 * 1.75**2 / ((3 * 1.87 + 0.12) * (0.5 + 3 * 2.23)), rel=0.25)


def test_sheet_of_more_than_there_is_shows_all(corpus: Corpus, tmp_path: Path) -> None:
    contact_sheet(corpus, tmp_path / "few.png", count=1, columns=6)
    with Image.open(tmp_path / "few.png") as image:
        assert image.width < 300
    with pytest.raises(SettingError, match="--count"):
        contact_sheet(corpus, tmp_path / "none.png", count=0)


def test_histogram_and_map_are_drawn(corpus: Corpus, tmp_path: Path) -> None:
    histogram_figure(corpus, tmp_path / "histogram.png")
    footprint_map(corpus, tmp_path / "map.png")
    for name in ("histogram.png", "map.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 600
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_a_corpus_without_places_has_no_map(tmp_path: Path) -> None:
    db = 10 * np.log10(speckled_power((64, 64), 4.0, 0))
    write_raster(tmp_path / "in/x_VV.tif", db, crs=None)
    config = BuildConfig(tile_size=32, allow_unplaced=True)
    build([str(tmp_path / "in")], tmp_path / "corpus", config, workers=0)
    corpus = open_corpus(tmp_path / "corpus")
    contact_sheet(corpus, tmp_path / "sheet.png")  # a sheet needs no place
    with pytest.raises(CorpusError, match="no tile has a footprint"):
        footprint_map(corpus, tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()
