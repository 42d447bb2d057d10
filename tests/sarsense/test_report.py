"""Pictures of a corpus: what is on them is checked here, how they look was judged by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import CorpusError
from sarsense.report import footprint_map, histogram_figure
from sarsense.simulate import simulate
from tests.conftest import speckled_power, write_raster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four simulated scenes, two polarisations, tiles of 64 pixels."""
    root = tmp_path_factory.mktemp("report")
    simulate(root / "in", scenes=4, size=256, seed=0)
    build([str(root / "in")], root / "corpus", BuildConfig(tile_size=64, val_share=0.3, name="sheet"), workers=0)
    return open_corpus(root / "corpus")


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
    with pytest.raises(CorpusError, match="no tile has a footprint"):
        footprint_map(corpus, tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()
