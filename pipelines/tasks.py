"""The tasks of a build. Each runs on a worker, writes one JSON file and returns nothing: results are read from disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sarsense.catalogue import Stated
from sarsense.codes import code_dtype
from sarsense.config import BuildConfig
from sarsense.cut import cut_scene
from sarsense.dedup.fingerprint import block_side, fingerprint
from sarsense.dedup.perceptual import Fingerprints
from sarsense.dedup.speckle import same_speckle
from sarsense.errors import CHANGED, RemoteError, SceneError
from sarsense.files import atomic_write, read_parts, read_table, write_json, write_table
from sarsense.labels import LabelFile, check_labels
from sarsense.measure import content_hash, measure_part, measure_scene
from sarsense.places import Place, place
from sarsense.prepare import prepare_scene
from sarsense.remote import Stamp
from sarsense.samples import description
from sarsense.scene import Scene, describe_scene
from sarsense.shards import LabelledSample, Sample, write_labelled_shard, write_shard
from sarsense.sidecars import consulting, stamp_of
from sarsense.strip import Channel

Stamps = list[tuple[str, Stamp]]
"""files of the sources, and what `stamp_of` said of each when the build began"""
MeasuredPart = tuple[int, int] | Literal["hash"] | None
"""rows of a scene; what alone needs all of them, one after the other; the scene"""


def scan_task(path: str, relative: str, stated: Stated, config: BuildConfig, sources: Stamps, result: Path) -> None:
    with consulting() as consulted:
        _record(
            result,
            lambda: {"scene": describe_scene(path, relative, config, stated).to_json()},
            sources,
            more={"consulted": consulted},
        )


def label_task(scene: Scene, file: LabelFile, sources: Stamps, result: Path) -> None:
    """Check the label raster of a scene as it was scanned. sources: that raster."""
    _record(result, lambda: {"labels": check_labels(file, scene).to_json()}, sources)


def prepare_task(scene: Scene, sources: Stamps, out: Path, result: Path) -> None:
    _record(result, lambda: {"scene": prepare_scene(scene, out).to_json()}, sources)


def measure_task(scene: Scene, part: MeasuredPart, sources: Stamps, result: Path) -> None:
    """Measure a scene, or a part of it, or only hash it."""

    def measure() -> dict[str, Any]:
        if part is None:
            return {"measurement": measure_scene(scene).to_json()}
        if part == "hash":
            return {"content_hash": content_hash(scene)}
        return {"bands": [band.to_json() for band in measure_part(scene, *part)]}

    _record(result, measure, sources)


def cut_task(
    stacks: list[list[Channel]],
    identity: str,
    config: BuildConfig,
    part: tuple[int, int],
    sources: Stamps,
    codes: Path,
    labels: LabelFile | None,
    result: Path,
) -> None:
    def cut() -> dict[str, Any]:
        found = cut_scene(stacks, identity, config, codes, part, labels)
        write_table(result.with_suffix(".arrow"), found.tiles)
        return {"table": result.stem, "no_data": found.no_data, "flat": found.flat}

    _record(result, cut, sources)


def shard_task(
    root: Place,
    relative: str,
    split: str,
    plan: Path,
    shape: tuple[int, ...],
    bits: int,
    result: Path,
) -> None:
    """Write one shard. `plan`: table of its tiles in order, of tiles.parquet with `codes` and `start`; of labelled
    ones with `label_start`."""
    dtype, tiles = code_dtype(bits), read_table(plan).to_pylist()
    size = math.prod(shape) * dtype.itemsize

    def samples() -> Iterator[Sample]:
        parts = [(tile["codes"], tile["start"], size) for tile in tiles]
        for tile, codes in zip(tiles, read_parts(parts), strict=True):
            yield tile["key"], np.frombuffer(codes, dtype).reshape(shape), description(tile, bits)

    def labelled() -> Iterator[LabelledSample]:
        side = shape[-2:]
        parts: list[tuple[str, int, int]] = []
        for tile in tiles:
            parts += [(tile["codes"], tile["label_start"], math.prod(side)), (tile["codes"], tile["start"], size)]
        read = read_parts(parts)
        for tile in tiles:
            labels = np.frombuffer(bytes(next(read)), np.uint8).reshape(side)  # a copy: codes take its place
            yield tile["key"], np.frombuffer(next(read), dtype).reshape(shape), description(tile, bits), labels

    if tiles and "label_start" in tiles[0]:
        shard, offsets, label_offsets = write_labelled_shard(root, relative, split, labelled())
        write_json(result, {"shard": asdict(shard), "offsets": offsets, "label_offsets": label_offsets})
    else:
        shard, offsets = write_shard(root, relative, split, samples())
        write_json(result, {"shard": asdict(shard), "offsets": offsets})


def same_speckle_task(pairs: list[dict[str, Any]], side: int, bits: int, result: Path) -> None:
    """Whether the tiles of each pair (`pipelines.acquisitions`) are one acquisition by their speckle; null where it
    cannot be told, as of maps that are none."""
    tests: list[dict[str, Any]] = []
    for pair in pairs:
        a, b = (
            read_codes(file, start, (side, side), code_dtype(bits))
            for file, start in zip(pair["files"], pair["starts"], strict=True)
        )
        try:
            found = same_speckle(a, b, tuple(pair["step_db"]), tuple(pair["looks"]), np.array(pair["to_b"], np.float64))
        except (ValueError, np.linalg.LinAlgError) as error:
            tests.append({"same": None, "reason": str(error)})
        else:
            tests.append({"same": found.same, "correlation": found.correlation, "expected": found.expected})
    write_json(result, {"tests": tests})


def print_task(tiles: list[tuple[str, int, float]], side: int, bits: int, out: Path, result: Path) -> None:
    """Fingerprints of tiles (file, byte, dB a code) into an .npz, by attribute."""
    found = [fingerprint(read_codes(file, start, (side, side), code_dtype(bits)), step) for file, start, step in tiles]
    prints = Fingerprints.of(found, block_side((side, side)))
    with atomic_write(out) as target:
        np.savez(target, **{name: value for name, value in vars(prints).items() if name != "block"})
    write_json(result, {"tiles": len(tiles)})


def read_codes(path: str, start: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A tile from a file of codes, or from a shard: the array that begins at byte `start`."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not isinstance(where := place(path), Path):
        return np.frombuffer(where.read_range(start, size), dtype).reshape(shape)
    with where.open("rb") as file:
        file.seek(start)
        return np.frombuffer(file.read(size), dtype).reshape(shape)


def _record(
    result: Path,
    compute: Callable[[], dict[str, Any]],
    sources: Stamps,
    more: dict[str, Any] | None = None,
) -> None:
    """Write what `compute` returns, or why it refused the scene, and `more`. A bad scene never ends a build.

    A scene whose files are no more what they were is refused for now: "again" lets the next build try anew.
    """
    try:
        value = compute()
    except SceneError as error:
        value = {"refused": str(error), "again": isinstance(error, RemoteError)}
    except OSError:
        raise  # reading errors are SceneErrors by now: this is our own disk, and no scene is to blame
    except Exception as error:
        value = {"refused": f"unexpected {type(error).__name__} while reading it: {error}"}
    # of one that a server did not answer for, nobody said then what it was
    try:
        if not value.get("again") and any(stamp and stamp_of(path) != stamp for path, stamp in sources):
            # also where it was refused: of a file that was moved away for a while, nothing that was found holds
            value = {"refused": f"{CHANGED}: {value.get('refused', 'still being written?')}", "again": True}
    except RemoteError as error:
        value = {"refused": str(error), "again": True}
    write_json(result, {**value, **(more or {})})
