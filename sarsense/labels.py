"""Label rasters beside scenes: which belongs to which scene, whether it fits, and what its values are.

A label raster is one band of integers on the own grid of a scene: 0 to 254 are classes, 255 is ignored. What says no
data (a declared value, a mask, -1) is ignored too. Nothing is warped: a raster on another grid fits no scene.

Pairing (`LabelFolder.find`): a label raster has the name of its scene, or that name without its polarisations, so that
the files of a scene's polarisations share one: `labels/a_1.tif` is that of `a_1.tif`, `a_1_VV.tif` and `a_VH_1.tif`,
and not of `a_1_2.tif`. A longer rest than a polarisation would pair scene_1_2 with the labels of scene_1, which no grid
tells apart where chips have none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from sarsense.errors import SceneError, SettingError
from sarsense.geometry import Geometry, read_geometry
from sarsense.products import Facts
from sarsense.raster import masked_rows, open_raster, read_rows, stored_dtype, strips
from sarsense.remote import Stamp
from sarsense.scene import Scene, place_name
from sarsense.sidecars import stamp_of

IGNORED = 255
"""label of a pixel that is neither trained on nor scored"""
HIGHEST = 254
"""label of a class, at most"""
_SUFFIXES = (".tif", ".tiff", ".png")
_STRIP_PIXELS = 4 * 2**20
_SAME_PIXEL = 0.01
"""of a pixel: corners of one grid, as programs round them"""


@dataclass(frozen=True)
class LabelFile:
    """A raster of a folder of labels."""

    path: str
    """absolute"""
    relative: str
    """inside the folder, with forward slashes: what a corpus says of it"""

    def stamp(self) -> Stamp:
        """Size and time, as of a source; empty: it vanished."""
        return stamp_of(self.path)


@dataclass(frozen=True)
class LabelRaster:
    """A label raster that fits its scene."""

    file: LabelFile
    hash: str
    """SHA-256 of the labels as they are stored in tiles: the same whatever no data was called"""
    classes: tuple[tuple[int, str], ...] = ()
    """value and name of each class that its CLASSES tag names; empty: it has none"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LabelRaster:
        classes = tuple((number, name) for number, name in value["classes"])
        return cls(LabelFile(**value["file"]), value["hash"], classes)


class LabelFolder:
    """The label rasters of a folder, searched to the bottom."""

    def __init__(self, root: Path) -> None:
        """Raises SettingError where it is no folder, or holds no raster."""
        if not root.is_dir():
            raise SettingError(f"--labels: a folder of label rasters expected, {str(root)!r} found")
        self.root = root.resolve()
        self._by_folder: dict[str, list[LabelFile]] = defaultdict(list)
        for path in sorted(self.root.rglob("*")):
            relative = path.relative_to(self.root)
            hidden = any(part.startswith(".") for part in relative.parts)
            if path.suffix.lower() in _SUFFIXES and path.is_file() and not hidden:
                folder = relative.parent.as_posix()
                self._by_folder["" if folder == "." else folder].append(LabelFile(str(path), relative.as_posix()))
        if not self._by_folder:
            raise SettingError(f"--labels: label rasters ({' '.join(_SUFFIXES)}) expected in {root}, none found")

    def holds(self, path: str) -> bool:
        """Whether a file lies in the folder."""
        return Path(path).is_relative_to(self.root)

    def find(self, relative: str) -> list[LabelFile]:
        """The label rasters of the scene at `relative`, its path inside its source: one, where all is well.

        Looked for in the folder that the scene's own is called in its source, then in what the last folders of that
        path name, then at the top. In each the scene's own name beats its name without polarisations. A file that is
        called by its polarisation alone (chip7/VV.tif) has the name of its folder.
        """
        scene = PurePosixPath(relative)
        bare = _words(PurePosixPath(place_name(relative)).name)
        folders = scene.parts[:-1]
        for above in range(len(folders) + 1):
            here = self._by_folder.get("/".join(folders[above:]), [])
            own = [file for file in here if PurePosixPath(file.relative).stem == scene.stem]
            if found := own or [file for file in here if _words(PurePosixPath(file.relative).stem) == bare]:
                return found
        return []

    def label_of(self, relative: str) -> LabelFile:
        """The one label raster of a scene. SceneError where there is none, or more than one."""
        found = self.find(relative)
        if len(found) == 1:
            return found[0]
        bare = PurePosixPath(place_name(relative)).name
        names = " or ".join(dict.fromkeys([PurePosixPath(relative).stem, bare]))
        if not found:
            raise SceneError(
                f"--labels has no raster of this scene: {names} ({', '.join(_SUFFIXES)}) expected; add it, or leave "
                "the scene out: tiles without labels among others would pass for labelled ones"
            )
        told = " and ".join(file.relative for file in found)
        raise SceneError(f"--labels has several rasters of this scene: one of {names} expected, {told} found")


def check_labels(file: LabelFile, scene: Scene) -> LabelRaster:
    """Read a label raster once, strip by strip. SceneError where it does not fit `scene`, as it was scanned."""
    plan = scene.preparation
    if plan is not None and (plan.resampled or plan.azimuth * plan.range != 1 or len(plan.segments) > 1):
        raise SceneError(
            "--labels cannot follow this scene: it is resampled, multilooked or joined of bursts, and labels lie on a "
            "raster's own pixels; leave --spacing out, say --multilook 1x1, or make the raster before it is labelled"
        )
    digest = hashlib.sha256(f"{scene.height}x{scene.width}".encode())
    with ExitStack() as opened:
        dataset = open_labels(opened, file)
        _refuse_other_grid(dataset, scene, file)
        classes = _class_names(dataset, file)
        for first, last in strips(dataset.height, max(_STRIP_PIXELS // dataset.width, 1)):
            digest.update(read_labels(dataset, first, last, file).data)
    return LabelRaster(file, digest.hexdigest(), classes)


def open_labels(opened: ExitStack, file: LabelFile) -> Any:
    """The dataset of a label raster, open as long as `opened` is. SceneError where it is none, or cannot be read."""
    try:
        dataset, _ = opened.enter_context(open_raster(file.path))
    except SceneError as error:
        told = str(error).replace(file.path, file.relative)
        raise SceneError(f"--labels raster cannot be read: {file.relative}: {told}") from error
    if dataset.count != 1 or not np.issubdtype(stored_dtype(dataset, 1), np.integer):
        raise SceneError(
            f"--labels raster holds no classes: {file.relative}: one band of integers expected, {dataset.count} of "
            f"{dataset.dtypes[0]} found"
        )
    return dataset


def read_labels(dataset: Any, first: int, last: int, file: LabelFile) -> np.ndarray:
    """Rows first..last (exclusive) of an open label raster: uint8, `IGNORED` where it says no data, or -1.

    Raises SceneError for values that are no labels.
    """
    try:
        values, masked = read_rows(dataset, 1, first, last), masked_rows(dataset, 1, first, last)
    except RasterioError as error:
        told = " ".join(str(error.__cause__ or error).replace(file.path, file.relative).split())
        raise SceneError(f"--labels raster cannot be read: {file.relative}: {told}; fetch it again") from error
    ignored = values == IGNORED
    if dataset.nodata is not None:
        ignored |= values == dataset.nodata
    if values.dtype.kind == "i":
        ignored |= values == -1
    if masked is not None:
        ignored |= masked
    wrong = ~ignored & ((values < 0) | (values > HIGHEST))
    if wrong.any():
        row, col = (int(index) for index in np.argwhere(wrong)[0])
        raise SceneError(
            f"--labels raster holds other values: {file.relative}: 0 to {HIGHEST}, {IGNORED} or -1 for ignored, "
            f"expected, {int(values[row, col])} found at row {first + row}, column {col}; give it other class numbers"
        )
    return np.where(ignored, IGNORED, values).astype(np.uint8)


def _words(stem: str) -> str:
    return "-".join(word for word in re.split(r"[^A-Za-z0-9]+", stem) if word)


def _refuse_other_grid(dataset: Any, scene: Scene, file: LabelFile) -> None:
    """A scene that is placed by points, as by the metadata beside it, takes labels that have no place of their own, or
    the same points."""
    found, _ = read_geometry(dataset, Facts("labels"))
    same = (found.height, found.width) == (scene.height, scene.width)
    if scene.transform is not None or found.transform is not None:
        same = same and _same_affine(found, scene)
    elif found.crs is not None:
        same = same and found.gcps == scene.gcps and _same_crs(found.crs, scene.crs)
    if not same:
        raise SceneError(
            f"--labels raster is on another grid: {file.relative}: {_grid(scene)} expected, {_grid(found)} found; "
            "warp it to the pixels of the scene, by nearest neighbour"
        )


def _same_affine(found: Geometry, scene: Scene) -> bool:
    if found.transform is None or scene.transform is None or not _same_crs(found.crs, scene.crs):
        return False
    ours, theirs = (np.array(affine).reshape(2, 3) for affine in (scene.transform, found.transform))
    corners = np.array([[0, scene.width, 0, scene.width], [0, 0, scene.height, scene.height], [1, 1, 1, 1]])
    moved = np.linalg.solve(ours[:, :2], (theirs - ours) @ corners)
    return bool(np.abs(moved).max() <= _SAME_PIXEL)


def _same_crs(a: str | None, b: str | None) -> bool:
    return a == b or (a is not None and b is not None and CRS.from_user_input(a) == CRS.from_user_input(b))


def _grid(place: Geometry | Scene) -> str:
    size, crs = f"{place.height} x {place.width} pixels", place.crs or ""
    if place.transform is not None:
        name = crs if crs.startswith("EPSG") else CRS.from_user_input(crs).to_dict().get("proj", "a CRS of its own")
        return f"{size} in {name} at ({', '.join(f'{value:.10g}' for value in place.transform)})"
    return f"{size} placed by {len(place.gcps)} points" if place.gcps else f"{size} without georeferencing"


def _class_names(dataset: Any, file: LabelFile) -> tuple[tuple[int, str], ...]:
    """What the CLASSES tag says: JSON, an object of value and name."""
    if (text := dataset.tags().get("CLASSES")) is None:
        return ()
    try:
        classes = {int(value): name for value, name in json.loads(text).items()}
    except (ValueError, AttributeError):
        classes = {-1: ""}
    if not all(0 <= value <= HIGHEST and isinstance(name, str) and name for value, name in classes.items()):
        raise SceneError(
            f"--labels raster has a wrong CLASSES tag: {file.relative}: a JSON object of value (0 to {HIGHEST}) and "
            f"name expected, {text[:60]!r} found"
        )
    if dataset.nodata in classes:
        raise SceneError(
            f"--labels raster contradicts itself: {file.relative}: its no-data value {dataset.nodata:g} is class "
            f"{classes[int(dataset.nodata)]!r} of its CLASSES tag; take one of the two back"
        )
    return tuple(sorted(classes.items()))
