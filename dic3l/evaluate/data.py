"""Labelled places for a probe: which images, which labels, and which places are tested together.

A split is by place, never by tile: neighbours share ground, weather and pass, so that random tiles would let a
probe be tested on what it was fitted to.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from dic3l.errors import ConfigError, Dic3lError

Split = Literal["train", "val", "test"]
Georeference = tuple[str | None, tuple[float, ...] | None]
"""CRS ('EPSG:n' or WKT) and affine a, b, c, d, e, f (pixel edge -> CRS); None where there is none"""

IGNORED = 255
"""in label arrays: a pixel that is neither trained on nor scored"""

BLOCK_IDS = 20
"""consecutive place numbers of OMBRIA that are split as one: neighbours in number are neighbours on the ground"""

RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
_MANY_BLOCKS = 100
"""train blocks, from which on a share of the labels is one of whole blocks: 1 per cent of them is one"""


class Splittable(Protocol):
    """What can be on one side of a split or on the other."""

    @property
    def block(self) -> str: ...
    @property
    def seen(self) -> bool | None: ...
    @property
    def split(self) -> Split | None: ...
    @property
    def name(self) -> str: ...
    def classes(self) -> frozenset[int]:
        """Class numbers that it has."""
        ...


@dataclass(frozen=True)
class LabelledPlace:
    """One place: K co-registered images and the class of each pixel, read when asked for."""

    name: str
    block: str
    """places of one block are all trained on, or all tested"""
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    """-> codes uint8 (K, H, W), labels uint8 (H, W): 0 to classes - 1, or IGNORED"""
    seen: bool | None = None
    """whether pre-training saw this ground; None: not known"""
    split: Split | None = None
    """the data set's own; None: it has none, or the ground of this place is on another side of it too"""
    georeference: Georeference = (None, None)
    read_labels: Callable[[], np.ndarray] | None = None
    """the labels alone, where they can be had without the images"""

    def classes(self) -> frozenset[int]:
        labels = self.read()[1] if self.read_labels is None else self.read_labels()
        return frozenset(int(value) for value in np.unique(labels) if value != IGNORED)


@dataclass(frozen=True)
class LabelledImage:
    """One image of one class, read when asked for."""

    name: str
    block: str
    """images of one block are all trained on, or all tested"""
    read: Callable[[], np.ndarray]
    """-> codes uint8 (K, H, W); sizes may differ from image to image"""
    label: int
    """class number"""
    seen: bool | None = None
    split: Split | None = None

    def classes(self) -> frozenset[int]:
        return frozenset([self.label])


def paired_files(root: Path) -> list[tuple[Path, Path]]:
    """Images and labels of the same stem: in scenes/ and labels/, or in images/ and masks/ (or labels/)."""
    for images, labels in (("scenes", "labels"), ("images", "masks"), ("images", "labels")):
        if (root / images).is_dir() and (root / labels).is_dir():
            break
    else:
        if not root.is_dir():
            raise Dic3lError(f"{root}: no such folder")
        raise Dic3lError(
            f"{root}: folders scenes and labels, or images and masks, expected, not found; OMBRIA is read by "
            "--layout ombria"
        )
    files, labelled = _rasters(root / images), _rasters(root / labels)
    if not files:
        raise Dic3lError(f"{root / images}: no image (.tif, .tiff, .png or .jpg)")
    for path in labelled.values():
        if path.suffix.lower() in (".jpg", ".jpeg"):
            raise Dic3lError(f"{path}: JPEG changes label values; PNG or GeoTIFF expected, as the labels were made")
    for stem in sorted(files.keys() ^ labelled.keys()):
        path, other = (files[stem], labels) if stem in files else (labelled[stem], images)
        raise Dic3lError(f"{path}: nothing of this name in {other}; every image needs a label raster, and none more")
    return [(files[stem], labelled[stem]) for stem in sorted(files)]


def split_places(places: Sequence[Splittable], seed: int, test_share: float) -> tuple[list[int], list[int]]:
    """Indices of the train and of the test places, whole blocks each; a function of names and seed alone.

    Blocks are taken in the order of a seeded hash until `test_share` of the places is reached; blocks that
    pre-training did not see come first. Dic3lError where there are fewer than two blocks.
    """
    blocks: dict[str, list[int]] = {}
    for index, place in enumerate(places):
        blocks.setdefault(place.block, []).append(index)
    if len(blocks) < 2:
        raise Dic3lError("at least two places are needed, one to fit the probe and one to test it; one found")
    seen = {name: any(places[i].seen for i in members) for name, members in blocks.items()}
    order = sorted(blocks, key=lambda name: (seen[name], hashlib.sha256(f"{seed}:{name}".encode()).digest()))
    test: list[int] = []
    for name in order[:-1]:
        if test and len(test) + len(blocks[name]) / 2 > test_share * len(places):
            break
        test += blocks[name]
    return sorted(set(range(len(places))) - set(test)), sorted(test)


def official_split(places: Sequence[Splittable]) -> tuple[list[int], list[int]]:
    """Indices of the places that the data set itself gives for fitting and for the test: its train part, without its
    val part; its test part, or where it has none, val. Dic3lError where it has no such parts."""
    parts = {part: [i for i, place in enumerate(places) if place.split == part] for part in ("train", "val", "test")}
    train, test = parts["train"], parts["test"] or parts["val"]
    if not (train and test):
        found = ", ".join(f"{len(members)} {part}" for part, members in parts.items())
        raise Dic3lError(
            f"the data set's own split: places of train and of test expected, {found} found; split by seed"
        )
    return train, test


def take_fraction(places: Sequence[Splittable], train: Sequence[int], share: float, seed: int) -> list[int]:
    """Those of the places `train` whose labels are used when a share of them may be: indices, sorted.

    Whole blocks where `train` has 100 or more, else places, in an order that is a function of seed and names alone. It
    begins with as few as show every class that `train` has, which are always taken, so that no class is unknown; what a
    smaller share takes, a larger one takes too. share: above 0, at most 1. Reads all labels of `train`, unless it is 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share of the labels: above 0, at most 1 expected, {share:g} found")
    if share == 1 or not train:
        return sorted(train)
    blocks: dict[str, list[int]] = {}
    for index in train:
        blocks.setdefault(places[index].block, []).append(index)
    units = list(blocks.values()) if len(blocks) >= _MANY_BLOCKS else [[index] for index in train]
    names = [places[unit[0]].block if len(blocks) >= _MANY_BLOCKS else places[unit[0]].name for unit in units]
    order = sorted(range(len(units)), key=lambda n: hashlib.sha256(f"share:{seed}:{names[n]}".encode()).digest())
    held = {number: frozenset[int]().union(*(places[i].classes() for i in units[number])) for number in order}
    cover: list[int] = []
    missing = frozenset[int]().union(*held.values())
    while missing:
        best = max(order, key=lambda number: len(held[number] & missing))  # the first of equals
        cover.append(best)
        missing -= held[best]
    taken: list[int] = []
    wanted = max(math.floor(share * len(train) + 0.5), 1)
    for position, number in enumerate([*cover, *(number for number in order if number not in cover)]):
        if position >= len(cover) and len(taken) + len(units[number]) / 2 > wanted:
            break
        taken += units[number]
    return sorted(taken)


def fold_places(places: Sequence[Splittable], seed: int, folds: int) -> np.ndarray:
    """The fold, int64 (len(places),), of each place for cross-validation: whole blocks, dealt in hashed order."""
    order = sorted({p.block for p in places}, key=lambda name: hashlib.sha256(f"fold:{seed}:{name}".encode()).digest())
    number = {name: index % folds for index, name in enumerate(order)}
    return np.array([number[place.block] for place in places], np.int64)


def map_labels(values: np.ndarray, codes: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Label values -> class numbers, uint8, in the order of `codes`; IGNORED where no class has the value."""
    labels = np.full(values.shape, IGNORED, np.uint8)
    for number, members in enumerate(codes.values()):
        labels[np.isin(values, list(members))] = number
    return labels


def parse_classes(text: str) -> dict[str, tuple[int, ...]]:
    """'water=1,land=2+3' -> {'water': (1,), 'land': (2, 3)}: class names and the label values they take in."""
    classes: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([\w -]+?)\s*=\s*(\d+(?:\+\d+)*)\s*", part)
        if not match:
            raise ConfigError(f"--classes: 'name=value' or 'name=value+value' expected, '{part.strip()}' found")
        if match[1] in classes:
            raise ConfigError(f"--classes: each name once expected, '{match[1]}' found twice; join values by +")
        classes[match[1]] = tuple(int(value) for value in match[2].split("+"))
    values = [value for members in classes.values() for value in members]
    if len(set(values)) != len(values) or len(classes) < 2:
        raise ConfigError(f"--classes: two classes or more that share no value expected, '{text}' found")
    return classes


def decode_colours(pixels: np.ndarray, colours: Mapping[tuple[int, int, int], int], path: Path) -> np.ndarray:
    """Label values, int16 (H, W), of a colour picture, uint8 (H, W, 3), each by its exact colour.

    Dic3lError, with file, colour and pixel, at the first colour that has no value: a picture that was compressed with
    loss, or resampled, is no label raster.
    """
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    known = np.array(sorted((r << 16) + (g << 8) + b for r, g, b in colours), np.int32)
    value = {(r << 16) + (g << 8) + b: number for (r, g, b), number in colours.items()}
    at = np.searchsorted(known, packed).clip(max=len(known) - 1)
    if (unknown := known[at] != packed).any():
        row, column = (int(index) for index in np.argwhere(unknown)[0])
        colour = ", ".join(str(part) for part in pixels[row, column])
        raise Dic3lError(
            f"{path}: colour ({colour}) at row {row}, column {column} is of no class; expected one of "
            f"{', '.join(str(tuple(known)) for known in colours)}: is it the label raster as published?"
        )
    return np.array([value[int(code)] for code in known], np.int16)[at]


def read_colours(path: Path) -> np.ndarray:
    """A picture as RGB, uint8 (H, W, 3); Dic3lError where it is none."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise Dic3lError(f"{path}: cannot be read as an image: {error}") from error


def read_grey(path: Path) -> np.ndarray:
    """An 8-bit image as uint8 (H, W); Dic3lError where it is something else."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise Dic3lError(f"{path}: 8-bit grey values expected, an image of mode {image.mode} found")
            return np.asarray(image if image.mode != "1" else image.convert("L"))
    except OSError as error:
        raise Dic3lError(f"{path}: cannot be read as an image: {error}") from error


def _rasters(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in RASTERS):
        if path.stem in found:
            raise Dic3lError(f"{path}: {found[path.stem].name} is there too; one raster of a name expected")
        found[path.stem] = path
    return found
