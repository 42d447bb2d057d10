"""Curation on awkward input: dates without hours, places that are none, maps over a pole; never the end of a build."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from tests.conftest import speckled_power, write_raster


def decibels(seed: int, side: int = 128) -> np.ndarray:
    return (10 * np.log10(speckled_power((side, side), 4.0, seed))).astype(np.float32)


def listed(tmp_path, datetimes: list[str]):
    """Scenes of one ground and independent speckle, with what a list says of their time."""
    rows = []
    for number, moment in enumerate(datetimes):
        path = write_raster(tmp_path / "in" / f"scene{number}_VV.tif", decibels(number))
        rows.append(f"{path},S1,{moment}")
    (tmp_path / "list.csv").write_text("path,sensor,datetime\n" + "\n".join(rows) + "\n")
    return str(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("moments", "kept"),
    [
        (["2020-05-01T10:00:00Z", "2020-05-01T10:00:20Z"], 1),
        (["2020-05-01T10:00:00Z", "2020-05-13T10:00:00Z"], 2),
        (["2020-05-01T00:00:00Z", "2020-05-01T00:00:00Z"], 2),  # a day, which is no time
        (["2020-05-01", "2020-05-01"], 2),
    ],
)
def test_scenes_are_one_pass_by_the_time_of_day_and_not_by_the_day(tmp_path, moments, kept):
    build([listed(tmp_path, moments)], tmp_path / "out", BuildConfig(tile_size=64, val_share=0.0), workers=0)
    assert len(open_corpus(tmp_path / "out").tiles()) == 4 * kept


def test_a_scene_whose_place_is_none_is_refused_and_the_others_are_built(tmp_path):
    write_raster(tmp_path / "in" / "good_VV.tif", decibels(0))
    grid = rasterio.Affine(0.001, 0, 10, 0, -0.001, 97.0)
    write_raster(tmp_path / "in" / "beyond_VV.tif", decibels(1), crs="EPSG:4326", transform=grid)
    trifle = rasterio.Affine(0.001, 0, 10, 0, -0.001, 90.0005)  # as of a global grid: half a pixel past the pole
    write_raster(tmp_path / "in" / "pole_VV.tif", decibels(2), crs="EPSG:4326", transform=trifle)
    corner = rasterio.Affine(5000, 0, -18_000_000, 0, -5000, 9_000_000)  # off the Earth in Mollweide
    write_raster(tmp_path / "in" / "corner_VV.tif", decibels(3), crs="ESRI:54009", transform=corner)
    build([str(tmp_path / "in")], tmp_path / "out", BuildConfig(tile_size=64, val_share=0.0), workers=0)
    rows = {row["path"]: row for row in open_corpus(tmp_path / "out").scenes.to_pylist()}
    assert rows["good_VV.tif"]["tiles"] == 4 and rows["pole_VV.tif"]["status"] == "used"
    for name in ("beyond_VV.tif", "corner_VV.tif"):
        assert rows[name]["status"] == "refused" and "on Earth" in rows[name]["reason"]


@pytest.mark.parametrize("workers", [0, 1])
def test_undated_scenes_over_a_pole_are_compared_or_left_alone(tmp_path, workers):
    over = rasterio.Affine(100, 0, -6400, 0, -100, 6400)
    for seed in range(2):
        write_raster(tmp_path / "in" / f"pole{seed}_VV.tif", decibels(seed), crs="EPSG:3413", transform=over)
    config = BuildConfig(tile_size=128, val_share=0.0)
    build([str(tmp_path / "in")], tmp_path / "out", config, workers=workers)
    assert len(open_corpus(tmp_path / "out").tiles()) == 2


def test_no_tile_left_says_why(tmp_path):
    from sarsense.errors import SarsenseError

    write_raster(tmp_path / "in" / "a_VV.tif", decibels(0))
    config = BuildConfig(tile_size=64, val_share=0.5, cell_km=0.2)
    with pytest.raises(SarsenseError, match=r"no tile left \(4 guard\)"):
        build([str(tmp_path / "in")], tmp_path / "out", config, workers=0)
