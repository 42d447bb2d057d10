"""Tiles without a place that show the same: of one acquisition by their speckle, or alike once despeckled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.acquisitions import Pair, same_speckle
from pipelines.cluster import Runner
from pipelines.entries import Entry, identity_hash
from pipelines.pool import Pool
from pipelines.stages import Progress, run_stage
from pipelines.tasks import print_task
from sarsense.config import BuildConfig
from sarsense.cut import LEAST_SIDE
from sarsense.dedup.fingerprint import block_side
from sarsense.dedup.perceptual import Fingerprints, Pairs, perceptual_pairs, resolve
from sarsense.errors import SarsenseError
from sarsense.sources import SourceFile

_PRINTS = 256
"""tiles a task"""


def look_alikes(
    pool: Pool, among: np.ndarray, config: BuildConfig, work: Path, runner: Runner, progress: Progress
) -> Iterator[tuple[str, int, int, float]]:
    """Kind, tile that is dropped, tile that stays for it, and 1 - correlation, among the tiles `among` (int64 indices).

    Tiles are compared with those of their own polarisation. Of each set of alike ones the settled stay, else the
    smallest key.
    """
    if config.tile_size < LEAST_SIDE:
        return
    by_polarisation: dict[str, list[int]] = defaultdict(list)
    for index in sorted(among.tolist(), key=lambda i: (not pool.settled[i], pool.keys[i])):
        by_polarisation[pool.polarisations[index]].append(index)
    for polarisation in sorted(by_polarisation):
        members = by_polarisation[polarisation]
        if len(members) < 2 or all(pool.settled[index] for index in members):
            continue
        pairs = _enough(perceptual_pairs(_prints(pool, members, config, work, runner, progress)), config)
        one = np.zeros(len(pairs), bool)
        if "speckle" in config.dedup and config.content != "despeckled":
            asked: list[Pair] = [
                (members[int(i)], members[int(j)], [[1.0, 0.0, -float(right)], [0.0, 1.0, -float(down)]])
                for i, j, (down, right) in zip(pairs.first, pairs.second, pairs.shift, strict=True)
            ]
            found = same_speckle(pool, asked, config.tile_size, config.bits, work, runner, progress)
            one = np.array([same is True for same in found], bool)
        kept_for = resolve(pairs, [pool.keys[i] for i in members], pool.settled[members])
        told = {
            frozenset((int(i), int(j))): (bool(same), float(correlation))
            for i, j, same, correlation in zip(pairs.first, pairs.second, one, pairs.correlation, strict=True)
        }
        for position, kept in enumerate(kept_for.tolist()):
            if kept >= 0:
                same, correlation = told[frozenset((position, kept))]
                kind = "speckle" if same else "perceptual"
                yield kind, members[position], members[kept], round(1.0 - correlation, 4)


def _prints(
    pool: Pool, members: list[int], config: BuildConfig, work: Path, runner: Runner, progress: Progress
) -> Fingerprints:
    jobs, files = [], []
    for start in range(0, len(members), _PRINTS):
        part = members[start : start + _PRINTS]
        stem = identity_hash(["prints", [[pool.keys[i], pool.content_hashes[i]] for i in part]])
        file = work / "pairs" / f"{stem}.npz"
        tiles = [(pool.files[i], pool.starts[i], float(pool.step_db[i])) for i in part]
        if not file.exists():
            file.with_suffix(".json").unlink(missing_ok=True)  # a kill while a finished build tidied up
        entry = Entry(SourceFile("", f"fingerprints of {len(part)} tiles", False))
        jobs.append((entry, file.with_suffix(".json"), (tiles, config.tile_size, config.bits, file)))
        files.append(file)
    run_stage("compare", runner, progress, print_task, jobs)
    parts = []
    for file in files:
        if not file.exists():
            raise SarsenseError(f"{file}: could not be written; run the same command again")
        with np.load(file) as found:
            parts.append({name: found[name] for name in found.files})
    block = block_side((config.tile_size, config.tile_size))
    return Fingerprints(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, block=block)


def _enough(pairs: Pairs, config: BuildConfig) -> Pairs:
    """The pairs that share as much of a tile as --overlap says."""
    shared = np.prod(1.0 - np.abs(pairs.shift) / config.tile_size, axis=1)
    keep = shared >= config.overlap
    return Pairs(pairs.first[keep], pairs.second[keep], pairs.correlation[keep], pairs.shift[keep])
