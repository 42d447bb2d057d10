"""Labelled data sets -> places for a probe: files become codes as a corpus build makes them, ground becomes blocks.

Lives here because it needs both packages: how a scene is read is SARSense's, what a labelled place is, DIC3L's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import (
    IGNORED,
    Georeference,
    LabelledImage,
    LabelledPlace,
    decode_colours,
    map_labels,
    read_colours,
    read_grey,
)
from dic3l.evaluate.layouts import CLASS_FOLDERS_HELP, Codes, Colour, SetFiles, class_folders
from dic3l.evaluate.layouts import LAYOUTS as _FOUND_BY
from pipelines.coding import AS_THEY_ARE, SMALLEST, CodedScene, Coding, bounds_of, coded_scenes, coding_of, of_pictures
from pipelines.ground import footprint, ground_of, train_ground
from pipelines.labelled_corpus import corpus_places
from sarsense.catalogue import Stated
from sarsense.corpus import Corpus, open_corpus
from sarsense.errors import SceneError
from sarsense.raster import masked_rows, open_raster, pixel_window

WINDOW = 512
"""side of the windows, at most, that a scene is evaluated in"""
CLASS_FOLDERS = "classes"
SHARDS = "shards"
LAYOUTS: Mapping[str, str] = {
    **{name: layout.help for name, layout in _FOUND_BY.items()},
    SHARDS: "a labelled corpus of `sarsense build --labels`: a tile is a place, coded and split already",
    CLASS_FOLDERS: CLASS_FOLDERS_HELP,
}
"""name -> one line of help; `classes` is of `labelled_images`, all others of `labelled_data`"""


@dataclass(frozen=True)
class LabelledData:
    """All places of a data set, its classes in order, and how values became codes."""

    places: list[LabelledPlace]
    classes: list[str]
    normalisation: str
    coding: Coding = AS_THEY_ARE
    polarisations: tuple[str, ...] = ()
    """of the images of a place; of pictures of several dates, the names of these"""
    values: tuple[int, ...] = ()
    """the first label value of each class"""
    dates: bool = False
    """whether the images of a place are the same ground at two dates, whose difference says something"""


@dataclass(frozen=True)
class LabelledImages:
    """All images of a data set of one label each."""

    images: list[LabelledImage]
    classes: list[str]
    normalisation: str
    coding: Coding
    polarisations: tuple[str, ...]


def labelled_data(root: Path, layout: str, corpus: Corpus | None, classes: Codes | None) -> LabelledData:
    """The places of the data set in `root`, of one of `LAYOUTS`.

    Scenes are coded by the ranges of `corpus`, or without one by ranges measured on them; 8-bit pictures are codes as
    they are, unless `corpus` was made of pictures. `classes`: name -> label values, in place of what the set says.
    Raises ConfigError, Dic3lError, SarsenseError.
    """
    if layout == SHARDS:
        return _of_shards(open_corpus(root), corpus, classes)
    if layout == CLASS_FOLDERS or layout not in _FOUND_BY:
        raise ConfigError(f"--layout: one of {', '.join(_FOUND_BY)}, {SHARDS} expected for maps, '{layout}' found")
    found = _FOUND_BY[layout].find(root)
    if classes is not None and found.colours is not None:
        raise ConfigError(f"--classes: the labels of {root} are colours with names ({', '.join(found.classes or ())})")
    if classes is not None and layout == "ombria":
        raise ConfigError(
            "--classes: OMBRIA has its own (other, flood); the option is for sets whose labels are values"
        )
    codes = classes or found.classes or _classes_of([place.labels for place in found.places])
    images = [path for place in found.places for path in place.images]
    stated = Stated(sensor=found.sensor, mode=found.mode)
    # each file of a set of one file a polarisation names its own
    bands = found.polarisations if len(found.places[0].images) == 1 else ()
    coding, scenes = coded_scenes(images, _coding(images, corpus), stated, bands)
    by_path = dict(zip(images, scenes, strict=True))
    members = [[by_path[path] for path in place.images] for place in found.places]
    polarisations = _polarisations(found, members)
    places = _places(found, members, codes, corpus)
    if not places:
        raise Dic3lError(f"{root}: no scene of {SMALLEST} x {SMALLEST} pixels or more")
    told = f"{coding.told()}, / 255" if coding is AS_THEY_ARE else f"{', '.join(polarisations)}; {coding.told()}, / 255"
    values = tuple(next(iter(members)) for members in codes.values())
    return LabelledData(places, list(codes), told, coding, polarisations, values, found.dates)


def _of_shards(labelled: Corpus, corpus: Corpus | None, classes: Codes | None) -> LabelledData:
    """The tiles of a labelled corpus, coded as it is, which has to be as `corpus` is, whose encoder is probed; that
    tells besides what ground it has seen."""
    if classes is not None:
        raise ConfigError(f"--classes: {labelled.root} names its classes; the option is for label rasters")
    places, codes = corpus_places(labelled, corpus)
    coding = coding_of(labelled)
    if corpus is not None:
        _refuse_other_coding(labelled, coding, coding_of(corpus))
    names = sorted(set(labelled.tiles(columns=["polarisation"])["polarisation"].to_pylist()))
    polarisations = tuple(names[0].split("+")) if len(names) == 1 else ()
    values = tuple(members[0] for members in codes.values())
    return LabelledData(
        places, list(codes), f"{', '.join(names)}; {coding.told()}, / 255", coding, polarisations, values
    )


def _refuse_other_coding(labelled: Corpus, mine: Coding, theirs: Coding) -> None:
    """ConfigError where the same backscatter has other codes in two corpora."""
    same = (mine.normalization, mine.content) == (theirs.normalization, theirs.content)
    if not (same and bounds_of(mine.groups).items() <= bounds_of(theirs.groups).items()):
        raise ConfigError(
            f"{labelled.root}: its codes ({mine.told()}) mean other dB than those of --corpus ({theirs.told()}); build "
            "the labelled corpus with --stats-from that corpus and its --content, or leave --corpus out"
        )


def folder_data(root: Path, corpus: Corpus | None, classes: Codes | None) -> LabelledData:
    """`labelled_data` of the plain folder layout."""
    return labelled_data(root, "folder", corpus, classes)


def labelled_images(root: Path, corpus: Corpus | None) -> LabelledImages:
    """Images of one label each, a folder a class; coded as those of `labelled_data`. Raises as it does."""
    files, classes = class_folders(root)
    coding, scenes = coded_scenes([file.path for file in files], _coding([file.path for file in files], corpus))
    for scene in scenes:
        if scene.polarisations != scenes[0].polarisations:
            raise _unlike(scene, scenes[0])
    shapes = [footprint(scene) for scene in scenes]
    ground = ground_of(shapes, [file.block for file in files], [file.split for file in files])
    seen = _seen(corpus, shapes)
    images = [
        LabelledImage(file.name, block, _whole(scene), classes.index(file.label), was_seen, split)
        for file, scene, block, split, was_seen in zip(files, scenes, ground.blocks, ground.splits, seen, strict=True)
        if block is not None
    ]
    return LabelledImages(images, classes, f"{coding.told()}, / 255", coding, scenes[0].polarisations)


# ------------------------------------------------------------------------------------------------------ scenes


def _coding(images: Sequence[Path], corpus: Corpus | None) -> Coding | None:
    """None: to be measured."""
    known = None if corpus is None else coding_of(corpus)
    coded = known is not None and of_pictures(known.groups)
    return AS_THEY_ARE if _is_picture(images[0]) and not coded else known


def _is_picture(path: Path) -> bool:
    with open_raster(str(path)) as (dataset, _):
        return dataset.dtypes[0] == "uint8"


def _polarisations(found: SetFiles, members: Sequence[Sequence[CodedScene]]) -> tuple[str, ...]:
    of_place = [tuple(name for scene in scenes for name in scene.polarisations) for scenes in members]
    for scenes, names in zip(members, of_place, strict=True):
        for scene in scenes:
            if scene.shape[1:] != scenes[0].shape[1:]:
                raise Dic3lError(
                    f"{scene.path}: {scene.shape[1:]} pixels, {scenes[0].path} has {scenes[0].shape[1:]}; images of a "
                    "place lie on one grid"
                )
        if names != of_place[0]:
            raise _unlike(scenes[0], members[0][0])
    return found.polarisations if found.dates else of_place[0]


def _unlike(scene: CodedScene, first: CodedScene) -> Dic3lError:
    return Dic3lError(
        f"{scene.path}: bands {', '.join(scene.polarisations)}, {first.path} has {', '.join(first.polarisations)}; "
        "all scenes must have the same, since their features stand side by side"
    )


def _places(
    found: SetFiles, members: Sequence[Sequence[CodedScene]], codes: Codes, corpus: Corpus | None
) -> list[LabelledPlace]:
    shapes = [footprint(scenes[0]) for scenes in members]
    ground = ground_of(shapes, [place.block for place in found.places], [place.split for place in found.places])
    seen = _seen(corpus, shapes)
    places = []
    for number, (place, scenes) in enumerate(zip(found.places, members, strict=True)):
        if (block := ground.blocks[number]) is None:
            continue
        _check_labels(place.labels, scenes[0], found.colours is not None)
        for window in _windows(*scenes[0].shape[1:]):
            whole = (int(window.height), int(window.width)) == scenes[0].shape[1:]
            name = place.name if whole and shapes[number] is None else f"{place.name}@{window.row_off}+{window.col_off}"
            labels = _label_reader(place.labels, codes, found.colours, window)
            places.append(
                LabelledPlace(
                    name=name,
                    block=block,
                    read=_reader(scenes, labels, window),
                    seen=seen[number],
                    split=ground.splits[number],
                    georeference=_georeference(scenes[0], window),
                    read_labels=labels,
                )
            )
    return places


def _seen(corpus: Corpus | None, shapes: Sequence[shapely.Geometry | None]) -> list[bool | None]:
    """Whether a corpus has train tiles on each footprint; None: not known."""
    if corpus is None:
        return [None] * len(shapes)
    ground = train_ground(corpus)
    return [None if shape is None else bool(ground.query(shape, "intersects").size) for shape in shapes]


def _reader(
    scenes: Sequence[CodedScene], labels: Callable[[], np.ndarray], window: Window
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    return lambda: (np.concatenate([scene.read(window) for scene in scenes]), labels())


def _whole(scene: CodedScene) -> Callable[[], np.ndarray]:
    _, height, width = scene.shape
    return lambda: scene.read(pixel_window(0, 0, width, height))


def _georeference(scene: CodedScene, window: Window) -> Georeference:
    if scene.transform is None:
        return scene.crs if not scene.gcps else None, None
    a, b, c, d, e, f = scene.transform
    col, row = window.col_off, window.row_off
    return scene.crs, (a, b, a * col + b * row + c, d, e, d * col + e * row + f)


def _windows(height: int, width: int) -> list[Window]:
    """Windows of at most WINDOW pixels that cover a scene once; the last ones are as small as what is left,
    unless that is too small for a network to see anything in, when they are left out."""
    return [
        pixel_window(col, row, min(WINDOW, width - col), min(WINDOW, height - row))
        for row in range(0, height, WINDOW)
        for col in range(0, width, WINDOW)
        if min(WINDOW, width - col) >= SMALLEST and min(WINDOW, height - row) >= SMALLEST
    ]


# ------------------------------------------------------------------------------------------------------ labels


def _classes_of(labels: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The classes that label rasters name in their CLASSES tag (JSON, code to name), else the values they hold that are
    neither their no-data value nor negative."""
    names: dict[int, str] = {}
    for path in labels:
        for value, name in _named(path).items():
            if names.setdefault(value, name) != name:
                raise Dic3lError(
                    f"{path}: value {value} is {name!r} in its CLASSES tag, {names[value]!r} in others; one name for a "
                    "value expected, or name classes by --classes"
                )
    if names:
        return {name: tuple(v for v, same in names.items() if same == name) for name in names.values()}
    found: set[int] = set()
    for path in labels:
        if path.suffix.lower() == ".png":
            found |= set(np.unique(read_grey(path)).tolist())
            continue
        with _open_labels(path) as dataset:
            values = np.unique(dataset.read(1)).tolist()
            found |= {int(value) for value in values if value != dataset.nodata and value >= 0}
    if not 2 <= len(found) <= 100:
        raise Dic3lError(
            f"{labels[0].parent}: {len(found)} distinct label values; from 2 to 100 expected, or name them by --classes"
        )
    return {str(value): (value,) for value in sorted(found)}


def _named(path: Path) -> dict[int, str]:
    """What the CLASSES tag of a label raster says; Dic3lError where it cannot be meant so."""
    with _open_labels(path) as dataset:
        text, nodata = dataset.tags().get("CLASSES"), dataset.nodata
    try:
        named = {int(value): str(name) for value, name in json.loads(text or "{}").items()}
    except (ValueError, AttributeError) as error:
        raise Dic3lError(
            f'{path}: {{"value": "name"}} expected in its CLASSES tag, in JSON, {str(text)[:60]!r} found'
        ) from error
    if nodata in named:
        raise Dic3lError(
            f"{path}: its no-data value {nodata:g} is class {named[int(nodata)]!r} of its CLASSES tag; take one of the "
            "two back, or name classes by --classes"
        )
    return named


@contextmanager
def _open_labels(path: Path) -> Iterator[Any]:
    try:
        with open_raster(str(path)) as (dataset, _):
            yield dataset
    except SceneError as error:
        raise Dic3lError(f"{path}: {error}") from error


def _label_reader(
    path: Path, codes: Codes, colours: Mapping[Colour, int] | None, window: Window
) -> Callable[[], np.ndarray]:
    rows, columns = (slice(int(at), int(at + size)) for at, size in _sides(window))

    def read() -> np.ndarray:
        if colours is not None:
            return map_labels(decode_colours(read_colours(path), colours, path)[rows, columns], codes)
        if path.suffix.lower() == ".png":
            return map_labels(read_grey(path)[rows, columns], codes)
        with _open_labels(path) as dataset:
            classes = map_labels(dataset.read(1, window=window), codes)
            masked = masked_rows(dataset, 1, rows.start, rows.stop)
        if masked is not None:
            classes[masked[:, columns]] = IGNORED
        return classes

    return read


def _sides(window: Window) -> tuple[tuple[float, float], tuple[float, float]]:
    return (window.row_off, window.height), (window.col_off, window.width)


def _check_labels(labels: Path, scene: CodedScene, coloured: bool) -> None:
    """Dic3lError where labels are not on the grid of their scene, to a hundredth of a pixel, or are a picture in colour
    whose first band would pass for classes."""
    with _open_labels(labels) as raster:
        shape, crs, transform = raster.shape, raster.crs, raster.transform
        in_colour = ColorInterp.red in raster.colorinterp
    if in_colour and not coloured:
        raise Dic3lError(
            f"{labels}: one band of class numbers expected, a picture in colour found; name its colours in classes.json"
        )
    same = shape == scene.shape[1:]
    if same and crs is not None and scene.crs is not None and scene.transform is not None:
        step = abs(scene.transform[0]) + abs(scene.transform[1])
        apart = np.abs(np.subtract(tuple(transform)[:6], scene.transform))
        far = max(apart[2], apart[5], apart[[0, 1, 3, 4]].max() * max(shape))
        same = crs == CRS.from_user_input(scene.crs) and far < 0.01 * step
    if not same:
        raise Dic3lError(
            f"{labels}: its grid ({shape}, {crs}) is not that of {scene.path} ({scene.shape[1:]}, {scene.crs}); "
            "warp the labels to the scene's grid"
        )
