"""Label rasters: which is whose, what fits a scene, what the values become; and labels in shards."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import MaskFlags

from sarsense.config import BuildConfig
from sarsense.errors import SceneError, SettingError
from sarsense.labels import IGNORED, LabelFile, LabelFolder, LabelRaster, check_labels, open_labels, read_labels
from sarsense.scene import Scene, describe_scene
from sarsense.shards import tile_hash, write_labelled_shard, write_shard
from sarsense.verify import verify_shard
from tests.conftest import speckled_power, write_raster

SHAPE = (48, 64)


def folder_of(root: Path, *names: str) -> LabelFolder:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return LabelFolder(root)


@pytest.mark.parametrize(
    ("names", "scene", "expected"),
    [
        (["a_1.tif"], "a_1.tif", "a_1.tif"),
        (["a_1.tif"], "a_1_VV.tif", "a_1.tif"),
        (["a_1.png"], "deep/in/a_VH_1.tiff", "a_1.png"),
        (["a-1.TIF"], "vv_a_1.tif", "a-1.TIF"),
        (["a_1_VV.tif", "a_1.tif"], "a_1_VV.tif", "a_1_VV.tif"),
        (["a_1_VV.tif", "a_1.tif"], "a_1_VH.tif", "a_1.tif"),
        (["a_1_VV.tif"], "a_1_VH.tif", None),
        (["a_1.tif"], "a_1_2.tif", None),
        (["a_1.tif"], "a_10_VV.tif", None),
        (["a.tif", "day/a.tif"], "day/a_VV.tif", "day/a.tif"),
        (["a.tif", "day/a.tif"], "S1/day/a_VV.tif", "day/a.tif"),
        (["a.tif", "day/a.tif"], "night/a_VV.tif", "a.tif"),
        (["chip7.tif", "chip8.tif"], "chip8/VV.tif", "chip8.tif"),
        (["A.tif"], "a.tif", None),
        (["a.tif", ".a_VV.tif"], "a_VV.tif", "a.tif"),
    ],
)
def test_a_label_raster_has_the_name_of_its_scene_with_or_without_polarisation(
    tmp_path: Path, names: list[str], scene: str, expected: str | None
):
    folder = folder_of(tmp_path, *names)
    assert [file.relative for file in folder.find(scene)] == ([] if expected is None else [expected])
    if expected is None:
        with pytest.raises(SceneError, match="--labels has no raster of this scene"):
            folder.label_of(scene)
    else:
        assert folder.label_of(scene).path == str((tmp_path / expected).resolve())


WORDS = st.lists(st.from_regex(r"[A-Za-z0-9]{1,6}", fullmatch=True), min_size=1, max_size=4).filter(
    lambda words: not {word.upper() for word in words} & {"VV", "VH", "HV", "HH"}
)


@given(WORDS, st.sampled_from("_-."), st.sampled_from(["VV", "VH", "hh", "HV"]), st.data())
def test_a_polarisation_anywhere_in_the_name_changes_nothing_and_any_other_word_does(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], separator: str, polarisation: str, data: st.DataObject
):
    folder = folder_of(tmp_path_factory.mktemp("labels"), f"{separator.join(words)}.tif")
    where = data.draw(st.integers(0, len(words)))
    named = separator.join([*words[:where], polarisation, *words[where:]])
    assert folder.find(f"{named}.tif")
    other = separator.join([*words[:where], polarisation, "x1y2z3w", *words[where:]])
    assert not folder.find(f"{other}.tif")


def test_two_rasters_for_one_scene_are_one_too_many(tmp_path: Path):
    with pytest.raises(SceneError, match=r"several rasters.*a-1\.tif and a_1\.tif found"):
        folder_of(tmp_path, "a_1.tif", "a-1.tif").label_of("a_1_VV.tif")
    with pytest.raises(SceneError, match=r"several rasters.*a_1\.png and a_1\.tif found"):
        folder_of(tmp_path, "a_1.tif", "a_1.png").label_of("a_1.tif")


def test_a_folder_without_rasters_is_a_wrong_setting(tmp_path: Path):
    with pytest.raises(SettingError, match="none found"):
        LabelFolder(tmp_path)
    with pytest.raises(SettingError, match="a folder of label rasters expected"):
        LabelFolder(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------------------ one raster


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    path = write_raster(tmp_path / "in" / "s_VV.tif", 10 * np.log10(speckled_power(SHAPE, 4, 0)))
    return described(path)


def described(path: Path, **settings: object) -> Scene:
    return describe_scene(str(path), path.name, BuildConfig(tile_size=16, allow_unplaced=True, **settings))  # type: ignore[arg-type]


@pytest.fixture
def check(tmp_path: Path, scene: Scene) -> Callable[..., LabelRaster]:
    """Write labels and check them against a scene, `scene` unless another is given."""

    def write(values: np.ndarray | list[np.ndarray], of: Scene | None = None, **settings: object) -> LabelRaster:
        path = write_raster(tmp_path / "labels" / "s.tif", values, **settings)
        return check_labels(LabelFile(str(path), "s.tif"), of or scene)

    return write


def stored(raster: LabelRaster) -> np.ndarray:
    with ExitStack() as opened:
        dataset = open_labels(opened, raster.file)
        return read_labels(dataset, 0, dataset.height, raster.file)


def labels(dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, SHAPE).astype(dtype)


def test_all_ways_to_say_no_data_are_one(check: Callable[..., LabelRaster]):
    values = labels("int16")
    hole = values == 3
    expected = np.where(hole, IGNORED, values).astype(np.uint8)
    ways: list[tuple[np.ndarray, dict[str, object]]] = [
        (np.where(hole, -1, values).astype(np.int16), {}),
        (np.where(hole, 255, values).astype(np.uint8), {}),
        (values.astype(np.uint8), {"nodata": 3}),
        (np.where(hole, -9999, values).astype(np.int32), {"nodata": -9999}),
        (np.where(hole, 255, values).astype(np.uint16), {"nodata": 40000}),
        (np.where(hole, -1, values).astype(np.int8), {"nodata": -1}),
    ]
    found = [check(array, **settings) for array, settings in ways]
    assert len({raster.hash for raster in found}) == 1
    np.testing.assert_array_equal(stored(found[-1]), expected)
    other = expected.copy()
    other[5, 7] ^= 1
    assert check(other).hash != found[0].hash


def test_a_mask_inside_the_file_says_no_data_too(tmp_path: Path, scene: Scene):
    path, values = tmp_path / "s.tif", labels()
    write_raster(path, values)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(values != 2)
        assert MaskFlags.per_dataset in dataset.mask_flag_enums[0]
    raster = check_labels(LabelFile(str(path), "s.tif"), scene)
    np.testing.assert_array_equal(stored(raster), np.where(values == 2, IGNORED, values))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32"])
def test_the_highest_class_is_254_and_what_is_above_is_refused(check: Callable[..., LabelRaster], dtype: str):
    values = labels(dtype)
    values[40, 11] = 254
    assert stored(check(values))[40, 11] == 254
    values[40, 11] = 256
    with pytest.raises(SceneError, match=r"holds other values: s\.tif.*256 found at row 40, column 11"):
        check(values)


def test_values_below_minus_one_fractions_and_colours_are_refused(check: Callable[..., LabelRaster]):
    values = labels("int16")
    values[3, 4] = -2
    with pytest.raises(SceneError, match="-2 found at row 3, column 4"):
        check(values)
    with pytest.raises(SceneError, match="one band of integers expected, 1 of float32 found"):
        check(labels("float32"))
    with pytest.raises(SceneError, match="one band of integers expected, 3 of uint8 found"):
        check([labels(), labels(), labels()])


SCENE_GRID = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)


@pytest.mark.parametrize(
    ("values", "settings", "told"),
    [
        (labels()[:-1], {}, "47 x 64 pixels"),
        (labels(), {"transform": SCENE_GRID @ rasterio.Affine.translation(1, 0)}, "500010"),
        (labels(), {"transform": SCENE_GRID @ rasterio.Affine.translation(0, 0.5)}, "4999995"),
        (labels(), {"transform": SCENE_GRID @ rasterio.Affine.scale(1.001)}, "10.01"),
        (labels(), {"transform": SCENE_GRID @ rasterio.Affine.rotation(0.1)}, "9.9999"),
        (labels(), {"crs": "EPSG:32634"}, "EPSG:32634"),
        (labels(), {"crs": None}, "48 x 64 pixels without georeferencing"),
    ],
)
def test_another_grid_is_refused(check: Callable[..., LabelRaster], values: np.ndarray, settings: dict, told: str):
    with pytest.raises(
        SceneError, match=r"--labels raster is on another grid: s\.tif: 48 x 64 pixels in EPSG:32633"
    ) as e:
        check(values, **settings)
    assert told in str(e.value)


def test_the_same_grid_as_another_program_rounds_it_is_taken(check: Callable[..., LabelRaster]):
    wkt = CRS.from_epsg(32633).to_wkt()
    check(labels(), crs=wkt, transform=SCENE_GRID @ rasterio.Affine.translation(0.0004, -0.0004))


def test_unplaced_scenes_take_unplaced_labels_alone(tmp_path: Path, check: Callable[..., LabelRaster]):
    chip = described(write_raster(tmp_path / "chip.tif", 10 * np.log10(speckled_power(SHAPE, 4, 0)), crs=None))
    np.testing.assert_array_equal(stored(check(labels(), of=chip, crs=None)), labels())
    with pytest.raises(SceneError, match="48 x 64 pixels without georeferencing expected"):
        check(labels(), of=chip)


def test_scenes_placed_by_points_take_labels_with_the_same_points_or_none(
    tmp_path: Path, check: Callable[..., LabelRaster]
):
    corners = [(0, 0), (0, 64), (48, 0), (48, 64)]
    points = [GroundControlPoint(row=r, col=c, x=10 + c / 1e3, y=50 - r / 1e3) for r, c in corners]
    gcps = (points, CRS.from_epsg(4326))
    db = 10 * np.log10(speckled_power(SHAPE, 4, 0))
    slant = described(write_raster(tmp_path / "slant_VV.tif", db, gcps=gcps))
    assert slant.gcps
    same = check(labels(), of=slant, gcps=gcps)
    assert check(labels(), of=slant, crs=None).hash == same.hash
    moved = [GroundControlPoint(row=p.row, col=p.col, x=(p.x or 0) + 0.01, y=p.y) for p in points]
    with pytest.raises(SceneError, match="on another grid"):
        check(labels(), of=slant, gcps=(moved, gcps[1]))
    with pytest.raises(SceneError, match="on another grid"):
        check(labels(), of=slant)


def test_labels_do_not_follow_resampling_or_looks(tmp_path: Path, check: Callable[..., LabelRaster]):
    rng = np.random.default_rng(0)
    signal = (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE)).astype(np.complex64)
    path = write_raster(tmp_path / "slc_VV.tif", signal)
    for settings in ({"multilook": "2x2"}, {"spacing": 20.0}):
        with pytest.raises(SceneError, match="--labels cannot follow this scene"):
            check(labels(), of=described(path, **settings))
    check(labels(), of=described(path, multilook="1x1"))


def test_the_tag_names_classes(check: Callable[..., LabelRaster]):
    tag = json.dumps({"10": "road", "2": "water"})
    found = check(labels(), tags={"CLASSES": tag})
    assert found.classes == ((2, "water"), (10, "road"))
    assert LabelRaster.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert check(labels()).classes == ()


@pytest.mark.parametrize("tag", ["water", '["water"]', '{"one": "water"}', '{"300": "water"}', '{"1": 2}', '{"1": ""}'])
def test_a_tag_that_names_none_is_refused(check: Callable[..., LabelRaster], tag: str):
    with pytest.raises(SceneError, match="wrong CLASSES tag"):
        check(labels(), tags={"CLASSES": tag})


def test_a_class_that_is_no_data_is_refused(check: Callable[..., LabelRaster]):
    with pytest.raises(SceneError, match="its no-data value 0 is class 'other'"):
        check(labels(), nodata=0, tags={"CLASSES": '{"0": "other", "1": "flood"}'})


def test_what_is_no_raster_is_refused_with_its_name(tmp_path: Path, scene: Scene):
    (tmp_path / "s.tif").write_bytes(b"nothing")
    with pytest.raises(SceneError, match=r"--labels raster cannot be read: s\.tif: not a raster"):
        check_labels(LabelFile(str(tmp_path / "s.tif"), "s.tif"), scene)


def test_a_raster_that_ends_early_is_refused_with_its_name(tmp_path: Path, scene: Scene):
    path = write_raster(tmp_path / "s.tif", labels(), compress="deflate", blockysize=4)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(SceneError, match=r"--labels raster cannot be read: s\.tif"):
        check_labels(LabelFile(str(path), "s.tif"), scene)


# ---------------------------------------------------------------------------------------------------------- shards

TILES = np.random.default_rng(0).integers(0, 256, (5, 2, 24, 40), np.uint16)
LABELS = np.random.default_rng(1).integers(0, 256, (5, 24, 40), np.uint8)


def test_labels_lie_at_their_offsets_and_any_flipped_bit_of_them_is_found(tmp_path: Path):
    samples = [(f"k-{n}", tile, {"n": "x" * 100 * n}, LABELS[n]) for n, tile in enumerate(TILES)]
    shard, offsets, label_offsets = write_labelled_shard(tmp_path, "train/c.tar", "train", samples)
    path = tmp_path / "train" / "c.tar"
    data = np.memmap(path, np.uint8, "r")
    for n, (offset, label_offset) in enumerate(zip(offsets, label_offsets, strict=True)):
        assert label_offset % 64 == 0 and (label_offset - 128) % 512 == 0
        np.testing.assert_array_equal(data[label_offset : label_offset + 960].reshape(24, 40), LABELS[n])
        np.testing.assert_array_equal(data[offset : offset + 3840].view("<u2").reshape(2, 24, 40), TILES[n])
    with tarfile.open(path) as tar:
        assert tar.getnames()[:4] == ["k-0.npy", "k-0.json", "k-0.labels.npy", "k-1.npy"]
    rows = [
        {"key": f"k-{n}", "offset": offsets[n], "content_hash": tile_hash(TILES[n].tobytes()),
         "label_offset": label_offsets[n], "label_hash": tile_hash(LABELS[n].tobytes())}
        for n in range(5)
    ]  # fmt: skip

    def problems() -> list[str]:
        return list(map(str, verify_shard(tmp_path, shard, rows, TILES.shape[1:], TILES.dtype)))

    assert problems() == []
    whole = bytearray(path.read_bytes())
    for n, at in ((0, 0), (3, 500), (4, 959)):
        changed = whole.copy()
        changed[label_offsets[n] + at] ^= 4
        path.write_bytes(changed)
        assert any(f"tile k-{n}: labels differ" in problem for problem in problems())
    path.write_bytes(whole)
    rows[2]["label_offset"] += 1
    assert problems() == [
        f"tiles.parquet: tile k-2: label_offset {label_offsets[2] + 1}, in train/c.tar it is {label_offsets[2]}"
    ]


def test_a_shard_that_lacks_labels_or_has_some_too_many_is_told(tmp_path: Path):
    plain = [(f"k-{n}", tile, {}) for n, tile in enumerate(TILES)]
    shard, offsets = write_shard(tmp_path, "train/c.tar", "train", plain)
    rows = [{"key": f"k-{n}", "offset": offsets[n], "content_hash": tile_hash(TILES[n].tobytes())} for n in range(5)]
    labelled = [{**row, "label_offset": 0, "label_hash": ""} for row in rows]
    told = list(map(str, verify_shard(tmp_path, shard, labelled, TILES.shape[1:], TILES.dtype)))
    assert told == [f"tiles.parquet: tile k-{n}: lies in train/c.tar, which has no k-{n}.labels.npy" for n in range(5)]
    samples = [(key, tile, told, LABELS[0]) for key, tile, told in plain]
    shard, offsets, _ = write_labelled_shard(tmp_path, "train/c.tar", "train", samples)
    told = list(map(str, verify_shard(tmp_path, shard, rows, TILES.shape[1:], TILES.dtype)))
    assert sum("labels.npy, which no tile of the table names" in line for line in told) == 5
