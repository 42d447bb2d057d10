"""What a build will need of disk and memory, told from its scanned scenes, and whether the disk has it.

Upper bounds: every window of a scene's grid a tile (those without data, doubled or between the splits make none), and
no compression. So a build is refused only where even half of it does not fit; between half and all it is warned.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from pipelines.entries import Entry, reason_kind
from pipelines.output import next_folder
from sarsense.codes import code_dtype
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus
from sarsense.errors import SarsenseError
from sarsense.measure import STRIP_PIXELS
from sarsense.places import Place, work_folder
from sarsense.tiling import grid

_SAMPLE_BYTES = 4096
"""of a tile in a shard beside its pixels, at most: headers, padding, description"""
_TABLE_BYTES = 1536
"""of a tile in tiles.parquet, at most"""
_RECORD_BYTES = 4096
"""of a tile in the records under `.build` that the end of a build removes"""
_CERTAIN = 0.5
"""share of the upper bound that a build of common scenes uses in any case"""
_PROCESS_BYTES = 384 * 2**20
"""of a process with our libraries, GDAL's cache full"""
_MEASURE_BYTES, _CUT_BYTES = 12, 24
"""of a pixel of a strip, and of a channel: what `measure_scene` (values, and power and logarithms of a few rows) and
`cut_scene` (values, power, dB, codes, what calibration makes of a few rows) hold at most"""
_MAIN_BYTES = 8192
"""of a tile in the main process, while it is curated"""


@dataclass(frozen=True)
class Needs:
    """Of the files that are new to a corpus: what they are, and at most what a build of them writes and holds."""

    files: int
    usable: int
    refused: dict[str, int]
    """reason without its particulars -> files, most frequent first"""
    source_bytes: int
    """of the usable files"""
    pixels: int
    """of all bands that are used"""
    prepared_pixels: int
    """of these, in complex or resampled scenes, which are written anew before they are measured"""
    tiles: int
    shards: int
    corpus_bytes: int
    temporary_bytes: int
    """under `.build` until the end"""
    worker_bytes: int
    """memory of a worker"""
    main_bytes: int
    """memory of the main process"""

    @property
    def disk_bytes(self) -> int:
        return self.corpus_bytes + self.temporary_bytes


def needs_of(entries: list[Entry], config: BuildConfig, labelled: bool = False) -> Needs:
    """`entries`: scanned; those that are settled already do not count. labelled: each tile has labels."""
    fresh = [entry for entry in entries if not entry.settled and entry.status != "sidecar"]
    scenes = [(entry, entry.scene) for entry in fresh if entry.scene is not None]
    pixels = prepared = tiles = strip_bytes = 0
    channels, side, _ = config.tile_shape
    for entry, scene in scenes:
        size = scene.width * scene.height * len(scene.bands)
        pixels += size
        if scene.preparation is not None:
            prepared += size
        if not entry.follows:
            windows = len(grid(scene.width, side, config.step)) * len(grid(scene.height, side, config.step))
            tiles += windows * (1 if config.bands == "stack" else len(scene.bands))
        measured = max(STRIP_PIXELS, 84 * scene.width) * _MEASURE_BYTES
        strip_bytes = max(strip_bytes, measured, side * scene.width * channels * _CUT_BYTES)
    codes = math.prod(config.tile_shape) * code_dtype(config.bits).itemsize + (side**2 if labelled else 0)
    a_shard = max(1, config.shard_mib * 2**20 // (codes + _SAMPLE_BYTES))
    return Needs(
        files=len(fresh),
        usable=len(scenes),
        refused=dict(Counter(reason_kind(entry.reason) for entry in fresh if entry.scene is None).most_common()),
        source_bytes=sum(int(entry.stamp[0]) for entry, _ in scenes if entry.stamp),
        pixels=pixels,
        prepared_pixels=prepared,
        tiles=tiles,
        shards=0 if not tiles else math.ceil(tiles / a_shard) + 1,  # of two splits each may end in a short one
        corpus_bytes=tiles * (codes + _SAMPLE_BYTES + _TABLE_BYTES),
        temporary_bytes=tiles * (codes + _RECORD_BYTES) + 4 * prepared,
        worker_bytes=_PROCESS_BYTES + strip_bytes,
        main_bytes=_PROCESS_BYTES + tiles * _MAIN_BYTES,
    )


def short_of_room(needs: Needs, out: Place, base: Corpus | None) -> str | None:
    """A warning where the upper bound does not fit on the disk of `out`, None where it does. SarsenseError where half
    of it does not. What an earlier, unfinished run of the build has written counts as there."""
    free = disk_usage(existing_parent(work_folder(out))).free
    # shards of a remote corpus are sent one by one, and removed here
    asked = needs.disk_bytes if isinstance(out, Path) else needs.temporary_bytes
    most = max(asked - _written(out, base), 0)
    least = int(_CERTAIN * asked) - _written(out, base)
    told = f"{out}: up to {size_of(most)} needed, {free_of(out)}"
    remedy = "free the disk, choose another --out, or build from fewer sources"
    if least > free:
        raise SarsenseError(f"{told}: not enough for half of it; {remedy}")
    if most > free:
        return f"{told}: it may do, as few builds need all of it; else {remedy}"
    return None


def refuse_without_room(
    entries: list[Entry],
    config: BuildConfig,
    out: Place,
    base: Corpus | None,
    say: Callable[[str], None],
    labelled: bool = False,
) -> None:
    """Of a build that has scanned its files: say the warning, or raise SarsenseError (`short_of_room`)."""
    if warning := short_of_room(needs_of(entries, config, labelled), out, base):
        say(f"warning: {warning}")


def existing_parent(path: Path) -> Path:
    """The folder, or the nearest one above it that is there: the file system that it will lie on."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def free_of(out: Place) -> str:
    """As '55 GB free on /data', by the mount point; of a remote place, where its work folder lies."""
    folder = existing_parent(work_folder(out)).resolve()
    mount = next(parent for parent in (folder, *folder.parents) if parent.is_mount())
    return f"{size_of(disk_usage(folder).free)} free on {mount}"


def size_of(count: float) -> str:
    """Bytes in decimal units, two digits: 121 -> '121 B', 5.46e10 -> '55 GB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.2g} {unit}" if count < 9.95 else f"{count:.0f} {unit}"
        count /= 1000
    raise AssertionError


def _written(out: Place, base: Corpus | None) -> int:
    """Bytes of codes, records and shards of a build that was cut off."""
    kept = set() if base is None else {base.root / shard.path for shard in base.shards}
    if (out / "corpus.json").is_file() and base is None:
        folders = [next_folder(out)]  # all of it is made anew, beside what stays until then
    else:
        folders = [out / "train", out / "val"]
    folders += [work_folder(out) / name for name in ("prepare", "cut", "shard")]
    local = (folder for folder in folders if isinstance(folder, Path))
    files = (path for folder in local for path in folder.rglob("*") if path.is_file() and path not in kept)
    return sum(path.stat().st_size for path in files)
