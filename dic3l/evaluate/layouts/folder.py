"""Folders that a user makes: scenes and labels of one name, and images of one label, a folder a class."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import BLOCK_IDS, Split, paired_files
from dic3l.evaluate.layouts.files import SPLITS, Codes, Colour, ImageFile, PlaceFiles, SetFiles, images_in, natural


def folder_files(root: Path) -> SetFiles:
    """scenes/ and labels/, or images/ and masks/ (or labels/), paired by stem; classes.json and split.csv or split.txt
    where they are there."""
    pairs = paired_files(root)
    pictures = [image for image, _ in pairs if image.suffix.lower() in (".png", ".jpg", ".jpeg")]
    if pictures and len(pictures) < len(pairs):
        raise Dic3lError(f"{pictures[0]}: PNG among GeoTIFF; one kind of image expected in a folder")
    # a picture has no place on Earth: without a word of its owner each is its own
    places = [PlaceFiles(image.stem, (image,), labels, image.stem if pictures else None) for image, labels in pairs]
    classes, colours = _classes(root / "classes.json")
    return SetFiles(_with_splits(root, places), classes, colours)


def _classes(path: Path) -> tuple[Codes | None, Mapping[Colour, int] | None]:
    """{"water": 1, "land": [2, 3]} or {"water": "#0000ff", "land": ["#00ff00", "#ffff00"]}."""
    if not path.is_file():
        return None, None
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
        listed = {str(name): value if isinstance(value, list) else [value] for name, value in told.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f'{path}: {{"name": value}} or {{"name": [value, value]}} expected, in JSON; found otherwise ({error})'
        ) from error
    values = [value for members in listed.values() for value in members]
    if len(listed) < 2 or len(set(values)) != len(values):
        raise ConfigError(f"{path}: two classes or more that share no value expected, {json.dumps(told)[:80]} found")
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return {name: tuple(members) for name, members in listed.items()}, None
    colours: dict[Colour, int] = {}
    for number, members in enumerate(listed.values()):
        for value in members:
            if not (isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value)):
                raise ConfigError(f"{path}: whole numbers, or colours as '#rrggbb', expected, {value!r} found")
            colours[cast(Colour, tuple(bytes.fromhex(value[1:])))] = number
    return {name: (number,) for number, name in enumerate(listed)}, colours


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a name is there twice, of which json would take the last without a word."""
    if len(names := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return names


def _with_splits(root: Path, places: list[PlaceFiles]) -> list[PlaceFiles]:
    """The places with what split.csv or split.txt says: name, train | val | test, and its block where a third column
    tells it."""
    path = next((root / name for name in ("split.csv", "split.txt") if (root / name).is_file()), None)
    if path is None:
        return places
    at = {place.name: number for number, place in enumerate(places)}
    found = list(places)
    told: dict[int, Split] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Dic3lError(f"{path}: text in UTF-8 expected, found otherwise ({error})") from error
    for line, text in enumerate(lines, 1):
        cells = [cell.strip() for cell in re.split(r"[,\s]+", text.strip())]
        if cells == [""] or (line == 1 and cells[:2] == ["name", "split"]):
            continue
        split = SPLITS.get(cells[1].lower()) if len(cells) in (2, 3) else None
        if split is None:
            raise Dic3lError(f"{path}, line {line}: a name and train, val or test expected, '{text}' found")
        number = at.get(cells[0], at.get(Path(cells[0]).stem))
        if number is None:
            raise Dic3lError(f"{path}, line {line}: no image of the name '{cells[0]}' in the folder")
        if told.setdefault(number, split) != split:
            raise Dic3lError(f"{path}, line {line}: '{cells[0]}' is {told[number]} above, {split} here; give one")
        block = cells[2] if len(cells) == 3 else places[number].block
        found[number] = replace(places[number], split=split, block=block)
    return found


def class_folders(root: Path) -> tuple[list[ImageFile], list[str]]:
    """A folder a class, in `root` or in its train, val and test: images, each of one class, and the classes, in natural
    order.

    Where names end in numbers, consecutive ones of a class are a block: chips of a target that one flight took.
    """
    parts: dict[Path, Split | None] = {root / name: split for name, split in SPLITS.items() if (root / name).is_dir()}
    found = []
    for folder, split in (parts or {root: None}).items():
        for label in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []:
            for image in images_in(label):
                number = re.search(r"(\d+)$", image.stem)
                at = f"{int(number[1]) // BLOCK_IDS}" if number else image.stem
                name = image.relative_to(root).with_suffix("").as_posix()
                found.append(ImageFile(name, image, label.name, f"{label.name}/{at}", split))
    classes = sorted({image.label for image in found}, key=natural)
    if len(classes) < 2:
        raise Dic3lError(f"{root}: a folder a class, two or more, expected in it or in train and test; {classes} found")
    return found, classes
