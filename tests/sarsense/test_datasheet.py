"""The README of a corpus: its counts against the table, row by row; regions against the mgrs package."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.report import pictures
from sarsense.report.classes import spacing_names
from sarsense.report.datasheet import datasheet, write_datasheet
from sarsense.report.markdown import markdown_table
from sarsense.report.regions import SEASONS, UNKNOWN, numbered_seasons, numbered_zones, zone_extent
from sarsense.simulate import simulate
from tests.conftest import speckled_power, write_raster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Simulated scenes, one without a place or date, files that are refused, and a table of many values."""
    root = tmp_path_factory.mktemp("datasheet")
    simulate(root / "in", scenes=2, size=192, seed=0)
    db = 10 * np.log10(speckled_power((128, 128), 4, 3))
    write_raster(root / "in/other/S1A_IW_unplaced_VV.tif", db, crs=None)
    shutil.copy(root / "in/scenes/sim-000.tif", root / "in/other/again.tif")
    config = BuildConfig(tile_size=32, val_share=0.3, name="sheet", allow_unplaced=True, cell_km=2.0)
    build([str(root / "in")], root / "corpus", config, workers=0)
    _vary(root / "corpus" / "tiles.parquet")
    return open_corpus(root / "corpus")


def _vary(path: Path) -> None:
    """Give the tiles dates, places and spacings of all kinds, since a simulated corpus has few."""
    table = pq.read_table(path)
    rng = np.random.default_rng(0)
    dates = [None, "2019-12-31T23:59:59Z", "2020-06-02", "2021-03-03T00:00:00Z", "yesterday", "2021-13-01"]
    spacing = rng.choice([0.35, 1.0, 3.0, 10.0016, 12.5, 20.0, 50.0, 100.0, np.nan], len(table))
    values: dict[str, Any] = {
        "datetime": [dates[i] for i in rng.integers(0, len(dates), len(table))],
        "lon": rng.uniform(-180, 180, len(table)),
        "lat": rng.uniform(-90, 90, len(table)),
        "spacing_x_m": spacing,
        "spacing_y_m": spacing,
        "orbit_direction": rng.choice(["ascending", "descending", ""], len(table)),
    }
    mask = rng.random(len(table)) < 0.1
    for name, column in values.items():
        index = table.schema.get_field_index(name)
        field = table.schema.field(index)
        known = [None if hidden or (v != v) or v == "" else v for v, hidden in zip(column, mask, strict=True)]
        table = table.set_column(index, field, pa.array(known, field.type))
    pq.write_table(table, path)


def _counts(text: str, title: str) -> dict[str, int]:
    """value -> tiles, of the table under a heading."""
    section = text.split(f"### {title}\n")[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    place = rows[0].index("tiles")
    return {row[0]: int(row[place].replace(",", "")) for row in rows[2:]}


def _zones(lon: Any, lat: Any) -> list[str]:
    names, which = numbered_zones(np.asarray(lon, float), np.asarray(lat, float))
    return [names[number] for number in which]


def _zone(row: dict[str, Any]) -> str:
    if row["lon"] is None or row["lat"] is None:
        return "unknown"
    return _zones([row["lon"]], [row["lat"]])[0]


def _season(row: dict[str, Any]) -> str:
    found = re.match(r"\d{4}-(0[1-9]|1[0-2])(?!\d)", row["datetime"] or "")
    if not found or row["lat"] is None:
        return "unknown"
    north = {12: "winter", 1: "winter", 2: "winter", 3: "spring", 6: "summer"}[int(found[1])]
    south = {"winter": "summer", "spring": "autumn", "summer": "winter"}
    return north if row["lat"] >= 0 else south[north]


def _spacing(row: dict[str, Any]) -> str:
    if row["spacing_x_m"] is None:
        return "unknown"
    metres = (row["spacing_x_m"] * row["spacing_y_m"]) ** 0.5
    for name in spacing_names():
        numbers = re.findall(r"[\d.]+", name)
        low, high = ("0", numbers[0]) if name.startswith("under") else [*numbers, "inf"][:2]
        if float(low) <= metres < float(high):
            return name
    raise AssertionError(metres)


@pytest.mark.parametrize(
    ("title", "value"),
    [
        ("Sensors", lambda row: row["sensor"] or "unknown"),
        ("Polarisations", lambda row: row["polarisation"]),
        ("Modes", lambda row: row["mode"] or "unknown"),
        ("Seasons", _season),
        ("Years", lambda row: (row["datetime"] or "")[:4] if _season({**row, "lat": 1}) != "unknown" else "unknown"),
        ("Pixel spacing", _spacing),
        ("Orbit directions", lambda row: row["orbit_direction"] or "unknown"),
    ],
)
def test_counts_are_those_of_the_rows(corpus: Corpus, title: str, value: Callable[[dict[str, Any]], str]) -> None:
    rows = corpus.tiles().to_pylist()
    assert _counts(datasheet(corpus), title) == Counter(map(value, rows))


def test_regions_count_every_tile(corpus: Corpus) -> None:
    rows = corpus.tiles().to_pylist()
    found = _counts(datasheet(corpus), "Regions")
    expected = Counter(map(_zone, rows))
    assert sum(found.values()) == len(rows) and "others" in list(found)[-1]
    for name, tiles in list(found.items())[:-1]:
        assert tiles == expected[name.split(" ")[0]]


def test_groups_sources_and_reasons_are_told(corpus: Corpus) -> None:
    text = datasheet(corpus)
    for group in corpus.manifest["groups"]:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{group}` |"))
        members = [one for one in corpus.tiles().to_pylist() if one["group"] == group]
        assert row.split("|")[3].strip() == f"{len(members):,}"
        low, middle, high = np.percentile([one["mean_db"] for one in members], (5, 50, 95))
        assert row.split("|")[6].strip() == f"{low:.1f} / {middle:.1f} / {high:.1f}"
    assert "| not backscatter | 2 |" in text  # the labels of the simulation
    assert "| the same values as another file | 1 |" in text
    assert "| `tile_size` | `32` | `512` |" in text and "| `seed` |" not in text
    assert corpus.digest in text and "their licences are those of these sources" in text
    for path in re.findall(r"\]\((.*?\.png)\)", text):
        assert path in pictures.pictures_of(corpus)


def test_the_files_are_the_same_twice_and_are_no_fault_of_the_corpus(corpus: Corpus) -> None:
    written = write_datasheet(corpus)
    first = {path: path.read_bytes() for path in written}
    assert [path.name for path in written] == ["README.md", "contact-sheet.png", "ranges.png", "footprints.png"]
    assert {path: path.read_bytes() for path in write_datasheet(corpus)} == first
    text = first[corpus.root / "README.md"].decode()
    assert str(corpus.root) not in text
    assert all((corpus.root / path).is_file() for path in re.findall(r"\]\((.*?\.png)\)", text))


def test_the_map_of_a_large_corpus_counts(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LARGE", 10)
    assert "Tiles by cell of the map" in pictures.pictures_of(corpus)[pictures.MAP]
    assert len(pictures.draw_pictures(corpus)) == 3


def test_the_snippet_of_the_readme_runs(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    snippet = re.search(r"```python\n(.*?)```", datasheet(corpus), re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(corpus.root)
    found: dict[str, Any] = {}
    exec(snippet[1], found)
    assert found["db"].shape == (32, 32) and -60 < np.nanmean(found["db"]) < 20


def test_the_snippet_of_a_stack_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path / "in", scenes=1, size=128, seed=0)
    config = BuildConfig(tile_size=64, bands="stack", polarisations=("VV", "VH"), content="both", bits=16)
    build([str(tmp_path / "in")], tmp_path / "corpus", config, workers=0)
    text = datasheet(open_corpus(tmp_path / "corpus"))
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert snippet is not None and text.count("| despeckled |") == text.count("| speckled |") == 2
    monkeypatch.chdir(tmp_path / "corpus")
    found: dict[str, Any] = {}
    exec(snippet[1], found)
    assert found["db"].shape == (4, 64, 64) and -60 < np.nanmean(found["db"]) < 20


def test_a_corpus_without_places_has_no_map(tmp_path: Path) -> None:
    write_raster(tmp_path / "in/x_VV.tif", 10 * np.log10(speckled_power((64, 64), 4, 0)), crs=None)
    config = BuildConfig(tile_size=32, allow_unplaced=True, val_share=0.0)
    build([str(tmp_path / "in")], tmp_path / "corpus", config, workers=0)
    written = write_datasheet(open_corpus(tmp_path / "corpus"))
    assert [path.name for path in written] == ["README.md", "contact-sheet.png", "ranges.png"]
    assert _counts(written[0].read_text(), "Regions") == {"unknown": 4}


# --------------------------------------------------------------------------------------------- regions and seasons


@pytest.mark.parametrize(
    ("lon", "lat", "zone"),
    [
        (13.4, 52.5, "33U"),  # Berlin
        (-155.5, 19.6, "5Q"),  # Hawaii
        (5.3, 60.4, "32V"),  # Bergen: zone 32 reaches west to 3 degrees
        (2.9, 60.4, "31V"),
        (15.6, 78.2, "33X"),  # Longyearbyen
        (8.9, 78.0, "31X"),
        (41.9, 80.0, "37X"),
        (42.0, 80.0, "38X"),
        (0.0, 0.0, "31N"),
        (-0.1, -0.1, "30M"),
        (180.0, -80.0, "1C"),
        (540.0, 10.0, "1P"),
        (10.0, 84.0, "33X"),
        (-10.0, 84.1, "Y"),
        (10.0, 90.0, "Z"),
        (-10.0, -80.1, "A"),
        (10.0, -90.0, "B"),
        (np.nan, 10.0, "unknown"),
    ],
)
def test_zones_of_known_places(lon: float, lat: float, zone: str) -> None:
    assert _zones([lon], [lat]) == [zone]


def test_zones_are_those_of_geotrans() -> None:
    mgrs = pytest.importorskip("mgrs", reason="zones are checked against mgrs, which wraps GEOTRANS (extra dev)")
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 6000), rng.uniform(-90, 90, 6000)
    lon[:3000], lat[:3000] = rng.uniform(-5, 45, 3000), rng.uniform(50, 86, 3000)
    converter = mgrs.MGRS()
    found = _zones(lon, lat)
    expected = [converter.toMGRS(y, x, MGRSPrecision=0)[:-2].lstrip("0") for x, y in zip(lon, lat, strict=True)]
    assert found == expected
    for x, y, zone in zip(lon, lat, found, strict=True):
        west, south, east, north = zone_extent(zone)
        assert west <= x <= east and south <= y <= north


def test_seasons_are_those_of_the_hemisphere() -> None:
    month = np.array([12, 1, 4, 7, 10, 12, 7, 4, 0, 5])
    lat = np.array([50.0, 0, 50, 50, 50, -30, -30, -30, 50, np.nan])
    named = "winter winter spring summer autumn summer winter autumn unknown unknown"
    assert [[*SEASONS, UNKNOWN][number] for number in numbered_seasons(month, lat)] == named.split()


def test_tables_have_a_row_each() -> None:
    assert markdown_table(("a", "b"), [("x", "1")], numbers=True) == "| a | b |\n| :-- | --: |\n| x | 1 |"
