"""A scene: one SAR raster, with what is known of it before its pixels are read in full.

`describe_scene` opens a raster, decides polarisation and unit of each band, and refuses, with the reason, what is
no backscatter, what has no place on Earth, and what is smaller than a tile.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp

from sarsense.calibration import Calibration
from sarsense.catalogue import Stated
from sarsense.config import BuildConfig, StatedUnit
from sarsense.errors import SceneError
from sarsense.geometry import Geometry, Preparation, plan_preparation, read_geometry
from sarsense.products import Facts, recognise
from sarsense.radiometry import POLARISATIONS, Quantity, Unit
from sarsense.raster import open_raster, pixel_window, read_rows, strips
from sarsense.units import choose_unit, refuse_other_quantities, refuse_without_signal, words

_SAMPLE_GRID = 4
_SAMPLE_SIDE = 256
_ENOUGH_SAMPLES = 10_000
_MAX_WIDTH, _MAX_PIXELS = 250_000, 40_000_000_000
"""larger than any product; a damaged header may claim more, and a sparse file may hold as much of nothing"""


@dataclass(frozen=True)
class Band:
    """One polarisation of a scene."""

    index: int
    """1-based, as in GDAL"""
    polarisation: str
    """VV, VH, HV, HH; or b1, b2, ... where the product does not say"""
    unit: Unit
    quantity: Quantity
    scale_factor: float
    nodata: float | None
    evidence: str
    confidence: float
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Scene:
    """One raster that can be cut into tiles. Plain values only: it travels between processes as JSON."""

    path: str
    """what GDAL opens"""
    relative: str
    """path inside its source, with forward slashes: the identity that does not depend on where the source lies"""
    product: str
    sensor: str
    mode: str
    datetime: str | None
    looks: float | None
    width: int
    height: int
    dtype: str
    crs: str | None
    """of the affine or of the GCPs: 'EPSG:n' or WKT; None for an unplaced scene"""
    transform: tuple[float, ...] | None
    """affine a, b, c, d, e, f (pixel edge -> CRS); None where GCPs place the scene, or nothing does"""
    gcps: tuple[tuple[float, ...], ...]
    """row, col, x, y of each ground control point"""
    bands: tuple[Band, ...]
    notes: tuple[str, ...]
    """bands left out, and what GDAL warned of"""
    orbit_direction: str | None = None
    """ascending or descending, where a list of scenes says so"""
    despeckled: bool = False
    """the product says that its speckle was filtered already"""
    preparation: Preparation | None = None
    """what has to be done before it is cut; size and geometry are those after it"""

    @property
    def placed(self) -> bool:
        return self.crs is not None

    @property
    def name(self) -> str:
        """The file's stem as a word of letters, digits, - and _ (tile keys have no dot and no slash)."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(self.relative).stem)[:48]

    @property
    def place_name(self) -> str:
        """Stem without its polarisation, inside its folder: the same for the polarisations of one scene."""
        return place_name(self.relative)

    def group(self, band: Band) -> str:
        """The normalisation group of a band: scenes of one group share one dB range."""
        return "/".join((self.sensor, self.mode, band.polarisation, band.quantity))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scene:
        return cls(
            **{
                **value,
                "transform": None if value["transform"] is None else tuple(value["transform"]),
                "gcps": tuple(tuple(point) for point in value["gcps"]),
                "bands": tuple(_band_from_json(band) for band in value["bands"]),
                "notes": tuple(value["notes"]),
                "preparation": _preparation_from_json(value["preparation"]),
            }
        )


def place_name(relative: str) -> str:
    """Of a file, from its path inside its source: see `Scene.place_name`."""
    path = PurePosixPath(relative)
    kept = [w for w in re.split(r"[^A-Za-z0-9]+", path.stem) if w.upper() not in POLARISATIONS]
    return str(path.parent / "-".join(kept))


def _preparation_from_json(value: dict[str, Any] | None) -> Preparation | None:
    if value is None:
        return None
    native = value["native"]
    transform = None if native["transform"] is None else tuple(native["transform"])
    geometry = Geometry(**{**native, "transform": transform, "gcps": tuple(map(tuple, native["gcps"]))})
    return Preparation(**{**value, "native": geometry, "segments": tuple(map(tuple, value["segments"]))})


def _band_from_json(value: dict[str, Any]) -> Band:
    calibration = value["calibration"]
    if calibration is not None:
        calibration = Calibration(**{**calibration, "files": tuple(calibration["files"])})
    return Band(**{**value, "calibration": calibration})


def describe_scene(path: str, relative: str, options: BuildConfig, stated: Stated | None = None) -> Scene:
    """Open a raster and say what it is; SceneError, with the reason and what to do, where it cannot be used.

    `stated`: what a list of scenes says of it.
    """
    stated = stated or Stated()
    suffix = PurePosixPath(relative).suffix.lower()
    if suffix == ".npy":
        raise SceneError("a NumPy array, not a raster: convert it to GeoTIFF with its georeferencing")
    folders = [part for part in PurePosixPath(relative).parts[:-1] if len(words(part)) == 1]
    stem = PurePosixPath(relative).stem
    refuse_other_quantities([stem, *folders])
    with open_raster(path) as (dataset, warnings):
        if dataset.width > _MAX_WIDTH or dataset.width * dataset.height > _MAX_PIXELS:
            raise SceneError(
                f"claims {dataset.height} x {dataset.width} pixels, at most {_MAX_WIDTH:,} columns and {_MAX_PIXELS:,} "
                "pixels are taken: a damaged header, or a mosaic to be cut up first"
            )
        tags = dataset.tags()
        facts = recognise(path, tags, None if options.calibrate == "none" else options.calibrate)
        facts = _with_stated(facts, stated)
        unit = options.unit or (stated.unit if stated.explicit else None)
        if facts.quadrature and dataset.count != 2:
            raise SceneError(f"{facts.product}: I and Q in two bands expected, {dataset.count} found")
        _refuse_pictures(dataset)
        listed = _listed_polarisations(stem, dataset)
        geometry, note = read_geometry(dataset, facts)
        bands: list[Band] = []
        left_out: list[str] = []
        for index in range(1, dataset.count + 1 if not facts.quadrature else 2):
            try:
                bands.append(_describe_band(dataset, index, stem, facts, tags, unit, listed))
            except SceneError as error:
                if dataset.count == 1:
                    raise
                left_out.append(f"band {index}: {error}")
        if not bands:
            raise SceneError("; ".join(left_out))
        wanted = [b for b in bands if not options.polarisations or b.polarisation in options.polarisations]
        if not wanted:
            found = ", ".join(band.polarisation for band in bands)
            raise SceneError(f"polarisation {found} is not among {', '.join(options.polarisations)}")
        if geometry.crs is None and not options.allow_unplaced:
            raise SceneError(
                "no georeferencing: neither CRS with affine, nor ground control points, nor RPC; "
                "--allow-unplaced takes it without a footprint"
            )
        single_look = facts.quadrature or any(band.unit == "complex" for band in wanted)
        grid, preparation = plan_preparation(
            geometry, facts, single_look, options.multilook, options.spacing, dataset.height
        )
        if grid.width > _MAX_WIDTH or grid.width * grid.height > _MAX_PIXELS:
            raise SceneError(
                f"would be {grid.height} x {grid.width} pixels at --spacing {options.spacing:g}, at most "
                f"{_MAX_WIDTH:,} columns and {_MAX_PIXELS:,} pixels are taken; give a larger --spacing"
            )
        if min(grid.width, grid.height) < options.tile_size:
            raise SceneError(
                f"smaller than a tile: {grid.height} x {grid.width} pixels, a tile has "
                f"{options.tile_size} x {options.tile_size}; --tile-size takes smaller ones"
            )
        return Scene(
            path=path,
            relative=relative,
            product=facts.product,
            sensor=facts.sensor,
            mode=facts.mode,
            datetime=facts.datetime,
            looks=facts.looks,
            width=grid.width,
            height=grid.height,
            dtype=dataset.dtypes[0],
            crs=grid.crs,
            transform=grid.transform,
            gcps=grid.gcps,
            bands=tuple(wanted),
            notes=(
                *_order_note(listed, facts),
                *_preparation_notes(preparation, options.spacing),
                *filter(None, [note]),
                *left_out,
                *dict.fromkeys(warnings),
            ),
            preparation=preparation,
            orbit_direction=stated.orbit_direction,
            despeckled=facts.despeckled,
        )


def _with_stated(facts: Facts, stated: Stated) -> Facts:
    """The product's facts with those of a list: the user's own words beat the product, a catalogue fills it in."""
    words = {"sensor": stated.sensor, "mode": stated.mode, "datetime": stated.datetime, "looks": stated.looks}
    words["polarisation"] = stated.polarisation
    if not stated.explicit:
        words["unit"] = stated.unit
        if facts.unit is None and words["unit"]:
            words["evidence"] = f"STAC raster:bands unit {stated.unit}"
    known = {name: getattr(facts, name) for name in words}
    taken = {
        name: value
        for name, value in words.items()
        if value is not None and (stated.explicit or known[name] in (None, "unknown", ""))
    }
    return replace(facts, **taken)


def _describe_band(
    dataset: Any,
    index: int,
    stem: str,
    facts: Facts,
    tags: dict[str, str],
    explicit: StatedUnit | None,
    listed: tuple[str, ...],
) -> Band:
    if dataset.colorinterp[index - 1] == ColorInterp.alpha:
        raise SceneError("the alpha band: says where the others hold data")
    if facts.quadrature and explicit not in (None, "dn"):
        raise SceneError(f"I and Q in two bands, --unit {explicit} says they are real; leave --unit out")
    description = dataset.descriptions[index - 1] or ""
    refuse_other_quantities([description])
    nodata = dataset.nodatavals[index - 1]
    sample = _sample(dataset, index, nodata)
    dtype = sample.dtype
    zero_is_nodata = dtype != np.uint8
    refuse_without_signal(sample, dtype, zero_is_nodata)
    if np.issubdtype(dtype, np.inexact):
        sample = sample[sample != 0]  # an untagged fill value far more often than a measurement
    choice = choose_unit(sample, dtype, facts, dataset.units[index - 1] or "", [stem, description], explicit)
    calibrated = (facts.calibration is None or choice.unit == facts.unit) and explicit != "dn"
    return Band(
        index=index,
        polarisation=_polarisation(description, facts, tags, stem) or (listed[index - 1] if listed else f"b{index}"),
        unit=choice.unit,
        quantity=choice.quantity if calibrated else "uncalibrated",
        scale_factor=facts.scale_factor,
        nodata=nodata,
        evidence=choice.evidence,
        confidence=round(choice.confidence, 3),
        calibration=facts.calibration if calibrated else None,
    )


def _polarisation(description: str, facts: Facts, tags: dict[str, str], stem: str) -> str | None:
    """From the band's own description, else the product, else a tag, else the file name."""
    for text in (description, facts.polarisation or "", tags.get("polarisation", ""), stem):
        found = [word.upper() for word in words(text) if word.upper() in POLARISATIONS]
        if len(set(found)) == 1:
            return found[0]
    return None


def _preparation_notes(plan: Preparation | None, spacing: float | None) -> list[str]:
    if plan is None:
        return []
    notes = []
    if len(plan.segments) > 1:
        notes.append(f"{len(plan.segments)} bursts joined, each overlap cut in its middle")
    if plan.quadrature is not None:
        notes.append("I and Q in two bands taken as one complex image")
    if (plan.azimuth, plan.range) != (1, 1):
        notes.append(f"multilooked {plan.azimuth} x {plan.range} (azimuth x range)")
    if plan.resampled:
        kind = "mean of the pixels covered" if plan.coarser else "bilinear"
        notes.append(f"power resampled to {spacing:g} m ({kind}): neighbouring pixels are correlated more than before")
    return notes


def _refuse_pictures(dataset: Any) -> None:
    """Raise SceneError for colour pictures and colour tables: their bands are no polarisations."""
    kinds = set(dataset.colorinterp)
    if ColorInterp.palette in kinds:
        raise SceneError("a colour table: a map of classes or a picture, not backscatter")
    named = any(word.upper() in POLARISATIONS for text in dataset.descriptions for word in words(text or ""))
    if not named and {ColorInterp.red, ColorInterp.green, ColorInterp.blue} <= kinds:
        raise SceneError(
            "a colour picture (bands red, green, blue), not backscatter; if its bands are polarisations, say so in "
            "their descriptions (gdal_edit.py or rasterio: dataset.descriptions)"
        )


def _listed_polarisations(stem: str, dataset: Any) -> tuple[str, ...]:
    """The polarisations that the file name lists, where it lists as many as there are bands and no band is named."""
    found = tuple(word.upper() for word in words(stem) if word.upper() in POLARISATIONS)
    unnamed = not any(dataset.descriptions)
    return found if unnamed and dataset.count > 1 and len(set(found)) == len(found) == dataset.count else ()


def _order_note(listed: tuple[str, ...], facts: Facts) -> tuple[str, ...]:
    if not listed or facts.polarisation:
        return ()
    return (f"no band is named: {', '.join(listed)} taken in the order of the file name",)


def _sample(dataset: Any, index: int, nodata: float | None) -> np.ndarray:
    """1-D values that are not no data, from a grid of windows; from all rows where the windows hold too few."""
    height, width = dataset.shape
    side = _SAMPLE_SIDE
    if height * width <= (side * _SAMPLE_GRID) ** 2:
        return _valid(dataset.read(index), nodata)
    tops = np.linspace(0, max(height - side, 0), _SAMPLE_GRID).astype(int)
    lefts = np.linspace(0, max(width - side, 0), _SAMPLE_GRID).astype(int)
    windows = [pixel_window(left, top, min(side, width), min(side, height)) for top in tops for left in lefts]
    sample = np.concatenate([_valid(dataset.read(index, window=window), nodata) for window in windows])
    if np.count_nonzero(sample) >= _ENOUGH_SAMPLES:
        return sample
    found, total = [], 0
    for first, last in strips(height, side):
        values = _valid(read_rows(dataset, index, first, last), nodata)
        found.append(values[values != 0])
        total += found[-1].size
        if total >= _ENOUGH_SAMPLES:
            break
    nonzero = np.concatenate(found)
    return nonzero if nonzero.size else sample


def _valid(values: np.ndarray, nodata: float | None) -> np.ndarray:
    flat = values.ravel()
    keep = np.isfinite(flat)
    if nodata is not None and np.isfinite(nodata):
        keep &= flat != nodata
    return flat[keep]
