"""Which of the tiles that were cut are in the corpus: lists, split, evaluation sets, duplicates, repeats, flat ground.

In this order, so that what is left out for one reason never stands for what another would drop. Tiles of a corpus that
grows are settled: they stay, in their split, whatever comes. Of all others, who stays depends on the tiles and the
settings alone (docs/duplicates.md), not on the order of scenes or workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.acquisitions import Acquisitions, acquisitions
from pipelines.cluster import Runner
from pipelines.companions import Companions
from pipelines.entries import Entry
from pipelines.exclusion import exclude_tiles
from pipelines.look import look_alikes
from pipelines.pool import Pool, pool_of
from pipelines.stages import Progress
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, cut_schema, with_columns
from sarsense.dedup.exact import duplicate_row, exact_duplicates
from sarsense.dedup.geographic import cap_repeats, covered_by_same_acquisition, places
from sarsense.dedup.leakage import near
from sarsense.dedup.overlap import Ground
from sarsense.dedup.perceptual import cap_flat
from sarsense.scene import place_name
from sarsense.splits import guard_against, matches, split_of_cells, split_of_place, split_of_region


def curate(
    entries: list[Entry],
    config: BuildConfig,
    companions: Companions,
    base: Corpus | None,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The tiles that come into the corpus, of tiles.parquet with `codes` and `start`; rows of duplicates.parquet.

    Of those that do not, each entry counts how many and why.
    """
    cut = [(entry, entry.tiles) for entry in entries if entry.status == "used" and entry.tiles is not None]
    if companions.exclusion is not None:
        cut = [(entry, exclude_tiles(entry, table, companions.exclusion)) for entry, table in cut]
    tiles = pa.concat_tables([cut_schema(companions.labels is not None).empty_table(), *(table for _, table in cut)])
    sizes = {
        e.identity: e.scene.width * e.scene.height for e, _ in cut if e.identity is not None and e.scene is not None
    }
    pool = pool_of(base, tiles, sizes, config.bits)
    choice = _Choice(pool, config)
    choice.splits(companions)
    if companions.evaluation is not None:
        choice.evaluation(companions)
    choice.compare(work, runner, progress)
    start = len(pool) - len(tiles)
    for entry, table in cut:
        entry.left_out.update(filter(None, choice.why[start : start + len(table)]))
        start += len(table)
    return choice.staying(tiles), choice.rows


def curate_again(
    tiles: pa.Table,
    sizes: dict[str, int],
    config: BuildConfig,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> tuple[pa.Table, list[dict[str, Any]], int]:
    """The same of tiles that have been curated before, apart from one another: of tiles.parquet with `codes` and
    `start`. They keep their split, but for train tiles too near to val tiles of the others; how many these are comes
    last."""
    pool = pool_of(None, tiles, sizes, config.bits)
    choice = _Choice(pool, config)
    choice.keep_splits(tiles)
    choice.compare(work, runner, progress)
    return choice.staying(tiles), choice.rows, choice.why.count("guard")


class _Choice:
    """What has been decided of the tiles of a pool so far."""

    def __init__(self, pool: Pool, config: BuildConfig) -> None:
        self._pool, self._config = pool, config
        self.why: list[str] = [""] * len(pool)
        """why a tile is not in the corpus: guard, near_evaluation, duplicate; empty: it is"""
        self.rows: list[dict[str, Any]] = []
        """of duplicates.parquet"""
        self._split = pool.splits.copy()
        self._near = np.zeros(len(pool), bool)
        self._place: list[str | None] = [None] * len(pool)

    def compare(self, work: Path, runner: Runner, progress: Progress) -> None:
        """Make the tests for duplicates that are wanted, and tell acquisitions and places."""
        if "exact" in self._config.dedup:
            self.exact()
        self._known = self.same_acquisition(work, runner, progress)
        if "perceptual" in self._config.dedup:
            self.alike(work, runner, progress)
        self.repeats()
        self.flat()

    def staying(self, tiles: pa.Table) -> pa.Table:
        """Of the tiles that are not settled, those in the corpus, with what is known by now."""
        fresh = np.arange(len(self._pool) - len(tiles), len(self._pool))
        stays = self._staying()[fresh]
        known = self._known.of_scene
        columns = {
            "split": self._split,
            "acquisition": np.array([known[scene] for scene in self._pool.scenes], object),
            "place": np.array(self._place, object),
            "near_evaluation": self._near,
        }
        kept = tiles.filter(pa.array(stays))
        return with_columns(kept, {name: column[fresh][stays] for name, column in columns.items()})

    def keep_splits(self, tiles: pa.Table) -> None:
        """Of tiles that have one; train tiles within the guard distance of a val tile are left out."""
        split = np.array(tiles["split"].to_pylist(), object)
        placed = np.flatnonzero(self._pool.placed)
        guarded = guard_against(self._pool.rings[placed], split[placed] == "val", self._config.guard) == "guard"
        split[placed[guarded]] = "guard"
        self._split[:] = split
        self._near[:] = tiles["near_evaluation"].fill_null(False).to_numpy(zero_copy_only=False)
        for index in np.flatnonzero(split == "guard").tolist():
            self.why[index] = "guard"

    def _staying(self) -> np.ndarray:
        return np.array([not reason for reason in self.why], bool)

    def _drop(self, kind: str, index: int, kept: str | None, distance: float | None) -> None:
        """Settled tiles are not dropped: they are in the corpus already."""
        if not self._pool.settled[index] and not self.why[index]:
            self.why[index] = "duplicate"
            self.rows.append(duplicate_row(kind, self._pool.keys[index], kept, distance))

    def splits(self, companions: Companions) -> None:
        """By cells, a region, sensors or scenes; unplaced scenes whole, by their name."""
        pool, config = self._pool, self._config
        chosen = None
        if companions.val_scenes is not None:
            chosen = np.array(matches(pool.scenes, companions.val_scenes), bool)
        elif config.val_sensors:
            chosen = np.isin(np.array(pool.sensors), config.val_sensors)
        placed = np.flatnonzero(pool.placed)
        rings = pool.rings[placed]
        if chosen is not None:
            split = np.where(chosen, "val", "train").astype(object)
            side = np.where(pool.settled, pool.splits == "val", chosen)[placed]
            split[placed] = guard_against(rings, side, config.guard)
            # what is val now keeps away from what the corpus has had as train
            train = (pool.settled & (pool.splits == "train"))[placed]
            if train.any():
                beside = guard_against(rings, train, config.guard) == "guard"
                split[placed[beside & side]] = "guard"
        else:
            split = np.full(len(pool), "train", object)
            for index in np.flatnonzero(~pool.placed).tolist():
                if companions.val_region is None:
                    split[index] = split_of_place(place_name(pool.sources[index]), config.seed, config.val_share)
            if companions.val_region is not None:
                split[placed] = split_of_region(rings, companions.val_region, config.guard)
            elif len(placed):
                split[placed] = split_of_cells(rings, config.seed, config.val_share, config.cell_km, config.guard)
        fresh = ~pool.settled
        self._split[fresh] = split[fresh]
        for index in np.flatnonzero(fresh & (split == "guard")).tolist():
            self.why[index] = "guard"

    def evaluation(self, companions: Companions) -> None:
        """Tiles near the ground of evaluation sets."""
        evaluation, pool = companions.evaluation, self._pool
        assert evaluation is not None
        placed = np.flatnonzero(pool.placed)
        if not len(placed):
            return
        found = near(Ground.of(pool.rings[placed]), evaluation.geometries, self._config.distance_km)
        for index, geometry, distance in zip(placed[found.index], found.geometry, found.distance, strict=True):
            self._near[index] = True
            if self._config.near_evaluation == "drop" and not pool.settled[index] and not self.why[index]:
                self.why[index] = "near_evaluation"
                name = evaluation.names[geometry]
                self.rows.append(duplicate_row("leakage", pool.keys[index], name, round(float(distance), 3)))

    def exact(self) -> None:
        """Tiles of the same codes: a settled one stays, else the smallest key."""
        pool = self._pool
        staying = np.flatnonzero(self._staying()).tolist()
        settled = {pool.content_hashes[i]: pool.keys[i] for i in staying if pool.settled[i]}
        fresh = [i for i in staying if not pool.settled[i]]
        same = exact_duplicates((pool.keys[i], pool.content_hashes[i]) for i in fresh)
        for index in fresh:
            kept = settled.get(pool.content_hashes[index], same.get(pool.keys[index]))
            if kept is not None:
                self._drop("exact tile", index, kept, 0.0)

    def same_acquisition(self, work: Path, runner: Runner, progress: Progress) -> Acquisitions:
        """Tiles whose ground other tiles of the same acquisition cover: geographic where the scenes say so, else
        speckle."""
        pool, config = self._pool, self._config
        placed = np.flatnonzero(pool.placed & self._staying())
        speckle = "speckle" in config.dedup and config.content != "despeckled"
        known = acquisitions(pool, placed, speckle, config.tile_size, config.bits, work, runner, progress)
        if not len(placed) or not {"geographic", "speckle"} & set(config.dedup):
            return known
        found = covered_by_same_acquisition(*self._on_ground(placed, known), config.overlap)
        for index, kept, share in zip(placed[found.index], placed[found.kept], found.share, strict=True):
            kind = "geographic" if known.stated(pool.scenes[index], pool.scenes[kept]) else "speckle"
            if kind in config.dedup:
                self._drop(kind, int(index), pool.keys[kept], round(1.0 - float(share), 4))
        return known

    def _on_ground(
        self, placed: np.ndarray, known: Acquisitions
    ) -> tuple[Ground, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `sarsense.dedup.geographic` is told of the tiles `placed`: ground, scene, acquisition, polarisation,
        rank, settled."""
        pool = self._pool
        return (
            Ground.of(pool.rings[placed]),
            _numbers(pool.scenes[i] for i in placed),
            _numbers(known.of_scene[pool.scenes[i]] for i in placed),
            _numbers(pool.polarisations[i] for i in placed),
            pool.rank[placed],
            pool.settled[placed],
        )

    def alike(self, work: Path, runner: Runner, progress: Progress) -> None:
        """Unplaced tiles that show the same: of one acquisition by their speckle, else by their look."""
        pool, config = self._pool, self._config
        unplaced = np.flatnonzero(~pool.placed & self._staying())
        for kind, index, kept, distance in look_alikes(pool, unplaced, config, work, runner, progress):
            self._drop(kind, index, pool.keys[kept], distance)

    def repeats(self) -> None:
        """The place of each tile; of more than --max-repeats observations those go that add least to its year."""
        pool, config = self._pool, self._config
        placed = np.flatnonzero(pool.placed & self._staying())
        if not len(placed):
            return
        found = places(*self._on_ground(placed, self._known))
        leaders: dict[int, int] = {}
        for index in placed[np.lexsort((pool.rank[placed], ~pool.settled[placed]))].tolist():
            leaders.setdefault(int(found[np.searchsorted(placed, index)]), index)
        for index, place in zip(placed.tolist(), found.tolist(), strict=True):
            self._place[index] = pool.keys[leaders[place]]
        if config.max_repeats is None:
            return
        dates = [pool.datetimes[i] for i in placed]
        above = cap_repeats(found, dates, pool.rank[placed], pool.settled[placed], config.max_repeats)
        for index, kept in zip(placed[above.index], placed[above.kept], strict=True):
            self._drop("repeat", int(index), pool.keys[kept], None)

    def flat(self) -> None:
        """Of flat tiles above --max-flat those that a hash of their keys says."""
        pool = self._pool
        staying = np.flatnonzero(self._staying())
        keys = [pool.keys[i] for i in staying]
        settled = pool.settled[staying]
        over = cap_flat(keys, pool.flat[staying], self._config.max_flat, self._config.seed, settled)
        for index in staying[over].tolist():
            self._drop("flat", index, None, None)


def _numbers(names: Iterable[str]) -> np.ndarray:
    """int64: equal numbers for equal names."""
    return np.unique(np.array(list(names)), return_inverse=True)[1].astype(np.int64)
