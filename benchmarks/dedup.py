"""Duplicates: hashes of a tile, all near pairs of many, candidates of a corpus, and their memory.

python -m benchmarks.dedup
"""

from __future__ import annotations

import math
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable

import cv2
import numba
import numpy as np

from benchmarks.timing import best_seconds
from sarsense.dedup.fingerprint import ANCHOR_BITS, ANCHORS, fingerprint
from sarsense.dedup.hamming import near_pairs
from sarsense.dedup.perceptual import RADIUS, Fingerprints, correlations, perceptual_pairs

TILES = 460_532
SIZES = (TILES, 1_500_000, 5_000_000)
PLANTED = 1000
MIB = 1024


def hashes_with_pairs(n: int, bits: int = 64) -> np.ndarray:
    """Random hashes, uint64 (n,), of which the last PLANTED are copies of the first ones but for two bits."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**bits, n, dtype=np.uint64)
    hashes[-PLANTED:] = hashes[:PLANTED] ^ np.uint64(0b101 << 20)
    return hashes


@numba.njit
def brute_force(hashes: np.ndarray, radius: int) -> int:
    """Number of near pairs; all compared with all, 2048 of them from the first cache."""
    found = 0
    for start in range(0, len(hashes), 2048):
        block = hashes[start : start + 2048]
        for row in range(len(block)):
            found += _near(hashes[start + row], block[row + 1 :], radius)
        for other in range(start + len(block), len(hashes)):
            found += _near(hashes[other], block, radius)
    return found


@numba.njit
def _near(value: np.uint64, others: np.ndarray, radius: int) -> int:
    near = 0
    for k in range(len(others)):
        x = value ^ others[k]
        x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        near += ((x * np.uint64(0x0101010101010101)) >> np.uint64(56)) <= np.uint64(radius)
    return near


def measured(task: Callable[[int], int], n: int) -> tuple[int, float, float, float]:
    """What the task returns, seconds, processor seconds and the most memory ever held, MiB, in a process of its own
    that has compiled what it needs; Python and libraries are part of the memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (task, n))


def _measured(task: Callable[[int], int], n: int) -> tuple[int, float, float, float]:
    task(4 * PLANTED)
    start, cpu = time.perf_counter(), time.process_time()
    result = task(n)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return result, seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def near_pairs_of_hashes(n: int) -> int:
    return sum(len(i) for i, _ in near_pairs(hashes_with_pairs(n), RADIUS))


def brute_force_of_hashes(n: int) -> int:
    return brute_force(hashes_with_pairs(n), RADIUS)


def candidates_of_tiles(n: int) -> int:
    """Pairs that a corpus of n tiles without duplicates makes: all that chance finds is compared and none is kept."""
    rng = np.random.default_rng(0)
    prints = Fingerprints(
        perceptual_hash=rng.integers(0, 2**64, n, dtype=np.uint64),
        structure=np.ones(n, np.float32),
        flat=np.zeros(n, bool),
        anchors=rng.integers(0, 2**ANCHOR_BITS, (n, ANCHORS), dtype=np.uint64),
        positions=rng.integers(96, 416, (n, ANCHORS, 2), dtype=np.int16),
        thumbnails=_Drawn(n),  # type: ignore[arg-type]
        block=8,
    )
    return len(perceptual_pairs(prints))


class _Drawn:
    """n thumbnails, each drawn when it is read: in place of a memory map of 4 KiB a tile."""

    def __init__(self, n: int) -> None:
        self.shape = (n, 64, 64)

    def __getitem__(self, tile: int) -> np.ndarray:
        return np.random.default_rng(tile).integers(1, 256, self.shape[1:], dtype=np.uint8)


def search_table() -> None:
    print(f"\nAll pairs of random 64-bit hashes within {RADIUS} bits, {PLANTED} of them planted; best of 3")
    print("\n| hashes | way | pairs | s | processor s | peak MiB |\n| ---: | --- | ---: | ---: | ---: | ---: |")
    took = {}
    for n in (4 * PLANTED, *SIZES):
        runs = [measured(near_pairs_of_hashes, n) for _ in range(3)]
        pairs, seconds, cpu, memory = min(runs, key=lambda run: run[2])
        took[n] = cpu
        print(f"| {n:,} | near_pairs | {pairs:,} | {seconds:.2f} | {cpu:.2f} | {memory:,.0f} |", flush=True)
    pairs, seconds, cpu, memory = measured(brute_force_of_hashes, TILES)
    print(f"| {TILES:,} | all with all, compiled | {pairs:,} | {seconds:.1f} | {cpu:.1f} | {memory:,.0f} |")
    exponent = math.log(took[SIZES[-1]] / took[TILES]) / math.log(SIZES[-1] / TILES)
    print(f"\nProcessor time grows as n^{exponent:.2f} from {TILES:,} to {SIZES[-1]:,}", flush=True)


def corpus_table() -> None:
    print(f"\nCandidates among tiles with {ANCHORS} random anchors of {ANCHOR_BITS} bits, and comparison of all that")
    print("chance finds. Memory includes the fingerprints, not the thumbnails\n")
    print("| tiles | duplicates | s | processor s | peak MiB |\n| ---: | ---: | ---: | ---: | ---: |")
    for n in (TILES, SIZES[-1]):
        pairs, seconds, cpu, memory = measured(candidates_of_tiles, n)
        print(f"| {n:,} | {pairs} | {seconds:.0f} | {cpu:.0f} | {memory:,.0f} |", flush=True)


def tile_table() -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    ways = {}
    for side, dtype in ((128, np.uint8), (256, np.uint8), (512, np.uint8), (512, np.uint16), (1024, np.uint8)):
        field = cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), 14.0)
        db = 2 * field / field.std() + 10 * np.log10(rng.gamma(4.0, 0.25, field.shape))
        levels = np.iinfo(dtype).max
        tile = np.clip((db + 20) / 40 * levels, 1, levels).astype(dtype)
        ways[f"fingerprint {side} x {side}, {tile.dtype}"] = lambda tile=tile, step=40 / levels: fingerprint(tile, step)
    one = fingerprint(tile, 40 / levels).thumbnail
    ways["comparison of two thumbnails"] = lambda: correlations(one, one, (1, 0))
    print("\nOne core, best of 200\n\n| what | ms |\n| --- | ---: |")
    for name, seconds in best_seconds(ways, repetitions=200).items():
        print(f"| {name} | {1e3 * seconds:.3f} |")


if __name__ == "__main__":
    print(
        f"# benchmarks.dedup: Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}, "
        f"{multiprocessing.cpu_count()} cores"
    )
    tile_table()
    search_table()
    corpus_table()
