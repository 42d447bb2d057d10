"""Planted duplicates through whole builds: recall and precision of each kind, on simulated and on real scenes.

    python -m benchmarks.duplicates [--quick] [--data ../shared/data]

Scenes are written with copies of which the windows are known, a corpus is built of them, and what it dropped is held
against these windows. A tile has a duplicate where 60 per cent of its ground lie in tiles that stay of other files of
the same acquisition (placed scenes: in all of them together; others: in a single one). `cut`: all tiles of the kind;
`planted`: those that have a duplicate and are not the preferred of the two; `found`: of these, dropped; `false`:
dropped without having one. Tiles within 0.03 of the bar are neither planted nor false. `as`: the kinds in
duplicates.parquet. The sets:

    dated      placed scenes that say when they were taken: the geographic test, and the exact one
    undated    the same without the time: only their speckle tells a copy from a repeat pass
    unplaced   display images without metadata (8 bits): speckle and look

Rows of `original`, `repeat pass` and `neighbours` hold no duplicate; all that is dropped there is false.
Real chips leave no room for tiles above 112 pixels: of a copy at twice the pixel, 56 x 56 are in common with a tile,
which is too little to tell speckle by.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import rasterio
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from pipelines.build import build
from sarsense.codes import encode
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.simulate import Truth, draw_truth, speckled

OVERLAP, BAND = 0.6, 0.03
SAMPLES = 48
"""points along a side of a tile in which its ground is compared"""
SEED = 11
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PACKINGS = {
    "renamed": {},
    "re-tiled": {"tiled": True, "blockxsize": 256, "blockysize": 256},
    "deflate": {"compress": "deflate", "predictor": 3},
    "zstd": {"compress": "zstd"},
    "byte order": {"ENDIANNESS": "BIG"},
}
"""ways to write the same values: options of GDAL's GeoTIFF driver"""
Set = Literal["dated", "undated", "unplaced"]


@dataclass(frozen=True)
class Planted:
    """A file whose ground is known."""

    acquisition: str
    kind: str
    image: np.ndarray
    """H x W: float32 power, or uint8 of a display image"""
    to_ground: Affine = Affine.identity()  # noqa: RUF009 (it cannot be changed)
    """from its pixel edges to those of the image that the acquisition was cut from"""
    misplaced: tuple[float, float] = (0.0, 0.0)
    """(x, y), pixels of that image, by which the file says its place wrong"""
    crs: str = "EPSG:32633"
    place: Affine = Affine(10, 0, 5e5, 0, -10, 5e6)  # noqa: RUF009
    """of the image that the acquisition was cut from"""
    moment: str = ""
    looks: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """of the GeoTIFF driver"""


@dataclass
class Row:
    """What became of the tiles of one kind."""

    cut: int = 0
    tiles: int = 0
    found: int = 0
    false: int = 0
    told: Counter[str] = field(default_factory=Counter)

    def add(self, other: Row) -> None:
        self.cut += other.cut
        self.tiles += other.tiles
        self.found += other.found
        self.false += other.false
        self.told += other.told

    @property
    def recall(self) -> float:
        return self.found / self.tiles if self.tiles else float("nan")

    @property
    def precision(self) -> float:
        return self.found / (self.found + self.false) if self.found + self.false else float("nan")


# ------------------------------------------------------------------------------------------------- copies of scenes


def copies_of(original: Planted, whole: np.ndarray, slices: bool = True) -> Iterator[Planted]:
    """Files of the acquisition of `original`, of which `whole` (H x W power) is all that was seen."""
    power = original.image
    height, width = power.shape
    y, x = height // 20, width // 20

    def window(kind: str, image: np.ndarray, left: int, top: int) -> Planted:
        cut = np.ascontiguousarray(image)
        to_ground = chained(original.to_ground, Affine.translation(left, top))
        return replace(original, kind=kind, image=cut, to_ground=to_ground)

    for kind, options in PACKINGS.items():
        yield replace(original, kind=kind, options=options)
    yield window("crop by 10 %", power[y : height - y, x : width - x], x, y)
    for by in (3, 17, 40):
        yield window(f"shift by {by} px", power[by:, by:], by, by)
    if slices:
        top = height // 2
        yield window("next slice", whole[top:, :width], 0, top)
    for gain in (3, -3):
        yield replace(original, kind=f"gain {gain:+d} dB", image=power * np.float32(10 ** (gain / 10)))
    for kind, spacing, degrees in (("RTC, turned by 4 deg", 1.0, 4.0), ("RTC at 2 x the pixel", 2.0, 0.0)):
        yield terrain_corrected(original, kind, spacing, degrees)


def chained(*maps: Affine) -> Affine:
    """The last of them first. (As a product of matrices: versions of affine want either * or @.)"""
    product = np.eye(3)
    for one in maps:
        product = product @ _matrix(one)
    return Affine(*product[:2].ravel().tolist())


def _matrix(one: Affine) -> np.ndarray:
    return np.array(tuple(one)[:9]).reshape(3, 3)


def terrain_corrected(original: Planted, kind: str, spacing: float, degrees: float) -> Planted:
    """Resampled (bilinear on power) to a grid of `spacing` pixels, turned, in a smooth factor of +-3 dB, its place told
    2 pixels wrong."""
    height, width = original.image.shape
    size = int(0.9 * width / spacing), int(0.9 * height / spacing)
    turned = chained(Affine.rotation(degrees), Affine.scale(spacing), Affine.translation(-size[0] / 2, -size[1] / 2))
    to_original = chained(Affine.translation(width / 2, height / 2), turned)
    centres = chained(Affine.translation(-0.5, -0.5), to_original, Affine.translation(0.5, 0.5))
    sigma = np.sqrt((spacing**2 - 1) / 12)
    power = cv2.GaussianBlur(original.image, (0, 0), sigma) if sigma else original.image
    valid, image = (
        cv2.warpAffine(source, np.array(centres[:6]).reshape(2, 3), size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        for source in ((original.image > 0).astype(np.float32), power)
    )
    v, u = np.mgrid[: size[1], : size[0]] / max(size)
    factor = 10 ** (0.3 * np.sin(5 * u + 3 * v))
    return replace(
        original,
        kind=kind,
        image=np.where(valid > 0.999, np.maximum(image, 1e-9) * factor, 0).astype(np.float32),
        to_ground=chained(original.to_ground, to_original),
        misplaced=(2.0, -1.5),
        looks=None if original.looks is None else original.looks * spacing**2,
    )


def simulated_scenes(sites: int, size: int) -> list[Planted]:
    """Each place seen twice, 12 days apart, by scenes of size x size pixels; copies of the first, one of the second."""
    files = []
    for site in range(sites):
        number = site + site // 3  # the fourth of four has wedges without data
        truth = draw_truth(SEED, number, size + size // 4)
        place = Affine(10, 0, 4e5 + 3e4 * site, 0, -10, 5e6)
        for date in (0, 1):
            whole = speckled(truth, SEED + 1000 * date, number, "VV", 4.4)
            files += passes(f"g{site}", date, whole, whole[:size, :size], "EPSG:32633", place, 4.4, True)
    return files


def passes(
    name: str, date: int, whole: np.ndarray, image: np.ndarray, crs: str, place: Affine, looks: float, slices: bool
) -> list[Planted]:
    """A scene and its copies; of the second date, itself and one copy."""
    moment = f"2024-{1 + int(name[1:]) % 12:02d}-{10 + 12 * date}T05:17:30Z"
    kind = "repeat pass" if date else "original"
    image = np.ascontiguousarray(image)
    first = Planted(f"{name}p{date}", kind, image, crs=crs, place=place, moment=moment, looks=looks)
    if date:
        return [first, terrain_corrected(first, "RTC, turned by 4 deg", 1.0, 4.0)]
    return [first, *copies_of(first, whole, slices)]


def real_scenes(data: Path) -> list[Planted]:
    """Sentinel-1: three RTC chips, one chip of a flood, and a desert on two dates."""
    paths = [path for name in ("terramind-rtc/S1RTC", "sen1floods11/sample/S1") for path in (data / name).glob("*.tif")]
    files = []
    for number, path in enumerate(sorted(paths)):
        with rasterio.open(path) as dataset:
            power = np.nan_to_num(10 ** (dataset.read(1).astype(np.float32) / 10))
            files += passes(f"g{number}", 0, power, power, dataset.crs.to_string(), dataset.transform, 4.4, False)
    for date, name in enumerate(("prm", "sec")):
        with rasterio.open(data / f"s1-repeat-pass/amp_{name}_vv.tif") as dataset:
            power = dataset.read(1).astype(np.float32) ** 2
            top = int(0.7 * len(power))
            files += passes("g8", date, power, power[:top], dataset.crs.to_string(), dataset.transform, 4.4, True)
    return files


# -------------------------------------------------------------------------------------------------- display images


def display(power: np.ndarray, gain_db: float = 0.0) -> np.ndarray:
    """uint8 of decibels: no data is 0."""
    return encode((10 * np.log10(np.maximum(power, 1e-9)) + gain_db).astype(np.float32), -30.0, 5.0)


def jpeg(tile: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    return np.maximum(np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)), 1)


def stretched(tile: np.ndarray) -> np.ndarray:
    """From its 1st to its 99th percentile, as display software does it."""
    low, high = np.percentile(tile, (1, 99))
    return np.clip(np.rint((tile.astype(np.float32) - low) / (high - low) * 254), 0, 254).astype(np.uint8) + 1


def shift(rng: np.random.Generator, least: int, most: int) -> np.ndarray:
    """(rows, columns), either way."""
    return rng.integers(least, most + 1, 2) * rng.choice([-1, 1], 2)


def cut(image: np.ndarray, corner: np.ndarray, side: int) -> np.ndarray:
    return np.ascontiguousarray(image[corner[0] : corner[0] + side, corner[1] : corner[1] + side])


def simulated_images(sites: int, side: int) -> list[Planted]:
    """Images of 2 x 2 neighbouring tiles of `side` pixels and copies of them, shifted by 3 to 40 of 512 pixels."""
    rng, files = np.random.default_rng(SEED), []
    least, most = max(1, 3 * side // 512), 40 * side // 512
    corner = np.array([most, most])

    def moved(name: str, kind: str, power: np.ndarray, gain: float = 0.0) -> Planted:
        at = corner + shift(rng, least, most)
        return Planted(name, kind, display(cut(power, at, 2 * side), gain), Affine.translation(*at[::-1]))

    for site in range(sites):
        number = site + site // 3
        truth = draw_truth(SEED + 1, number, 2 * side + 2 * most)
        name, looks = f"h{site}", (1.0, 4.0)[site % 2]
        image = seen(truth, rng, looks)
        tile = display(cut(image, corner, 2 * side))
        there = Affine.translation(*corner)
        files += [
            Planted(name, "neighbours", tile, there),
            Planted(name, "JPEG", jpeg(tile), there),
            Planted(name, "re-stretched", stretched(tile), there),
            moved(name, "shifted by 3 to 40 of 512 px", image),
            moved(name, "shifted, gain +-3 dB", image, rng.uniform(-3, 3)),
            *(
                moved(name, f"shifted, gain, {other:g} looks anew", seen(truth, rng, other), rng.uniform(-3, 3))
                for other in (1.0, 4.0, 16.0)
            ),
        ]
    for number in range(2):  # one grid of parcels, drawn anew: what neighbouring farmland has most in common
        parcels = np.kron(rng.normal(0, 2, (33, 33)), np.ones((48, 48)))[: 2 * side, : 2 * side]
        power = 10 ** ((parcels - 11) / 10) * rng.gamma(4.0, 1 / 4.0, parcels.shape)
        files.append(Planted(f"parcels{number}", "neighbours", display(power)))
    return files


def seen(truth: Truth, rng: np.random.Generator, looks: float) -> np.ndarray:
    clutter = truth.clutter["VV"]
    return clutter * rng.standard_gamma(looks, clutter.shape, dtype=np.float32) / np.float32(looks) + truth.points["VV"]


def real_images(data: Path, every: int) -> list[Planted]:
    """OMBRIA's Sentinel-1 before floods (one tile of 216 pixels each), and Gaofen-3 in four neighbouring tiles each."""
    images = {}
    for path in sorted((data / "ombria-flood").glob("*/BEFORE/*.png"))[::every]:
        images[path.stem.replace("S1_", "")] = np.maximum(np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)), 1)
    for scene in (2, 3, 5):
        with rasterio.open(data / f"gaofen3-quadpol/testA/{scene}_HH.tiff") as dataset:
            db = 20 * np.log10(np.maximum(dataset.read(1).astype(np.float32), 1))
        images[f"gaofen{scene}"] = encode(db, *np.percentile(db, (0.1, 99.9)))
    rng, files = np.random.default_rng(SEED), []
    for name, image in images.items():
        side = 216 * (len(image) // 216)
        corner = np.array([(len(image) - side) // 2] * 2)
        reach = min(17, int(corner[0]))
        there, tile = Affine.translation(*corner), cut(image, corner, side)
        files += [
            Planted(name, "neighbours", tile, there),
            Planted(name, "JPEG", jpeg(tile), there),
            Planted(name, "re-stretched", stretched(tile), there),
        ]
        for kind in ("shifted by 3 to 40 of 512 px, JPEG", "shifted, gain, more speckle"):
            by = shift(rng, 1, reach)
            moved = cut(image, corner + by, side)
            looks = rng.choice([4.0, 16.0])
            noise = 10 * np.log10(rng.gamma(looks, 1 / looks, moved.shape)) + rng.uniform(-3, 3)
            noisy = np.clip(np.rint(moved + noise * 254 / 35), 1, 255).astype(np.uint8)
            changed = jpeg(moved) if kind.endswith("JPEG") else noisy
            files.append(Planted(name, kind, changed, Affine.translation(*(corner + by)[::-1])))
    return files


def gaofen_crops(data: Path) -> list[Planted]:
    """Four crops of one acquisition, in four polarisations, digital numbers; where they lie was measured once."""
    files = []
    for scene, (x, y) in {2: (0, 0), 3: (409, 0), 4: (579, 0), 5: (-409, 170)}.items():
        for polarisation in ("HH", "HV", "VH", "VV"):
            with rasterio.open(data / f"gaofen3-quadpol/testA/{scene}_{polarisation}.tiff") as dataset:
                image = dataset.read(1)
            files.append(Planted(polarisation, "crops by 170 and 409 px", image, Affine.translation(x, y)))
    return files


# --------------------------------------------------------------------------------------------- a build and its truth


def write(planted: list[Planted], kind: Set, folder: Path) -> dict[str, Planted]:
    """Write the files and a list of them; name in the corpus -> file. Names sort as the files do."""
    folder.mkdir()
    named, rows = {}, []
    numbers: Counter[str] = Counter()
    for one in planted:
        name = f"{one.acquisition}-{numbers[one.acquisition]:02d}.tif"
        numbers[one.acquisition] += 1
        profile = {"driver": "GTiff", "height": len(one.image), "width": one.image.shape[1], "count": 1, "nodata": 0}
        if kind != "unplaced":
            transform = chained(one.place, Affine.translation(*one.misplaced), one.to_ground)
            profile |= {"crs": one.crs, "transform": transform}
        with rasterio.open(folder / name, "w", dtype=one.image.dtype, **profile, **one.options) as dataset:
            dataset.write(one.image, 1)
        unit = {"f": "power", "u": ""}[one.image.dtype.kind]
        polarisation = one.acquisition if one.acquisition in ("HH", "HV", "VH") else "VV"
        moment = one.moment if kind == "dated" else ""
        rows.append([name, moment, "SIM", polarisation, unit, one.looks or ""])
        named[name] = one
    with (folder / "scenes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "datetime", "sensor", "polarisation", "unit", "looks"], *rows])
    return named


def measured(planted: list[Planted], kind: Set, side: int) -> tuple[dict[str, Row], float]:
    """Rows by kind of copy, and the seconds that the build took."""
    with tempfile.TemporaryDirectory() as scratch:
        named = write(planted, kind, Path(scratch) / "in")
        config = BuildConfig(tile_size=side, val_share=0.0, overlap=OVERLAP, allow_unplaced=True)
        start = time.perf_counter()
        summary = build([str(Path(scratch) / "in" / "scenes.csv")], Path(scratch) / "out", config, workers=0)
        took = time.perf_counter() - start
        assert set(summary.reasons) <= {"smaller than a tile", "no window makes a tile"}, summary.reasons
        corpus = open_corpus(Path(scratch) / "out")
        stay = corpus.tiles(columns=["source", "row", "col"]).to_pylist()
        source_of = {row["scene"]: row["path"] for row in corpus.scenes.to_pylist() if row["status"] != "duplicate"}
        dropped = [(row["kind"], row["dropped"]) for row in corpus.duplicates.to_pylist()]
    tiles: list[tuple[str, int, int, str]] = [(row["source"], row["row"], row["col"], "") for row in stay]
    for told, key in dropped:
        if told == "exact scene":
            tiles += [(key, row, col, told) for row, col in whole_tiles(named[key], side)]
        else:
            scene, _, row, col = key.rsplit("-", 3)
            tiles.append((source_of[scene], int(row), int(col), told))
    return judged(tiles, named, kind, side), took


def whole_tiles(file: Planted, side: int) -> Iterator[tuple[int, int]]:
    """Row and column of the tiles of a scene that was never cut, those of which nine tenths are valid."""
    for row in range(0, len(file.image) - side + 1, side):
        for col in range(0, file.image.shape[1] - side + 1, side):
            if (file.image[row : row + side, col : col + side] > 0).mean() >= 0.9:
                yield row, col


def judged(tiles: list[tuple[str, int, int, str]], named: dict[str, Planted], kind: Set, side: int) -> dict[str, Row]:
    """Hold what was dropped (file, row, column, kind; empty: stays) against the ground of what stays."""
    staying: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for source, row, col, told in tiles:
        if not told:
            staying[named[source].acquisition][source].append((row, col))
    step = (np.arange(SAMPLES) + 0.5) / SAMPLES * side
    grid = np.array([np.tile(step, SAMPLES), np.repeat(step, SAMPLES)])
    rows: dict[str, Row] = defaultdict(Row)
    for source, row, col, told in tiles:
        file = named[source]
        out = rows[file.kind]
        out.cut += 1
        out.told[told] += bool(told)
        covers = [np.zeros(grid.shape[1], bool)]
        for other, corners in staying[file.acquisition].items():
            if other == source or (not told and other > source):  # of two that stay, the later one should have gone
                continue
            to_other = _matrix(chained(~named[other].to_ground, file.to_ground))[:2]
            x, y = to_other[:, :2] @ (grid + np.array([[col], [row]])) + to_other[:, 2:]
            for top, left in corners:
                covers.append((x >= left) & (x < left + side) & (y >= top) & (y < top + side))
        share = np.any(covers, axis=0).mean() if kind != "unplaced" else max(cover.mean() for cover in covers)
        if abs(share - OVERLAP) < BAND:
            continue
        out.tiles += share > OVERLAP
        out.found += bool(told) and share > OVERLAP
        out.false += bool(told) and share < OVERLAP
    return rows


# -------------------------------------------------------------------------------------------------------------- table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duplicates")
    parser.add_argument("--quick", action="store_true", help="two small scenes of each set")
    parser.add_argument("--data", type=Path, default=DATA, help="real scenes; left out where it is not there")
    args = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    sites, size, side = (2, 512, 128) if args.quick else (4, 1024, 256)
    scenes, images = simulated_scenes(sites, size), simulated_images(sites, 256 if args.quick else 512)
    sets: list[tuple[str, Set, int, list[Planted]]] = [
        ("simulated", "dated", side, scenes),
        ("simulated", "undated", side, without_packings(scenes)),
        ("simulated", "unplaced", 256 if args.quick else 512, images),
    ]
    if args.data.is_dir():
        real = real_scenes(args.data)
        found_there: list[tuple[str, Set, int, list[Planted]]] = [
            ("real", "dated", 112, real),
            ("real", "undated", 112, without_packings(real)),
            ("real", "unplaced", 216, real_images(args.data, 48 if args.quick else 6)),
            ("real, Gaofen-3", "unplaced", 128, gaofen_crops(args.data)),
        ]
        sets += found_there
    print(
        f"# {' '.join(['python -m benchmarks.duplicates', *sys.argv[1:]])}: {platform.machine()}, {os.cpu_count()} "
        f"cores, Python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}; tiles whose "
        f"ground lies to {OVERLAP:.0%} in others\n"
    )
    print("| set | data, tile | kind | cut | planted | found | recall | false | precision | as |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    times = []
    for data, kind, tile, planted in sets:
        found, took = measured(planted, kind, tile)
        total = Row()
        for name in dict.fromkeys(one.kind for one in planted):
            total.add(found[name])
            print_row(f"| {kind} | {data}, {tile} | {name}", found[name])
        print_row(f"| {kind} | {data}, {tile} | **all**", total)
        times.append(f"{data} {kind}: {len(planted)} files in {took:.0f} s")
    print("\nBuilds: " + "; ".join(times))


def without_packings(scenes: list[Planted]) -> list[Planted]:
    return [one for one in scenes if one.kind not in PACKINGS]


def print_row(head: str, row: Row) -> None:
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(row.told.items()) if count)
    ratios = [f"{value:.3f}" if value == value else "" for value in (row.recall, row.precision)]
    numbers = f"{row.cut} | {row.tiles} | {row.found} | {ratios[0]} | {row.false} | {ratios[1]}"
    print(f"{head} | {numbers} | {told} |", flush=True)


if __name__ == "__main__":
    main()
