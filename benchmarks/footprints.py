"""Geographic duplicates, places of repeats and leakage of 460,532 and of 5,000,000 footprints.

    python -m benchmarks.footprints

Synthetic corpora: sites all over the Earth, each seen on six dates by Sentinel-1-like passes of two overlapping slices
(1,584 tiles of 512 px at 10 m each, on a grid that no two passes share), every third pass also as a turned product of
20 m; one site in five is a spotlight stack with tiles of 256 m. Each size runs in a process of its own, compiled
beforehand, so that the peak of memory is that size's, footprints (320 bytes a tile) included. Seconds are of the
processor, for everything here runs in one thread, and other programs may keep the machine busy.
Brute force is each tile against all others; it is measured on 200 tiles, which also check the result, and extrapolated.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import pyproj
import shapely

from sarsense.dedup.geographic import COVERED, UNKNOWN, Dropped, cap_repeats, covered_by_same_acquisition, places
from sarsense.dedup.leakage import near
from sarsense.dedup.overlap import Ground

SIZES = (57_566, 460_532, 5_000_000)
DATES, EVALUATION, SAMPLE, MOST = 6, 10_000, 200, 3
RADIUS_KM = 6371.0


@dataclass
class Corpus:
    footprints: np.ndarray
    scene: np.ndarray
    acquisition: np.ndarray
    sites: list[tuple[float, float]]
    days: list[str]
    """of each scene"""


def to_lonlat(lon: float, lat: float, east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """float64 (..., 2) of km in Lambert's azimuthal equal-area projection of the sphere."""
    distance = np.maximum(np.hypot(east, north), 1e-12)
    c, lat0 = 2 * np.arcsin(distance / (2 * RADIUS_KM)), math.radians(lat)
    sin, cos = np.sin(c), np.cos(c)
    phi = np.arcsin(cos * math.sin(lat0) + north * sin * math.cos(lat0) / distance)
    turn = np.arctan2(east * sin, distance * math.cos(lat0) * cos - north * math.sin(lat0) * sin)
    return np.stack([lon + np.degrees(turn), np.degrees(phi)], -1)


def rings(lon: float, lat: float, x: float, y: float, cols: int, rows: int, side: float, turn: float) -> np.ndarray:
    """Footprints (cols x rows, 20, 2) of a grid of square tiles with its corner x, y km from a site."""
    step, still = np.arange(5) / 5, np.zeros(5)
    u = np.concatenate([step, still + 1, 1 - step, still])
    v = np.concatenate([still, step, still + 1, 1 - step])
    col, row = np.meshgrid(np.arange(cols), np.arange(rows))
    east, south = x + (col.reshape(-1, 1) + u) * side, y + (row.reshape(-1, 1) + v) * side
    cos, sin = math.cos(turn), math.sin(turn)
    return to_lonlat(lon, lat, cos * east + sin * south, sin * east - cos * south)


def synthetic(count: int, seed: int = 0) -> Corpus:
    rng = np.random.default_rng(seed)
    out = np.empty((count, 20, 2))
    scene, acquisition = np.empty(count, np.int64), np.empty(count, np.int64)
    filled = scenes = passes = 0
    corpus = Corpus(out, scene, acquisition, [], [])
    while filled < count:
        lon, lat = rng.uniform(-180, 180), math.degrees(math.asin(rng.uniform(-0.87, 0.97)))
        spotlight = rng.random() < 0.2
        corpus.sites.append((lon, lat))
        for number in range(DATES):
            side, cols, rows = (0.256, 20, 20) if spotlight else (5.12, 48, 33)
            x, y = rng.uniform(0, side, 2)
            cuts = [(x, y, cols, rows, side, 0.2)]
            if not spotlight:
                cuts.append((x + 0.7, y + side * (rows - 2.4), cols, rows, side, 0.2))
                if number % 3 == 0:
                    cuts.append((x + 1.0, y + 2.0, cols // 2, rows // 2, 2 * side, 0.0))
            for cut in cuts:
                tiles = rings(lon, lat, *cut)[: count - filled]
                part = slice(filled, filled + len(tiles))
                out[part], scene[part] = tiles, scenes
                acquisition[part] = UNKNOWN if spotlight else passes
                filled, scenes = part.stop, scenes + 1
                corpus.days.append(f"20{17 + number % 3}-{1 + int(rng.integers(12)):02d}-11")
            passes += 1
    return corpus


def evaluation(corpus: Corpus, seed: int = 1) -> np.ndarray:
    """Chips of 5 km (object (EVALUATION,)) within 300 km of the sites."""
    rng = np.random.default_rng(seed)
    sites = np.array(corpus.sites)[rng.integers(0, len(corpus.sites), EVALUATION)]
    corners = sites + rng.uniform(-2.5, 2.5, sites.shape)
    corners[:, 1] = np.clip(corners[:, 1], -85, 85)
    return shapely.box(*corners.T, *(corners + 0.05).T)


def brute_force(corpus: Corpus, ground: Ground, dropped: Dropped) -> tuple[float, int]:
    """Seconds of SAMPLE tiles against all others, with shapely; and how many of them the result has otherwise."""
    count = len(ground.area)
    stays, is_dropped = np.ones(count, bool), np.zeros(count, bool)
    stays[dropped.index], is_dropped[dropped.index] = False, True
    sample = np.random.default_rng(2).choice(count, SAMPLE, replace=False)
    otherwise, start = 0, time.process_time()
    for i in sample:
        meets = np.linalg.norm(ground.centres - ground.centres[i], axis=1) <= ground.reach + ground.reach[i]
        same = corpus.scene == corpus.scene[i]
        if corpus.acquisition[i] != UNKNOWN:
            same |= corpus.acquisition == corpus.acquisition[i]
        earlier = np.flatnonzero(meets & same & stays & (np.arange(count) < i))
        lon, lat = ground.footprints[i].mean(axis=0)
        plane = pyproj.Proj(proj="laea", lon_0=lon, lat_0=lat, ellps="WGS84")
        own, *others = (shapely.Polygon(np.stack(plane(*ground.footprints[j].T), -1)) for j in (i, *earlier))
        within = [
            own.intersection(p).area for p, j in zip(others, earlier, strict=True) if corpus.scene[j] == corpus.scene[i]
        ]
        union = shapely.union_all(
            [p for p, j in zip(others, earlier, strict=True) if corpus.scene[j] != corpus.scene[i]]
        )
        otherwise += (max([*within, own.intersection(union).area]) / own.area >= COVERED) != is_dropped[i]
    return time.process_time() - start, int(otherwise)


def measure(count: int) -> dict[str, float]:
    """Seconds and sizes of one corpus. Run in a process of its own."""
    start = time.process_time()
    corpus = synthetic(count)
    took: dict[str, float] = {"tiles": count, "scenes": len(corpus.days), "make": time.process_time() - start}
    nothing, rank, chips = np.zeros(count, np.int64), np.arange(count), evaluation(corpus)
    settled = nothing.astype(bool)

    def lap(name: str) -> None:
        nonlocal start
        took[name] = time.process_time() - start
        start = time.process_time()

    lap("evaluation")
    ground = Ground.of(corpus.footprints)
    lap("ground")
    dropped = covered_by_same_acquisition(ground, corpus.scene, corpus.acquisition, nothing, rank, settled)
    lap("covered")
    place = places(ground, corpus.scene, corpus.acquisition, nothing, rank, settled)
    lap("places")
    capped = cap_repeats(place, [corpus.days[k] for k in corpus.scene], rank, settled, MOST)
    lap("cap")
    leaks = near(ground, chips, 2.0)
    lap("near")
    took["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    took |= {"dropped": len(dropped.index), "numbers": int(place.max()) + 1}
    took |= {"capped": len(capped.index), "leaks": len(leaks.index)}
    if count == SIZES[1]:
        took["brute"], took["otherwise"] = brute_force(corpus, ground, dropped)
    return took


def main() -> None:
    if len(sys.argv) > 1:
        measure(2_000)  # compiles
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    versions = f"numpy {np.__version__}, numba {numba.__version__}, shapely {shapely.__version__}"
    print(f"# benchmarks.footprints: {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n")
    steps = {
        "ground": "areas and reach",
        "covered": "same acquisition",
        "places": "places",
        "cap": f"cap of {MOST}",
        "near": f"within 2 km of {EVALUATION:,} chips",
    }
    print(f"| tiles | scenes | {' | '.join(f'{name}, s' for name in steps.values())} | all, s | peak, GiB |")
    print("| ---: " * (len(steps) + 4) + "|")
    done = []
    for size in SIZES:
        command = [sys.executable, "-m", "benchmarks.footprints", str(size)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found["all"] = sum(found[step] for step in steps)
        done.append(found)
        seconds = " | ".join(f"{found[step]:.1f}" for step in (*steps, "all"))
        print(f"| {size:,} | {found['scenes']:,} | {seconds} | {found['peak']:.1f} |", flush=True)
    for a, b in pairwise(done):
        growth = math.log(b["all"] / a["all"]) / math.log(b["tiles"] / a["tiles"])
        print(f"\n{a['tiles']:,} to {b['tiles']:,}: time grows as n^{growth:.2f}", end="")
    print("\n")
    for found in done:
        print(
            f"{found['tiles']:,}: {found['dropped']:,} duplicates, {found['numbers']:,} places, "
            f"{found['capped']:,} repeats above the cap, {found['leaks']:,} tiles near a chip"
        )
    middle = done[1]
    each = middle["brute"] / SAMPLE
    print(
        f"\nBrute force, {SAMPLE} of {middle['tiles']:,} tiles against all: {middle['brute']:.1f} s, "
        f"{middle['otherwise']:.0f} decided otherwise; all tiles, extrapolated, not run: "
        f"{each * middle['tiles'] / 3600:.1f} h, for what takes {middle['ground'] + middle['covered']:.1f} s here"
    )


if __name__ == "__main__":
    main()
