"""Labelled rasters -> places for a probe: GeoTIFF scenes become codes exactly as a corpus build makes them.

Lives here because it needs both packages: how a scene is read is SARSense's, what a labelled place is, DIC3L's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import LabelledPlace, map_labels, paired_files, read_grey
from pipelines.entries import Entry
from pipelines.ranges import known_ranges, set_ranges
from pipelines.stages import channels_of
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus
from sarsense.errors import SceneError
from sarsense.measure import Measurement, measure_scene
from sarsense.raster import open_raster, pixel_window
from sarsense.scene import Scene, describe_scene
from sarsense.sources import SourceFile
from sarsense.strip import Channel, StripReader

WINDOW = 512
"""side of the windows, at most, that a scene is evaluated in"""
_SMALLEST = 32

Codes = Mapping[str, Sequence[int]]
"""class name -> label values"""


@dataclass(frozen=True)
class LabelledData:
    """All places of a data set, its classes in order, and how values became codes."""

    places: list[LabelledPlace]
    classes: list[str]
    normalisation: str


def folder_data(root: Path, corpus: Corpus | None, classes: Codes | None) -> LabelledData:
    """Scenes and label rasters of the same stem. GeoTIFF scenes are normalised by the ranges of `corpus`, or, without
    one, by ranges measured on the scenes themselves; 8-bit PNG are codes as they are.

    Scenes that overlap on the ground are one block. Raises Dic3lError and SarsenseError.
    """
    pairs = paired_files(root)
    codes = classes or _classes_of([labels for _, labels in pairs])
    if all(image.suffix.lower() == ".png" for image, _ in pairs):
        places = [LabelledPlace(image.stem, image.stem, _png_reader(image, labels, codes)) for image, labels in pairs]
        return LabelledData(places, list(codes), "8-bit values as they are, / 255")
    if mixed := [image for image, _ in pairs if image.suffix.lower() == ".png"]:
        raise Dic3lError(f"{mixed[0]}: PNG among GeoTIFF; one kind of image expected in a folder")

    scenes = [_describe(image) for image, _ in pairs]
    measured = [_measure(scene) for scene in scenes]
    channels = _channels(scenes, measured, corpus)
    footprints = [_footprint(image) for image, _ in pairs]
    blocks = _blocks(footprints)
    ground = None if corpus is None else _train_ground(corpus)
    places = []
    for (image, labels), scene, mine, footprint, block in zip(pairs, scenes, channels, footprints, blocks, strict=True):
        _check_grid(image, labels)
        seen = None if ground is None or footprint is None else bool(ground.query(footprint, "intersects").size)
        for window in _windows(scene.height, scene.width):
            read = _scene_reader(mine, labels, codes, window)
            name = f"{image.stem}@{window.row_off}+{window.col_off}"
            places.append(LabelledPlace(name, f"{block:04d}", read, seen))
    bands = ", ".join(band.polarisation for band in scenes[0].bands)
    return LabelledData(places, list(codes), f"{bands}; dB to codes 1..255 {_told(corpus)}, / 255")


# ------------------------------------------------------------------------------------------------------ scenes


def _describe(path: Path) -> Scene:
    try:
        scene = describe_scene(str(path), path.name, BuildConfig(tile_size=_SMALLEST, allow_unplaced=True))
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from error
    if scene.preparation is not None:
        raise SceneError(f"{path}: has to be multilooked first, which labels on its own grid do not survive")
    return scene


def _measure(scene: Scene) -> Measurement:
    try:
        return measure_scene(scene)
    except SceneError as error:
        raise SceneError(f"{scene.path}: {error}") from error


def _channels(scenes: Sequence[Scene], measured: Sequence[Measurement], corpus: Corpus | None) -> list[list[Channel]]:
    """The bands of each scene as `corpus` would have coded them; as a build of these scenes would, without one."""
    polarisations = [tuple(band.polarisation for band in scene.bands) for scene in scenes]
    for scene, found in zip(scenes, polarisations, strict=True):
        if found != polarisations[0]:
            raise Dic3lError(
                f"{scene.path}: bands {', '.join(found)}, {scenes[0].path} has {', '.join(polarisations[0])}; "
                "all scenes must have the same, since their features stand side by side"
            )
    config = BuildConfig() if corpus is None else _settings(corpus)
    entries = []
    for scene, measurement in zip(scenes, measured, strict=True):
        file = SourceFile(scene.path, scene.relative, True)
        entries.append(Entry(file, status="used", scene=scene, measurement=measurement))
    known = None if corpus is None or config.normalization != "group" else known_ranges(corpus, closed=True)
    set_ranges(entries, config, known)
    for entry in entries:
        if entry.status == "refused":
            raise ConfigError(f"{entry.file.path}: {entry.reason}")
    return [[channel for stack in channels_of(entry, config) for channel in stack] for entry in entries]


def _settings(corpus: Corpus) -> BuildConfig:
    """How a corpus was coded. Of `both` contents, the one that a network meets in the field."""
    made = corpus.manifest["config"]
    content = made["content"] if made["content"] != "both" else "speckled"
    return BuildConfig(normalization=made["normalization"], content=content)


def _told(corpus: Corpus | None) -> str:
    if corpus is None:
        return "by group ranges measured on these scenes"
    made = _settings(corpus)
    return f"by {made.normalization} ranges, {made.content}, of corpus {corpus.name} ({corpus.digest[:12]})"


def _scene_reader(
    channels: Sequence[Channel], labels: Path, codes: Codes, window: Window
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def read() -> tuple[np.ndarray, np.ndarray]:
        first, last = int(window.row_off), int(window.row_off + window.height)
        columns = slice(int(window.col_off), int(window.col_off + window.width))
        with open_raster(channels[0].scene.path) as (dataset, _):
            # whole rows, as a build reads them: masks, and rims that are told from a row's ends
            strips = StripReader([(dataset, channel) for channel in channels], bits=8).read(first, last)
            images = [strip.codes[:, columns] for strip in strips]
        with rasterio.open(labels) as dataset:
            values = dataset.read(1, window=window)
        return np.stack(images), map_labels(values, codes)

    return read


def _windows(height: int, width: int) -> list[Window]:
    """Windows of at most WINDOW pixels that cover a scene once; the last ones are as small as what is left,
    unless that is too small for a network to see anything in, when they are left out."""
    return [
        pixel_window(col, row, min(WINDOW, width - col), min(WINDOW, height - row))
        for row in range(0, height, WINDOW)
        for col in range(0, width, WINDOW)
        if min(WINDOW, width - col) >= _SMALLEST and min(WINDOW, height - row) >= _SMALLEST
    ]


# ------------------------------------------------------------------------------------------------------ ground


def _footprint(path: Path) -> shapely.Polygon | None:
    with rasterio.open(path) as dataset:
        if dataset.crs is None:
            return None
        return shapely.box(*transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds))


def _blocks(footprints: Sequence[shapely.Polygon | None]) -> list[int]:
    """A number for each scene: the same for scenes that overlap, directly or through others."""
    block = list(range(len(footprints)))
    for i, first in enumerate(footprints):
        for j in range(i):
            second = footprints[j]
            if first is not None and second is not None and first.intersects(second) and block[i] != block[j]:
                old, new = max(block[i], block[j]), min(block[i], block[j])
                block = [new if number == old else number for number in block]
    return block


def _train_ground(corpus: Corpus) -> shapely.STRtree:
    table = corpus.tiles("train", columns=["footprint"])
    return shapely.STRtree(shapely.from_wkb([value for value in table["footprint"].to_pylist() if value is not None]))


# ------------------------------------------------------------------------------------------------------ labels


def _classes_of(labels: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The classes that label rasters name in their CLASSES tag (JSON, code to name), else the values they hold."""
    found: set[int] = set()
    for path in labels:
        if path.suffix.lower() == ".png":
            found |= set(np.unique(read_grey(path)).tolist())
            continue
        with rasterio.open(path) as dataset:
            if named := dataset.tags().get("CLASSES"):
                return {name: (int(code),) for code, name in json.loads(named).items()}
            values = np.unique(dataset.read(1)).tolist()
            found |= {int(value) for value in values if value != dataset.nodata}
    if not 2 <= len(found) <= 100:
        raise Dic3lError(
            f"{labels[0].parent}: {len(found)} distinct label values; from 2 to 100 expected, or name them by --classes"
        )
    return {str(value): (value,) for value in sorted(found)}


def _png_reader(image: Path, labels: Path, codes: Codes) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def read() -> tuple[np.ndarray, np.ndarray]:
        pixels, values = read_grey(image), _label_values(labels)
        if pixels.shape != values.shape:
            raise Dic3lError(f"{labels}: {values.shape} labels, {image} has {pixels.shape} pixels; they must agree")
        return np.stack([pixels]), map_labels(values, codes)

    return read


def _label_values(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".png":
        return read_grey(path)
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def _check_grid(image: Path, labels: Path) -> None:
    with rasterio.open(image) as scene, rasterio.open(labels) as raster:
        if (scene.shape, scene.transform, scene.crs) != (raster.shape, raster.transform, raster.crs):
            raise Dic3lError(
                f"{labels}: its grid ({raster.shape}, {raster.crs}) is not that of {image} "
                f"({scene.shape}, {scene.crs}); warp the labels to the scene's grid"
            )
