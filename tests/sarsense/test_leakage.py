"""Distances against geodesics of pyproj between points laid densely along both outlines."""

import json
import math
import time

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree
from shapely.geometry import mapping

from sarsense.dedup.leakage import near, parse_distance, read_evaluation
from sarsense.dedup.overlap import Ground
from sarsense.errors import SettingError
from tests.sarsense.test_overlap import PLACES, local, ring

GEOD = pyproj.Geod(ellps="WGS84")


def as_array(*geometries) -> np.ndarray:
    out = np.empty(len(geometries), object)
    out[:] = geometries
    return out


def geodesic(a: np.ndarray, b: np.ndarray) -> float:
    """km between the nearest two of the points a and b (lon, lat); the nearest through the Earth are the nearest."""
    to_earth = pyproj.Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    tree = KDTree(np.stack(to_earth.transform(*b.T, np.zeros(len(b))), -1))
    apart, nearest = tree.query(np.stack(to_earth.transform(*a.T, np.zeros(len(a))), -1))
    k = int(np.argmin(apart))
    return GEOD.inv(*a[k], *b[nearest[k]])[2] / 1000


def along(points: np.ndarray, count: int, closed: bool) -> np.ndarray:
    """`count` points on each edge, straight in lon and lat."""
    ends = np.concatenate([points, points[:1]]) if closed else points
    u = np.linspace(0, 1, count)[:, None, None]
    return (ends[:-1] + u * (ends[1:] - ends[:-1])).reshape(-1, 2)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    place=st.sampled_from([p for p in PLACES.values() if p[1] < 80] + [(120.0, -78.0)]),
    km=st.sampled_from([0.5, 2.0, 30.0, 200.0]),
    side=st.sampled_from([0.5, 5.0, 80.0]),
)
def test_near_is_the_geodesic_within_half_a_per_cent_and_misses_none(seed, place, km, side):
    """Distances on both sides of the limit, most of them close to it; points, lines and polygons of 0.1 to 300 km."""
    rng, plane = np.random.default_rng(seed), local(*place)
    tile = ring(plane, 0, 0, side, rng.uniform(0, 6.3))
    direction = rng.uniform(0, 2 * math.pi)
    centre = (side * 0.6 + km * rng.uniform(0.9, 1.1)) * np.array([math.cos(direction), math.sin(direction)])
    size, vertices = 10 ** rng.uniform(-1, 2.5), int(rng.integers(1, 5))
    away = centre * (1 + size / np.hypot(*centre))
    corners = np.stack(plane.transform(*(away + rng.normal(size=(vertices, 2)) * size / 3).T), -1)
    corners[:, 0] = tile[0, 0] + (corners[:, 0] - tile[0, 0] + 180) % 360 - 180
    geometry = [shapely.Point, shapely.LineString, shapely.Polygon, shapely.Polygon][vertices - 1](
        corners[0] if vertices == 1 else corners
    )
    if not geometry.is_valid:
        geometry = geometry.convex_hull
    whole = shapely.Polygon(tile)
    outline = shapely.get_coordinates(geometry.boundary if geometry.geom_type == "Polygon" else geometry)
    points = (
        along(outline, 1 + int(200 * size / km) if size < 10 * km else 4001, False) if len(outline) > 1 else outline
    )
    coarse = 0.0 if whole.intersects(geometry) else geodesic(along(tile, 12, True), points)
    found = near(Ground.of(tile[None]), as_array(geometry), km)
    if coarse <= km:
        assert len(found.index) == 1  # the true distance is no more than that between the points
    if coarse > 1.02 * km + 0.02:
        assert not len(found.index)
    if len(found.index) and coarse:
        # points a spacing h apart on both sides miss the foot of a way of d by at most h^2 / 2d
        assert found.distance[0] == pytest.approx(coarse, rel=0.006, abs=0.02 + side / 50)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("km", [0.3, 2.0, 50.0])
def test_points_just_within_and_just_beyond(place, km):
    """Along the normal of an edge, by geodesics from its middle: half a per cent decides."""
    plane = local(*place, kind="aeqd")
    tile = ring(plane, 0, 0, 4.0)
    ground = Ground.of(tile[None])
    for turn in range(4):
        a, b = tile[(5 * turn + 2) % 20], tile[(5 * turn + 3) % 20]
        azimuth, _, length = GEOD.inv(*a, *b)
        lon, lat, _ = GEOD.fwd(*a, azimuth, length / 2)
        forward = GEOD.inv(lon, lat, *b)[0]
        for factor, expected in ((0.9999, True), (1.0055 + 0.004 / km, False)):
            x, y, _ = GEOD.fwd(lon, lat, forward - 90, km * 1000 * factor)
            for wrapped in (x, x + 360, x - 360):
                found = near(ground, as_array(shapely.Point(wrapped, y)), km)
                assert bool(len(found.index)) == expected
                assert not expected or found.distance[0] == pytest.approx(km, rel=2e-3, abs=0.002)


def test_overlaps_and_what_contains_a_tile_are_at_no_distance():
    tile = ring(local(179.99, 10), 0, 0, 5.0)
    geometries = as_array(
        shapely.box(-180, -90, 180, 90),
        shapely.box(179, 9, 181, 11),
        shapely.box(-181, 9, -179, 11),
        shapely.Point(179.99, 10),
        shapely.Point(-180.01, 10),
        shapely.LineString([(179.9, 9.9), (180.1, 10.1)]),
        shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(180, 9.9, 180.5, 10.1)]),
    )
    ground = Ground.of(tile[None])
    for k in range(len(geometries)):
        found = near(ground, geometries[k : k + 1], 0.0)
        assert (found.index.tolist(), found.distance.tolist()) == ([0], [0.0])
    assert near(ground, geometries[::-1].copy(), 1.0).geometry.tolist() == [0]  # of equally near ones the first
    holed = shapely.box(170, 0, 190, 20).difference(shapely.box(179, 9, 181, 11))
    assert not len(near(ground, as_array(holed), 50.0).index)
    assert len(near(ground, as_array(holed), 120.0).index)


def test_a_polygon_about_the_pole():
    cap = as_array(shapely.box(-180, 85, 180, 90))
    plane = local(0, 90)
    tiles = np.stack([ring(plane, 0, -north, 20.0) for north in (0, 300, 545, 575, 600)])
    assert near(Ground.of(tiles), cap, 6.2).index.tolist() == [0, 1, 2]
    assert near(Ground.of(tiles), cap, 7.2).index.tolist() == [0, 1, 2, 3]


def test_a_long_edge_is_straight_in_lon_and_lat():
    """The parallel of 60 degrees, not the great circle that runs hundreds of km north of it."""
    edge = as_array(shapely.LineString([(0, 60), (80, 60)]))
    tiles = np.stack([ring(local(40, lat), 0, 0, 1.0) for lat in (60.0, 60.02, 66.0, 66.2, 66.5, 67.0)])
    assert near(Ground.of(tiles), edge, 2.0).index.tolist() == [0, 1]


def test_many_tiles_against_many_footprints_are_those_one_by_one():
    rng = np.random.default_rng(0)
    tiles = np.stack(
        [ring(local(lon, lat), 0, 0, side) for lon, lat, side in zip(
            rng.uniform(10, 12, 300), rng.uniform(40, 41, 300), rng.choice([0.5, 2.5, 40.0], 300), strict=True)]
    )  # fmt: skip
    corners = rng.uniform([9.5, 39.5], [12.5, 41.5], (80, 2))
    boxes = as_array(*(shapely.box(x, y, x + 0.05, y + 0.05) for x, y in corners))
    ground = Ground.of(tiles)
    found = near(ground, boxes, 2.0)
    best = np.full(300, np.inf)
    which = np.full(300, -1)
    for k in range(80):
        one = near(ground, boxes[k : k + 1], 2.0)
        nearer = one.distance < best[one.index]
        best[one.index[nearer]], which[one.index[nearer]] = one.distance[nearer], k
    assert found.index.tolist() == np.flatnonzero(which >= 0).tolist()
    assert found.geometry.tolist() == which[found.index].tolist()
    assert 50 < len(found.index) < 290


def test_half_a_million_pairs_take_no_time():
    rng = np.random.default_rng(0)
    side = np.array([[0, 0], [0.03, 0], [0.03, 0.03], [0, 0.03]])
    ground = Ground.of(rng.uniform([-10, 35], [30, 60], (20_000, 1, 2)) + side)
    boxes = shapely.box(*(corners := rng.uniform([-10, 35], [30, 60], (2000, 2))).T, *(corners + 0.05).T)
    near(ground, boxes[:1], 2.0)
    start = time.perf_counter()
    assert len(near(ground, boxes, 2.0).index) > 100
    assert time.perf_counter() - start < 10


def write(path, content) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def feature(geometry, **properties):
    return {"type": "Feature", "properties": properties or None, "geometry": geometry}


def test_geojson_of_all_kinds(tmp_path):
    path = tmp_path / "chips.geojson"
    box, point = shapely.box(0, 0, 1, 1), shapely.Point(5, 5)
    several = shapely.GeometryCollection([point, shapely.MultiPolygon([box, shapely.box(2, 2, 3, 3)])])
    whole = {
        "type": "FeatureCollection",
        "features": [
            feature(mapping(box), name="Bolivia_103757"),
            {**feature(mapping(point)), "id": 17},
            feature(mapping(several)),
        ],
    }
    write(path, whole)
    found = read_evaluation(path)
    assert found.names == ("Bolivia_103757", "17", "feature 3")
    assert [g.geom_type for g in found.geometries] == ["Polygon", "Point", "GeometryCollection"]
    tiles = np.stack([ring(local(lon, lat), 0, 0, 2.0) for lon, lat in ((5, 5), (2.5, 2.5), (0.5, 0.5), (4, 4))])
    assert near(Ground.of(tiles), found.geometries, 1.0).geometry.tolist() == [1, 2, 0]
    write(path, mapping(box))
    assert read_evaluation(path).names == ("feature 1",)
    write(path, "\ufeff" + json.dumps(feature({"type": "Point", "coordinates": [1, 2, 300.0]}, id="chip")))
    assert read_evaluation(path).geometries[0].equals(shapely.Point(1, 2))
    bow_tie = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
    write(path, bow_tie)
    assert read_evaluation(path).geometries[0].is_valid


@pytest.mark.parametrize(
    "content, found",
    [
        ("", "cannot be read as JSON"),
        ("[1]", "a JSON list without a type"),
        ({"type": "Topology"}, "type 'Topology'"),
        ({"type": "FeatureCollection"}, "expected a list of features, found NoneType"),
        ({"type": "FeatureCollection", "features": []}, "without features"),
        ({"type": "FeatureCollection", "features": [{"type": "Point"}]}, "feature 1: expected a GeoJSON Feature"),
        (feature(None, name="x"), "x: expected a GeoJSON geometry, found None"),
        (feature({"type": "Sphere", "coordinates": []}), "found Sphere"),
        (feature({"type": "Polygon", "coordinates": [[0, 0]]}), "found Polygon"),
        (feature({"type": "Polygon", "coordinates": []}), "found an empty one"),
        (feature({"type": "Point", "coordinates": ["a", 0]}), "found Point"),
        (feature({"type": "Point", "coordinates": [500000, 5600000]}), "convert it to EPSG:4326"),
        ('{"type": "Point", "coordinates": [NaN, 0]}', "expected lon and lat in degrees"),
        (mapping(shapely.box(-170, 0, 170, 1)), "found one of 340; cut the geometry at 180 degrees"),
    ],
)  # fmt: skip
def test_what_is_no_evaluation_set_is_refused_in_one_sentence(tmp_path, content, found):
    write(path := tmp_path / "chips.geojson", content)
    with pytest.raises(SettingError, match=r"chips\.geojson: .*expected ") as error:
        read_evaluation(path)
    assert found in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingError, match="no such file"):
        read_evaluation(tmp_path / "none.geojson")
    with pytest.raises(SettingError, match="expected GeoJSON"):
        read_evaluation(tmp_path)


def test_distances():
    assert [parse_distance(t) for t in ("2km", "500 m", "2", " .5 KM", "0", "1.5")] == [2, 0.5, 2, 0.5, 0, 1.5]
    for text in ("", "2 miles", "-1km", "nan", "inf", "501km", "2,5km"):
        with pytest.raises(SettingError, match="distance: expected kilometres or metres"):
            parse_distance(text)
