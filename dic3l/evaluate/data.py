"""Labelled places for a probe: which images, which labels, and which places are tested together.

A split is by place, never by tile: neighbours share ground, weather and pass, so that random tiles would let a
probe be tested on what it was fitted to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dic3l.errors import ConfigError, Dic3lError

IGNORED = 255
"""in label arrays: a pixel that is neither trained on nor scored"""

BLOCK_IDS = 20
"""consecutive place numbers of OMBRIA that are split as one: neighbours in number are neighbours on the ground"""


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


def ombria_places(root: Path) -> list[LabelledPlace]:
    """The places of OMBRIA (BEFORE, AFTER and MASK folders, in `root` or in its train and test folders).

    Images: before, after. Classes: 0 other, 1 flood. The published train and test ids interleave; here they are
    pooled and cut into blocks of `BLOCK_IDS` consecutive ids.
    """
    places: dict[int, LabelledPlace] = {}
    for folder in sorted(path.parent for path in [*root.glob("AFTER"), *root.glob("*/AFTER")]):
        for after in sorted((folder / "AFTER").glob("*.png")):
            number = _number(after)
            before = folder / "BEFORE" / after.name.replace("after", "before")
            mask = folder / "MASK" / after.name.replace("after", "mask")
            for path in (before, mask):
                if not path.is_file():
                    raise Dic3lError(f"{path}: missing, though {after} is there; OMBRIA has all three of a place")
            if number in places:
                raise Dic3lError(f"{after}: place {number} is there twice; ids must be unique over train and test")
            places[number] = LabelledPlace(f"{number:04d}", f"{number // BLOCK_IDS:03d}", _reader(before, after, mask))
    if not places:
        raise Dic3lError(f"{root}: no OMBRIA data; folders BEFORE, AFTER and MASK expected in it or in train and test")
    return [places[number] for number in sorted(places)]


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
        raise Dic3lError(f"{root / images}: no image (.tif, .tiff or .png)")
    for stem in sorted(files.keys() ^ labelled.keys()):
        path, other = (files[stem], labels) if stem in files else (labelled[stem], images)
        raise Dic3lError(f"{path}: nothing of this name in {other}; every image needs a label raster, and none more")
    return [(files[stem], labelled[stem]) for stem in sorted(files)]


def split_places(places: Sequence[LabelledPlace], seed: int, test_share: float) -> tuple[list[int], list[int]]:
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


def fold_places(places: Sequence[LabelledPlace], seed: int, folds: int) -> np.ndarray:
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
        classes[match[1]] = tuple(int(value) for value in match[2].split("+"))
    values = [value for members in classes.values() for value in members]
    if len(set(values)) != len(values) or len(classes) < 2:
        raise ConfigError(f"--classes: two classes or more that share no value expected, '{text}' found")
    return classes


def read_grey(path: Path) -> np.ndarray:
    """An 8-bit image as uint8 (H, W); Dic3lError where it is something else."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1"):
                raise Dic3lError(f"{path}: 8-bit grey values expected, an image of mode {image.mode} found")
            return np.asarray(image if image.mode != "1" else image.convert("L"))
    except OSError as error:
        raise Dic3lError(f"{path}: cannot be read as an image: {error}") from error


def _reader(before: Path, after: Path, mask: Path) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def read() -> tuple[np.ndarray, np.ndarray]:
        images = np.stack([read_grey(before), read_grey(after)])
        return images, (read_grey(mask) > 127).astype(np.uint8)

    return read


def _number(path: Path) -> int:
    digits = re.search(r"(\d+)$", path.stem)
    if digits is None:
        raise Dic3lError(f"{path}: the name of an OMBRIA image ends in its place number; this one does not")
    return int(digits[1])


def _rasters(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".tif", ".tiff", ".png")}
