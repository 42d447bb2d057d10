"""Planted duplicates are found, and nothing else: on simulated ground, whose truth is known, and on real pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from sarsense.codes import encode
from sarsense.dedup.fingerprint import Fingerprint, block_side, fingerprint
from sarsense.dedup.perceptual import Fingerprints, Pairs, cap_flat, perceptual_pairs, resolve
from sarsense.errors import SettingError
from sarsense.simulate import Truth, draw_truth
from tests.conftest import speckled_power

STEP_DB = 35 / 254
SIDE = 512
REACH = 40
"""pixels of 512 by which copies are shifted at most; 3 at least"""
SEED = 5


@dataclass(frozen=True)
class Planted:
    prints: Fingerprints
    group: np.ndarray
    """the original of each tile"""
    kind: list[str]
    """"original", or how it was copied"""

    def measured(self, name: str) -> tuple[float, float]:
        """(recall of pairs of an original and a copy, precision of all pairs), printed by kind of copy."""
        pairs = perceptual_pairs(self.prints)
        found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
        true = self.group[pairs.first] == self.group[pairs.second]
        original = {self.group[k]: k for k, kind in enumerate(self.kind) if kind == "original"}
        hits: dict[str, list[bool]] = {}
        for k, kind in enumerate(self.kind):
            if kind != "original":
                first = original[self.group[k]]
                hits.setdefault(kind, []).append((min(first, k), max(first, k)) in found)
        recall = float(np.mean([hit for of_kind in hits.values() for hit in of_kind]))
        precision = float(true.mean()) if len(true) else 1.0
        told = ", ".join(f"{kind} {np.mean(of_kind):.2f}" for kind, of_kind in hits.items())
        flat = int(self.prints.flat.sum())
        print(
            f"{name}: {len(self.kind)} tiles, {flat} flat, {len(pairs)} pairs, {int((~true).sum())} false; "
            f"recall {recall:.3f} ({told}), precision {precision:.3f}"
        )
        return recall, precision


def _prints(tiles: Sequence[np.ndarray], step_db: float = STEP_DB) -> Fingerprints:
    return Fingerprints.of([fingerprint(tile, step_db) for tile in tiles], block_side(tiles[0].shape))


def _codes(power: np.ndarray, gain_db: float = 0.0) -> np.ndarray:
    return encode((10 * np.log10(np.maximum(power, 1e-9)) + gain_db).astype(np.float32), -30.0, 5.0)


def _jpeg(tile: np.ndarray, quality: int = 75) -> np.ndarray:
    done, data = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.maximum(np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)), 1)


def _stretched(tile: np.ndarray) -> np.ndarray:
    """8-bit PNG whose range is that of its 1st to 99th percentile, as display software writes it."""
    low, high = np.percentile(tile, (1, 99))
    image = np.clip(np.rint((tile - low) / (high - low) * 254), 0, 254).astype(np.uint8) + 1
    done, data = cv2.imencode(".png", image)
    assert done
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


def _shift(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """3 to 40 pixels of 512 along each axis, either way."""
    size = rng.integers(3, REACH + 1, 2) * side / 512
    return np.maximum(np.rint(size), 1).astype(int) * rng.choice([-1, 1], 2)


# --------------------------------------------------------------------------------------------- simulated ground


@pytest.fixture(scope="module")
def grounds() -> list[Truth]:
    """Three scenes that each hold four tiles with room for shifts."""
    return [draw_truth(SEED, index, 2 * SIDE + 2 * REACH) for index in (0, 1, 2)]


CORNERS = [(REACH, REACH), (REACH, REACH + SIDE), (REACH + SIDE, REACH), (REACH + SIDE, REACH + SIDE)]
"""of neighbours that do not overlap"""


def _cut(image: np.ndarray, corner: Sequence[int] | np.ndarray, side: int = SIDE) -> np.ndarray:
    return image[corner[0] : corner[0] + side, corner[1] : corner[1] + side]


def _image(truth: Truth, rng: np.random.Generator, looks: float) -> np.ndarray:
    speckle = rng.standard_gamma(looks, truth.clutter["VV"].shape, dtype=np.float32) / np.float32(looks)
    return truth.clutter["VV"] * speckle + truth.points["VV"]


@pytest.mark.parametrize("looks", [1.0, 4.0])
def test_planted_copies_of_simulated_tiles_are_found_and_nothing_else(grounds: list[Truth], looks: float) -> None:
    rng = np.random.default_rng(int(looks))
    tiles, group, kind = [], [], []

    def add(tile: np.ndarray, of: int, how: str) -> None:
        tiles.append(tile)
        group.append(of)
        kind.append(how)

    for number, truth in enumerate(grounds):
        image = _image(truth, rng, looks)
        again = {other: _image(truth, rng, other) for other in (1.0, 4.0, 16.0)}
        for place, corner in enumerate(CORNERS):
            of = 4 * number + place
            tile = _codes(_cut(image, corner))
            add(tile, of, "original")
            add(tile.copy(), of, "renamed")
            add(_jpeg(tile), of, "jpeg")
            add(_stretched(tile), of, "png stretch")
            add(_codes(_cut(image, corner + _shift(rng)), rng.uniform(-3, 3)), of, "shifted, gain")
            for other, speckled in again.items():
                moved = _codes(_cut(speckled, corner + _shift(rng)), rng.uniform(-3, 3))
                add(moved, of, f"shifted, gain, {other:g} looks")
    recall, precision = Planted(_prints(tiles), np.array(group), kind).measured(f"simulated, L = {looks:g}")
    assert recall >= 0.9
    assert precision >= 0.98


def test_the_shift_is_that_of_the_ground(grounds: list[Truth]) -> None:
    rng = np.random.default_rng(1)
    wrong = []
    for truth in grounds:
        image, again = _image(truth, rng, 4.0), _image(truth, rng, 4.0)
        shift = _shift(rng)
        pairs = perceptual_pairs(_prints([_codes(_cut(image, CORNERS[0])), _codes(_cut(again, CORNERS[0] + shift))]))
        assert len(pairs) == 1
        # what lies at p in the first lies at p - shift in the second
        wrong.append(np.abs(pairs.shift[0] - shift).max())
    assert max(wrong) < 4.0


def test_a_tile_shifted_by_a_third_is_found_and_one_shifted_by_more_than_half_is_not(grounds: list[Truth]) -> None:
    rng = np.random.default_rng(2)
    found = []
    for truth in grounds:
        image, again = _image(truth, rng, 4.0), _image(truth, rng, 4.0)
        tiles = [_codes(_cut(image, (0, 0))), _codes(_cut(again, (170, 0))), _codes(_cut(again, (300, 0)))]
        pairs = perceptual_pairs(_prints(tiles))
        found.append(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)))
    assert sum((0, 1) in one for one in found) >= 2
    assert not any((0, 2) in one for one in found)


def test_distinct_neighbours_of_the_same_farmland_are_never_duplicates(grounds: list[Truth]) -> None:
    looks = (1.0, 4.0, 16.0)
    images = [_image(truth, np.random.default_rng(0), each) for truth, each in zip(grounds, looks, strict=True)]
    for side in (512, 256, 128):
        corners = [(y, x) for y in range(0, 1024, side) for x in range(0, 1024, side)]
        prints = _prints([_codes(_cut(image, corner, side)) for image in images for corner in corners])
        assert prints.flat.mean() < 0.1
        assert len(perceptual_pairs(prints)) == 0


def test_parcels_of_one_pattern_but_other_crops_are_not_duplicates() -> None:
    """One grid of parcels, drawn anew: what neighbouring farmland has most in common."""
    rng = np.random.default_rng(3)
    tiles = []
    for _ in range(24):
        parcels = np.kron(rng.normal(0, 2, (11, 11)), np.ones((48, 48)))[:SIDE, :SIDE]
        tiles.append(_codes(10 ** ((parcels - 11) / 10) * rng.gamma(4.0, 1 / 4.0, (SIDE, SIDE))))
    prints = _prints(tiles)
    assert not prints.flat.any()
    assert len(perceptual_pairs(prints)) == 0


# ---------------------------------------------------------------------------------------------------- flat ground


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_hashes_of_flat_water_are_random_and_it_is_told_to_be_flat(looks: float) -> None:
    small = _prints([_codes(speckled_power((128, 128), looks, seed, -20.0)) for seed in range(40)])
    assert small.flat.all()
    prints = _prints([_codes(speckled_power((SIDE, SIDE), looks, seed, -20.0)) for seed in range(40)])
    assert prints.flat.all()
    assert prints.structure.max() < 0.1
    apart = np.array([bin(int(a) ^ int(b)).count("1") for a in prints.perceptual_hash for b in prints.perceptual_hash])
    assert apart[apart > 0].mean() == pytest.approx(32, abs=1.0)
    assert len(perceptual_pairs(prints)) == 0


def test_flat_ground_under_correlated_speckle_is_flat_all_the_same() -> None:
    tile = speckled_power((SIDE, SIDE), 1.0, 0, -15.0)
    assert fingerprint(_codes(cv2.GaussianBlur(tile, (0, 0), 1.2)), STEP_DB).flat


@pytest.mark.parametrize("looks", [1.0, 4.0])
def test_structure_is_the_deviation_of_the_ground_whatever_the_looks(looks: float) -> None:
    rng = np.random.default_rng(0)
    field = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE)), (0, 0), 40.0)
    field *= 1.5 / field.std()
    one = fingerprint(_codes(10 ** ((field - 12) / 10) * rng.gamma(looks, 1 / looks, field.shape)), STEP_DB)
    assert one.structure == pytest.approx(1.5, rel=0.05)
    assert not one.flat


def test_a_sixteenth_of_a_decibel_of_swell_does_not_make_the_sea_a_landscape() -> None:
    swell = 0.09 * np.sin(np.arange(SIDE) / 12)[:, None]
    power = 10 ** ((swell - 20) / 10) * np.random.default_rng(0).gamma(100.0, 0.01, (SIDE, SIDE))
    assert fingerprint(_codes(power), STEP_DB).flat


# ---------------------------------------------------------------------------------------------------- fingerprints


def _structured(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), 14.0)
    return _codes(10 ** ((2 * field / field.std() - 12) / 10) * rng.gamma(4.0, 1 / 4.0, shape))


def _same(a: Fingerprint, b: Fingerprint) -> bool:
    return (
        a.perceptual_hash == b.perceptual_hash
        and np.array_equal(a.anchors, b.anchors)
        and np.array_equal(a.thumbnail, b.thumbnail)
    )


def test_a_gain_that_clips_nothing_changes_no_hash() -> None:
    tile = np.clip(_structured(0), 40, 200)
    louder = (tile + 12).astype(np.uint8)
    a, b = fingerprint(tile, STEP_DB), fingerprint(louder, STEP_DB)
    differing = [int(x) ^ int(y) for x, y in zip([a.perceptual_hash, *a.anchors], [b.perceptual_hash, *b.anchors])]  # noqa: B905
    # float rounding may turn a coefficient of nearly 0
    assert sum(bin(bits).count("1") for bits in differing) <= 2


def test_codes_of_16_bits_give_the_fingerprint_of_those_of_8() -> None:
    tile = _structured(1)
    wide = np.where(tile > 0, (tile.astype(np.uint16) - 1) * 258 + 1, 0).astype(np.uint16)
    a, b = fingerprint(tile, STEP_DB), fingerprint(wide, STEP_DB / 258)
    assert np.abs(a.thumbnail.astype(int) - b.thumbnail).max() <= 1
    assert a.structure == pytest.approx(b.structure, rel=1e-3)


@pytest.mark.parametrize("shape", [(512, 512), (224, 224), (128, 128), (120, 200), (1024, 1024), (64, 64)])
def test_thumbnails_are_small_and_anchors_lie_in_the_tile(shape: tuple[int, int]) -> None:
    one = fingerprint(_structured(2, shape), STEP_DB)
    assert one.thumbnail.nbytes <= 4096
    there = one.positions[:, 0] >= 0
    assert (one.positions[there] < shape).all()
    assert there.any() == (min(one.thumbnail.shape) > 26) or not there.any()


def test_a_masked_wedge_is_seen_through_and_an_almost_empty_tile_is_flat() -> None:
    tile = _structured(3)
    wedge = np.tri(SIDE, k=-300, dtype=bool)
    masked = np.where(wedge, 0, tile).astype(np.uint8)
    pairs = perceptual_pairs(_prints([tile, masked]))
    assert len(pairs) == 1
    thumbnail = fingerprint(masked, STEP_DB).thumbnail
    assert np.array_equal(thumbnail == 0, wedge.reshape(64, 8, 64, 8).mean((1, 3)) > 0.5)
    empty = np.zeros_like(tile)
    empty[:100, :100] = tile[:100, :100]
    assert fingerprint(empty, STEP_DB).flat
    assert fingerprint(np.zeros_like(tile), STEP_DB).flat
    assert fingerprint(np.full_like(tile, 7), STEP_DB).flat


def test_what_is_no_tile_of_codes_is_refused() -> None:
    with pytest.raises(SettingError, match="unsigned codes"):
        fingerprint(np.zeros((512, 512), np.float32), STEP_DB)
    with pytest.raises(SettingError, match="unsigned codes"):
        fingerprint(np.zeros((16, 512), np.uint8), STEP_DB)
    with pytest.raises(SettingError, match="one size"):
        _prints([_structured(0), _structured(0, (256, 300))])


# ---------------------------------------------------------------------------------------------- which one is kept

edges = st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda pair: pair[0] < pair[1]), max_size=30)


def _as_pairs(found: Sequence[tuple[int, int]]) -> Pairs:
    i, j = np.array(found, np.int64).reshape(-1, 2).T
    return Pairs(i, j, np.ones(len(i), np.float32), np.zeros((len(i), 2), np.float32))


@given(edges, st.lists(st.booleans(), min_size=12, max_size=12), st.permutations(range(12)))
def test_what_is_kept_does_not_depend_on_order(
    pairs: set[tuple[int, int]], settled: list[bool], order: list[int]
) -> None:
    keys, fixed = [f"key{k:02d}" for k in range(12)], np.array(settled)
    kept_for = resolve(_as_pairs(sorted(pairs)), keys, fixed)
    place = {tile: row for row, tile in enumerate(order)}
    moved = [tuple(sorted((place[i], place[j]))) for i, j in pairs]
    again = resolve(_as_pairs(moved), [keys[tile] for tile in order], fixed[order])  # type: ignore[arg-type]
    assert {keys[k]: keys[v] for k, v in enumerate(kept_for) if v >= 0} == {
        keys[order[k]]: keys[order[v]] for k, v in enumerate(again) if v >= 0
    }
    kept = kept_for < 0
    assert kept[fixed].all()
    assert all(not (kept[i] and kept[j]) or (fixed[i] and fixed[j]) for i, j in pairs)
    # each dropped tile has a kept duplicate
    assert all(kept[v] and tuple(sorted((k, int(v)))) in pairs for k, v in enumerate(kept_for) if v >= 0)


def test_permuted_tiles_give_the_same_kept_set() -> None:
    tiles = [_structured(seed) for seed in range(6)]
    tiles += [_jpeg(tile, 60) for tile in tiles[:4]] + [_stretched(tile) for tile in tiles[2:5]]
    keys = [f"{name}" for name in "mclakbzyxwdef"]
    kept = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(tiles))
        pairs = perceptual_pairs(_prints([tiles[k] for k in order]))
        names = [keys[k] for k in order]
        kept_for = resolve(pairs, names)
        kept.append({name for name, other in zip(names, kept_for, strict=True) if other < 0})
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 6


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 1.0]),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_flat_tiles_are_capped_by_share_whatever_the_order(flat: list[bool], share: float, seed: int, random) -> None:
    keys = [f"tile-{k}" for k in range(len(flat))]
    dropped = cap_flat(keys, np.array(flat), share, seed)
    assert not dropped[~np.array(flat)].any()
    stay, staying_flat = int((~dropped).sum()), int((np.array(flat) & ~dropped).sum())
    assert staying_flat <= share * stay + 1e-9
    if dropped.any():  # no more than needed
        assert staying_flat + 1 > share * (stay + 1)
    order = list(range(len(flat)))
    random.shuffle(order)
    again = cap_flat([keys[k] for k in order], np.array(flat)[order], share, seed)
    assert {keys[k] for k in np.flatnonzero(dropped)} == {keys[order[k]] for k in np.flatnonzero(again)}


def test_settled_flat_tiles_stay_and_take_the_room_of_others() -> None:
    flat = np.array([False] * 95 + [True] * 20)
    keys = [f"{k:03d}" for k in range(115)]
    settled = np.zeros(115, bool)
    settled[95:98] = True
    dropped = cap_flat(keys, flat, 0.05, 0, settled)
    assert not dropped[settled].any()
    assert (flat & ~dropped).sum() == 5
    assert not np.array_equal(dropped, cap_flat(keys, flat, 0.05, 1, settled))
    settled[95:110] = True
    assert (flat & ~cap_flat(keys, flat, 0.05, 0, settled)).sum() == 15
    with pytest.raises(SettingError, match="share"):
        cap_flat(keys, flat, 1.5)


# ------------------------------------------------------------------------------------------------------- real pixels


def _plant(images: Sequence[np.ndarray], side: int, reach: int, seed: int) -> Planted:
    """Copies of the middle of each image (uint8 codes, 0 no data), side x side."""
    rng = np.random.default_rng(seed)
    tiles, group, kind = [], [], []
    for number, image in enumerate(images):
        corner = np.array([(image.shape[0] - side) // 2, (image.shape[1] - side) // 2])
        tile = _cut(image, corner, side)
        moved = _cut(image, corner + np.clip(_shift(rng, side), -reach, reach), side)
        looks = rng.choice([4.0, 16.0])
        noise = 10 * np.log10(rng.gamma(looks, 1 / looks, tile.shape)) + rng.uniform(-3, 3)
        moved_again = _cut(image, corner + np.clip(_shift(rng, side), -reach, reach), side)
        noisy = np.clip(np.rint(moved_again + noise / STEP_DB), 1, 255).astype(np.uint8)
        for how, copy in {
            "original": tile,
            "renamed": tile.copy(),
            "jpeg": _jpeg(tile),
            "png stretch": _stretched(tile),
            "shifted, jpeg": _jpeg(moved),
            "shifted, gain, more speckle": noisy,
        }.items():
            tiles.append(copy)
            group.append(number)
            kind.append(how)
    return Planted(_prints(tiles), np.array(group), kind)


def _display(path: Path) -> np.ndarray:
    return np.maximum(np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)), 1)


def _amplitude(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        power = dataset.read(1).astype(np.float32) ** 2
    db = 10 * np.log10(np.maximum(power, 1.0))
    return encode(np.where(power > 0, db, np.nan), *np.percentile(db[power > 0], (0.1, 99.9)))


def _decibel(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return encode(dataset.read(1).astype(np.float32), -30.0, 5.0)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("pattern", "read", "every", "side", "reach"),
    [
        ("ombria-flood/*/BEFORE/*.png", _display, 6, 216, 20),
        ("gaofen3-quadpol/testA/[235]_HH.tiff", _amplitude, 1, 432, 40),
        ("terramind-rtc/S1RTC/*.tif", _decibel, 1, 192, 16),
        ("mstar-chips/train/*/*.jpeg", _display, 6, 112, 8),
    ],
)
def test_planted_copies_of_real_tiles_are_found_and_nothing_else(
    real_data: Path, pattern: str, read: Callable[[Path], np.ndarray], every: int, side: int, reach: int
) -> None:
    images = [read(path) for path in sorted(real_data.glob(pattern))[::every]]
    assert images
    recall, precision = _plant(images, side, reach, 0).measured(pattern)
    assert recall >= 0.9
    assert precision >= 0.98


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_crops_of_one_gaofen_acquisition_are_found_with_their_shift(real_data: Path) -> None:
    tiles = [_amplitude(real_data / "gaofen3-quadpol" / "testA" / f"{scene}_HH.tiff") for scene in (2, 3, 4, 5)]
    pairs = perceptual_pairs(_prints(tiles))
    # 3 and 4 share 67 % of their ground; 2 and 3, 2 and 5 a fifth and less
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(1, 2)]
    assert np.abs(np.abs(pairs.shift[0]).max() - 170) < 4
    assert np.abs(pairs.shift[0]).min() < 4


def test_most_places_before_and_after_a_flood_are_not_called_duplicates(real_data: Path) -> None:
    before = sorted(real_data.glob("ombria-flood/*/BEFORE/*.png"))
    after = [Path(str(path).replace("BEFORE", "AFTER").replace("before", "after")) for path in before]
    prints = _prints([_display(path) for path in [*before, *after]])
    pairs = perceptual_pairs(prints)
    same_place = pairs.second - pairs.first == len(before)
    print(
        f"OMBRIA: {int(same_place.sum())} of {len(before)} places before and after, {int((~same_place).sum())} others"
    )
    assert same_place.sum() <= 0.05 * len(before)
    assert (~same_place).sum() == 0


def test_thumbnails_may_lie_in_a_file(tmp_path: Path) -> None:
    tile = _structured(5)
    prints = _prints([tile, _jpeg(tile), _structured(6)])
    np.save(tmp_path / "thumbnails.npy", prints.thumbnails)
    mapped = replace(prints, thumbnails=np.load(tmp_path / "thumbnails.npy", mmap_mode="r"))
    assert perceptual_pairs(mapped).first.tolist() == [0]
