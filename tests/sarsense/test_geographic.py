"""Planted duplicates, counted against points on the ground; greedy rules against plain loops over all pairs."""

import itertools
from datetime import date

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from sarsense.dedup.geographic import COVERED, UNKNOWN, Dropped, cap_repeats, covered_by_same_acquisition, places
from sarsense.dedup.overlap import Ground
from sarsense.errors import SettingError
from tests.sarsense.test_overlap import PLACES, corpus

CRS = {"mid latitude": "EPSG:32633", "across 180 degrees": "EPSG:32601", "pole": "EPSG:3413"}
CORNER = {
    "EPSG:32633": (500_000.0, 5_600_000.0),
    "EPSG:32601": (175_000.0, -20_000.0),
    "EPSG:3413": (-9_000.0, 9_000.0),
}
"""upper left corner of the first scene: 20 km from 180 degrees at the equator; the pole within the scene"""


class Tiles:
    """Tiles of several scenes; their rings in metres of one plane, so that truth is a matter of counting."""

    def __init__(self, crs: str) -> None:
        self.crs, self.rings, self.scene, self.acquisition = crs, [], [], []

    def cut(self, x, y, spacing, width, height, tile, stride=None, turn=0.0, acquisition: int = UNKNOWN) -> int:
        """Tile a scene of width x height pixels with its upper left corner at x, y metres from CORNER."""
        number = max(self.scene, default=-1) + 1
        step = np.arange(5) / 5 * tile
        ring_cols = np.concatenate([step, np.full(5, tile), tile - step, np.zeros(5)])
        ring_rows = np.concatenate([np.zeros(5), step, np.full(5, tile), tile - step])
        x0, y0 = CORNER[self.crs]
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        for row in range(0, height - tile + 1, stride or tile):
            for col in range(0, width - tile + 1, stride or tile):
                east, south = (col + ring_cols) * spacing, (row + ring_rows) * spacing
                self.rings.append(np.stack([x0 + x + cos * east + sin * south, y0 - y + sin * east - cos * south], -1))
                self.scene.append(number)
                self.acquisition.append(acquisition)
        return number

    @property
    def ground(self) -> Ground:
        to_lonlat = pyproj.Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(*np.concatenate(self.rings).T)
        lon, lat = lon.reshape(-1, 20), lat.reshape(-1, 20)
        return Ground.of(np.stack([lon[:, :1] + (lon - lon[:, :1] + 180) % 360 - 180, lat], -1))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.scene), np.array(self.acquisition)

    def share_within(self, scenes: set[int], tiles: np.ndarray) -> np.ndarray:
        """Of 40 x 40 points of each of `tiles` (bool), those within tiles of `scenes`: by counting, in the plane."""
        polygons = shapely.polygons(np.stack(self.rings))
        union = shapely.union_all(polygons[np.isin(self.scene, list(scenes))])
        shapely.prepare(union)
        u = (np.arange(40) + 0.5) / 40
        u, v = (a.ravel()[:, None] for a in np.meshgrid(u, u))
        shares = np.zeros(len(tiles))
        for k in np.flatnonzero(tiles):
            ring = self.rings[k]
            points = ring[0] + u * (ring[5] - ring[0]) + v * (ring[15] - ring[0])
            shares[k] = shapely.contains_xy(union, *points.T).mean()
        return shares


def drop(tiles: Tiles, rank=None, settled=None, polarisation=None, threshold: float = COVERED) -> Dropped:
    scene, acquisition = tiles.arrays()
    count = len(scene)
    return covered_by_same_acquisition(
        tiles.ground,
        scene,
        acquisition,
        np.zeros(count, np.int64) if polarisation is None else polarisation,
        np.arange(count) if rank is None else rank,
        np.zeros(count, bool) if settled is None else settled,
        threshold,
    )


def recall_and_precision(dropped: Dropped, truth: np.ndarray) -> tuple[float, float]:
    found = np.isin(np.arange(len(truth)), dropped.index)
    return (found & truth).sum() / truth.sum(), (found & truth).sum() / found.sum()


@pytest.mark.parametrize("crs", CRS.values(), ids=CRS)
@pytest.mark.parametrize("tile", [256, 512])
def test_planted_duplicates_are_found_and_nothing_else(crs, tile):
    """A crop on its own grid, a neighbouring slice, another spacing and turn; beside repeats and other tracks."""
    recalls, found, wrong, planted = 0, 0, 0, 0
    for shift in (3, 17, 40):
        tiles, side = Tiles(crs), 4096
        whole = tiles.cut(0, 0, 10, side, side, tile, acquisition=7)
        cropped = 10.0 * (side // 20 + shift)
        crop = tiles.cut(cropped, cropped / 2, 10, int(0.9 * side), int(0.9 * side), tile, acquisition=7)
        slice_ = tiles.cut(55.0, 10.0 * (side - 700), 10, side, side, tile, acquisition=7)
        coarse = tiles.cut(2000, 1000, 20, side // 2, side // 2, tile // 2, turn=-12, acquisition=7)
        repeat = tiles.cut(33, -21, 10, side, side, tile, acquisition=8)
        nameless = tiles.cut(0, 0, 10, side, side, tile)
        dropped = drop(tiles)
        scene = np.array(tiles.scene)
        truth = tiles.share_within({whole}, np.isin(scene, [crop, slice_, coarse])) >= COVERED
        # what of the coarse scene lies past the whole one may be covered by the slice that stays
        truth |= tiles.share_within({whole, slice_}, scene == coarse) >= COVERED
        assert not np.isin(scene[dropped.index], [whole, repeat, nameless]).any()
        recall, precision = recall_and_precision(dropped, truth)
        recalls += recall * truth.sum()
        planted += truth.sum()
        found += len(dropped.index)
        wrong += (1 - precision) * len(dropped.index)
        assert (scene[dropped.kept] != scene[dropped.index]).all()
    print(f"{crs} {tile}: {planted} planted, recall {recalls / planted:.4f}, precision {1 - wrong / found:.4f}")
    assert recalls / planted >= 0.98
    assert 1 - wrong / found >= 0.98


@pytest.mark.parametrize("crs", CRS.values(), ids=CRS)
def test_strides_of_half_a_tile_and_more_are_left_alone(crs):
    for stride in (256, 448, 512):
        tiles = Tiles(crs)
        tiles.cut(0, 0, 10, 2048, 2048, 512, stride)
        assert not len(drop(tiles).index)


def test_a_stride_of_a_quarter_leaves_half():
    tiles = Tiles("EPSG:32633")
    tiles.cut(0, 0, 10, 2048, 1024, 512, 128)
    dropped = drop(tiles)
    stays = np.delete(np.arange(len(tiles.rings)), dropped.index)
    corners = np.array([tiles.rings[k][0] for k in stays]) - CORNER["EPSG:32633"]
    assert {tuple(c) for c in np.round(corners / 2560).astype(int)} == {(c, -r) for c in range(7) for r in range(3)}
    assert dropped.share == pytest.approx(0.75, abs=1e-3)


def test_a_copy_on_a_shifted_grid_is_covered_by_four_together_only():
    tiles = Tiles("EPSG:32633")
    tiles.cut(0, 0, 10, 2048, 2048, 512, acquisition=1)
    tiles.cut(2560, 2560, 10, 1536, 1536, 512, acquisition=1)
    dropped = drop(tiles)
    assert dropped.index.tolist() == list(range(16, 25))
    assert dropped.share == pytest.approx(1.0, abs=1e-3)
    assert dropped.kept.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]  # equal quarters: the preferred tile


def test_repeats_polarisations_and_unknown_acquisitions_are_no_duplicates():
    tiles = Tiles("EPSG:32633")
    for acquisition in (1, 2, UNKNOWN, UNKNOWN, 1):
        tiles.cut(0, 0, 10, 1024, 1024, 512, acquisition=acquisition)
    polarisation = np.repeat([0, 0, 0, 0, 1], 4)
    assert not len(drop(tiles, polarisation=polarisation).index)
    assert drop(tiles).index.tolist() == [16, 17, 18, 19]


def test_what_a_corpus_has_stays_and_what_is_preferred_stays():
    tiles = Tiles("EPSG:32633")
    for _ in range(3):
        tiles.cut(0, 0, 10, 512, 512, 512, acquisition=1)
    assert drop(tiles, rank=np.array([2, 0, 1])).kept.tolist() == [1, 1]
    dropped = drop(tiles, rank=np.array([2, 0, 1]), settled=np.array([True, False, True]))
    assert (dropped.index.tolist(), dropped.kept.tolist()) == ([1], [2])


def by_all_pairs(ground: Ground, scene, acquisition, rank, settled, threshold) -> tuple[dict[int, float], float]:
    """Dropped -> share, by the written rule in plain words; and how near to the threshold any decision was."""
    dropped: dict[int, float] = {}
    stays: list[int] = []
    margin = 1.0
    for i in sorted(range(len(rank)), key=lambda i: (not settled[i], rank[i])):
        if settled[i]:
            stays.append(i)
            continue
        lon, lat = ground.footprints[i].mean(axis=0)
        lon, lat = (0.0, 90.0) if lat > 85 else (lon, lat)
        plane = pyproj.Transformer.from_crs(
            "EPSG:4326", f"+proj=laea +lon_0={lon} +lat_0={lat} +datum=WGS84 +units=km", always_xy=True
        )
        polygons = {}
        for j in [i, *stays]:
            same = scene[i] == scene[j] or (acquisition[i] == acquisition[j] != UNKNOWN)
            if same and np.linalg.norm(ground.centres[i] - ground.centres[j]) < 1000:
                polygons[j] = shapely.Polygon(np.stack(plane.transform(*ground.footprints[j].T), -1))
        own = polygons.pop(i)
        single = max([own.intersection(p).area / own.area for p in polygons.values()], default=0.0)
        within = [own.intersection(p).area / own.area for j, p in polygons.items() if scene[j] == scene[i]]
        union = shapely.union_all([p for j, p in polygons.items() if scene[j] != scene[i]])
        share = max([*within, own.intersection(union).area / own.area])
        margin = min(margin, abs(share - threshold), abs(single - threshold))
        share = single if single >= threshold else share
        if share >= threshold:
            dropped[i] = share
        else:
            stays.append(i)
    return dropped, margin


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    place=st.sampled_from(list(PLACES.values())),
    sides=st.sampled_from([(2.5,), (2.0, 3.0), (0.5, 5.0), (80.0, 200.0)]),
    threshold=st.sampled_from([0.3, 0.6, 0.9]),
)
def test_covered_is_the_rule_worked_out_over_all_pairs_whatever_the_order(seed, place, sides, threshold):
    rng, count = np.random.default_rng(seed), 40
    ground = Ground.of(corpus(place, count, seed, sides))
    scene, rank = rng.integers(0, 6, count), rng.permutation(count)
    acquisition = np.array([UNKNOWN, UNKNOWN, 0, 0, 0, 1])[scene]
    settled = rng.random(count) < 0.1
    expected, margin = by_all_pairs(ground, scene, acquisition, rank, settled, threshold)
    found = covered_by_same_acquisition(ground, scene, acquisition, scene * 0, rank, settled, threshold)
    if margin > 1e-3:
        assert found.index.tolist() == sorted(expected)
        assert found.share == pytest.approx([expected[i] for i in found.index], abs=1e-3)
    assert not np.isin(found.kept, found.index).any()
    p = rng.permutation(count)
    shuffled = covered_by_same_acquisition(
        Ground.of(ground.footprints[p]), scene[p], acquisition[p], scene * 0, rank[p], settled[p], threshold
    )
    assert dict(zip(p[shuffled.index], zip(p[shuffled.kept], shuffled.share, strict=True), strict=True)) == dict(
        zip(found.index, zip(found.kept, found.share, strict=True), strict=True)
    )


def passes(count: int, seed: int, most_turn: float = 0.0) -> Tiles:
    """Repeats of a scene of 8 x 8 tiles on grids shifted by anything up to a tile, as real passes are."""
    rng, tiles = np.random.default_rng(seed), Tiles("EPSG:32633")
    for number in range(count):
        x, y = rng.uniform(0, 2560, 2)
        tiles.cut(x, y, 10, 2048, 2048, 256, turn=rng.uniform(-most_turn, most_turn), acquisition=number)
    return tiles


def place_of(tiles: Tiles, order: np.ndarray | None = None, rank: np.ndarray | None = None) -> np.ndarray:
    scene, acquisition = tiles.arrays()
    count = len(scene)
    order = np.arange(count) if order is None else order
    rank = np.arange(count) if rank is None else rank
    ground = Ground.of(tiles.ground.footprints[order])
    nothing = np.zeros(count, np.int64)
    return places(ground, scene[order], acquisition[order], nothing, rank[order], nothing.astype(bool))


def test_places_hold_an_acquisition_once_and_follow_the_ground():
    tiles = passes(12, 3)
    place = place_of(tiles)
    scene = np.array(tiles.scene)
    assert len(set(zip(place.tolist(), scene.tolist(), strict=True))) == len(place)
    assert place[:64].tolist() == list(range(64))
    corners = np.array([ring[0] for ring in tiles.rings])
    leader = {number: corners[np.flatnonzero(place == number)[0]] for number in set(place.tolist())}
    apart = np.abs(corners - np.array([leader[number] for number in place]))
    assert (np.prod(1 - apart / 2560, axis=1) > 0.2499).all()


@pytest.mark.parametrize("turn", [0.0, 2.0])
def test_a_cap_of_three_leaves_about_three_passes_of_thirty(turn):
    tiles = passes(30, 4, turn)
    place, count = place_of(tiles), len(tiles.rings)
    dates = [f"20{20 + k % 3}-{1 + k % 12:02d}-05" for k in tiles.scene]
    dropped = cap_repeats(place, dates, np.arange(count), np.zeros(count, bool), 3)
    # places that only the rim of a few passes reaches hold less than three
    seen = (count - len(dropped.index)) / 64
    print(f"turn {turn}: {seen:.2f} passes left of 30")
    assert 2.9 < seen < 4.6


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_places_do_not_depend_on_order(seed):
    rng, tiles = np.random.default_rng(seed), passes(4, 5)
    order = rng.permutation(len(tiles.rings))
    rank = rng.permutation(len(tiles.rings))
    assert place_of(tiles, order, rank).tolist() == place_of(tiles, rank=rank)[order].tolist()


def test_tiles_of_other_size_or_polarisation_are_other_places():
    tiles = Tiles("EPSG:32633")
    tiles.cut(0, 0, 10, 512, 512, 512, acquisition=1)
    tiles.cut(0, 0, 10, 512, 512, 512, acquisition=2)
    tiles.cut(0, 0, 25, 512, 512, 512, acquisition=3)
    scene, acquisition = tiles.arrays()
    for polarisation, expected in (([0, 0, 0], [0, 0, 1]), ([0, 1, 0], [0, 1, 2])):
        found = places(tiles.ground, scene, acquisition, np.array(polarisation), scene, np.zeros(3, bool))
        assert found.tolist() == expected


def cap(dates, most, settled=None) -> dict[int, int]:
    count = len(dates)
    settled = np.zeros(count, bool) if settled is None else np.array(settled)
    dropped = cap_repeats(np.zeros(count, np.int64), dates, np.arange(count), settled, most)
    return dict(zip(dropped.index.tolist(), dropped.kept.tolist(), strict=True))


def test_seasons_by_hand():
    dates = ["2021-01-12", "2020-07-10T05:11:00Z", "2021-04-10", "2021-10-10", "2020-01-10", None, "yesterday"]
    assert cap(dates, 1) == {0: 4, 1: 4, 2: 4, 3: 4, 5: 4, 6: 4}
    assert cap(dates, 2) == {0: 4, 2: 4, 3: 1, 5: 4, 6: 4}  # winter and summer
    assert sorted(cap(dates, 3)) == [0, 2, 5, 6]  # and autumn
    assert sorted(cap(dates, 4)) == [0, 5, 6]  # and spring
    assert sorted(cap(dates, 5)) == [5, 6]
    assert sorted(cap(dates, 6)) == [6]
    assert cap(dates, 7) == {}


def test_the_year_is_a_circle_and_another_year_breaks_a_tie():
    assert sorted(cap(["2021-01-02", "2021-12-30", "2021-04-01"], 2)) == [1]
    assert sorted(cap(["2021-01-10", "2021-07-10", "2022-07-10"], 2)) == [1]
    assert sorted(cap(["2021-01-10", "2021-07-10", "2021-07-10"], 2)) == [2]


def test_what_a_corpus_has_is_not_capped():
    dates = ["2021-01-10", "2021-01-11", "2021-07-10"]
    assert sorted(cap(dates, 2, [True, True, False])) == [2]
    assert cap(dates, 1, [True, True, False]) == {2: 1}
    assert sorted(cap(dates, 2, [False, True, False])) == [0]


DATES = st.one_of(st.none(), st.dates(date(2017, 1, 1), date(2024, 12, 31)))


def gap(a: date, b: date) -> float:
    apart = abs(a.timetuple().tm_yday - b.timetuple().tm_yday)
    return min(apart, 365.25 - apart)


@settings(max_examples=100)
@given(dates=st.lists(DATES, min_size=1, max_size=9), most=st.integers(1, 5))
def test_the_cap_is_the_rule_in_plain_words_and_near_the_best_choice(dates, most):
    left, chosen = list(range(len(dates))), []
    while left and len(chosen) < most:
        known = [dates[k] for k in chosen if dates[k]]
        years = {d.year for d in known}

        def worth(k: int, known: list = known, years: set = years):  # the lowest is chosen
            if not dates[k]:
                return (1, 0, 0, k)
            if not known:
                return (0, dates[k].toordinal(), 0, k)
            return (0, -min(gap(dates[k], d) for d in known), dates[k].year in years, k)

        left.remove(pick := min(left, key=worth))
        chosen.append(pick)
    dropped = cap([d and d.isoformat() for d in dates], most)
    assert sorted(dropped) == left
    assert set(dropped.values()) <= set(chosen)
    dated = [k for k in range(len(dates)) if dates[k]]
    if len(dated) >= most >= 2:

        def spread(kept) -> float:
            return min(gap(dates[a], dates[b]) for a, b in itertools.combinations(kept, 2))

        best = max(spread([chosen[0], *rest]) for rest in itertools.combinations(set(dated) - {chosen[0]}, most - 1))
        assert spread(chosen) >= best / 2  # Gonzalez, 1985: farthest-first is within a factor of two


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), most=st.integers(1, 4))
def test_the_cap_does_not_depend_on_order(seed, most):
    rng, count = np.random.default_rng(seed), 60
    place, rank, settled = rng.integers(0, 8, count), rng.permutation(count), rng.random(count) < 0.1
    dates = [None if d == 0 else f"20{20 + d % 3}-{1 + d % 12:02d}-{1 + d % 5:02d}" for d in rng.integers(0, 40, count)]
    found = cap_repeats(place, dates, rank, settled, most)
    p = rng.permutation(count)
    shuffled = cap_repeats(place[p], [dates[k] for k in p], rank[p], settled[p], most)
    assert dict(zip(p[shuffled.index], p[shuffled.kept], strict=True)) == dict(
        zip(found.index, found.kept, strict=True)
    )
    assert (place[found.index] == place[found.kept]).all() and not settled[found.index].any()
    stays = np.delete(np.arange(count), found.index)
    kept, members = np.bincount(place[stays], minlength=8), np.bincount(place, minlength=8)
    had = np.bincount(place[settled], minlength=8)
    assert (kept == np.minimum(members, np.maximum(most, had))).all()


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="max-repeats: expected 1 or more, found 0"):
        cap(["2020-01-01"], 0)
    tiles = passes(1, 0)
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(SettingError, match="threshold of overlap: expected above 0"):
            drop(tiles, threshold=threshold)


def test_none_at_all():
    nothing, ground = np.zeros(0, np.int64), Ground.of(np.zeros((0, 20, 2)))
    none = covered_by_same_acquisition(ground, nothing, nothing, nothing, nothing, nothing.astype(bool))
    assert len(none.index) == len(places(ground, nothing, nothing, nothing, nothing, nothing.astype(bool))) == 0
    assert len(cap_repeats(nothing, [], nothing, nothing.astype(bool), 2).index) == 0
