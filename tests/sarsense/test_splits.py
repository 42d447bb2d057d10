import json

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sarsense.errors import SceneError, SettingError
from sarsense.splits import (
    CellGrid,
    guard_against,
    matches,
    read_names,
    read_region,
    split_of_cells,
    split_of_place,
    split_of_region,
)

GEOD = pyproj.Geod(ellps="WGS84")
PLACES = [(12.0, 48.0), (179.9, -17.0), (-30.0, 89.9), (140.0, -89.7), (-180.0, 71.0)]


def _plane(lon: float, lat: float) -> pyproj.Proj:
    """Azimuthal equidistant kilometres about a place: no seam at 180 degrees, none at a pole."""
    return pyproj.Proj(proj="aeqd", lon_0=lon, lat_0=lat, ellps="WGS84", units="km")


def _tiles(place: tuple[float, float], corners_km: np.ndarray, sides_km: np.ndarray, tilt: float = 0.2) -> np.ndarray:
    """Footprints of square tiles, 5 points an edge, longitudes continuous within a tile, as `place_tiles` has them."""
    step, still = np.arange(5) / 5, np.zeros(5)
    x = np.concatenate([step, still + 1, 1 - step, still])
    y = np.concatenate([still, step, still + 1, 1 - step])
    xy = corners_km[:, None] + sides_km[:, None, None] * np.stack([x, y], axis=-1)
    turned = xy @ [[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]
    lon, lat = _plane(*place)(turned[..., 0], turned[..., 1], inverse=True)
    lon = lon[:, :1] + (lon - lon[:, :1] + 180) % 360 - 180
    return np.stack([lon, lat], axis=-1)


def _corpus(place: tuple[float, float], count: int, seed: int, extent_km: float = 250.0) -> np.ndarray:
    """Tiles of 0.5 to 50 km that overlap one another at random."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(0.5), np.log(50), count))
    return _tiles(place, rng.uniform(-extent_km, extent_km, (count, 2)), sides, rng.uniform(0, 6))


def _patch(
    place: tuple[float, float], width_km: float, height_km: float, tilt: float, tile: float = 5.0, stride: float = 5.0
) -> np.ndarray:
    """The tiles of a scene."""
    x, y = np.meshgrid(np.arange(-width_km / 2, width_km / 2, stride), np.arange(-height_km / 2, height_km / 2, stride))
    corners = np.stack([x.ravel(), y.ravel()], axis=-1)
    return _tiles(place, corners, np.full(len(corners), tile), tilt)


def _distances(one: np.ndarray, other: np.ndarray, place: tuple[float, float], within_km: float) -> dict:
    """Geodesic km between footprints by (i, j): 0 where they meet, none where they are clearly beyond `within_km`."""
    plane = _plane(*place)
    shapes = [shapely.polygons(np.stack(plane(rings[..., 0], rings[..., 1]), axis=-1)) for rings in (one, other)]
    first, second = shapely.STRtree(shapes[1]).query(shapes[0], predicate="dwithin", distance=1.1 * within_km + 0.1)
    lines = shapely.get_coordinates(shapely.shortest_line(shapes[0][first], shapes[1][second])).reshape(-1, 2, 2)
    ends = np.stack(plane(lines[..., 0], lines[..., 1], inverse=True), axis=-1)
    km = GEOD.inv(ends[:, 0, 0], ends[:, 0, 1], ends[:, 1, 0], ends[:, 1, 1])[2] / 1000
    km = np.where(shapely.intersects(shapes[0][first], shapes[1][second]), 0.0, km)
    return dict(zip(zip(first.tolist(), second.tolist(), strict=True), km.tolist(), strict=True))


def _assert_apart(footprints: np.ndarray, split: np.ndarray, place: tuple[float, float], guard_km: float) -> None:
    train, val = footprints[split == "train"], footprints[split == "val"]
    nearest = min(_distances(train, val, place, guard_km).values(), default=np.inf)
    # a metre for edges, straight in the plane here and geodesic there
    assert nearest >= guard_km - 1e-3
    assert guard_km or nearest > 0


# ---------------------------------------------------------------- by cells


@settings(max_examples=60)
@given(
    lon=st.floats(-180, 180),
    lat=st.one_of(st.floats(-89.9, 89.9), st.sampled_from([-89.9, -88.0, 89.0, 89.9])),
    seed=st.integers(0, 10**6),
    val_share=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.8]),
    cell_km=st.sampled_from([20.0, 50.0, 120.0]),
    guard_km=st.sampled_from([0.01, 1.0, 7.0]),
)
def test_no_train_tile_comes_within_the_guard_of_a_val_tile_by_cells(lon, lat, seed, val_share, cell_km, guard_km):
    footprints = _corpus((lon, lat), 400, seed)
    split = split_of_cells(footprints, seed, val_share, cell_km, guard_km)
    _assert_apart(footprints, split, (lon, lat), guard_km)


@pytest.mark.parametrize("place", PLACES)
def test_brute_force_over_all_points_of_all_pairs_of_tiles_finds_the_guard_kept(place):
    footprints = _patch(place, 150, 150, 0.3, tile=6.0, stride=6.0)
    splits = {seed: split_of_cells(footprints, seed, 0.3, 30.0, 1.0) for seed in range(20)}
    split = max(splits.values(), key=lambda split: min((split == "val").sum(), 60))
    train, val = footprints[split == "train"].reshape(-1, 2), footprints[split == "val"][:60, ::5].reshape(-1, 2)
    assert len(train) > 1000 and len(val) > 100
    nearest = min(GEOD.inv(*np.broadcast_arrays(*point, *train.T))[2].min() for point in val)
    assert nearest >= 1000.0


@settings(max_examples=20)
@given(place=st.sampled_from(PLACES), seed=st.integers(0, 10**6), val_share=st.sampled_from([0.1, 0.5, 0.7]))
def test_without_a_guard_train_and_val_still_do_not_overlap(place, seed, val_share):
    footprints = _corpus(place, 400, seed)
    split = split_of_cells(footprints, seed, val_share, 40.0, 0.0)
    plane = _plane(*place)
    shapes = shapely.polygons(np.stack(plane(footprints[..., 0], footprints[..., 1]), axis=-1))
    val, train = (shapely.union_all(shapes[split == side]) for side in ("val", "train"))
    assert shapely.intersection(val, train).area < 1e-6


@given(place=st.sampled_from(PLACES), seed=st.integers(0, 10**6), more=st.integers(1, 90))
def test_adding_tiles_moves_no_tile(place, seed, more):
    footprints = _corpus(place, 300 + more, seed)
    order = np.random.default_rng(seed).permutation(len(footprints))
    early = split_of_cells(footprints[:300], seed, 0.2, 50.0, 1.0)
    late = split_of_cells(footprints[order], seed, 0.2, 50.0, 1.0)
    assert (late[np.argsort(order)][:300] == early).all()


@pytest.mark.parametrize("val_share", [0.05, 0.1, 0.2, 0.3, 0.5])
def test_shares_of_what_is_left_come_out_as_asked_in_compact_regions_and_swaths(val_share):
    rng = np.random.default_rng(3)
    errors = {100: [], 400: []}
    for seed in range(15):
        place = (rng.uniform(-180, 180), rng.uniform(-70, 70))
        width = [500.0, 300.0, 250.0][seed % 3]
        for cells, times in ((100, 1), (400, 2)):
            footprints = _patch(place, times * width, times * 250_000 / width, rng.uniform(-0.5, 0.5), stride=12.0)
            split = split_of_cells(footprints, seed, val_share, 50.0, 1.0)
            errors[cells].append((split == "val").sum() / (split != "guard").sum() - val_share)
    for cells, typical, worst in ((100, 0.02, 0.06), (400, 0.012, 0.03)):
        off = np.abs(errors[cells])
        assert np.sqrt((off**2).mean()) < typical, cells
        assert off.max() < worst, cells


def test_no_share_and_all_share_leave_nothing_out():
    footprints = np.concatenate([_corpus(place, 50, 1) for place in PLACES])
    assert set(split_of_cells(footprints, 0, 0.0, 50.0, 5.0)) == {"train"}
    assert set(split_of_cells(footprints, 0, 1.0, 50.0, 5.0)) == {"val"}


@pytest.mark.parametrize("cell_km", [10.0, 50.0, 300.0])
def test_cells_are_of_nearly_equal_area(cell_km):
    grid = CellGrid(cell_km)
    expected = (np.radians(grid.height) * 6371.007) ** 2
    assert np.sqrt(expected) == pytest.approx(cell_km, rel=0.02)
    for row in {*range(-grid.rows, -grid.rows + 8), *range(-4, 4), grid.rows // 2, grid.rows - 6, grid.rows - 1}:
        width = 360 / int(grid.columns(np.array(row)))
        lon, lat = np.linspace(0, width, 400), np.array([row, row + 1]) * grid.height
        ring = np.concatenate([lon, lon[::-1]]), np.repeat(lat, len(lon))
        area = abs(GEOD.polygon_area_perimeter(*ring)[0]) / 1e6
        off_pole = grid.rows - 0.5 - abs(row + 0.5)
        # the ellipsoid adds 0.9 % to the sphere's
        assert area == pytest.approx(expected, rel=0.06 if off_pole < 5 else 0.02)


def test_longitudes_past_180_degrees_are_those_of_the_other_side():
    for place in PLACES:
        footprints = _corpus(place, 200, 4)
        here = split_of_cells(footprints, 3, 0.4, 50.0, 1.0)
        for turn in (-360.0, 360.0, 720.0):
            assert (split_of_cells(footprints + np.array([turn, 0.0]), 3, 0.4, 50.0, 1.0) == here).all()


def test_a_tile_around_a_pole_is_of_one_side_only_where_all_cells_there_are():
    around = _tiles((20.0, 90.0), np.array([[-4.0, -5.0]]), np.array([9.0]))
    sides = {}
    for seed in range(60):
        grid = CellGrid(100.0)
        cells = grid.is_val(np.full(3, grid.rows - 1), np.arange(3), seed, 0.5)
        sides.setdefault(cells.sum(), set()).add(str(split_of_cells(around, seed, 0.5, 100.0, 1.0)[0]))
    assert sides[1] | sides[2] == {"guard"}
    assert sides.get(3, {"val"}) == {"val"} and sides.get(0, {"train"}) == {"train"}


def test_a_hundred_thousand_tiles_are_split_in_a_second():
    import time

    rng = np.random.default_rng(0)
    footprints = np.tile(_patch((8.0, 47.0), 500, 500, 0.2), (10, 1, 1))
    footprints += np.repeat(rng.uniform(-20, 20, (10, 1, 2)), len(footprints) // 10, axis=0)
    start = time.process_time()
    split_of_cells(footprints, 0, 0.1, 50.0, 1.0)
    assert time.process_time() - start < len(footprints) / 100_000


@pytest.mark.parametrize(
    ("val_share", "cell_km", "guard_km"),
    [(1.1, 50, 1), (-0.1, 50, 1), (np.nan, 50, 1), (0.1, 0, 1), (0.1, 1e5, 1), (0.1, 50, -1), (0.1, 50, np.nan)],
)
def test_settings_out_of_range_are_refused(val_share, cell_km, guard_km):
    with pytest.raises(SettingError, match=r"expected, .* found"):
        split_of_cells(_corpus(PLACES[0], 3, 0), 0, val_share, cell_km, guard_km)


def test_footprints_that_lie_nowhere_are_refused():
    footprints = _corpus(PLACES[0], 3, 0)
    footprints[1, 4, 0] = np.inf
    with pytest.raises(SceneError, match="1 of 3 tiles"):
        split_of_cells(footprints, 0, 0.1, 50.0, 1.0)


# ---------------------------------------------------------------- by region


def _region(place: tuple[float, float], seed: int) -> shapely.geometry.base.BaseGeometry:
    """A ragged area about a place, cut at 180 degrees."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = rng.uniform(60, 160, 40)
    lon, lat = _plane(*place)(radius * np.cos(angle), radius * np.sin(angle), inverse=True)
    lon = lon[0] + (lon - lon[0] + 180) % 360 - 180
    shape = shapely.Polygon(np.stack([lon, lat], axis=-1))
    parts = [
        shapely.transform(
            shapely.intersection(shape, shapely.box(turn - 180, -90, turn + 180, 90)), lambda xy, t=turn: xy - [t, 0]
        )
        for turn in (-360, 0, 360)
    ]
    return shapely.union_all(parts)


@settings(max_examples=40)
@given(
    lon=st.one_of(st.floats(-180, 180), st.just(179.9)),
    lat=st.floats(-85, 85),
    seed=st.integers(0, 10**6),
    guard_km=st.sampled_from([0.5, 3.0, 20.0]),
)
def test_region_holds_val_and_train_keeps_the_guard_from_it(lon, lat, seed, guard_km):
    place = (lon, lat)
    footprints, region = _corpus(place, 400, seed), _region(place, seed)
    split = split_of_region(footprints, region, guard_km)
    plane = _plane(*place)
    # the region's edges are straight in lon and lat: in pieces, they are straight in the plane as well
    dense = shapely.segmentize(region, 0.01)
    ground = shapely.transform(dense, lambda xy: np.stack(plane(xy[:, 0], xy[:, 1]), axis=-1)).buffer(1e-6)
    shapes = shapely.polygons(np.stack(plane(footprints[..., 0], footprints[..., 1]), axis=-1))
    km = shapely.distance(ground, shapes)
    inside = shapely.covers(ground.buffer(0.02), shapes) & ~shapely.intersects(ground.boundary, shapes)
    assert shapely.covers(ground.buffer(0.02), shapes[split == "val"]).all()
    assert (split[inside] == "val").all()
    assert (km[split == "train"] >= guard_km * 0.999 - 0.001).all()
    # a box is wider than its footprint, and in lon by more the nearer the pole
    assert (split[km > 3 * guard_km + 60] == "train").all()
    _assert_apart(footprints, split, place, 0.995 * guard_km)


@settings(max_examples=40)
@given(
    west=st.floats(-180, 140),
    width=st.floats(1, 40),
    south=st.floats(86, 89.5),
    seed=st.integers(0, 10**6),
    guard_km=st.sampled_from([5.0, 30.0, 80.0]),
)
def test_train_keeps_the_guard_from_a_region_across_the_pole(west, width, south, seed, guard_km):
    place = (0.0, 90.0)
    footprints, region = _corpus(place, 400, seed), shapely.box(west, south, west + width, 89.95)
    split = split_of_region(footprints, region, guard_km)
    plane = _plane(*place)
    ground = shapely.transform(shapely.segmentize(region, 0.1), lambda xy: np.stack(plane(xy[:, 0], xy[:, 1]), axis=-1))
    shapes = shapely.polygons(np.stack(plane(footprints[..., 0], footprints[..., 1]), axis=-1))
    assert (shapely.distance(ground, shapes)[split == "train"] >= guard_km * 0.999 - 0.001).all()


def test_geodesic_edges_count_where_they_bend_poleward_of_their_corners():
    wide = np.array([[[0.0, 88.0], [20.0, 88.0], [20.0, 87.5], [0.0, 87.5]]])
    halfway = GEOD.npts(0, 88, 20, 88, 1)[0][1]
    for side in (1, -1):
        for gap_km, expected in ((0.8, "guard"), (1.3, "train")):
            edge = side * (halfway + gap_km / 111.69)
            cap = shapely.box(-180, min(edge, side * 90), 180, max(edge, side * 90))
            assert split_of_region(wide * [1, side], cap, 1.0)[0] == expected


def test_region_over_the_pole_holds_the_tile_around_it():
    footprints = _tiles((0.0, 90.0), np.array([[-5.0, -4.0], [300.0, 300.0], [109.0, 0.0]]), np.array([9.0, 9.0, 9.0]))
    cap = shapely.box(-180, 89.0, 180, 90)
    assert split_of_region(footprints, cap, 1.0).tolist() == ["val", "train", "guard"]


# ---------------------------------------------------------------- by chosen tiles


@settings(max_examples=40)
@given(
    lon=st.floats(-180, 180),
    lat=st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 89.9, 90.0])),
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.02, 0.2]),
    guard_km=st.sampled_from([0.0, 1.0, 15.0]),
)
def test_guard_is_what_comes_within_it_of_a_chosen_tile_and_nothing_else(lon, lat, seed, share, guard_km):
    place, count = (lon, lat), 300
    footprints = _corpus(place, count, seed)
    chosen = np.random.default_rng(seed).random(count) < share
    split = guard_against(footprints, chosen, guard_km)
    assert ((split == "val") == chosen).all()
    distance = np.full(count, np.inf)
    others = np.flatnonzero(~chosen)
    for (tile, _), km in _distances(footprints[others], footprints[chosen], place, guard_km).items():
        distance[others[tile]] = min(distance[others[tile]], km)
    # of what is clearly to either side; the sphere of the smallest radius is 1 % off at most, and an edge straight in
    # lon and lat near a pole is far from a geodesic
    assert (split[~chosen & (distance < guard_km - 1e-3)] == "guard").all()
    assert (split[~chosen & (distance == 0)] == "guard").all()
    if abs(lat) < 85:
        assert (split[~chosen & (distance > 1.012 * guard_km + 0.15)] == "train").all()


def test_one_footprint_as_large_as_a_country_guards_what_it_holds_and_no_more():
    footprints = _tiles(
        (10.0, 50.0),
        np.array([[-400.0, -400.0], [0.0, 0.0], [402.0, 0.0], [420.0, 0.0]]),
        np.array([800.0, 5, 5, 5]),
        0.0,
    )
    split = guard_against(footprints, np.array([True, False, False, False]), 5.0)
    assert split.tolist() == ["val", "guard", "guard", "train"]


def test_chosen_tiles_of_unlike_sizes_guard_each_for_its_own_size():
    """Corner to corner, half a kilometre apart, beside a smaller chosen tile of the same order of size."""
    corners = np.array([[0.0, 0.0], [60.0, 60.0], [8.95, 8.95]])
    footprints = _tiles((10.0, 50.0), corners, np.array([8.6, 4.6, 4.6]), 0.0)
    assert guard_against(footprints, np.array([True, True, False]), 1.0).tolist() == ["val", "val", "guard"]


@pytest.mark.parametrize("chosen", [False, True])
def test_none_chosen_is_all_train_and_all_chosen_all_val(chosen):
    footprints = _corpus(PLACES[1], 20, 0)
    assert set(guard_against(footprints, np.full(20, chosen), 5.0)) == {"val" if chosen else "train"}


def test_a_hundred_thousand_tiles_are_guarded_in_a_few_seconds():
    import time

    footprints = np.concatenate([_patch((lon, 46.0), 400, 500, 0.2, tile=2.5, stride=2.5) for lon in (7.0, 8.0, 12.0)])
    chosen = np.arange(len(footprints)) < len(footprints) // 3
    start = time.process_time()
    guard_against(footprints, chosen, 1.0)
    assert time.process_time() - start < 8 * len(footprints) / 100_000


# ---------------------------------------------------------------- files of the user's

_SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [2, 0], [2, 2], [0, 2], [0, 0]]]}
_OTHER = {"type": "MultiPolygon", "coordinates": [[[[1, 1], [3, 1], [3, 3], [1, 3], [1, 1]]]]}


def _feature(geometry):
    return {"type": "Feature", "properties": {}, "geometry": geometry}


@pytest.mark.parametrize(
    ("content", "area"),
    [
        (_SQUARE, 4),
        (_feature(_OTHER), 4),
        ({"type": "FeatureCollection", "features": [_feature(_SQUARE), _feature(_OTHER)]}, 7),
        (_SQUARE | {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}}, 4),
        (_SQUARE | {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::4326"}}}, 4),
        ({"type": "Polygon", "coordinates": [[[179, 0], [181, 0], [181, 1], [179, 1], [179, 0]]]}, 2),
    ],
)
def test_region_is_the_union_of_the_polygons_of_a_file(tmp_path, content, area):
    (tmp_path / "val.geojson").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    assert read_region(tmp_path / "val.geojson").area == pytest.approx(area)


def _ring(*points):
    return {"type": "Polygon", "coordinates": [[*points, points[0]]]}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        ("POLYGON ((0 0, 1 1, 1 0, 0 0))", "cannot be read as JSON"),
        ("[1, 2]", "a JSON list without a type"),
        ('{"type": "FeatureCollection", "features": []}', "without features"),
        (
            json.dumps({"type": "FeatureCollection", "features": [_feature({"type": "Point", "coordinates": [0, 0]})]}),
            "Point",
        ),
        (json.dumps(_feature(None)), "found None"),
        ('{"kind": "Polygon"}', "without a type"),
        ('{"type": "Polygon", "coordinates": "here"}', "found Polygon"),
        ('{"type": "Polygon"}', "found"),
        ('{"type": "Polygon", "coordinates": []}', "an empty one"),
        (json.dumps(_SQUARE | {"crs": {"type": "name", "properties": {"name": "EPSG:32633"}}}), "EPSG:32633"),
        (json.dumps(_ring([5e5, 4e6], [6e5, 4e6], [6e5, 5e6])), "500000"),
        (json.dumps(_ring([179, 0], [-179, 0], [-179, 1], [179, 1])), "358"),
        (json.dumps(_ring([0, 0], [1, 1], [1, 0], [0, 1])), "Self-intersection"),
    ],
)
def test_a_file_that_is_no_region_is_refused_by_name_and_in_one_sentence(tmp_path, content, found):
    path = tmp_path / "val.geojson"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError, match=f"(?s)val.geojson: .*expected .*{found}") as error:
        read_region(path)
    assert "\n" not in str(error.value)


def test_names_are_read_without_comments_and_match_as_patterns(tmp_path):
    path = tmp_path / "val.txt"
    path.write_text("# held out\nS1A_*_VV\n\n umbra/scene#2 # with a number sign\nodd[1]\n")
    patterns = read_names(path)
    assert patterns == ("S1A_*_VV", "umbra/scene#2", "odd[1]")
    names = ["S1A_2020_VV", "S1A_2020_VH", "umbra/scene#2", "umbra/scene", "odd[1]", "odd1", "xS1A_a_VV", "s1a_2020_vv"]
    assert matches(names, patterns).tolist() == [True, False, True, False, True, True, False, False]
    assert matches(names, []).tolist() == [False] * 8
    assert matches([], patterns).shape == (0,)


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n\n", b"\xff\xfe\x00name"])
def test_a_list_without_names_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "val.txt").write_bytes(content)
    with pytest.raises(SettingError, match=r"val\.txt"):
        read_names(tmp_path / "val.txt")


def test_polarisations_of_an_unplaced_scene_go_together():
    assert {split_of_place("a/scene-7", seed, 0.5) for seed in range(20)} == {"train", "val"}
    assert split_of_place("a/scene-7", 5, 0.5) == split_of_place("a/scene-7", 5, 0.5)
    assert split_of_place("a/scene-7", 5, 0.0) == "train"
