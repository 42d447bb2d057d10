"""What `shards stats` counts, against pandas over the same rows; and what is said where nothing is known."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.big_table import make
from sarsense.corpus import open_corpus
from sarsense.errors import SettingError
from sarsense.inspection.source import Source, open_source
from sarsense.inspection.statistics import OVERVIEW, statistics
from sarsense.report.classes import COLUMNS, with_classes
from sarsense.report.overview import overview_figure


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("statistics") / "corpus", 6_000)


@pytest.fixture(scope="module")
def source(root: Path) -> Source:
    return open_source(str(root))


@pytest.fixture(scope="module")
def rows(source: Source) -> pd.DataFrame:
    """Every tile, with its classes."""
    assert source.corpus is not None
    table = source.corpus.tiles(
        columns=[*COLUMNS, "key", "group", "bytes", "mean_db", "std_db", "enl", "valid_fraction"]
    )
    return with_classes(table).to_pandas()


def _check(found: list[dict[str, Any]], rows: pd.DataFrame, names: list[str], kinds: pd.DataFrame) -> None:
    expected = {key if isinstance(key, tuple) else (key,): part for key, part in rows.groupby(names, dropna=False)}
    assert len(found) == len(expected)
    for row in found:
        part = expected[tuple(row[name] for name in names)]
        assert row["tiles"] == len(part) and row["scenes"] == part["scene"].nunique()
        assert row["bytes"] == part["bytes"].sum()
        assert row["valid"] == pytest.approx(part["valid_fraction"].mean(), abs=1e-4)
        assert row["median_enl"] == pytest.approx(part["enl"].median(), abs=0.006)
        assert row["texture_db"] == pytest.approx(part["std_db"].mean(), abs=0.006)
        if part["group"].str.rpartition("/")[2].nunique() > 1:
            assert row["mean_db"] is None and row["spread_db"] is None
        else:
            assert row["mean_db"] == pytest.approx(part["mean_db"].mean(), abs=0.006)
            assert row["spread_db"] == pytest.approx(part["mean_db"].std(), abs=0.006)
        mine = kinds[kinds["kept"].isin(part["key"])]["kind"].value_counts()
        assert row["duplicates"] == mine.to_dict()


def test_rows_are_those_of_pandas(source: Source, rows: pd.DataFrame) -> None:
    assert source.corpus is not None
    kinds = source.corpus.duplicates.to_pandas()
    told = statistics(source)
    assert list(told["by"]) == list(OVERVIEW) and told["tiles"] == len(rows)
    for name, found in told["by"].items():
        _check(found, rows, [name], kinds)
    assert told["duplicates"] == kinds["kind"].value_counts().to_dict()
    assert told["splits"] == rows["split"].value_counts().to_dict()
    assert told["digest"] == source.corpus.digest and told["bytes"] == sum(s.bytes for s in source.corpus.shards)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize("by", [["year"], ["sensor", "season"], ["split", "polarisation", "month"], ["scene"]])
def test_any_columns_of_any_tiles(source: Source, rows: pd.DataFrame, by: list[str]) -> None:
    assert source.corpus is not None
    told = statistics(source, by, "enl < 4 and lat > 0 -- a comment")
    part = rows[(rows["enl"] < 4) & (rows["lat"] > 0)]
    assert told["tiles"] == len(part) > 0
    _check(told["by"][",".join(by)], part, by, source.corpus.duplicates.to_pandas())


def test_groups_have_their_ranges(source: Source, rows: pd.DataFrame) -> None:
    assert source.corpus is not None
    groups = statistics(source)["groups"]
    assert [row["group"] for row in groups] == sorted(rows["group"].unique())
    for row in groups:
        part, bounds = rows[rows["group"] == row["group"]], source.corpus.manifest["groups"][row["group"]]
        assert row["train"] + row["val"] == row["tiles"] == len(part)
        assert row["mean_db"] == pytest.approx(part["mean_db"].mean(), abs=0.006)
        assert (row["lo_db"], row["hi_db"]) == (bounds["lo_db"], bounds["hi_db"])
        assert row["step_db"] == pytest.approx((row["hi_db"] - row["lo_db"]) / 254, abs=1e-4)


def test_shards_of_a_corpus_are_counted_alone(root: Path, rows: pd.DataFrame) -> None:
    told = statistics(open_source(str(root / "val" / "*.tar")))
    assert told["splits"] == {"val": (rows["split"] == "val").sum()} and told["tiles"] == told["splits"]["val"]
    assert told["shards"] == len(list((root / "val").glob("*.tar")))
    assert sum(told["duplicates"].values()) < sum(statistics(open_source(str(root)))["duplicates"].values())


def test_wrong_columns_are_told(source: Source) -> None:
    for by, words in (
        (["sensr"], "no column sensr; there are key"),
        (["channels"], "channels is a list"),
        (["footprint"], "footprint is a list or a geometry"),
        (["split", "sensor", "mode", "month"], "up to 3 columns"),
    ):
        with pytest.raises(SettingError, match=words):
            statistics(source, by)
    with pytest.raises(SettingError, match="--where"):
        statistics(source, None, "sensor = ")
    assert statistics(source, None, "enl < 0")["by"]["sensor"] == []


def test_of_other_tars_what_nobody_says_is_unknown(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for number in range(3):
            path = tmp_path / f"{number}.npy"
            np.save(path, np.zeros((4, 4), np.uint8))
            tar.add(path, f"{number}.npy")
            (tmp_path / "x.json").write_text(json.dumps({"sensor": "<b>S1</b>"} if number else {}))
            tar.add(tmp_path / "x.json", f"{number}.json")
    other = open_source(str(tmp_path / "other.tar"))
    told = statistics(other)
    assert told["tiles"] == 3 and told["shards"] == 1 and told["digest"] is None and told["groups"] == []
    assert list(told["by"]) == ["sensor"] and {"split", "lon", "datetime", "mean_db"} <= set(told["unknown"])
    (known, unknown) = told["by"]["sensor"]
    assert (known["sensor"], known["tiles"], unknown["tiles"], known["mean_db"]) == ("<b>S1</b>", 2, 1, None)
    overview_figure(other, told, tmp_path / "other.png")
    with pytest.raises(SettingError, match="of these tars nothing says"):
        statistics(other, ["lon"])


def test_it_is_drawn(source: Source, root: Path, tmp_path: Path) -> None:
    overview_figure(source, statistics(source), tmp_path / "all.png")
    where = "sensor = 'S1'"
    overview_figure(source, statistics(source, ["mode"], where), tmp_path / "some.png", where)
    sizes = []
    for name in ("all.png", "some.png"):
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.height)
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    assert sizes[0] > sizes[1]  # pixels too
    with pytest.raises(SettingError, match=r"\.png"):
        overview_figure(source, {}, tmp_path / "all.jpg")
    assert open_corpus(root).name == "world"
