import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sarsense.splits import split_of_footprint, split_of_place


def _square(lon: float, lat: float, side: float) -> np.ndarray:
    return np.array([[lon, lat], [lon + side, lat], [lon + side, lat + side], [lon, lat + side]])


@settings(max_examples=30)
@given(lon=st.floats(-179, 178), lat=st.floats(-80, 79), seed=st.integers(0, 100))
def test_no_train_tile_touches_a_val_tile(lon, lat, seed):
    """All overlapping tiles of a region, at strides far below the tile: brute-force intersection."""
    corners = np.random.default_rng(seed).uniform(0, 1.0, (120, 2)) + np.array([lon, lat])
    tiles = {"train": [], "val": [], "guard": []}
    for x, y in corners:
        ring = _square(x, y, 0.08)
        tiles[split_of_footprint(ring, seed, 0.3, 25.0)].append(shapely.Polygon(ring))
    if tiles["train"] and tiles["val"]:
        assert not shapely.intersects(shapely.union_all(tiles["train"]), shapely.union_all(tiles["val"]))


def test_shares_are_about_what_was_asked():
    corners = np.random.default_rng(0).uniform([-180, -60], [179, 60], (4000, 2))
    splits = [split_of_footprint(_square(x, y, 0.01), 1, 0.2, 50.0) for x, y in corners]
    assert abs(splits.count("val") / len(splits) - 0.2) < 0.02


def test_tiles_past_180_degrees_share_the_cells_of_the_other_side():
    for lat in np.linspace(-70, 70, 15):
        east, west = _square(180.01, lat, 0.05), _square(-179.99, lat, 0.05)
        assert split_of_footprint(east, 3, 0.5, 10.0) == split_of_footprint(west, 3, 0.5, 10.0)


def test_polarisations_of_an_unplaced_scene_go_together():
    assert {split_of_place("a/scene-7", seed, 0.5) for seed in range(20)} == {"train", "val"}
    assert split_of_place("a/scene-7", 5, 0.5) == split_of_place("a/scene-7", 5, 0.5)
    assert split_of_place("a/scene-7", 5, 0.0) == "train"
