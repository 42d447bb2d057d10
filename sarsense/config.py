"""Every setting of a corpus build, as a frozen dataclass. Standard library only, so that `--help` is instant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from sarsense.errors import SettingError

StatedUnit = Literal["power", "amplitude", "db", "dn"]
"""what a person may state of values; dn: digital numbers, amplitude without a calibration, also where one is there"""
STATED_UNITS: tuple[str, ...] = get_args(StatedUnit)
Bands = Literal["single", "stack"]
Content = Literal["speckled", "despeckled", "both"]
Normalization = Literal["group", "scene", "fixed"]
DedupTest = Literal["exact", "geographic", "speckle", "perceptual"]
DEDUP_TESTS: tuple[DedupTest, ...] = get_args(DedupTest)
NearEvaluation = Literal["drop", "mark"]
Convention = Literal["sigma0", "beta0", "gamma0", "none"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)


@dataclass(frozen=True)
class BuildConfig:
    """What decides the bytes of a corpus, beside its sources. Saved in corpus.json."""

    name: str = "corpus"
    version: str = "1.0.0"
    """the user's own version of the corpus"""
    tile_size: int = 512
    """side of a tile in pixels"""
    stride: int | None = None
    """pixels between the starts of neighbouring tiles; None: the tile size, no overlap"""
    polarisations: tuple[str, ...] = ()
    """take only these; empty: all"""
    bands: Bands = "single"
    """single: a tile is one polarisation; stack: all of `polarisations`, in their order"""
    content: Content = "speckled"
    """speckled: backscatter as it was seen; despeckled: filtered; both: these, the one after the other, as channels"""
    normalization: Normalization = "group"
    """whose dB range becomes the codes: group: sensor, mode, polarisation and quantity; scene: each scene's own; fixed:
    -30 to 5 dB, cross-polarised -35 to 0, speckle's bias left in"""
    bits: int = 8
    """of a code: 8 or 16"""
    unit: StatedUnit | None = None
    """how values are stored, for all sources; None: from the product, else from the values"""
    calibrate: Convention = "sigma0"
    """the convention of products that deliver digital numbers with several look-up tables; none: digital numbers"""
    multilook: str = "auto"
    """looks of single-look complex rasters, 'AxR' (azimuth x range); auto: pixels about square on the ground where the
    product says how large they are, else 1x1"""
    spacing: float | None = None
    """pixel size in metres to resample all scenes to, on power; None: each scene's own grid"""
    allow_unplaced: bool = False
    """take rasters without georeferencing: no footprint; split by scene"""
    min_valid: float = 0.9
    """a tile with a smaller share of valid pixels is refused"""
    val_share: float = 0.1
    """share of the ground (cells) that goes to the val split"""
    cell_km: float = 50.0
    """side of the ground cells that are split as a whole"""
    guard_km: float | None = None
    """no train tile lies nearer to a val tile than this; None: a fiftieth of `cell_km`"""
    val_sensors: tuple[str, ...] = ()
    """all tiles of these sensors are val, and no others; empty: cells decide"""
    dedup: tuple[DedupTest, ...] = DEDUP_TESTS
    """tests for duplicates that are made (docs/duplicates.md); scenes of one content and place are always one"""
    overlap: float = 0.6
    """share of a tile's ground that another tile of the same acquisition covers where it is a duplicate"""
    max_repeats: int | None = None
    """observations of one place, in one polarisation, that stay; None: all"""
    max_flat: float = 1.0
    """largest share of flat tiles (open sea, desert) in the corpus"""
    distance_km: float = 2.0
    """tiles nearer than this to the ground of evaluation sets are `near_evaluation`"""
    near_evaluation: NearEvaluation = "drop"
    """drop: such tiles are left out; mark: they stay, and the column `near_evaluation` tells them"""
    shard_mib: int = 256
    """size of a shard, at most"""
    seed: int = 0
    """of the splits and of the order of tiles in the shards"""

    def __post_init__(self) -> None:
        _require(8 <= self.tile_size <= 8192, "--tile-size", "from 8 to 8192 pixels", self.tile_size)
        _require(self.stride is None or self.stride >= 1, "--stride", "at least 1 pixel", self.stride)
        looks = re.fullmatch(r"auto|[1-9]\d{0,2}x[1-9]\d{0,2}", self.multilook)
        _require(looks is not None, "--multilook", "auto or looks as 1x4 (azimuth x range)", self.multilook)
        _require(self.spacing is None or 0.05 <= self.spacing <= 1e5, "--spacing", "from 0.05 to 1e5 m", self.spacing)
        distinct = len(set(self.polarisations)) == len(self.polarisations)
        _require(distinct, "--polarisations", "each once", ",".join(self.polarisations))
        enough = self.bands == "single" or len(self.polarisations) > 1
        named = ",".join(self.polarisations) or "none"
        _require(enough, "--bands stack", "--polarisations with the channels in order, as VV,VH", named)
        _require(self.bits in (8, 16), "--bits", "8 or 16", self.bits)
        _require(0.0 < self.min_valid <= 1.0, "--min-valid", "above 0, at most 1", self.min_valid)
        _require(0.0 <= self.val_share < 1.0, "--val-share", "from 0 to below 1", self.val_share)
        _require(self.cell_km > 0.1, "--cell-km", "above 0.1 km", self.cell_km)
        _require(self.guard_km is None or self.guard_km >= 0, "--guard-km", "0 km or more", self.guard_km)
        known = f"tests among {', '.join(DEDUP_TESTS)}, each once, or none"
        asked = len(set(self.dedup)) == len(self.dedup) and set(self.dedup) <= set(DEDUP_TESTS)
        _require(asked, "--dedup", known, ",".join(self.dedup))
        _require(0.0 < self.overlap <= 1.0, "--overlap", "above 0, at most 1", self.overlap)
        _require(self.max_repeats is None or self.max_repeats >= 1, "--max-repeats", "at least 1", self.max_repeats)
        _require(0.0 <= self.max_flat <= 1.0, "--max-flat", "from 0 to 1", self.max_flat)
        _require(0.0 <= self.distance_km <= 1000.0, "--distance", "from 0 to 1000 km", self.distance_km)
        _require(self.shard_mib >= 1, "--shard-mib", "at least 1 MiB", self.shard_mib)
        safe = self.name.replace("-", "").replace("_", "").isalnum() and self.name.isascii()
        _require(safe and len(self.name) <= 40, "--name", "letters, digits, - and _, at most 40", self.name)

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns."""
        polarisations = len(self.polarisations) if self.bands == "stack" else 1
        return polarisations * (2 if self.content == "both" else 1), self.tile_size, self.tile_size

    @property
    def guard(self) -> float:
        """Kilometres between train and val tiles, at least."""
        return self.cell_km / 50 if self.guard_km is None else self.guard_km

    @property
    def step(self) -> int:
        """Pixels between the starts of neighbouring tiles."""
        return self.stride or self.tile_size


def _require(holds: bool, option: str, expected: str, found: object) -> None:
    if not holds:
        raise SettingError(f"{option}: {expected} expected, {found!r} found")
