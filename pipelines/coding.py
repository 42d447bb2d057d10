"""How backscatter became the codes that an encoder was trained on, kept as plain values; and new scenes coded so.

A saved model carries its `Coding`, so that it can be used on scenes that were in no corpus, without the corpus. What is
not known here: labels, and what becomes of the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from dic3l.errors import ConfigError, Dic3lError
from pipelines.entries import Entry
from pipelines.ranges import KnownRanges, set_ranges
from pipelines.stages import channels_of
from sarsense.catalogue import Stated
from sarsense.config import BuildConfig, Content, Convention, Normalization
from sarsense.corpus import Corpus
from sarsense.errors import SceneError
from sarsense.geometry import read_geometry
from sarsense.measure import measure_scene
from sarsense.normalize import GroupRange
from sarsense.products import Facts
from sarsense.radiometry import POLARISATIONS
from sarsense.raster import masked_rows, open_raster, read_rows, strips
from sarsense.scene import Band, Scene, describe_scene
from sarsense.sources import SourceFile
from sarsense.strip import Channel, StripReader
from sarsense.units import refuse_without_signal, words

SMALLEST = 32
"""side in pixels of a scene, at least: a network sees nothing in a smaller one"""
_ROWS = 128
"""that are read at once, of all columns"""
_SAMPLED_ROWS = 512
"""of an 8-bit GeoTIFF, which may be a map of classes by mistake"""
_CALIBRATED = frozenset(["sigma0", "beta0", "gamma0", "backscatter"])


@dataclass(frozen=True)
class Coding:
    """How values become codes: 0 no data, 1..255 equal steps of dB. Plain values: it is saved with a model."""

    normalization: Normalization | Literal["none"]
    """whose dB range: as of `BuildConfig`; none: 8-bit pixels are codes as they are"""
    content: Content = "speckled"
    """speckled, or despeckled before coding"""
    groups: dict[str, Any] = field(default_factory=dict)
    """of `group`: the `GroupRange` of each group, as a dictionary, by 'sensor/mode/polarisation/quantity'"""
    calibrate: Convention = "sigma0"
    """the convention of products that have several"""
    source: str = ""
    """where the ranges come from, in words"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Coding:
        """Dic3lError where `value` is not what `to_json` gave."""
        try:
            coding = cls(**value)
            for bounds in coding.groups.values():
                GroupRange(**bounds)
        except (TypeError, AttributeError) as error:
            raise Dic3lError(
                f"not a coding as Coding.to_json writes it ({error}); the model comes from another version of this "
                "software, or was edited: fit it again"
            ) from error
        known = (*get_args(Normalization), "none")
        if coding.normalization not in known or coding.content not in ("speckled", "despeckled"):
            raise Dic3lError(
                f"normalization one of {', '.join(known)} and content speckled or despeckled expected in a coding, "
                f"'{coding.normalization}' and '{coding.content}' found; fit the model again"
            )
        return coding

    def told(self) -> str:
        """In words, for the notes of a table."""
        if self.normalization == "none":
            return "8-bit values as they are"
        source = f" {self.source}" if self.source else ""
        return f"dB to codes 1..255 by {self.normalization} ranges{source}, {self.content}"


AS_THEY_ARE = Coding("none")


def bounds_of(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The dB of codes 1 and 255 of each group."""
    return {name: (bounds["lo_db"], bounds["hi_db"]) for name, bounds in groups.items()}


def of_pictures(groups: Mapping[str, Any]) -> bool:
    """Whether groups are those of a corpus of 8-bit pictures, which were coded, not taken as they are."""
    return any(name.endswith("/display") for name in groups)


@dataclass
class _Held:
    """The rows that were read last, of whichever scene of a data set: of one alone, or thousands would fill memory."""

    path: Path | None = None
    first: int = 0
    codes: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0), np.uint8))


@dataclass
class CodedScene:
    """A raster that is read as codes, window by window: memory is that of the rows of a window."""

    path: Path
    shape: tuple[int, int, int]
    """bands, rows, columns"""
    polarisations: tuple[str, ...]
    """VV, VH, HH, HV; b1, b2, ... where the file does not say"""
    crs: str | None
    """of the affine or of the GCPs: 'EPSG:n' or WKT; None: unplaced"""
    transform: tuple[float, ...] | None
    """affine a, b, c, d, e, f (pixel edge -> CRS), for `rasterio.Affine(*transform)`; None: by GCPs, or unplaced"""
    gcps: tuple[tuple[float, ...], ...]
    """row, col, x, y of each ground control point"""
    read_codes: Callable[[int, int, np.ndarray], None] = field(repr=False)
    """rows first..last (exclusive), all columns, into uint8 (bands, rows, columns)"""
    held: _Held = field(default_factory=_Held, repr=False)

    def read(self, window: Window) -> np.ndarray:
        """Codes of a window inside the scene, uint8 (bands, rows, columns). Raises SceneError.

        Rows are read whole, as a build reads them, since a product may tell its rim by the ends of a row; those read
        last are kept, so that going through the windows of a scene row by row reads each row once.
        """
        top, left = int(window.row_off), int(window.col_off)
        bottom, right = top + int(window.height), left + int(window.width)
        if not (0 <= top < bottom <= self.shape[1] and 0 <= left < right <= self.shape[2]):
            raise SceneError(
                f"{self.path}: rows {top} to {bottom}, columns {left} to {right} asked for; "
                f"it has {self.shape[1]} x {self.shape[2]}"
            )
        return self._rows(top, bottom)[:, :, left:right].copy()

    def _rows(self, top: int, bottom: int) -> np.ndarray:
        held = self.held if self.held.path == self.path else _Held()
        first, last = held.first, held.first + held.codes.shape[1]
        if first <= top and bottom <= last:
            return held.codes[:, top - first : bottom - first]
        codes = np.empty((self.shape[0], bottom - top, self.shape[2]), np.uint8)
        start, stop = max(top, first), min(bottom, last)
        if start < stop:
            codes[:, start - top : stop - top] = held.codes[:, start - first : stop - first]
        else:
            start = stop = bottom
        for low, high in ((top, start), (stop, bottom)):
            if low < high:
                self.read_codes(low, high, codes[:, low - top : high - top])
        self.held.path, self.held.first, self.held.codes = self.path, top, codes
        return codes


def coding_of(corpus: Corpus) -> Coding:
    """How a corpus was coded. Of `both` contents, the one that a network meets in the field."""
    made = corpus.manifest["config"]
    return Coding(
        normalization=made["normalization"],
        content=made["content"] if made["content"] != "both" else "speckled",
        groups={name: dict(bounds) for name, bounds in corpus.manifest["groups"].items()}
        if made["normalization"] == "group"
        else {},
        calibrate=made["calibrate"],
        source=f"of corpus {corpus.name} ({corpus.digest[:12]})",
    )


def coded_scene(
    path: Path, coding: Coding, stated: Stated | None = None, polarisations: Sequence[str] = ()
) -> CodedScene:
    """A scene as a corpus of this coding would have coded it; what has to be measured of it (its looks, and its range
    where each scene has its own) is measured here, in one read.

    stated, polarisations: what is known of it, and of its bands in order, where the file does not say. Raises
    SceneError where it is no scene, ConfigError where the coding has no range for it.
    """
    return coded_scenes([path], coding, stated, polarisations)[1][0]


def coded_scenes(
    paths: Sequence[Path], coding: Coding | None, stated: Stated | None = None, polarisations: Sequence[str] = ()
) -> tuple[Coding, list[CodedScene]]:
    """The same of several; coding None: by ranges of groups as a build of these scenes measures them, which are
    returned. Raises as `coded_scene`."""
    if coding is not None and coding.normalization == "none":
        held = _Held()
        return coding, [_picture(path, polarisations, held) for path in paths]
    config = BuildConfig(tile_size=SMALLEST, allow_unplaced=True)
    if coding is not None:
        config = BuildConfig(
            tile_size=SMALLEST,
            allow_unplaced=True,
            normalization=coding.normalization,  # type: ignore[arg-type]  # 'none' was dealt with
            content=coding.content,
            calibrate=coding.calibrate,
        )
    scenes = [_described(path, config, stated, polarisations) for path in paths]
    known = None if coding is None or config.normalization != "group" else _known_ranges(scenes, coding)
    entries = []
    for scene in scenes:
        entry = Entry(SourceFile(scene.path, scene.relative, True), status="used", scene=scene)
        try:
            entry.measurement = measure_scene(scene)
        except SceneError as error:
            raise SceneError(f"{scene.path}: {error}") from error
        entries.append(entry)
    ranges = set_ranges(entries, config, known)
    for entry in entries:
        if entry.status == "refused":
            raise ConfigError(f"{entry.file.path}: {entry.reason}")
    if coding is None:
        coding = Coding("group", "speckled", ranges.groups, config.calibrate, "measured on these scenes")
    held = _Held()
    return coding, [_coded(entry, config, held) for entry in entries]


def _described(path: Path, config: BuildConfig, stated: Stated | None, polarisations: Sequence[str]) -> Scene:
    try:
        scene = describe_scene(str(path), path.name, config, stated)
    except SceneError as error:
        there = " (here: write it into the file as the unit of its bands)" if "--unit" in str(error) else ""
        raise SceneError(f"{path}: {error}{there}") from error
    if scene.preparation is not None:
        raise SceneError(
            f"{path}: complex pixels or bursts, which a build multilooks and joins, on another grid; labels and maps "
            "lie on the grid of the file: make a detected raster of it"
        )
    if len(polarisations) == len(scene.bands):
        bands = [
            replace(band, polarisation=name) if band.polarisation == f"b{band.index}" else band
            for band, name in zip(scene.bands, polarisations, strict=True)
        ]
        scene = replace(scene, bands=tuple(bands))
    return scene


def _coded(entry: Entry, config: BuildConfig, held: _Held) -> CodedScene:
    scene = entry.scene
    assert scene is not None
    channels = [channel for stack in channels_of(entry, config) for channel in stack]
    return CodedScene(
        path=Path(scene.path),
        shape=(len(channels), scene.height, scene.width),
        polarisations=tuple(channel.band.polarisation for channel in channels),
        crs=scene.crs,
        transform=scene.transform,
        gcps=scene.gcps,
        read_codes=_rows_of(channels),
        held=held,
    )


def _rows_of(channels: Sequence[Channel]) -> Callable[[int, int, np.ndarray], None]:
    path = channels[0].scene.path

    def read(first: int, last: int, out: np.ndarray) -> None:
        try:
            with open_raster(path) as (dataset, _):
                reader = StripReader([(dataset, channel) for channel in channels], bits=8)
                for top, bottom in strips(last - first, _ROWS):
                    for codes, strip in zip(out, reader.read(first + top, first + bottom), strict=True):
                        codes[top:bottom] = strip.codes
        except SceneError as error:
            raise SceneError(f"{path}: {error}") from error

    return read


# ------------------------------------------------------------------------------------------------------ ranges


def _known_ranges(scenes: Sequence[Scene], coding: Coding) -> KnownRanges:
    """The ranges of a coding, under the names of the groups of these scenes too where they are of its kin."""
    groups = {name: GroupRange(**bounds) for name, bounds in coding.groups.items()}
    aliases = {}
    for scene in scenes:
        for band in scene.bands:
            if (name := scene.group(band)) not in groups:
                aliases[name] = groups[_kin(scene, band, groups)]
    return KnownRanges(coding.source, "", "", {**groups, **aliases}, closed=True)


def _kin(scene: Scene, band: Band, groups: Mapping[str, GroupRange]) -> str:
    """The one group that a band may belong to where its file says less of it: another sensor, mode or convention is
    none, one that is not told is. ConfigError where there is none, or more than one."""
    mine = scene.group(band)
    kin = [name for name in groups if _may_be(mine, name)]
    if len(kin) == 1:
        return kin[0]
    had = ", ".join(sorted(kin or groups))
    if not kin:
        raise ConfigError(
            f"{scene.path}: no dB range for {mine}: there are those of {had}; give scenes of these kinds, or "
            "weights that were trained on such scenes"
        )
    raise ConfigError(
        f"{scene.path}: {mine} may be any of {had}, since the file does not say which; "
        "write its sensor into the tag SENSOR and its mode into MODE"
    )


def _may_be(mine: str, other: str) -> bool:
    sensor, mode, polarisation, quantity = mine.split("/")
    same = other.split("/")
    if len(same) != 4 or polarisation != same[2]:
        return False
    told = all(a == b or "unknown" in (a, b) for a, b in ((sensor, same[0]), (mode, same[1])))
    calibrated = {quantity, same[3]} <= _CALIBRATED and "backscatter" in (quantity, same[3])
    return told and (quantity == same[3] or calibrated)


# ----------------------------------------------------------------------------------------------- 8-bit pictures


def _picture(path: Path, polarisations: Sequence[str], held: _Held) -> CodedScene:
    try:
        with open_raster(str(path)) as (dataset, _):
            bands = [i for i in range(1, dataset.count + 1) if dataset.colorinterp[i - 1] != ColorInterp.alpha]
            if any(dataset.dtypes[band - 1] != "uint8" for band in bands):
                raise SceneError(
                    f"8-bit pixels, which are codes as they are, expected, {dataset.dtypes[0]} found; a model that "
                    "was fitted to pictures takes no backscatter"
                )
            if dataset.driver in ("PNG", "JPEG") and len(bands) > 1:
                raise SceneError("8-bit grey values expected, a colour picture found")
            geometry, _ = read_geometry(dataset, Facts("picture"))
            named = [_polarisation(dataset.descriptions[band - 1] or "", f"b{band}") for band in bands]
            if len(bands) == 1 and named == ["b1"]:
                named = [_polarisation(path.stem, "b1")]
            if len(polarisations) == len(named):
                given = zip(named, polarisations, strict=True)
                named = [name if name in POLARISATIONS else other for name, other in given]
            nodata = dataset.nodatavals[0]
            if dataset.driver == "GTiff":
                top = max(0, dataset.height - _SAMPLED_ROWS) // 2  # the rims of scenes hold no data
                some = read_rows(dataset, bands[0], top, min(dataset.height, top + _SAMPLED_ROWS)).ravel()
                refuse_without_signal(some, some.dtype, zero_is_nodata=False)
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from error

    def read(first: int, last: int, out: np.ndarray) -> None:
        try:
            with open_raster(str(path)) as (opened, _):
                for codes, band in zip(out, bands, strict=True):
                    codes[:] = read_rows(opened, band, first, last)
                    if nodata is not None:
                        codes[codes == nodata] = 0
                    masked = masked_rows(opened, band, first, last)
                    if masked is not None:
                        codes[masked] = 0
        except SceneError as error:
            raise SceneError(f"{path}: {error}") from error

    shape = (len(bands), geometry.height, geometry.width)
    return CodedScene(path, shape, tuple(named), geometry.crs, geometry.transform, geometry.gcps, read, held)


def _polarisation(text: str, otherwise: str) -> str:
    found = [word.upper() for word in words(text) if word.upper() in POLARISATIONS]
    return found[0] if len(set(found)) == 1 else otherwise
