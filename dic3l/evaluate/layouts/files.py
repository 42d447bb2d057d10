"""What a layout says of the files of a labelled data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dic3l.evaluate.data import RASTERS, Split

Codes = Mapping[str, Sequence[int]]
"""class name -> label values"""
Colour = tuple[int, int, int]
SPLITS: Mapping[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip


@dataclass(frozen=True)
class PlaceFiles:
    """The files of one place."""

    name: str
    images: tuple[Path, ...]
    """of one grid: their bands, in this order, are the images of the place"""
    labels: Path
    block: str | None = None
    """what its name says of where it lies: places of one block are fitted or tested together; None: it says nothing"""
    split: Split | None = None
    """the set's own"""


@dataclass(frozen=True)
class SetFiles:
    """The places of a labelled data set, as files."""

    places: list[PlaceFiles]
    classes: Codes | None
    """None: what the label rasters hold"""
    colours: Mapping[Colour, int] | None = None
    """label value of each colour, where labels are colour pictures; -1: of no class"""
    polarisations: tuple[str, ...] = ()
    """of the bands, in order, where the files do not say; of dates: their names"""
    sensor: str | None = None
    mode: str | None = None
    dates: bool = False
    """the images of a place are the same ground at two dates"""


@dataclass(frozen=True)
class ImageFile:
    """An image that has one label."""

    name: str
    path: Path
    label: str
    block: str
    split: Split | None = None


@dataclass(frozen=True)
class Layout:
    """One line of help, and what finds the files in the folder of the set. Dic3lError where they are not there."""

    help: str
    find: Callable[[Path], SetFiles]


def images_in(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in RASTERS), key=natural)


def natural(value: Path | str) -> list[tuple[int, int, str]]:
    """Order in which 2 is before 10."""
    parts = re.split(r"(\d+)", str(value))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
