"""Speckled scenes over known ground: what a corpus is tried on where no real scene may be shipped.

A scene is a land-cover map (`landscape.py`), a mean power for each pixel (class, parcel, slope, wind), gamma texture,
gamma speckle of L looks (Oliver and Quegan, 2004, ch. 4 and 5), and single scatterers with the impulse response of a
weighted aperture. Means are those of C-band at mid-latitudes, in dB of sigma nought. Not simulated: correlation of
the speckle between pixels, layover, geolocation error. Every scene is a function of (seed, its number, size) alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rasterio import Affine
from rasterio.io import MemoryFile
from scipy.special import gammaincinv, ndtr, ndtri

from sarsense.errors import SarsenseError, SettingError
from sarsense.files import atomic_write, write_json
from sarsense.landscape import Cover, Landscape, draw_landscape, hashed_uniform, random_field

POLARISATIONS = ("VV", "VH")


@dataclass(frozen=True)
class ClassSignature:
    """How a class looks to the radar."""

    mean_db: tuple[float, float]
    """mean sigma nought in VV and VH, dB"""
    parcel_std_db: float
    """spread of the parcels of the class about it, dB"""
    texture: float
    """shape of the gamma texture (K-distributed clutter); inf: none"""
    colour: tuple[int, int, int]
    """in the label raster, RGB"""


SIGNATURES: dict[Cover, ClassSignature] = {
    Cover.WATER: ClassSignature((-20.0, -27.0), 1.2, np.inf, (66, 113, 196)),
    Cover.BARE: ClassSignature((-14.5, -22.5), 1.5, np.inf, (190, 150, 105)),
    Cover.CROPS: ClassSignature((-10.8, -17.5), 1.9, 150.0, (240, 210, 110)),
    Cover.FOREST: ClassSignature((-8.2, -14.0), 0.5, 9.0, (52, 110, 62)),
    Cover.MEADOW: ClassSignature((-12.8, -19.8), 0.9, np.inf, (160, 200, 120)),
    Cover.BUILT: ClassSignature((-6.5, -13.5), 1.2, 2.5, (200, 60, 60)),
    Cover.ROAD: ClassSignature((-17.0, -24.0), 0.0, np.inf, (70, 70, 70)),
}

RIM_EVERY = 4
"""scenes 3, 7, 11, ... lie at a swath's edge: two wedges of theirs hold no data (0)"""

_RESOLUTION = 1.7
_WEIGHT = 0.75  # generalised Hamming weight of Sentinel-1 IW processing
_BLUR = 0.6
_STREET_DB, _BRIDGE_DB = -5.0, 9.0
_MIN_SIZE, _MAX_SIZE = 64, 8192
_FIRST_DAY = datetime(2024, 3, 3, 5, 17, 30)


@dataclass(frozen=True)
class Truth:
    """What a simulated scene is made of, before speckle. Arrays are H x W."""

    cover: np.ndarray
    """uint8, `Cover`, 0 at the rim"""
    clutter: dict[str, np.ndarray]
    """float32 mean power (sigma nought) by polarisation: what speckle multiplies; 0 at the rim"""
    points: dict[str, np.ndarray]
    """float32 power of single scatterers by polarisation: added, not speckled"""


def simulate(
    out: Path,
    scenes: int = 8,
    size: int = 1024,
    looks: float = 4.0,
    seed: int = 0,
    polarisations: Sequence[str] = POLARISATIONS,
    spacing: float = 10.0,
) -> dict[str, Any]:
    """Write OUT/scenes/sim-NNN.tif, OUT/labels/sim-NNN.tif and OUT/truth.json; return what truth.json holds.

    Scenes: float32 sigma nought in linear power, a band a polarisation, no data 0, UTM, `spacing` metres, at least
    30 km apart. Labels: uint8 `Cover` on the same grid, no data 0. Scenes 3, 7, 11, ... have a no-data rim. Same
    arguments, same bytes; fewer scenes or polarisations leave the others as they are. Raises SettingError.
    """
    wanted = tuple(polarisations)
    _check(scenes, size, looks, seed, wanted, spacing)
    _check_folder(out, scenes)
    rows = []
    for index in range(scenes):
        truth = draw_truth(seed, index, size)
        bands = np.stack([speckled(truth, seed, index, pol, looks) for pol in wanted])
        crs, transform = _place(seed, index, size, spacing)
        date = (_FIRST_DAY + timedelta(days=12 * index)).isoformat() + "Z"
        name = _name(index)
        tags = {
            "SENSOR": "SIM",
            "MODE": "simulated",
            "LOOKS": f"{looks:g}",
            "ACQUISITION_DATETIME": date,
            "AREA_OR_POINT": "Area",
            "SEED": f"{seed}",
        }
        _write_scene(out / "scenes" / name, bands, wanted, crs, transform, tags)
        _write_labels(out / "labels" / name, truth.cover, crs, transform)
        rows.append(
            {
                "name": name.removesuffix(".tif"),
                "scene": f"scenes/{name}",
                "labels": f"labels/{name}",
                "crs": crs,
                "transform": list(transform)[:6],
                "datetime": date,
                "enl": looks,
                "rim": _has_rim(index),
                "pixels": {c.name.lower(): int((truth.cover == c).sum()) for c in Cover},
                "mean_db": {pol: _class_means(band, truth.cover) for pol, band in zip(wanted, bands, strict=True)},
            }
        )
    truth_file = {
        "seed": seed,
        "size": size,
        "looks": looks,
        "spacing_m": spacing,
        "polarisations": list(wanted),
        "classes": {
            cover.name.lower(): {
                "code": int(cover),
                "mean_db": dict(zip(POLARISATIONS, signature.mean_db, strict=True)),
                "texture": signature.texture if np.isfinite(signature.texture) else None,
            }
            for cover, signature in SIGNATURES.items()
        },
        "scenes": rows,
    }
    write_json(out / "truth.json", truth_file)
    return truth_file


def draw_truth(seed: int, index: int, size: int) -> Truth:
    """The ground of scene `index` and its mean power, both polarisations."""
    land = draw_landscape(_rng(seed, index, 0), size)
    rng = _rng(seed, index, 1)
    valid = _swath(rng, size) if _has_rim(index) else np.ones((size, size), bool)
    level = _common_db(rng, land)
    heading = np.radians(rng.choice([-1, 1]) * rng.uniform(8, 14))
    clutter, points = {}, {}
    for column, pol in enumerate(POLARISATIONS):
        power = np.power(np.float32(10), _mean_db(rng, land, level, column) / np.float32(10))
        clutter[pol] = cv2.GaussianBlur(power, (0, 0), _BLUR, borderType=cv2.BORDER_REFLECT) * valid
    texture = _texture(rng, land)
    depolarised = rng.normal(6.5, 2.0, len(land.points))
    for column, pol in enumerate(POLARISATIONS):
        clutter[pol] *= texture
        strength = land.points[:, 2] - column * depolarised
        points[pol] = _impulse_responses(land.points[:, :2], 10 ** (strength / 10), heading, size) * valid
    return Truth(np.where(valid, land.cover, np.uint8(0)), clutter, points)


def speckled(truth: Truth, seed: int, index: int, polarisation: str, looks: float) -> np.ndarray:
    """One look-averaged image of a scene: clutter x Gamma(L, 1/L) + points, float32 power; 0 is no data."""
    rng = _rng(seed, index, 2 + POLARISATIONS.index(polarisation))
    clutter = truth.clutter[polarisation]
    speckle = rng.standard_gamma(looks, clutter.shape, dtype=np.float32) / np.float32(looks)
    # a speckle of exactly 0 would read as no data
    image = np.maximum(clutter * speckle, np.float32(1e-9)) + truth.points[polarisation]
    return np.where(truth.cover > 0, image, np.float32(0)).astype(np.float32)


# ------------------------------------------------------------------------------------------------ backscatter


def _rng(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, index, stream])


def _has_rim(index: int) -> bool:
    return index % RIM_EVERY == RIM_EVERY - 1


def _swath(rng: np.random.Generator, size: int) -> np.ndarray:
    """Where the sensor looked: the scene without a wedge at its west and one at its east side."""
    tilt, width = np.tan(np.radians(rng.uniform(7, 12))), rng.uniform(0.80, 0.95) * size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    across = x - size / 2 + (y - size / 2) * tilt
    return np.abs(across) < width / 2


def _common_db(rng: np.random.Generator, land: Landscape) -> np.ndarray:
    """What both polarisations share: season, slope towards the sensor, moisture, streets; dB, float32."""
    size = land.cover.shape[0]
    wet = rng.uniform(0.4, 1.1) * random_field(rng, size, 3.2, 160)
    slope = np.gradient(land.height, axis=1)
    slope /= max(float(slope.std()), 1e-6)
    relief = rng.choice([-1, 1]) * slope * rng.uniform(0.2, 1.8)
    ground = np.isin(land.cover, (Cover.BARE, Cover.CROPS, Cover.MEADOW))
    level = np.where(ground, wet, 0) + np.where(land.cover != Cover.WATER, np.clip(relief, -3, 4.5), 0)
    quarter = rng.uniform(0.9, 1.4) * random_field(rng, size, 2.0, 12)
    level += np.where(land.cover == Cover.BUILT, quarter, 0)
    return (level + _STREET_DB * land.street + _BRIDGE_DB * land.bridge).astype(np.float32)


def _mean_db(rng: np.random.Generator, land: Landscape, common: np.ndarray, column: int) -> np.ndarray:
    """Mean sigma nought of each pixel in a polarisation (0: VV, 1: VH), dB, float32."""
    size = land.cover.shape[0]
    means, spreads = np.zeros(len(Cover), np.float32), np.zeros(len(Cover), np.float32)
    for cover, signature in SIGNATURES.items():
        means[cover] = signature.mean_db[column] + rng.normal(0, 0.35)
        spreads[cover] = signature.parcel_std_db
    own, shared = _standard_normal(land.parcel, 12 + column), _standard_normal(land.parcel, 11)
    wind = (1.1 if column == 0 else 0.4) * random_field(rng, size, 3.4, 140)
    level = means[land.cover] + spreads[land.cover] * (0.9 * shared + 0.43 * own) + common
    return (level + np.where(land.cover == Cover.WATER, wind, 0)).astype(np.float32)


def _standard_normal(keys: np.ndarray, stream: int) -> np.ndarray:
    """A normal deviate within 2.5 sigma for each key, float32."""
    return ndtri(hashed_uniform(keys, stream).astype(np.float32) * 0.9876 + 0.0062).astype(np.float32)


def _texture(rng: np.random.Generator, land: Landscape) -> np.ndarray:
    """Unit-mean gamma texture, float32: correlated over the crowns of a wood, white elsewhere."""
    size = land.cover.shape[0]
    white = rng.standard_normal((size, size), dtype=np.float32)
    crowns = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), 1.0)
    crowns /= crowns.std()
    texture = np.ones((size, size), np.float32)
    z = np.linspace(-5, 5, 2001)
    for cover, signature in SIGNATURES.items():
        if not np.isfinite(signature.texture):
            continue
        # gamma deviates out of normal ones, through their distribution functions
        table = gammaincinv(signature.texture, ndtr(z)) / signature.texture
        normal = crowns if cover == Cover.FOREST else white
        where = land.cover == cover
        texture[where] = np.interp(normal[where], z, table)
    return texture


def _impulse_responses(where: np.ndarray, power: np.ndarray, heading: float, size: int) -> np.ndarray:
    """Power image, float32, of points at (row, col) with this peak power: a bright one shows its side lobes.

    The lobes lie along range and azimuth, which a map grid shows turned by `heading` (radians).
    """
    image = np.zeros(size * size)
    for reach, chosen in ((3, power < 4.0), (14, power >= 4.0)):
        step = np.arange(-reach, reach + 1)
        for part in np.array_split(np.flatnonzero(chosen), 1 + int(chosen.sum()) // 2000):
            nearest = np.rint(where[part]).astype(np.int64)
            row, col = np.broadcast_arrays(nearest[:, :1, None] + step[:, None], nearest[:, 1:, None] + step)
            dy, dx = row - where[part, :1, None], col - where[part, 1:, None]
            azimuth = (dy * np.cos(heading) - dx * np.sin(heading)) / _RESOLUTION
            range_ = (dy * np.sin(heading) + dx * np.cos(heading)) / _RESOLUTION
            weights = _lobe(azimuth) * _lobe(range_) * power[part, None, None]
            inside = (row >= 0) & (row < size) & (col >= 0) & (col < size)
            image += np.bincount((row * size + col)[inside], weights[inside], size * size)
    return image.reshape(size, size).astype(np.float32)


def _lobe(t: np.ndarray) -> np.ndarray:
    """Power response of a generalised-Hamming-weighted aperture; t in resolution cells, 1 at t = 0."""
    side = (1 - _WEIGHT) / 2
    return ((_WEIGHT * np.sinc(t) + side * (np.sinc(t - 1) + np.sinc(t + 1))) / _WEIGHT) ** 2


# ------------------------------------------------------------------------------------------- places and files


def _place(seed: int, index: int, size: int, spacing: float) -> tuple[str, Affine]:
    """CRS and transform: a cell of a lattice over UTM zones 32N and 33N, so that scenes are 30 km apart or more."""
    extent = size * spacing
    pitch = extent + 50_000.0
    across, down = _lattice(pitch)
    cells = across * down
    # a stride with no common divisor visits every cell once, neighbours in number far apart on the ground
    stride = next(s for s in range(int(0.38 * cells) + 1, cells + 2) if np.gcd(s, cells) == 1)
    cell = (index // 2 * stride + seed) % cells
    jitter = np.floor(_rng(seed, index, 9).uniform(0, 20_000, 2) / spacing) * spacing
    west = 340_000.0 + cell % across * pitch + jitter[0]
    north = 5_950_000.0 - cell // across * pitch - jitter[1]
    return f"EPSG:{32632 + index % 2}", Affine(spacing, 0.0, west, 0.0, -spacing, north)


def _lattice(pitch: float) -> tuple[int, int]:
    """Columns and rows of places in a zone: 320 km from west to east, 1300 km from north to south."""
    return max(int(320_000 / pitch), 1), max(int(1_300_000 / pitch), 1)


def _name(index: int) -> str:
    return f"sim-{index:03d}.tif"


def _class_means(band: np.ndarray, cover: np.ndarray) -> dict[str, float]:
    """Mean power of each class that is there, in dB to a thousandth."""
    present = [c for c in SIGNATURES if (cover == c).any()]
    return {c.name.lower(): round(float(10 * np.log10(band[cover == c].mean(dtype=np.float64))), 3) for c in present}


def _write_scene(
    path: Path, bands: np.ndarray, polarisations: Sequence[str], crs: str, transform: Affine, tags: dict[str, str]
) -> None:
    profile = _profile(bands.shape[1:], crs, transform, count=len(bands), dtype="float32", predictor=3)
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(bands)
            dataset.descriptions = tuple(polarisations)
            dataset.units = ("power",) * len(bands)
            dataset.update_tags(**tags)
        with atomic_write(path) as file:
            file.write(memory.read())


def _write_labels(path: Path, cover: np.ndarray, crs: str, transform: Affine) -> None:
    profile = _profile(cover.shape, crs, transform, count=1, dtype="uint8")
    with MemoryFile() as memory:
        with memory.open(**profile) as dataset:
            dataset.write(cover, 1)
            dataset.descriptions = ("land cover",)
            dataset.write_colormap(1, {0: (0, 0, 0, 0)} | {int(c): (*s.colour, 255) for c, s in SIGNATURES.items()})
            dataset.update_tags(AREA_OR_POINT="Area", CLASSES=json.dumps({int(c): c.name.lower() for c in SIGNATURES}))
        with atomic_write(path) as file:
            file.write(memory.read())


def _profile(shape: tuple[int, ...], crs: str, transform: Affine, **settings: Any) -> dict[str, Any]:
    height, width = shape
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "zlevel": 6}
    return {"driver": "GTiff", "height": height, "width": width, "crs": crs, "transform": transform, "nodata": 0} | (
        tiled | settings
    )


def _check(scenes: int, size: int, looks: float, seed: int, polarisations: tuple[str, ...], spacing: float) -> None:
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise SettingError(f"--size: from {_MIN_SIZE} to {_MAX_SIZE} pixels expected, {size} found")
    if not 0.5 <= looks <= 1000:
        raise SettingError(f"--looks: from 0.5 to 1000 expected, {looks:g} found")
    if seed < 0:
        raise SettingError(f"--seed: 0 or more expected, {seed} found")
    if not 1 <= spacing <= 100:
        raise SettingError(f"spacing: from 1 to 100 metres expected, {spacing:g} found")
    unknown = [pol for pol in polarisations if pol not in POLARISATIONS]
    if unknown or not polarisations or len(set(polarisations)) != len(polarisations):
        found = ",".join(polarisations) or "none"
        raise SettingError(f"--polarisations: VV, VH or VV,VH expected, {found} found")
    across, down = _lattice(size * spacing + 50_000.0)
    if not 1 <= scenes <= 2 * across * down:
        raise SettingError(
            f"--scenes: from 1 to {2 * across * down} of this size fit 30 km apart into two UTM zones, {scenes} found"
        )


def _check_folder(out: Path, scenes: int) -> None:
    """Scenes of an earlier simulation would be taken for ours; files that we overwrite are fine, others' are not."""
    if out.exists() and not out.is_dir():
        raise SarsenseError(f"{out}: a folder expected, a file found; choose another OUT")
    if out.is_dir() and any(out.iterdir()) and not (out / "truth.json").is_file() and not (out / "scenes").is_dir():
        raise SarsenseError(f"{out}: not empty and not of a simulation (no truth.json); choose a new folder for OUT")
    ours = {_name(index) for index in range(scenes)}
    for folder in (out / "scenes", out / "labels"):
        if others := sorted(path.name for path in folder.glob("*.tif") if path.name not in ours):
            raise SarsenseError(
                f"{folder}: holds {len(others)} rasters that this call does not write "
                f"({others[0]}, ...); choose a new OUT"
            )
