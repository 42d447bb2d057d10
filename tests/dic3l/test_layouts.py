"""Files of each public layout are found, paired and told apart by place; what is missing is named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.layouts import (
    LAYOUTS,
    SetFiles,
    air_polsar_seg_files,
    class_folders,
    dfc2020_files,
    folder_files,
    fusar_map_files,
    gaofen_files,
    ombria_files,
    road_files,
    sen1floods11_files,
    terramind_files,
    whu_opt_sar_files,
)


def _touch(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def _told(found: SetFiles) -> list[tuple[str, str | None, str | None]]:
    return [(place.name, place.block, place.split) for place in found.places]


def test_sen1floods11_as_its_bucket_lies(tmp_path: Path) -> None:
    data = "v1.1/data/flood_events/HandLabeled"
    names = ["Ghana_5079", "Ghana_103272", "Spain_7370579", "Bolivia_23014", "India_1"]
    _touch(tmp_path, [f"{data}/S1Hand/{name}_S1Hand.tif" for name in names])
    _touch(tmp_path, [f"{data}/LabelHand/{name}_LabelHand.tif" for name in names])
    splits = tmp_path / "v1.1/splits/flood_handlabeled"
    splits.mkdir(parents=True)
    for part, name in (("train", "Ghana_5079"), ("valid", "Ghana_103272"), ("test", "Spain_7370579")):
        (splits / f"flood_{part}_data.csv").write_text(f"{name}_S1Hand.tif,{name}_LabelHand.tif\n")
    (splits / "flood_bolivia_data.csv").write_text("Bolivia_23014_S1Hand.tif,Bolivia_23014_LabelHand.tif\r\n")
    found = sen1floods11_files(tmp_path)
    assert _told(found) == [
        ("Bolivia_23014", "Bolivia", "test"),
        ("Ghana_103272", "Ghana", "val"),
        ("Ghana_5079", "Ghana", "train"),
        ("India_1", "India", None),
        ("Spain_7370579", "Spain", "test"),
    ]
    assert found.classes == {"other": (0,), "water": (1,)}
    (tmp_path / data / "LabelHand/India_1_LabelHand.tif").unlink()
    with pytest.raises(Dic3lError, match=r"India_1_LabelHand\.tif: missing"):
        sen1floods11_files(tmp_path)


def test_ombria_in_blocks_of_ids(tmp_path: Path) -> None:
    for number, part in ((3, "train"), (18, "test"), (25, "train")):
        _touch(tmp_path / part, [f"{k}/S1_{k.lower()}_{number:04d}.png" for k in ("BEFORE", "AFTER", "MASK")])
    found = ombria_files(tmp_path)
    assert _told(found) == [("0003", "000", "train"), ("0018", "000", "test"), ("0025", "001", "train")]
    assert found.dates and [path.parent.name for path in found.places[0].images] == ["BEFORE", "AFTER"]


def test_terramind(tmp_path: Path) -> None:
    _touch(tmp_path, ["S1RTC/a.tif", "LULC/a.tif", "S2L2A/a.tif"])
    found = terramind_files(tmp_path)
    assert _told(found) == [("a", None, None)]
    assert found.classes is not None and list(found.classes.values()) == [(n,) for n in range(1, 10)]


def test_air_polsar_seg_keeps_its_two_parts_whole(tmp_path: Path) -> None:
    for part, number in (("train", 2), ("train", 10), ("test", 1)):
        bands = [f"images/{band}/{part}_{number}_{band}.tiff" for band in ("HH", "HV", "VH", "VV")]
        _touch(tmp_path / f"{part}_set", [*bands, f"labels/{part}_{number}_gt.png"])
    found = air_polsar_seg_files(tmp_path)
    told = [("train_2", "train", "train"), ("train_10", "train", "train"), ("test_1", "test", "test")]
    assert _told(found) == told
    assert [path.parent.name for path in found.places[0].images] == ["HH", "HV", "VH", "VV"]
    (tmp_path / "test_set/images/VH/test_1_VH.tiff").unlink()
    with pytest.raises(Dic3lError, match=r"test_1_VH\.tiff: missing"):
        air_polsar_seg_files(tmp_path)


def test_gaofen_challenge(tmp_path: Path) -> None:
    for number in (1, 2, 40):
        _touch(tmp_path, [f"{number}_{end}" for end in ("HH.tiff", "HV.tiff", "VH.tiff", "VV.tiff", "gt.png")])
    assert _told(gaofen_files(tmp_path)) == [("1", "000", None), ("2", "000", None), ("40", "002", None)]


@pytest.mark.parametrize("folders", [("SAR_1024", "Labels_1024"), ("SAR_512", "Labels_512"), ("SAR", "LAB")])
def test_fusar_map_has_a_block_a_city(tmp_path: Path, folders: tuple[str, str]) -> None:
    for stem in ("JiuJiang_01_01_01_01_{}_001", "JiuJiang_01_02_01_01_{}_002", "WeiFang_02_01_01_01_{}_001"):
        _touch(tmp_path, [f"{folders[0]}/{stem.format('SAR')}.tif", f"{folders[1]}/{stem.format('Label')}.tif"])
    (tmp_path / "train.txt").write_text("JiuJiang_01_01_01_01_SAR_001.tif\n")
    (tmp_path / "test.txt").write_text("WeiFang_02_01_01_01_SAR_001.tif\n")
    found = fusar_map_files(tmp_path)
    assert [(block, split) for _, block, split in _told(found)] == [
        ("JiuJiang", "train"),
        ("JiuJiang", None),
        ("WeiFang", "test"),
    ]
    assert found.colours is not None and found.colours[255, 255, 0] == 3 and found.colours[0, 0, 0] == -1


def test_whu_opt_sar_has_a_block_a_scene_even_of_crops(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    _touch(scenes, ["sar/NH49E001013.tif", "optical/NH49E001013.tif", "lbl/NH49E001013.tif"])
    assert _told(whu_opt_sar_files(scenes)) == [("NH49E001013", "NH49E001013", None)]
    crops = tmp_path / "crops"
    for part, number in (("train", 1), ("test", 2)):
        _touch(crops, [f"{part}/{kind}/NH49E001013_{number}.tif" for kind in ("sar", "opt", "lbl")])
    assert {(block, split) for _, block, split in _told(whu_opt_sar_files(crops))} == {("NH49E001013", None)}
    found = whu_opt_sar_files(crops)
    assert found.classes is not None and found.classes["farmland"] == (10,) and found.classes["others"] == (70,)


def test_dfc2020_and_the_naming_of_sen12ms(tmp_path: Path) -> None:
    for season, scene in (("ROIs0000_test", 0), ("ROIs0000_validation", 0), ("ROIs1868_summer", 59)):
        for kind in ("s1", "dfc", "s2"):
            _touch(tmp_path, [f"{season}/{kind}_{scene}/{season}_{kind}_{scene}_p{n}.tif" for n in (2, 10)])
    found = dfc2020_files(tmp_path)
    assert {(place.name.rpartition("_")[0], place.block, place.split) for place in found.places} == {
        ("ROIs0000_test_s1_0", None, "test"),
        ("ROIs0000_validation_s1_0", None, "train"),
        ("ROIs1868_summer_s1_59", "ROIs1868_summer_59", None),
    }
    assert all(place.labels.name == place.images[0].name.replace("_s1_", "_dfc_") for place in found.places)


def test_road_masks_of_spacenet_are_blocks_of_acquisitions(tmp_path: Path) -> None:
    strips = ("20190804111224_20190804111453_tile_7", "20190804111224_20190804111453_tile_8")
    other = "20190822080000_20190822080300_tile_7"
    _touch(
        tmp_path, [f"train/SAR-Intensity/SN6_Train_AOI_11_Rotterdam_SAR-Intensity_{k}.tif" for k in (*strips, other)]
    )
    _touch(tmp_path, [f"train/masks/SN6_roads_{k}.png" for k in (*strips, other)])
    found = road_files(tmp_path)
    assert [place.block for place in found.places] == [strips[0][:29], strips[0][:29], other[:29]]
    assert [place.labels.stem for place in found.places] == [f"SN6_roads_{k}" for k in (*strips, other)]
    assert found.polarisations == ("HH", "HV", "VH", "VV")
    (tmp_path / f"train/masks/SN6_roads_{other}.png").unlink()
    with pytest.raises(Dic3lError, match=f"no mask whose name is, or ends in, {other}"):
        road_files(tmp_path)

    plain = _touch(tmp_path / "plain", ["images/a.tif", "images/b.tif", "roads/a.png", "roads/b.tif"])
    assert _told(road_files(plain)) == [("a", None, None), ("b", None, None)]


def test_a_plain_folder_may_say_its_classes_and_its_splits(tmp_path: Path) -> None:
    _touch(tmp_path, [f"{folder}/{name}.png" for folder in ("images", "masks") for name in "abcd"])
    assert _told(folder_files(tmp_path)) == [(name, name, None) for name in "abcd"]
    (tmp_path / "classes.json").write_text(json.dumps({"water": 1, "dry land": [2, 3]}))
    (tmp_path / "split.csv").write_text("name,split,block\na,train,north\nb.png,val,north\nc,test,south\n\n")
    found = folder_files(tmp_path)
    assert _told(found) == [("a", "north", "train"), ("b", "north", "val"), ("c", "south", "test"), ("d", "d", None)]
    assert found.classes == {"water": (1,), "dry land": (2, 3)} and found.colours is None
    (tmp_path / "split.csv").unlink()
    (tmp_path / "split.txt").write_text("a train\nb test\n")
    (tmp_path / "classes.json").write_text(json.dumps({"water": "#0000ff", "land": ["#00ff00", "#FFFF00"]}))
    found = folder_files(tmp_path)
    assert _told(found)[:2] == [("a", "a", "train"), ("b", "b", "test")]
    assert found.classes == {"water": (0,), "land": (1,)}
    assert found.colours == {(0, 0, 255): 0, (0, 255, 0): 1, (255, 255, 0): 1}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"a": 1}',
        '{"a": 1, "b": 1}',
        '{"a": 1, "b": "#00"}',
        '{"a": 1.5, "b": 2}',
        '{"a": 0, "b": true}',
        '{"a": 0, "a": 1, "b": 2}',
    ],
)
def test_odd_classes_are_refused_with_their_file(tmp_path: Path, text: str) -> None:
    _touch(tmp_path, ["images/a.png", "masks/a.png"])
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ConfigError, match=r"classes\.json"):
        folder_files(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,train", "no image of the name 'x'"),
        ("a,fit", "train, val or test"),
        ("a", "train, val or test"),
        ("a.png,test", "is train above, test here"),
    ],
)
def test_odd_splits_are_refused_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    _touch(tmp_path, ["images/a.png", "masks/a.png"])
    (tmp_path / "split.txt").write_text(f"a train\n{line}\n")
    with pytest.raises(Dic3lError, match=rf"split\.txt, line 2: .*{message}"):
        folder_files(tmp_path)


def test_a_split_may_be_what_a_spreadsheet_saves_but_is_text(tmp_path: Path) -> None:
    _touch(tmp_path, ["images/a.png", "masks/a.png"])
    (tmp_path / "split.csv").write_bytes("\ufeffname,split\r\na,test\r\n".encode())
    assert folder_files(tmp_path).places[0].split == "test"
    (tmp_path / "split.csv").write_bytes("a,test".encode("utf-16"))
    with pytest.raises(Dic3lError, match=r"split\.csv: text in UTF-8"):
        folder_files(tmp_path)


def test_class_folders_have_blocks_of_consecutive_numbers_within_a_class(tmp_path: Path) -> None:
    _touch(tmp_path, [f"train/{label}/{number}.jpeg" for label in ("2", "10") for number in (30001, 30019, 30020)])
    _touch(tmp_path, ["test/2/7.jpeg", "test/2/harbour.jpeg"])
    images, classes = class_folders(tmp_path)
    assert classes == ["2", "10"]
    assert {(image.name, image.label, image.block, image.split) for image in images} == {
        ("train/2/30001", "2", "2/1500", "train"),
        ("train/2/30019", "2", "2/1500", "train"),
        ("train/2/30020", "2", "2/1501", "train"),
        ("train/10/30001", "10", "10/1500", "train"),
        ("train/10/30019", "10", "10/1500", "train"),
        ("train/10/30020", "10", "10/1501", "train"),
        ("test/2/7", "2", "2/0", "test"),
        ("test/2/harbour", "2", "2/harbour", "test"),
    }
    with pytest.raises(Dic3lError, match="a folder a class"):
        class_folders(tmp_path / "nowhere")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_there_is_told_with_what_was_expected(tmp_path: Path, name: str) -> None:
    with pytest.raises(Dic3lError, match=f"{tmp_path}.*expected"):
        LAYOUTS[name].find(tmp_path)
