"""Labelled sets from files to places: codes, labels, blocks of ground, and nothing of the test in what is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import IGNORED, LabelledPlace, Split, official_split, split_places, take_fraction
from pipelines.build import build
from pipelines.ground import ground_of
from pipelines.labelled import LAYOUTS, labelled_data, labelled_images
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.raster import open_raster
from tests.conftest import speckled_power, write_raster


def _db(shape: tuple[int, int], seed: int) -> np.ndarray:
    return (10 * np.log10(speckled_power(shape, 4.0, seed))).astype(np.float32)


def _at(east: float, north: float = 5_000_000, pixel: float = 10.0) -> rasterio.Affine:
    return rasterio.Affine(pixel, 0, east, 0, -pixel, north)


def _colour_labels(path: Path, colours: list[tuple[int, int, int]], side: int = 64) -> np.ndarray:
    """A picture of vertical stripes; the number of the colour of each pixel."""
    numbers = np.broadcast_to(np.arange(side) * len(colours) // side, (side, side))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(colours, np.uint8)[numbers]).save(path)
    return numbers


# --------------------------------------------------------------------------------------------------- ground


_BOXES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 4), st.integers(1, 4)).map(
        lambda b: shapely.box(b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    min_size=2,
    max_size=80,
)


@settings(max_examples=200)
@given(boxes=_BOXES, data=st.data())
def test_no_ground_is_in_two_blocks_or_on_two_sides(boxes: list[shapely.Polygon], data: st.DataObject) -> None:
    unplaced = data.draw(st.sets(st.integers(0, len(boxes) - 1), max_size=3))
    footprints = [None if i in unplaced else box for i, box in enumerate(boxes)]
    named = data.draw(st.lists(st.sampled_from([None, None, "a", "b"]), min_size=len(boxes), max_size=len(boxes)))
    parts: list[Split | None] = [None, "train", "val", "test"]
    splits = data.draw(st.lists(st.sampled_from(parts), min_size=len(boxes), max_size=len(boxes)))
    ground = ground_of(footprints, named, splits)
    for i, first in enumerate(footprints):
        for j, second in enumerate(footprints):
            if first is None or second is None or first.intersection(second).area == 0:
                continue
            if ground.blocks[i] is not None and ground.blocks[j] is not None:
                assert ground.blocks[i] == ground.blocks[j]
            assert None in (ground.splits[i], ground.splits[j]) or ground.splits[i] == ground.splits[j]
    assert splits.count("test") == ground.splits.count("test")


def test_a_scene_across_180_degrees_lies_there_and_not_around_the_earth(tmp_path: Path) -> None:
    """In UTM zone 1, the first crosses it, the second touches the first, the third lies 120 km further east."""
    for n, (east, north) in enumerate(((181_900, 8_000_000), (182_540, 8_000_000), (300_000, 8_001_500))):
        at = {"crs": "EPSG:32701", "transform": _at(east, north)}
        write_raster(tmp_path / f"scenes/{n}_VV.tif", _db((64, 64), n), units=("dB",), **at)
        write_raster(tmp_path / f"labels/{n}_VV.tif", np.tile(np.arange(2, dtype=np.uint8), (64, 32)), **at)
    blocks = [place.block for place in labelled_data(tmp_path, "folder", None, None).places]
    assert blocks[0] == blocks[1] != blocks[2]


def test_a_town_that_strips_cover_is_cut_into_cells_of_ground() -> None:
    """As SpaceNet 6: each tile overlaps another, so that all would be one block."""
    boxes = [shapely.box(x, y, x + 1, y + 1) for x in np.arange(0, 30, 0.9) for y in np.arange(0, 30, 0.9)]
    ground = ground_of(boxes, [f"strip {i % 7}" for i in range(len(boxes))], [None] * len(boxes))
    kept = [i for i, block in enumerate(ground.blocks) if block is not None]
    blocks = {ground.blocks[i] for i in kept}
    assert len(blocks) == 16 and len(kept) > 0.6 * len(boxes)
    unions = [shapely.unary_union([boxes[i] for i in kept if ground.blocks[i] == block]) for block in blocks]
    assert sum(union.area for union in unions) == pytest.approx(shapely.unary_union(unions).area)


def test_labels_that_only_a_place_could_tell_are_at_chance() -> None:
    """Each block has a look of its own and a class by lot: who has seen the block knows the class, nobody else."""
    rng = np.random.default_rng(0)
    looks, classes = rng.integers(1, 256, (300, 8)), rng.integers(0, 2, 300)
    places = [
        LabelledPlace(f"{block}-{tile}", f"{block:03d}", lambda: (np.empty(0), np.empty(0)))
        for block in range(300)
        for tile in range(4)
    ]

    def accuracy(train: Any, test: Any) -> float:
        block = np.array([int(place.block) for place in places])
        distance = ((looks[block[test]][:, None] - looks[block[train]][None]) ** 2).sum(axis=2)
        nearest = block[np.array(train)[distance.argmin(axis=1)]]
        return float((classes[nearest] == classes[block[test]]).mean())

    by_place = [accuracy(*split_places(places, seed, 0.3)) for seed in range(5)]
    assert abs(np.mean(by_place) - 0.5) < 0.08  # 450 blocks in all: two standard deviations are 0.05
    order = rng.permutation(len(places))
    assert accuracy(order[360:], order[:360]) > 0.95  # a split of tiles would have leaked


# --------------------------------------------------------------------------------------------------- layouts


def _sen1floods11(root: Path, chips: dict[str, float]) -> None:
    """Chips of 64 x 64 at these eastings; the label of column 0 is -1."""
    for seed, (name, east) in enumerate(chips.items()):
        db = np.stack([_db((64, 64), seed), _db((64, 64), seed + 100) - 7])
        db[:, :3] = np.nan
        write_raster(root / f"S1Hand/{name}_S1Hand.tif", list(db), descriptions=("VV", "VH"), transform=_at(east))
        labels = np.tile((np.arange(64) % 3 == 0).astype(np.int16), (64, 1))
        labels[:, 0] = -1
        write_raster(root / f"LabelHand/{name}_LabelHand.tif", labels, transform=_at(east))


def test_sen1floods11_ignores_minus_one_and_keeps_ground_on_one_side(tmp_path: Path) -> None:
    _sen1floods11(tmp_path, {"Ghana_1": 500_000, "Ghana_2": 500_320, "India_3": 501_000, "India_4": 560_000})
    for part, chips in (("train", ("Ghana_1", "India_4")), ("test", ("Ghana_2", "India_3"))):
        text = "".join(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n" for name in chips)
        (tmp_path / f"flood_{part}_data.csv").write_text(text)
    data = labelled_data(tmp_path, "sen1floods11", None, None)
    assert data.polarisations == ("VV", "VH") and data.classes == ["other", "water"] and data.values == (0, 1)
    images, labels = data.places[0].read()
    assert images.dtype == labels.dtype == np.uint8 and images.shape == (2, 64, 64)
    assert not images[:, :3].any() and images[:, 3:].all()
    assert (labels[:, 0] == IGNORED).all() and labels[:, 1:].tolist() == [[int(x % 3 == 0) for x in range(1, 64)]] * 64
    assert data.places[0].georeference == ("EPSG:32633", (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0))
    # Ghana_2 overlaps Ghana_1 by half, and touches no chip of India but by the event's name none of Ghana
    assert [place.block for place in data.places] == ["Ghana", "Ghana", "India", "India"]
    assert [place.split for place in data.places] == [None, "test", "test", "train"]
    assert official_split(data.places) == ([3], [1, 2])
    assert take_fraction(data.places, [0, 3], 0.01, 0) in ([0], [3])


def _air_polsar_seg(root: Path, colours: list[tuple[int, int, int]], names: tuple[str, ...]) -> np.ndarray:
    numbers = np.empty(0)
    for seed, name in enumerate(names):
        folder = root / f"{name.split('_')[0]}_set"
        for band, scale in (("HH", 900), ("HV", 300), ("VH", 310), ("VV", 800)):
            amplitude = scale * np.sqrt(10 * speckled_power((64, 64), 1.0, seed))
            write_raster(folder / f"images/{band}/{name}_{band}.tiff", amplitude.astype(np.uint16), crs=None)
        numbers = _colour_labels(folder / f"labels/{name}_gt.png", colours)
    return numbers


def test_air_polsar_seg_stacks_four_files_and_decodes_colours(tmp_path: Path) -> None:
    colours = [(0, 0, 255), (0, 255, 0), (255, 0, 0), (0, 255, 255), (255, 255, 0), (255, 255, 255), (0, 0, 0)]
    numbers = _air_polsar_seg(tmp_path, colours, ("train_1", "train_2", "test_1"))
    data = labelled_data(tmp_path, "air-polsar-seg", None, None)
    assert data.polarisations == ("HH", "HV", "VH", "VV")
    assert sorted(data.coding.groups)[0] == "GF3/unknown/HH/uncalibrated" and len(data.coding.groups) == 4
    images, labels = data.places[1].read()
    assert images.shape == (4, 64, 64)
    assert data.classes == ["industrial", "natural", "land use", "water", "housing", "other"]
    np.testing.assert_array_equal(labels, np.where(numbers == 6, IGNORED, numbers))
    assert [(place.block, place.split) for place in data.places] == [("train", "train")] * 2 + [("test", "test")]

    _colour_labels(tmp_path / "train_set/labels/train_2_gt.png", [(0, 0, 255), (0, 1, 255)])
    with pytest.raises(Dic3lError, match=r"train_2_gt\.png: colour \(0, 1, 255\) at row 0, column 32"):
        labelled_data(tmp_path, "air-polsar-seg", None, None).places[1].read()
    with pytest.raises(ConfigError, match="--classes"):
        labelled_data(tmp_path, "air-polsar-seg", None, {"a": (0,), "b": (1,)})


def test_the_gaofen_challenge_of_16_bits(tmp_path: Path, real_data: Path) -> None:
    """Real scenes, labels made up: the published test images have none."""
    for path in (real_data / "gaofen3-quadpol/testA").glob("[34]_*.tiff"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for number in (3, 4):
        _colour_labels(tmp_path / f"{number}_gt.png", [(0, 0, 255), (0, 255, 255)], 512)
    data = labelled_data(tmp_path, "gaofen", None, None)
    assert [place.block for place in data.places] == ["000", "000"]  # shifted crops of one acquisition
    images, labels = data.places[0].read()
    assert images.shape == (4, 512, 512) and set(np.unique(labels)) == {0, 3}
    with open_raster(str(tmp_path / "3_VV.tiff")) as (dataset, _):
        amplitude = dataset.read(1)
    order = np.argsort(amplitude, axis=None)
    assert (np.diff(images[3].ravel()[order].astype(int)) >= 0).all()  # codes rise with amplitude


def _fusar_map(root: Path) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    for city in ("JiuJiang", "WeiFang"):
        write_raster(root / f"SAR_1024/{city}_01_01_01_01_SAR_001.tif", pixels, crs=None)
        _colour_labels(root / f"Labels_1024/{city}_01_01_01_01_Label_001.tif", [(255, 0, 0), (0, 0, 0), (255, 255, 0)])
    return pixels


def test_8_bit_pictures_are_codes_as_they_are_unless_the_corpus_was_made_of_them(tmp_path: Path) -> None:
    pixels = _fusar_map(tmp_path / "set")
    plain = labelled_data(tmp_path / "set", "fusar-map", None, None)
    images, labels = plain.places[0].read()
    np.testing.assert_array_equal(images, pixels[None])
    assert labels[0].tolist() == [0] * 22 + [IGNORED] * 21 + [3] * 21
    assert plain.normalisation == "8-bit values as they are, / 255" and plain.coding.normalization == "none"
    build(
        [str(tmp_path / "set/SAR_1024")], tmp_path / "corpus", BuildConfig(tile_size=32, allow_unplaced=True), workers=0
    )
    coded = labelled_data(tmp_path / "set", "fusar-map", open_corpus(tmp_path / "corpus"), None)
    assert coded.coding.normalization == "group" and "corpus" in coded.normalisation
    assert coded.places[0].read()[0].max() == 255 and (coded.places[0].read()[0] != images).any()


def test_whu_opt_sar_scenes_become_windows_of_one_block(tmp_path: Path) -> None:
    for seed, (name, east) in enumerate({"NH49E001013": 500_000, "NH49E001014": 600_000}.items()):
        labels = np.full((600, 1100), 10, np.uint8)
        labels[:300], labels[300:, :50] = 40, 0
        pixels = np.random.default_rng(seed).integers(0, 256, labels.shape, np.uint8)
        write_raster(tmp_path / f"sar/{name}.tif", pixels, transform=_at(east, pixel=5))
        write_raster(tmp_path / f"lbl/{name}.tif", labels, transform=_at(east, pixel=5))
    data = labelled_data(tmp_path, "whu-opt-sar", None, None)
    mine = [place for place in data.places if place.block == "NH49E001013"]
    assert [place.name for place in mine] == [f"NH49E001013@{row}+{col}" for row in (0, 512) for col in (0, 512, 1024)]
    assert mine[4].georeference == ("EPSG:32633", (5.0, 0.0, 502_560.0, 0.0, -5.0, 4_997_440.0))
    images, labels = mine[3].read()
    assert images.shape == (1, 88, 512) and (labels[:, :50] == IGNORED).all() and (labels[:, 50:] == 0).all()
    assert data.classes[3] == "water" and (mine[0].read()[1][:300] == 3).all()
    with rasterio.open(tmp_path / "sar/NH49E001013.tif") as dataset:
        np.testing.assert_array_equal(mine[4].read()[0][0], dataset.read(1)[512:, 512:1024])


def test_dfc2020_knows_its_bands_and_tells_its_patches_by_ground(tmp_path: Path) -> None:
    for part, eastings in (("test", (500_000, 500_640, 700_000)), ("validation", (500_000 + 1280, 600_000))):
        for n, east in enumerate(eastings):
            folder, name = tmp_path / f"ROIs0000_{part}", f"ROIs0000_{part}_{{}}_0_p{n}.tif"
            bands = [_db((64, 64), n).astype(np.float64), _db((64, 64), n + 50).astype(np.float64) - 7]
            write_raster(folder / "s1_0" / name.format("s1"), bands, transform=_at(east))
            labels = np.tile(np.repeat(np.arange(8), 8), (64, 1)).astype(np.uint8) + 1
            write_raster(folder / "dfc_0" / name.format("dfc"), labels, transform=_at(east))
    data = labelled_data(tmp_path, "dfc2020", None, None)
    assert data.polarisations == ("VV", "VH") and len(data.classes) == 8
    blocks = {place.name.partition("@")[0]: place.block for place in data.places}
    edge_to_edge = {blocks[f"ROIs0000_{part}"] for part in ("test_s1_0_p0", "test_s1_0_p1", "validation_s1_0_p0")}
    assert len(edge_to_edge) == 1 and len(set(blocks.values())) == 3
    # 1 to 8 of the scheme: savanna (3) and snow (8) are of no class
    assert data.places[0].read()[1][0, ::8].tolist() == [0, 1, IGNORED, 2, 3, 4, 5, IGNORED]
    assert [place.split for place in data.places].count("train") == 2  # beside each other is not on the same ground


def test_road_masks_need_no_georeference_and_any_value_is_road(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[30:34], mask[40:42] = 255, 1
    for n, east in enumerate((500_000, 600_000)):
        write_raster(tmp_path / f"images/{n}_VV.tif", _db((64, 64), n), units=("dB",), transform=_at(east))
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{n}_VV.png")
    data = labelled_data(tmp_path, "roads", None, None)
    assert data.classes == ["other", "road"] and data.values == (0, 1)
    np.testing.assert_array_equal(data.places[1].read()[1], mask > 0)
    Image.fromarray(mask[:60]).save(tmp_path / "masks/1_VV.png")
    with pytest.raises(Dic3lError, match=r"1_VV\.png: its grid"):
        labelled_data(tmp_path, "roads", None, None)


def test_label_values_without_a_class_are_no_data_and_negatives(tmp_path: Path) -> None:
    for n, east in enumerate((500_000, 600_000)):
        labels = np.tile(np.array([-1, 0, 1, 9], np.int16), (32, 8))
        write_raster(tmp_path / f"scenes/{n}_VV.tif", _db((32, 32), n), units=("dB",), transform=_at(east))
        write_raster(tmp_path / f"labels/{n}_VV.tif", labels, transform=_at(east), nodata=9)
    data = labelled_data(tmp_path, "folder", None, None)
    assert data.classes == ["0", "1"]
    assert data.places[0].read()[1][0, :4].tolist() == [IGNORED, 0, 1, IGNORED]
    np.testing.assert_array_equal(data.places[0].read()[1], data.places[0].read_labels())  # type: ignore[misc]


def _tagged(root: Path, *tags: str, **settings: Any) -> Path:
    """Scenes with labels 0, 1, 2, 3 in columns, and these CLASSES tags."""
    for n, tag in enumerate(tags):
        at = _at(500_000 + 100_000 * n)
        write_raster(root / f"scenes/{n}_VV.tif", _db((32, 32), n), units=("dB",), transform=at)
        values = np.tile(np.arange(4, dtype=np.uint8), (32, 8))
        write_raster(root / f"labels/{n}_VV.tif", values, transform=at, tags={"CLASSES": tag}, **settings)
    return root


def test_names_of_the_labels_hold_for_all_rasters_and_join_values(tmp_path: Path) -> None:
    data = labelled_data(_tagged(tmp_path, '{"0": "land", "1": "water"}', '{"2": "land"}'), "folder", None, None)
    assert data.classes == ["land", "water"] and data.values == (0, 1)
    for place in data.places:
        assert place.read()[1][0, :4].tolist() == [0, 1, 0, IGNORED]


def test_names_that_contradict_each_other_or_no_data_are_refused(tmp_path: Path) -> None:
    _tagged(tmp_path / "other", '{"0": "land", "1": "water"}', '{"0": "water", "1": "land"}')
    with pytest.raises(Dic3lError, match=r"1_VV\.tif: value 0 is 'water' .* 'land' in others"):
        labelled_data(tmp_path / "other", "folder", None, None)
    assert labelled_data(tmp_path / "other", "folder", None, {"a": (0,), "b": (1,)}).classes == ["a", "b"]
    _tagged(tmp_path / "json", "water, land")
    with pytest.raises(Dic3lError, match=r'0_VV\.tif: .*"value": "name".*water, land'):
        labelled_data(tmp_path / "json", "folder", None, None)
    _tagged(tmp_path / "nodata", '{"0": "land", "1": "water"}', nodata=0)
    with pytest.raises(Dic3lError, match=r"0_VV\.tif: its no-data value 0 is class 'land'"):
        labelled_data(tmp_path / "nodata", "folder", None, None)


def test_what_a_mask_inside_the_labels_hides_is_ignored(tmp_path: Path) -> None:
    data = labelled_data(_tagged(tmp_path, '{"0": "a", "1": "b"}'), "folder", None, None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "labels/0_VV.tif", "r+") as dataset,
    ):
        dataset.write_mask(np.arange(32 * 32).reshape(32, 32) >= 32)
    labels = data.places[0].read()[1]
    assert (labels[0] == IGNORED).all() and labels[1, :3].tolist() == [0, 1, IGNORED]


def test_a_picture_in_colour_is_no_map_of_classes_by_its_first_band(tmp_path: Path) -> None:
    _tagged(tmp_path, "{}")
    write_raster(tmp_path / "labels/0_VV.tif", [np.tile(np.arange(4, dtype=np.uint8), (32, 8))] * 3, transform=_at(5e5))
    with pytest.raises(Dic3lError, match=r"0_VV\.tif: .*in colour found; name its colours in classes\.json"):
        labelled_data(tmp_path, "folder", None, None)


def test_layouts_are_named(tmp_path: Path) -> None:
    assert all(text and "\n" not in text for text in LAYOUTS.values()) and "classes" in LAYOUTS
    for name in ("classes", "nothing"):
        with pytest.raises(ConfigError, match=f"--layout: one of folder, .*'{name}' found"):
            labelled_data(tmp_path, name, None, None)


# ------------------------------------------------------------------------------------------------- real data


def test_real_sen1floods11_chip(real_data: Path) -> None:
    data = labelled_data(real_data / "sen1floods11", "sen1floods11", None, None)
    images, labels = data.places[0].read()
    with rasterio.open(real_data / "sen1floods11/sample/Labels/Spain_7370579_LabelHand.tif") as dataset:
        truth = dataset.read(1)
    np.testing.assert_array_equal(labels, np.where(truth == -1, IGNORED, truth))
    assert images.shape == (2, 512, 512) and data.places[0].block == "Spain"
    assert images[:, labels == 1].mean() < images[:, labels == 0].mean() - 30  # water is dark


def test_real_land_cover_of_terramind(real_data: Path) -> None:
    data = labelled_data(real_data / "terramind-rtc", "terramind", None, None)
    assert data.polarisations == ("VV", "VH") and len({place.block for place in data.places}) == 3
    seen = set().union(*(place.classes() for place in data.places))
    assert {data.classes[number] for number in seen} >= {"water", "trees", "crops", "built"}
    coast = next(place for place in data.places if place.name.startswith("282D"))
    images, labels = coast.read()
    water, trees = (images[:, labels == data.classes.index(name)].mean() for name in ("water", "trees"))
    assert water < trees - 50


def test_real_ombria_is_read_as_before(real_data: Path) -> None:
    data = labelled_data(real_data / "ombria-flood", "ombria", None, None)
    assert len(data.places) == 482 and data.dates and data.polarisations == ("before", "after")
    place = data.places[400]
    images, labels = place.read()
    part = "test" if place.split == "test" else "train"
    for channel, kind in zip((*images, labels), ("BEFORE", "AFTER", "MASK"), strict=True):
        pixels = np.asarray(Image.open(real_data / f"ombria-flood/{part}/{kind}/S1_{kind.lower()}_{place.name}.png"))
        np.testing.assert_array_equal(channel, pixels > 127 if kind == "MASK" else pixels)
    assert sum(place.split == "test" for place in data.places) == 43


def test_real_mstar_chips_are_images_of_ten_classes(real_data: Path) -> None:
    data = labelled_images(real_data / "mstar-chips", None)
    assert len(data.images) == 600 and data.classes == [str(n) for n in range(10)]
    first = data.images[0]
    assert first.read().shape == (1, 128, 128) and first.read().dtype == np.uint8
    train, test = split_places(data.images, 0, 0.3)
    assert {data.images[i].block for i in train}.isdisjoint({data.images[i].block for i in test})
    assert {data.images[i].label for i in train} == set(range(10))
    assert len(take_fraction(data.images, train, 0.1, 0)) == round(0.1 * len(train))
