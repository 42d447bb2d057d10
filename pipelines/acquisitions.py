"""Which scenes are one acquisition: by what they say of sensor and time, and, where they do not, by their speckle.

Scenes of one sensor whose beginnings follow one another within ten minutes are one pass: no orbit sees a place again so
soon. Of a scene that does not say when it was taken (a date alone does not), only its speckle can tell; it is compared
with the scenes that it overlaps, of the same polarisation, tile by tile on up to three pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from pipelines.cluster import Runner
from pipelines.entries import Entry, identity_hash
from pipelines.pool import Pool
from pipelines.stages import Progress, run_stage
from pipelines.tasks import same_speckle_task
from sarsense.dedup.overlap import Ground, overlap_areas
from sarsense.errors import SarsenseError
from sarsense.files import read_json
from sarsense.sources import SourceFile

PASS_GAP = timedelta(minutes=10)
"""between the beginnings of scenes of one pass, at most"""
PAIRS = 3
"""of tiles that are compared to tell whether two scenes are one acquisition; most of those that can tell decide"""
_PAIRS_A_TASK = 32
Pair = tuple[int, int, list[list[float]] | None]
"""two tiles of a pool, and the affine (2 x 3) from pixel edges of the one to those of the other; None: not known"""
_MIN_SHARED = 0.3
"""of a tile's ground: less says little"""


@dataclass(frozen=True)
class Acquisitions:
    """What is known of the scenes of a pool."""

    of_scene: dict[str, str]
    """scene -> its acquisition: the smallest name of the scenes that are one"""
    passes: dict[str, str]
    """scene -> pass, of those that say when they were taken"""

    def stated(self, a: str, b: str) -> bool:
        """Whether two scenes are one acquisition by what they say, or the same scene; else their speckle told."""
        return a == b or (a in self.passes and self.passes[a] == self.passes.get(b))


def by_metadata(pool: Pool) -> dict[str, str]:
    """Scene -> pass, for the scenes that say when they were taken: the smallest name of the scenes of the pass."""
    times: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
    for scene, sensor, stated in set(zip(pool.scenes, pool.sensors, pool.datetimes, strict=True)):
        if (moment := _moment(stated)) is not None:
            times[sensor].append((moment, scene))
    found: dict[str, str] = {}
    for known in times.values():
        known.sort()
        run: list[str] = []
        for (moment, scene), (before, _) in zip(known, [known[0], *known], strict=False):
            if moment - before > PASS_GAP:
                found |= dict.fromkeys(run, min(run))
                run = []
            run.append(scene)
        found |= dict.fromkeys(run, min(run))
    return found


def _moment(stated: str | None) -> datetime | None:
    """A time of day, UTC; None for a date alone, also as midnight to the second, which is how many write it."""
    if stated is None or "T" not in stated:
        return None
    try:
        found = datetime.fromisoformat(stated)
    except ValueError:
        return None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return None if (found.hour, found.minute, found.second, found.microsecond) == (0, 0, 0, 0) else found


def acquisitions(
    pool: Pool,
    placed: np.ndarray,
    speckle: bool,
    side: int,
    bits: int,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> Acquisitions:
    """Of the scenes of the tiles `placed` (int64 indices). speckle: compare those that do not say when they were taken.

    Scenes of a corpus that grows keep the acquisition that they have.
    """
    known = by_metadata(pool)
    parent = {scene: known.get(scene, scene) for scene in dict.fromkeys(pool.scenes)}
    parent |= {head: head for head in known.values()}

    def root(scene: str) -> str:
        while parent[scene] != scene:
            scene = parent[scene]
        return scene

    heads = {(scene, head) for scene, head in zip(pool.scenes, pool.acquisitions, strict=True) if head is not None}
    named = {head for _, head in heads}

    def unite(a: str, b: str) -> None:
        # an acquisition of the corpus keeps its name, whoever joins it
        a, b = sorted((root(a), root(b)), key=lambda name: (name not in named, name))
        parent[b] = a

    parent |= {head: head for head in named}
    for scene, head in sorted(heads):
        unite(scene, head)
    if speckle:
        for a, b in _compared(pool, placed, known, side, bits, work, runner, progress):
            unite(a, b)
    return Acquisitions({scene: root(scene) for scene in parent}, known)


def _compared(
    pool: Pool,
    placed: np.ndarray,
    known: dict[str, str],
    side: int,
    bits: int,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> list[tuple[str, str]]:
    """Pairs of scenes that are one acquisition by their speckle."""
    scenes: list[tuple[str, str]] = []
    pairs: list[Pair] = []
    for names, tiles in _candidates(pool, placed, known):
        scenes += [names] * len(tiles)
        pairs += [(i, j, _pixel_map(pool.to_lonlat[i], pool.to_lonlat[j])) for i, j in tiles]
    verdicts: dict[tuple[str, str], list[bool | None]] = defaultdict(list)
    for names, same in zip(scenes, same_speckle(pool, pairs, side, bits, work, runner, progress), strict=True):
        verdicts[names].append(same)
    return [names for names, told in verdicts.items() if told.count(True) > told.count(False)]


def same_speckle(
    pool: Pool, pairs: list[Pair], side: int, bits: int, work: Path, runner: Runner, progress: Progress
) -> list[bool | None]:
    """Of each pair of tiles, whether they are one acquisition by their speckle; None where it cannot be told."""
    jobs = []
    for start in range(0, len(pairs), _PAIRS_A_TASK):
        part = pairs[start : start + _PAIRS_A_TASK]
        named = [
            [pool.keys[i], pool.content_hashes[i], pool.keys[j], pool.content_hashes[j], to_b] for i, j, to_b in part
        ]
        result = work / "pairs" / f"{identity_hash(['speckle', named])}.json"
        arguments = [_arguments(pool, *pair) for pair in part]
        jobs.append((Entry(SourceFile("", f"{len(part)} pairs of tiles", False)), result, (arguments, side, bits)))
    if not jobs:
        return []
    run_stage("compare", runner, progress, same_speckle_task, jobs)
    verdicts: list[bool | None] = []
    for entry, result, _ in jobs:
        if not result.exists():
            raise SarsenseError(f"{result}: could not be written ({entry.reason}); run the same command again")
        verdicts += [test["same"] for test in read_json(result)["tests"]]
    return verdicts


def _arguments(pool: Pool, i: int, j: int, to_b: list[list[float]] | None) -> dict[str, Any]:
    """What `same_speckle_task` is told of two tiles."""
    looks = [None if np.isnan(pool.enl[k]) else float(pool.enl[k]) for k in (i, j)]
    return {
        "files": [pool.files[i], pool.files[j]],
        "starts": [pool.starts[i], pool.starts[j]],
        "step_db": [float(pool.step_db[i]), float(pool.step_db[j])],
        "looks": looks,
        "to_b": to_b,
    }


def _pixel_map(a: np.ndarray, b: np.ndarray) -> list[list[float]] | None:
    """Affine (2 x 3) from pixel edges of one tile to those of another, from their affines to lon and lat; None where
    these are none, as over a pole."""
    first, second = (np.vstack([value.reshape(2, 3), [0.0, 0.0, 1.0]]) for value in (a, b))
    first[0, 2] += 360.0 * np.round((second[0, 2] - first[0, 2]) / 360.0)
    if not np.isfinite(np.linalg.cond(second)) or np.linalg.det(first[:2, :2]) == 0:
        return None
    return (np.linalg.inv(second) @ first)[:2].tolist()


def _candidates(
    pool: Pool, placed: np.ndarray, known: dict[str, str]
) -> Iterator[tuple[tuple[str, str], list[tuple[int, int]]]]:
    """Scenes that overlap and do not both say when they were taken, with the tiles of both that share most ground."""
    of_scene: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index in placed.tolist():
        of_scene[pool.polarisations[index], pool.scenes[index]].append(index)
    if not len(placed):
        return
    ground = Ground.of(pool.rings[placed])
    position_of = {index: position for position, index in enumerate(placed.tolist())}
    names = sorted(of_scene)
    members = {name: np.array([position_of[index] for index in of_scene[name]]) for name in names}
    middle = np.array([ground.centres[members[name]].mean(axis=0) for name in names]).reshape(-1, 3)
    reach = np.array(
        [
            (np.linalg.norm(ground.centres[members[name]] - at, axis=1) + ground.reach[members[name]]).max()
            for name, at in zip(names, middle, strict=True)
        ]
    )
    tree = KDTree(middle)
    done: set[tuple[str, str]] = set()
    for number, name in enumerate(names):
        near = tree.query_ball_point(middle[number], reach[number] + reach.max())
        for other in sorted(near):
            pair = names[number][1], names[other][1]
            if other <= number or names[other][0] != name[0] or pair in done or pair[0] == pair[1]:
                continue
            if np.linalg.norm(middle[number] - middle[other]) > reach[number] + reach[other]:
                continue
            if pair[0] in known and pair[1] in known:
                continue
            if _all_settled(pool, of_scene[name]) and _all_settled(pool, of_scene[names[other]]):
                continue  # told when they came
            best = _most_shared(ground, members[name], members[names[other]])
            if best:
                done.add(pair)
                yield pair, [(int(placed[i]), int(placed[j])) for i, j in best]


def _all_settled(pool: Pool, indices: list[int]) -> bool:
    return all(pool.settled[index] for index in indices)


def _most_shared(ground: Ground, a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """Up to `PAIRS` pairs of tiles, each tile in one, that share the most of their ground."""
    tree = KDTree(ground.centres[b])
    count = min(9, len(b))
    distance, nearest = tree.query(ground.centres[a], k=count)
    i = np.repeat(a, count)
    j = b[np.asarray(nearest).reshape(-1)]
    close = np.asarray(distance).reshape(-1) <= ground.reach[i] + ground.reach[j]
    i, j = i[close], j[close]
    shared = overlap_areas(ground, i, j) / np.minimum(ground.area[i], ground.area[j])
    order = np.lexsort((j, i, -np.round(shared, 6)))
    taken: set[int] = set()
    chosen: list[tuple[int, int]] = []
    for index in order.tolist():
        if shared[index] < _MIN_SHARED or len(chosen) == PAIRS:
            break
        first, second = int(i[index]), int(j[index])
        if first not in taken and second not in taken:
            taken |= {first, second}
            chosen.append((first, second))
    return chosen
