"""Descriptions of a corpus for others, opened by the programs of those others where they are installed."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import shapely.geometry

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, footprint_wkb, open_corpus
from sarsense.errors import SettingError
from sarsense.export import croissant, export, stac, stac_items
from sarsense.export.columns import TILE_COLUMNS
from sarsense.export.ground import circular_extent, scene_ground
from sarsense.export.stac import parse_period
from sarsense.simulate import simulate
from tests.conftest import speckled_power, write_raster


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two simulated scenes of two polarisations, dated; one scene without a date."""
    root = tmp_path_factory.mktemp("export")
    simulate(root / "in", scenes=2, size=192, seed=0)
    write_raster(root / "in/scenes/undated_VV.tif", 10 * np.log10(speckled_power((128, 128), 4, 3)))
    build(
        [str(root / "in")],
        root / "corpus",
        BuildConfig(tile_size=64, val_share=0.3, cell_km=3.0, name="sheet"),
        workers=0,
    )
    return open_corpus(root / "corpus")


@pytest.fixture(scope="module")
def written(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "out"
    paths = export(corpus, out, croissant_json=True, stac_collection=True)
    assert [path.name for path in paths] == ["croissant.json", "collection.json", "items.parquet"]
    assert all(path.is_file() for path in paths)
    return out


def test_export_is_the_same_twice_and_wants_something_to_do(corpus: Corpus, written: Path, tmp_path: Path) -> None:
    beside = written.parent / "again"
    for path in export(corpus, beside, croissant_json=True, stac_collection=True):
        assert path.read_bytes() == (written / path.name).read_bytes()
    with pytest.raises(SettingError, match="--croissant, --stac"):
        export(corpus, tmp_path, croissant_json=False, stac_collection=False)


def test_every_address_leads_to_a_file_of_the_stated_checksum(corpus: Corpus, written: Path) -> None:
    described = json.loads((written / "croissant.json").read_text())
    files = [one for one in described["distribution"] if one["@type"] == "cr:FileObject"]
    assert len(files) == 4 + len(corpus.shards)
    for one in files:
        content = (written / one["contentUrl"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == one["sha256"] and one["contentSize"] == f"{len(content)} B"
    assets = json.loads((written / "collection.json").read_text())["assets"]
    for one in assets.values():
        content = (written / one["href"]).read_bytes()
        if "file:checksum" in one:
            assert one["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
            assert one["file:size"] == len(content)
    assert {shard.path for shard in corpus.shards} <= assets.keys()


def test_beside_the_corpus_addresses_are_plain(corpus: Corpus) -> None:
    assert croissant(corpus)["distribution"][1]["contentUrl"] == "tiles.parquet"
    assert stac(corpus)["assets"]["tiles.parquet"]["href"] == "./tiles.parquet"


def test_columns_that_the_table_has_are_described(corpus: Corpus) -> None:
    assert [name for name in corpus.tiles().column_names if name not in TILE_COLUMNS] == []


def test_mlcroissant_reads_every_tile_and_its_codes(
    corpus: Corpus, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROISSANT_CACHE", str(tmp_path))  # else it would take shards of one name for those of last time
    mlc = pytest.importorskip("mlcroissant", reason="Croissant is validated by mlcroissant (extra dev)")
    dataset = mlc.Dataset(jsonld=str(written / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    # what a corpus does not know, and no more
    missing = {warning.split('"')[1].rpartition("/")[2] for warning in dataset.metadata.ctx.issues.warnings}
    assert missing <= {"citeAs", "datePublished", "license", "creator", "url", "publisher"}
    rows = corpus.tiles().to_pylist()
    tiles = list(dataset.records("tiles"))
    assert [one["tiles/key"].decode() for one in tiles] == [row["key"] for row in rows]
    assert [one["tiles/mean_db"] for one in tiles] == [row["mean_db"] for row in rows]
    samples = {one["samples/key"].decode(): one for one in dataset.records("samples")}
    assert samples.keys() == {row["key"] for row in rows}
    for row in rows[::7]:
        sample = samples[row["key"]]
        codes = np.load(io.BytesIO(sample["samples/npy"]))
        assert hashlib.sha256(codes.tobytes()).hexdigest()[:32] == row["content_hash"]
        assert sample["samples/lo_db"] == row["lo_db"]


def _as_items(path: Path) -> list[dict[str, Any]]:
    """stac-geoparquet -> Items, by hand: properties are the columns that an Item does not have."""
    outer = ("type", "stac_version", "stac_extensions", "id", "collection", "geometry", "bbox", "links", "assets")
    items = []
    for row in pq.read_table(path).to_pylist():
        item = {name: row[name] for name in outer}
        if row["geometry"] is not None:
            item["geometry"] = json.loads(shapely.to_geojson(shapely.from_wkb(row["geometry"])))
            item["bbox"] = list(row["bbox"].values())
        properties = {name: value for name, value in row.items() if name not in outer and value is not None}
        for name, value in properties.items():
            if name.endswith("datetime"):
                properties[name] = value.isoformat().replace("+00:00", "Z")
        items.append({**item, "properties": {"datetime": None, **properties}})
    return items


def test_pystac_takes_the_collection_and_every_item(corpus: Corpus, written: Path) -> None:
    """Against the schemas of STAC 1.1 that pystac ships; those of extensions it would fetch."""
    pystac = pytest.importorskip("pystac", reason="STAC is validated by pystac (extra dev)")
    pytest.importorskip("jsonschema", reason="pystac validates by jsonschema (extra dev)")
    from pystac.validation.local_validator import LocalValidator

    collection = json.loads((written / "collection.json").read_text())
    items = _as_items(written / "items.parquet")
    with pytest.warns(DeprecationWarning, match="LocalValidator"):
        validator = LocalValidator()
    assert list(validator.collection_validator().iter_errors(collection)) == []
    for item in items:
        assert list(validator.item_validator().iter_errors(item)) == []
    read = pystac.Collection.from_dict(collection)
    assert read.id == "sheet" and read.summaries.get_list("sar:polarizations") == ["VV", "VH"]
    assert len(items) == 2 and "1 of 3 scenes have no date" in read.description
    for item, made in zip(items, stac_items(corpus, "x/"), strict=True):
        assert pystac.Item.from_dict(item).datetime == pystac.Item.from_dict(made).datetime
        assert item["properties"] == json.loads(json.dumps(made["properties"]))


def test_an_item_covers_the_tiles_of_its_scene(corpus: Corpus) -> None:
    rows = corpus.tiles().to_pylist()
    for item in stac_items(corpus):
        mine = [row for row in rows if row["scene"] == item["id"]]
        ground = shapely.buffer(shapely.geometry.shape(item["geometry"]), 2e-6)  # coordinates have six digits
        assert item["properties"]["sarsense:tiles"] == len(mine) > 0
        assert all(ground.covers(shapely.from_wkb(row["footprint"])) for row in mine)
        assert item["properties"]["sarsense:sources"] == sorted({row["source"] for row in mine})
        assert item["properties"]["datetime"] == mine[0]["datetime"]
    table = stac(corpus)
    assert sum(table["sarsense:tiles_by_sensor"].values()) == len(rows)
    west, south, east, north = table["extent"]["spatial"]["bbox"][0]
    bounds = shapely.total_bounds(shapely.from_wkb([row["footprint"] for row in rows]))
    assert np.allclose(bounds, (west, south, east, north), atol=1e-6)


def test_other_programs_open_the_tables(corpus: Corpus, written: Path) -> None:
    """geopandas and DuckDB see the same tiles at the same places."""
    geopandas = pytest.importorskip("geopandas", reason="GeoParquet is opened by geopandas (extra dev)")
    frame = geopandas.read_parquet(corpus.root / "tiles.parquet")
    assert len(frame) == len(corpus.tiles()) and frame.crs == "OGC:CRS84"
    assert shapely.contains_xy(frame.geometry.to_numpy(), frame.lon, frame.lat).all()
    items = geopandas.read_parquet(written / "items.parquet")
    assert items.geometry.is_valid.all() and set(items.geom_type) == {"Polygon"}


def test_duckdb_counts_the_tiles(corpus: Corpus) -> None:
    duckdb = pytest.importorskip("duckdb", reason="the table is opened by DuckDB (extra dev)")
    query = f"select polarisation, count(*) from '{corpus.root}/tiles.parquet' group by all order by all"
    expected = Counter(corpus.tiles()["polarisation"].to_pylist())
    assert duckdb.sql(query).fetchall() == sorted(expected.items())


# ---------------------------------------------------------------------------------------------------------- places


def _square(west: float, south: float, east: float, north: float) -> bytes:
    return footprint_wkb(np.array([[west, north], [east, north], [east, south], [west, south]]))


def test_a_scene_across_180_degrees_is_cut_there() -> None:
    ground = scene_ground(np.array([_square(179.0, 10, 179.6, 11), _square(179.6, 10, 180.4, 11)], object))
    assert ground is not None and ground.bbox == (179.0, 10.0, -179.6, 11.0)
    assert ground.shape.geom_type == "MultiPolygon" and ground.shape.is_valid
    assert ground.shape.area == pytest.approx(1.4)
    # the same from footprints that were written from the other side
    other = scene_ground(np.array([_square(-180.4, 10, -179.6, 11), _square(179.0, 10, 179.6, 11)], object))
    assert other is not None and other.bbox == ground.bbox and other.shape.equals(ground.shape)


def test_a_scene_around_a_pole_is_a_cap() -> None:
    lon = np.arange(0.0, 360.0, 18.0)
    ring = footprint_wkb(np.stack([lon, np.full_like(lon, 89.0)], axis=-1))
    ground = scene_ground(np.array([ring], object))
    assert ground is not None and ground.bbox == (-180.0, 89.0, 180.0, 90.0)
    assert circular_extent(np.array([ring], object)) == (-180.0, 89.0, 180.0, 90.0)


@pytest.mark.parametrize(
    ("squares", "west", "east"),
    [
        ([(10, 12), (40, 41)], 10, 41),
        ([(170, 172), (-178, -175)], 170, -175),
        ([(179, 181), (20, 21)], 20, -179),
        ([(-150, -149), (-30, -29), (100, 101)], 100, -29),
        ([(160, 179), (178, 200), (-165, -100)], 160, -100),
        ([(0, 130), (120, 250), (240, 361)], -180, 180),
    ],
)
def test_the_extent_leaves_out_the_widest_gap(squares: list[tuple[int, int]], west: float, east: float) -> None:
    found = circular_extent(np.array([_square(low, 0, high, 1) for low, high in squares], object))
    assert found == (west, 0.0, east, 1.0)


def test_a_date_is_a_moment_a_day_or_nothing() -> None:
    moment = parse_period("2024-03-03T05:17:30Z")
    assert moment is not None and moment.start == moment.end and moment.start.isoformat() == "2024-03-03T05:17:30+00:00"
    day = parse_period("2024-03-03")
    assert day is not None and (day.end - day.start).total_seconds() == 86_399
    assert parse_period("last spring") is parse_period(None) is parse_period("") is None
