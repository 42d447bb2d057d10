"""Against shapely in an ellipsoidal equal-area projection of pyproj about each footprint, pair by pair."""

import math

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sarsense.dedup.overlap import Ground, enter, meeting, new_index, overlap_areas, shared_area, united_area
from sarsense.errors import CorpusError

PLACES = {"equator": (10.0, 0.0), "across 180 degrees": (179.99, -35.0), "north": (-3.0, 71.0), "pole": (40.0, 89.97)}


def local(lon: float, lat: float, kind: str = "laea") -> pyproj.Transformer:
    """From km east and north of a point to lon and lat."""
    return pyproj.Transformer.from_crs(
        f"+proj={kind} +lon_0={lon} +lat_0={lat} +datum=WGS84 +units=km", "EPSG:4326", always_xy=True
    )


def ring(plane: pyproj.Transformer, east: float, north: float, side: float, turn: float = 0.0) -> np.ndarray:
    """Footprint (20, 2) of a square tile, as `place_tiles` orders it, longitude continuous."""
    step = (np.arange(20) % 5) / 5 - 0.5
    half = np.full(5, 0.5)
    x = np.concatenate([step[:5], half, -step[:5], -half]) * side
    y = np.concatenate([half, -step[:5], -half, step[:5]]) * side
    cos, sin = math.cos(turn), math.sin(turn)
    lon, lat = plane.transform(east + cos * x - sin * y, north + sin * x + cos * y)
    return np.stack([lon[0] + (lon - lon[0] + 180) % 360 - 180, lat], -1)


def corpus(place: tuple[float, float], count: int, seed: int, sides: tuple[float, ...]) -> np.ndarray:
    rng, plane = np.random.default_rng(seed), local(*place)
    return np.stack(
        [ring(plane, *rng.uniform(-1, 1, 2) * 3 * side, side, rng.uniform(0, 6.3)) for side in rng.choice(sides, count)]
    )


def brute_force(footprints: np.ndarray, i: int) -> np.ndarray:
    """km2 that footprint i shares with each, by shapely in the plane about it."""
    lon, lat = footprints[i].mean(axis=0)
    if abs(lat) > 85:
        lon, lat = 0.0, math.copysign(90.0, lat)
    x, y = local(lon, lat).transform(*footprints.reshape(-1, 2).T, direction="INVERSE")
    polygons = shapely.polygons(np.stack([x, y], -1).reshape(footprints.shape))
    return shapely.area(shapely.intersection(polygons, polygons[i]))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("sides", [(0.1, 0.15, 0.4), (2.5, 5.0), (0.1, 2.5, 40.0), (200.0, 60.0)])
def test_overlaps_are_those_of_shapely_in_an_equal_area_projection(place, sides):
    footprints = corpus(place, 60, 1, sides)
    ground = Ground.of(footprints)
    for i in range(0, 60, 6):
        expected = brute_force(footprints, i)
        found = overlap_areas(ground, np.full(60, i), np.arange(60))
        assert np.abs(found - expected).max() < 2e-5 * ground.area[i]
        assert ground.area[i] == pytest.approx(expected[i], rel=2e-5)


def test_areas_are_those_of_the_ellipsoid():
    geod = pyproj.Geod(ellps="WGS84")
    for place in PLACES.values():
        for side in (0.1, 2.56, 200.0):
            footprint = ring(local(*place), 0.3, 0.7, side, 0.4)
            expected = abs(geod.polygon_area_perimeter(*footprint.T)[0]) / 1e6
            assert Ground.of(footprint[None]).area[0] == pytest.approx(expected, rel=1e-5)


def test_the_pole_lies_within_its_tile():
    footprints = np.stack([ring(local(0, 90), *at, 10.0) for at in ((0, 0), (5, 0), (0, -5), (9.9, 9.9), (10.1, 0))])
    found = overlap_areas(Ground.of(footprints), np.zeros(5, np.int64), np.arange(5))
    assert found == pytest.approx([100, 50, 50, 0.01, 0], abs=1e-3)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_index_finds_all_that_meets_and_no_other_group(place):
    footprints = corpus(place, 300, 2, (0.1, 0.2, 0.3, 1.0, 2.5, 9.0, 30.0))
    ground, group = Ground.of(footprints), np.arange(300) % 2
    index, found = new_index(ground), np.empty(1, np.int64)
    for i in range(300):
        found, count = meeting(index, ground.centres, ground.reach, group, i, found)
        apart = np.linalg.norm(ground.centres[:i] - ground.centres[i], axis=1)
        expected = np.flatnonzero((apart <= ground.reach[:i] + ground.reach[i]) & (group[:i] == group[i]))
        assert sorted(found[:count].tolist()) == expected.tolist()
        enter(index, ground.centres, group, i)
    everything = np.array([brute_force(footprints, i) for i in range(0, 300, 30)])
    apart = np.linalg.norm(ground.centres[None] - ground.centres[::30, None], axis=2)
    assert (apart <= ground.reach[::30, None] + ground.reach)[everything > 0].all()


def star(rng: np.random.Generator, points: int) -> np.ndarray:
    """A simple anticlockwise ring, seldom convex."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, points)) + np.linspace(0, 1e-6, points)
    radius = rng.uniform(0.3, 1.5, points)
    ring = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1) + rng.uniform(-1, 1, 2)
    return ring if shapely.is_ccw(shapely.linearrings(ring)) else ring[::-1].copy()


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), points=st.integers(3, 12), count=st.integers(1, 40))
def test_areas_of_any_simple_rings_are_those_of_shapely(seed, points, count):
    rng = np.random.default_rng(seed)
    rings = np.stack([star(rng, points) for _ in range(count)]) * rng.choice([1.0, 0.2], (count, 1, 1))
    clip = star(rng, points)
    polygons, whole = shapely.polygons(rings), shapely.Polygon(clip)
    if not (shapely.is_valid(polygons).all() and whole.is_valid):
        return
    assert shared_area(clip, rings[0]) == pytest.approx(whole.intersection(polygons[0]).area, abs=1e-9)
    union = shapely.union_all(polygons).intersection(whole).area
    assert united_area(clip, rings) == pytest.approx(union, abs=1e-7)


def test_coincident_edges_are_no_trouble():
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    rings = square + np.array([[0.0, 0], [0, 0], [1, 0], [0.5, 0], [0, -1]])[:, None]
    assert [shared_area(square, ring) for ring in rings] == pytest.approx([1, 1, 0, 0.5, 0])
    assert united_area(square, rings[2:]) == pytest.approx(0.5)
    assert united_area(square, rings) == pytest.approx(1.0)


def test_thousands_of_small_rings_in_a_large_one():
    square, rng = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]), np.random.default_rng(0)
    rings = square * 0.02 + rng.uniform(-0.01, 1, (2500, 1, 2))
    union = shapely.union_all(shapely.polygons(rings)).intersection(shapely.Polygon(square)).area
    assert united_area(square, rings) == pytest.approx(union, abs=1e-9)


@pytest.mark.parametrize("bad", [[[0, 0], [0, 0], [0, 0]], [[0, 0], [np.nan, 0], [1, 1]]])
def test_a_footprint_without_an_area_is_refused(bad):
    with pytest.raises(CorpusError, match="footprint 1: expected a ring"):
        Ground.of(np.array([[[0, 0], [1, 0], [1, 1]], bad]))
    with pytest.raises(CorpusError, match="expected"):
        Ground.of(np.zeros((3, 2)))
