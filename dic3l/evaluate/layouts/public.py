"""Labelled sets that are public, as they are published. What of it was checked, and against what: docs/tasks.md."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from dic3l.errors import Dic3lError
from dic3l.evaluate.data import BLOCK_IDS, Split
from dic3l.evaluate.layouts.files import SPLITS, Colour, PlaceFiles, SetFiles, images_in, natural

_QUADPOL = ("HH", "HV", "VH", "VV")


def sen1floods11_files(root: Path) -> SetFiles:
    """S1Hand/*_S1Hand.tif (VV, VH in dB) and LabelHand/*_LabelHand.tif: -1 no label, 0 other, 1 water.

    A block is a flood event, the first word of a name: its chips share pass and weather. Splits: flood_*_data.csv.
    """
    images, labels = _folders(root, ("S1Hand", "S1"), ("LabelHand", "Labels"), "Sen1Floods11")
    splits = {}
    for part, split in (("train", "train"), ("valid", "val"), ("test", "test"), ("bolivia", "test")):
        for path in sorted(root.rglob(f"flood_{part}_data.csv")):
            with path.open(newline="") as file:
                splits |= {row[0].strip().removesuffix("_S1Hand.tif"): split for row in csv.reader(file) if row}
    places = []
    for image in sorted(images.glob("*_S1Hand.tif")):
        name = image.name.removesuffix("_S1Hand.tif")
        label = _partner(image, labels / f"{name}_LabelHand.tif")
        places.append(PlaceFiles(name, (image,), label, name.split("_")[0], cast(Split | None, splits.get(name))))
    classes = {"other": (0,), "water": (1,)}
    return SetFiles(_some(places, images), classes, None, ("VV", "VH"), "S1", "IW")


def ombria_files(root: Path) -> SetFiles:
    """BEFORE, AFTER and MASK folders, in `root` or in its train and test folders: pictures of two dates.

    The published train and test ids interleave: a block is `BLOCK_IDS` consecutive ids, whatever their part.
    """
    places: dict[int, PlaceFiles] = {}
    for folder in sorted(path.parent for path in [*root.glob("AFTER"), *root.glob("*/AFTER")]):
        for after in sorted((folder / "AFTER").glob("*.png")):
            number = _number(after)
            before = _partner(after, folder / "BEFORE" / after.name.replace("after", "before"))
            mask = _partner(after, folder / "MASK" / after.name.replace("after", "mask"))
            if number in places:
                raise Dic3lError(f"{after}: place {number} is there twice; ids must be unique over train and test")
            block = f"{number // BLOCK_IDS:03d}"
            places[number] = PlaceFiles(f"{number:04d}", (before, after), mask, block, SPLITS.get(folder.name))
    if not places:
        raise Dic3lError(f"{root}: no OMBRIA data; folders BEFORE, AFTER and MASK expected in it or in train and test")
    classes = {"other": tuple(range(128)), "flood": tuple(range(128, 256))}
    return SetFiles([places[n] for n in sorted(places)], classes, None, ("before", "after"), "S1", dates=True)


def terramind_files(root: Path) -> SetFiles:
    """S1RTC/*.tif (VV, VH, gamma nought in dB) and LULC/*.tif of the same name: 0 no data, classes 1 to 9."""
    images, labels = _folders(root, ("S1RTC",), ("LULC",), "TerraMind's examples")
    places = [
        PlaceFiles(path.stem, (path,), _partner(path, labels / path.name)) for path in sorted(images.glob("*.tif"))
    ]
    names = ("water", "trees", "flooded vegetation", "crops", "built", "bare", "snow", "clouds", "rangeland")
    classes = {name: (value,) for value, name in enumerate(names, 1)}
    return SetFiles(_some(places, images), classes, None, ("VV", "VH"), "S1", "IW")


_GAOFEN_COLOURS: Mapping[Colour, int] = {
    (0, 0, 0): -1, (0, 0, 255): 0, (0, 255, 0): 1, (255, 0, 0): 2, (0, 255, 255): 3, (255, 255, 0): 4,
    (255, 255, 255): 5,
}  # fmt: skip
_GAOFEN_CLASSES = {"industrial": (0,), "natural": (1,), "land use": (2,), "water": (3,), "housing": (4,), "other": (5,)}


def air_polsar_seg_files(root: Path) -> SetFiles:
    """train_set and test_set: images/HH/train_1_HH.tiff and of HV, VH, VV (Gaofen-3), labels/train_1_gt.png in colour.

    All 500 patches are cut of one scene of 9082 x 9805 pixels, more often than once, and no name says where: only the
    set's own two parts are told apart, each is a block.
    """
    places = []
    for part in ("train", "test"):
        folder = root / f"{part}_set"
        for first in sorted((folder / "images" / "HH").glob("*_HH.tif*"), key=natural):
            name = first.name.rpartition("_HH")[0]
            bands = tuple(
                _partner(first, folder / "images" / band / first.name.replace("_HH.", f"_{band}.")) for band in _QUADPOL
            )
            label = _partner(first, folder / "labels" / f"{name}_gt.png")
            places.append(PlaceFiles(name, bands, label, part, SPLITS[part]))
    if not places:
        raise Dic3lError(f"{root}: no AIR-PolSAR-Seg; train_set/images/HH/*_HH.tiff and the like expected")
    return SetFiles(places, _GAOFEN_CLASSES, _GAOFEN_COLOURS, _QUADPOL, "GF3")


def gaofen_files(root: Path) -> SetFiles:
    """The 2020 Gaofen Challenge: 1_HH.tiff, 1_HV.tiff, 1_VH.tiff, 1_VV.tiff and 1_gt.png in one folder.

    Its patches are shifted crops of few acquisitions, neighbours in number on the same ground: blocks of consecutive
    numbers.
    """
    places = []
    for first in sorted(root.glob("*_HH.tif*"), key=natural):
        name = first.name.rpartition("_HH")[0]
        bands = tuple(_partner(first, root / first.name.replace("_HH.", f"_{band}.")) for band in _QUADPOL)
        label = _partner(first, root / f"{name}_gt.png")
        places.append(PlaceFiles(name, bands, label, f"{int(name) // BLOCK_IDS:03d}" if name.isdigit() else name))
    if not places:
        raise Dic3lError(f"{root}: no data of the Gaofen Challenge; 1_HH.tiff, ..., 1_gt.png expected in it")
    return SetFiles(places, _GAOFEN_CLASSES, _GAOFEN_COLOURS, _QUADPOL, "GF3")


def fusar_map_files(root: Path) -> SetFiles:
    """SAR_1024/<city>_..._SAR_001.tif (8 bits, one band) and Labels_1024/<city>_..._Label_001.tif in colour (or _512,
    or no number); train.txt, val.txt and test.txt with names of images where they are there.

    A block is a city, the first word of a name: scenes of a city may overlap.
    """
    names = ["SAR_1024", "SAR_512", "SAR"]
    images, labels = _folders(
        root, names, [name.replace("SAR", word) for name in names for word in ("Labels", "Label", "LAB")], "FUSAR-Map"
    )
    splits: dict[str, Split] = {}
    for part, split in SPLITS.items():
        if (path := root / f"{part}.txt").is_file():
            splits |= {Path(line.strip()).stem: split for line in path.read_text().splitlines() if line.strip()}
    places = []
    for image in images_in(images):
        label = labels / image.name.replace("_SAR_", "_Label_")
        city = re.match(r"[A-Za-z]+", image.stem)
        block = city[0] if city else image.stem
        places.append(PlaceFiles(image.stem, (image,), _partner(image, label), block, splits.get(image.stem)))
    colours: dict[Colour, int] = {(0, 0, 0): -1, (255, 0, 0): 0, (0, 255, 0): 1, (0, 0, 255): 2, (255, 255, 0): 3}
    classes = {"building": (0,), "vegetation": (1,), "water": (2,), "road": (3,)}
    return SetFiles(_some(places, images), classes, colours, (), "GF3")


def whu_opt_sar_files(root: Path) -> SetFiles:
    """sar/NH49E001013.tif and lbl/NH49E001013.tif, in `root` or in train, val and test, as those who cut it into crops
    (NH49E001013_3.tif) leave it. Label values 10 to 70, 0 background.

    A block is a scene, whatever crop of it: a split of crops has the same ground on both sides, so none is taken over.
    """
    places = []
    for images in sorted({path for name in ("sar", "SAR") for path in [*root.glob(name), *root.glob(f"*/{name}")]}):
        for image in images_in(images):
            label = _partner(image, *(images.parent / name / image.name for name in ("lbl", "label", "labels")))
            name = image.stem if images.parent == root else f"{images.parent.name}/{image.stem}"
            places.append(PlaceFiles(name, (image,), label, image.stem.split("_")[0]))
    if not places:
        raise Dic3lError(f"{root}: no WHU-OPT-SAR; folders sar and lbl expected in it, or in train, val and test")
    names = ("farmland", "city", "village", "water", "forest", "road", "others")
    return SetFiles(places, {name: (10 * n,) for n, name in enumerate(names, 1)}, None, (), "GF3")


_DFC_CLASSES = {
    "forest": (1,), "shrubland": (2,), "grassland": (4,), "wetland": (5,), "cropland": (6,), "urban": (7,),
    "barren": (9,), "water": (10,),
}  # fmt: skip
"""simplified IGBP; 3, savanna, and 8, snow and ice, do not occur in its truth and are of no class"""


def dfc2020_files(root: Path) -> SetFiles:
    """s1_0/ROIs0000_test_s1_0_p1.tif (VV, VH in dB) and dfc_0/ROIs0000_test_dfc_0_p1.tif in ROIs0000_test, the same in
    ROIs0000_validation, named as SEN12MS is (ROIs1868_summer/s1_59). Classes: eight of the simplified IGBP scheme.

    A block is season and scene. The published patches are all of scene 0: there the ground tells them apart. Its
    validation part is what is fitted, its test part what is tested.
    """
    places = []
    for image in sorted(root.rglob("*_s1_*_p*.tif"), key=natural):
        folder = image.parent.name.replace("s1_", "dfc_", 1)
        names = (image.parent.parent / folder, image.parent)
        label = _partner(image, *(folder / image.name.replace("_s1_", "_dfc_") for folder in names))
        season, _, rest = image.stem.partition("_s1_")
        scene = rest.split("_")[0]
        split: Split | None = "test" if season.endswith("_test") else "train" if season.endswith("validation") else None
        places.append(PlaceFiles(image.stem, (image,), label, f"{season}_{scene}" if scene != "0" else None, split))
    if not places:
        raise Dic3lError(f"{root}: no DFC2020; s1_0/*_s1_*_p*.tif and dfc_0/*_dfc_*_p*.tif expected in it")
    return SetFiles(places, _DFC_CLASSES, None, ("VV", "VH"), "S1", "IW")


def road_files(root: Path) -> SetFiles:
    """SAR-Intensity/ or SAR-MAG-POL/ (SpaceNet 6), images/ or scenes/; and roads/, road_masks/, masks/ or labels/:
    rasters whose values above 0 are road, of the same stem or of the same end (20190804111224_20190804111453_tile_7).

    A block is an acquisition where a name holds its two times; ground that overlaps is joined besides.
    """
    images, labels = _folders(
        root,
        ("SAR-Intensity", "SAR-MAG-POL", "images", "scenes"),
        ("roads", "road_masks", "masks", "labels"),
        "road masks",
    )
    by_key = {_tile_key(path.stem): path for path in images_in(labels)}
    places = []
    for image in images_in(images):
        key = _tile_key(image.stem)
        if key not in by_key:
            raise Dic3lError(f"{image}: no mask whose name is, or ends in, {key} in {labels}; every image needs one")
        strip = re.match(r"\d{14}_\d{14}", key)
        places.append(PlaceFiles(image.stem, (image,), by_key[key], strip[0] if strip else None))
    spacenet = images.name.startswith("SAR-")
    bands, sensor = (_QUADPOL, "Capella") if spacenet else ((), None)
    return SetFiles(_some(places, images), {"other": (0,), "road": tuple(range(1, 256))}, None, bands, sensor)


# ------------------------------------------------------------------------------------------------------------- files


def _folders(root: Path, images: Sequence[str], labels: Sequence[str], what: str) -> tuple[Path, Path]:
    """The first folder of images, at any depth, that has one of labels beside it."""
    for name in images:
        for folder in sorted(path for path in [root / name, *root.rglob(name)] if path.is_dir()):
            for other in labels:
                if (folder.parent / other).is_dir():
                    return folder, folder.parent / other
    raise Dic3lError(
        f"{root}: no {what}; folders {' or '.join(images)} and {' or '.join(labels)} expected side by side"
    )


def _partner(image: Path, *candidates: Path) -> Path:
    for path in candidates:
        if path.is_file():
            return path
    raise Dic3lError(f"{candidates[0]}: missing, though {image} is there; the set has both of a place")


def _some(places: list[PlaceFiles], folder: Path) -> list[PlaceFiles]:
    if not places:
        raise Dic3lError(f"{folder}: no image of the names that this layout has; docs/tasks.md shows them")
    return places


def _number(path: Path) -> int:
    digits = re.search(r"(\d+)$", path.stem)
    if digits is None:
        raise Dic3lError(f"{path}: the name of an OMBRIA image ends in its place number; this one does not")
    return int(digits[1])


def _tile_key(stem: str) -> str:
    """What a tile of SpaceNet 6 shares with its mask: times of the acquisition and number; else the whole stem."""
    found = re.search(r"\d{14}_\d{14}_tile_\d+$", stem)
    return found[0] if found else stem
