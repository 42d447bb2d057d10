"""The pixels of one row of a table: codes of a corpus, or what another program put into a tar."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sarsense.codes import as_8_bit, decode
from sarsense.corpus import Corpus
from sarsense.errors import BadShardError, ShardError
from sarsense.inspection.source import Source
from sarsense.places import Place
from sarsense.shards import tile_hash

NEEDED = (
    "key",
    "shard",
    "offset",
    "bytes",
    "pixels",
    "content_hash",
    "channels",
    "content",
    "polarisation",
    "group",
    "lo_db",
    "hi_db",
    "enl_bias_db",
)
"""columns of tiles that `read_tile` wants of a row, where there are any"""
_LARGEST = 2**30
"""bytes of a member of another program's tar that is looked into"""
_MOST_VALUES = 2**27
"""of a TIFF: a few bytes of one may say that they are any number"""


@dataclass(frozen=True)
class Tile:
    key: str
    pixels: np.ndarray
    """(C, H, W): codes, uint8 or uint16, of a corpus; else whatever it was"""
    channels: tuple[Channel, ...]
    coded: bool
    """whether the pixels are codes of a corpus, of which 0 is no data"""

    def grey(self) -> np.ndarray:
        """uint8 (C, H, W) to look at: codes of 8 bits, 0 no data; other pixels from 1 to 255 between their percentiles
        2 and 98."""
        return as_8_bit(self.pixels) if self.coded else np.stack([_stretched(plane) for plane in self.pixels])

    def db(self) -> np.ndarray | None:
        """dB, float32 (C, H, W), NaN where there is no data; None where nobody knows what the pixels are."""
        if not self.coded or not all(channel.known for channel in self.channels):
            return None
        planes = zip(self.pixels, self.channels, strict=True)
        return np.stack([decode(plane, one.lo_db, one.hi_db) + np.float32(one.bias_db) for plane, one in planes])


@dataclass(frozen=True)
class Channel:
    """What a plane of a tile is, and how its codes become dB."""

    name: str
    lo_db: float = math.nan
    hi_db: float = math.nan
    bias_db: float = 0.0
    display: bool = False
    """of an 8-bit picture: dB of its values, not of backscatter"""

    @property
    def known(self) -> bool:
        return math.isfinite(self.lo_db) and math.isfinite(self.hi_db)


def read_tile(source: Source, row: Mapping[str, Any]) -> Tile:
    """The tile of a row of `source`, with the columns NEEDED. ShardError names the shard where it cannot be read, or is
    not what the table says."""
    if source.corpus is not None:
        return _of_corpus(source.corpus, row)
    if not row.get("pixels"):
        raise ShardError(f"{row['shard']}: {row['key']} has no member that can be shown (npy, png, tif or jpg)")
    if row["bytes"] > _LARGEST:
        raise ShardError(f"{row['shard']}: {row['key']}.{row['pixels']} has {row['bytes']:,} bytes: too large to show")
    raw = read_bytes(source.tars[row["shard"]], row["offset"], row["bytes"])
    try:
        pixels = _planes(_DECODERS[row["pixels"].rpartition(".")[2]](raw))
    except Exception as error:  # decoders of three libraries, of bytes that anybody wrote: each raises its own
        raise ShardError(f"{row['shard']}: {row['key']}.{row['pixels']} cannot be read: {error}") from error
    channels = _channels(row, len(pixels))
    codes = pixels.dtype in (np.uint8, np.uint16) and row.get("lo_db") is not None
    return Tile(row["key"], pixels, channels, codes)


def _of_corpus(corpus: Corpus, row: Mapping[str, Any]) -> Tile:
    size = math.prod(corpus.tile_shape) * corpus.dtype.itemsize
    if row["offset"] is None or all(row["shard"] != shard.path for shard in corpus.shards):
        raise ShardError(
            f"{corpus.root / 'tiles.parquet'}: a shard of corpus.json and an offset of tile {row['key']} expected, "
            f"found {row['shard']!r} and {row['offset']}: the table was changed; restore it"
        )
    path = corpus.root / row["shard"]
    raw = read_bytes(path, row["offset"], size)
    if tile_hash(raw) != row["content_hash"]:
        raise BadShardError(
            f"{path}: tile {row['key']} is not what the corpus says: damaged or replaced; `sarsense shards verify` "
            "tells what else is; restore it",
            row["shard"],
        )
    pixels = np.frombuffer(raw, corpus.dtype).reshape(corpus.tile_shape)
    return Tile(row["key"], pixels, _channels(row, len(pixels)), True)


def read_bytes(path: Place, start: int, size: int) -> bytes:
    """Of a shard. ShardError where it cannot be read, or ends before."""
    try:
        if isinstance(path, Path):
            with path.open("rb") as file:
                file.seek(start)
                raw = file.read(size)
        else:
            raw = path.read_range(start, size)
    except OSError as error:
        raise ShardError(f"{path}: a shard cannot be read: {error.strerror or error}; restore it") from error
    if len(raw) < size:
        raise ShardError(f"{path}: ends before byte {start + size}: truncated; `sarsense shards verify` tells more")
    return raw


def _channels(row: Mapping[str, Any], count: int) -> tuple[Channel, ...]:
    said = row.get("channels")
    if said and len(said) == count:
        return tuple(_channel(one) for one in said)
    if count == 1 and row.get("lo_db") is not None and row.get("hi_db") is not None:
        return (_channel({**row, "content": None}),)
    name = str(row.get("polarisation") or "")
    return tuple(Channel(f"{name} {number}".strip()) for number in range(1, count + 1))


def _channel(said: Mapping[str, Any]) -> Channel:
    lo, hi = (math.nan if said.get(name) is None else float(said[name]) for name in ("lo_db", "hi_db"))
    name = " ".join(str(said[part]) for part in ("polarisation", "content") if said.get(part))
    display = str(said.get("group") or "").endswith("/display")
    return Channel(name, lo, hi, float(said.get("enl_bias_db") or 0.0), display)


def _planes(found: np.ndarray) -> np.ndarray:
    """(C, H, W) of what was found, channels first or last; of complex values their magnitude."""
    if not found.size:
        raise ValueError(f"pixels expected, shape {found.shape} found")
    found = np.abs(found) if found.dtype.kind == "c" else found
    if found.ndim == 2:
        return found[None]
    if found.ndim == 3 and found.shape[-1] <= 4 < found.shape[0]:
        return np.moveaxis(found, -1, 0)
    if found.ndim != 3:
        raise ValueError(f"two or three axes expected, shape {found.shape} found")
    return found


def _of_npy(raw: bytes) -> np.ndarray:
    found = np.load(io.BytesIO(raw), allow_pickle=False)
    if found.dtype.kind not in "buifc":
        raise ValueError(f"numbers expected, {found.dtype} found")
    return found


def _of_picture(raw: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(raw), formats=("PNG", "JPEG")) as picture:
        return np.asarray(picture if picture.mode in ("L", "I;16", "I", "F", "RGB", "RGBA") else picture.convert("RGB"))


def _of_tiff(raw: bytes) -> np.ndarray:
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    with warnings.catch_warnings(), MemoryFile(raw) as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # where it lies is not asked
        with file.open(driver="GTiff") as dataset:
            bands, height, width = dataset.count, dataset.height, dataset.width
            if bands * height * width > _MOST_VALUES:
                raise ValueError(f"{bands} bands of {width} x {height} pixels: too large to show")
            return dataset.read()


_DECODERS = {
    "npy": _of_npy,
    "png": _of_picture,
    "jpg": _of_picture,
    "jpeg": _of_picture,
    "tif": _of_tiff,
    "tiff": _of_tiff,
}


def _stretched(plane: np.ndarray) -> np.ndarray:
    values = plane.astype(np.float32)
    valid = np.isfinite(values)
    if not valid.any():
        return np.zeros(plane.shape, np.uint8)
    low, high = np.percentile(values[valid], (2, 98))
    scaled = 1 + 254 * (values - low) / max(high - low, 1e-12)
    return np.where(valid, np.clip(np.nan_to_num(scaled), 1, 255), 0).astype(np.uint8)
