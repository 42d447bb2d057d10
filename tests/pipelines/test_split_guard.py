"""Train and val keep their distance on the ground in whole builds, and more scenes move no tile."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyproj
import pytest
import shapely

from pipelines.build import build
from pipelines.companions import CompanionFiles
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import SettingError
from sarsense.simulate import simulate

GEOD = pyproj.Geod(ellps="WGS84")


def nearest_km(corpus: Corpus) -> float:
    """The smallest great-circle distance between points of the rings of train and val tiles, of all pairs; 0 where two
    overlap."""
    rows = [row for row in corpus.tiles(columns=["split", "footprint"]).to_pylist() if row["footprint"]]
    shapes = {
        split: shapely.from_wkb([row["footprint"] for row in rows if row["split"] == split])
        for split in ("train", "val")
    }
    assert len(shapes["train"]) and len(shapes["val"])
    if shapely.intersects(shapely.union_all(shapes["train"]), shapely.union_all(shapes["val"])):
        return 0.0
    points = [shapely.get_coordinates(shapes[split]) for split in ("train", "val")]
    least = np.inf
    for lon, lat in points[1]:
        beside = points[0][np.abs(points[0][:, 1] - lat) < 2.0]
        if len(beside):
            least = min(
                least, GEOD.inv(np.full(len(beside), lon), np.full(len(beside), lat), *beside.T)[2].min() / 1000
            )
    return least


@pytest.mark.slow
@pytest.mark.parametrize(("cell_km", "guard_km"), [(5.0, None), (20.0, 3.0)])
def test_on_real_scenes_no_train_tile_is_within_the_guard_distance_of_a_val_tile(
    real_data, tmp_path, cell_km, guard_km
):
    sources = [str(real_data / name) for name in ("s1-grd-gcp", "s1-repeat-pass", "s1-rtc-db", "terramind-rtc/S1RTC")]
    config = BuildConfig(tile_size=32, val_share=0.3, cell_km=cell_km, guard_km=guard_km)
    build(sources, tmp_path / "corpus", config, workers=0)
    assert nearest_km(open_corpus(tmp_path / "corpus")) >= config.guard


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guard")
    simulate(root, scenes=10, size=256, looks=4.0, seed=2, polarisations=("VV",))
    return root / "scenes"


@pytest.mark.slow
def test_a_third_more_scenes_moves_no_tile(scenes, tmp_path):
    config = BuildConfig(tile_size=32, val_share=0.3, cell_km=2.0)
    files = sorted(scenes.glob("*"))
    splits = []
    for count in (7, 10):
        build([str(path) for path in files[:count]], tmp_path / str(count), config, workers=0)
        table = open_corpus(tmp_path / str(count)).tiles(columns=["key", "split"])
        splits.append(dict(zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True)))
    assert splits[0].items() < splits[1].items() and set(splits[0].values()) == {"train", "val"}
    assert nearest_km(open_corpus(tmp_path / "10")) >= config.guard


def test_val_by_scene_region_or_sensor_keeps_the_distance_too(scenes, tmp_path):
    files = sorted(scenes.glob("*"))
    again = tmp_path / "in"
    again.mkdir()
    for path in files[:3]:
        shutil.copy(path, again)
    config = BuildConfig(tile_size=32, cell_km=2.0, guard_km=0.1)
    (tmp_path / "val.txt").write_text("# two of them\nsim-001*\nsim-002*\n")
    build([str(again)], tmp_path / "scenes", config, 0, companions=CompanionFiles(val_scenes=tmp_path / "val.txt"))
    table = open_corpus(tmp_path / "scenes").tiles(columns=["scene", "split"]).to_pylist()
    assert {(row["scene"][:7], row["split"]) for row in table} == {
        ("sim-000", "train"), ("sim-001", "val"), ("sim-002", "val")
    }  # fmt: skip

    ground = shapely.union_all(
        [shapely.from_wkb(row["footprint"]) for row in open_corpus(tmp_path / "scenes").tiles().to_pylist()]
    )
    west, south, east, north = shapely.bounds(ground.geoms[0] if ground.geom_type == "MultiPolygon" else ground)
    box = shapely.box(west, south, (west + east) / 2, (south + north) / 2)
    (tmp_path / "region.geojson").write_text(shapely.to_geojson(box))
    build([str(again)], tmp_path / "region", config, 0, companions=CompanionFiles(tmp_path / "region.geojson"))
    region = open_corpus(tmp_path / "region")
    for row in region.tiles().to_pylist():
        assert (row["split"] == "val") == box.covers(shapely.from_wkb(row["footprint"]))
    assert nearest_km(region) >= 0.1

    table = tmp_path / "list.csv"
    rows = [f"{again / 'sim-000.tif'},A,2020-01-01T00:00:00Z", f"{again / 'sim-001.tif'},A,2020-01-01T00:00:00Z"]
    rows += [f"{again / 'sim-002.tif'},B,2020-01-01T00:00:00Z"]
    table.write_text("path,sensor,datetime\n" + "\n".join(rows) + "\n")
    build([str(table)], tmp_path / "sensor", BuildConfig(tile_size=32, guard_km=0.1, val_sensors=("B",)), 0)
    found = open_corpus(tmp_path / "sensor").tiles(columns=["sensor", "split"]).to_pylist()
    assert {(row["sensor"], row["split"]) for row in found} == {("A", "train"), ("B", "val")}


def test_two_ways_to_choose_val_are_refused(scenes, tmp_path):
    (tmp_path / "val.txt").write_text("sim-001*\n")
    config = BuildConfig(tile_size=32, val_sensors=("B",))
    with pytest.raises(SettingError, match="--val-scenes and --val-sensors: one way to choose"):
        build([str(scenes)], tmp_path / "out", config, 0, companions=CompanionFiles(val_scenes=tmp_path / "val.txt"))
