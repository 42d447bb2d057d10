"""Tar shards: written to the same bytes every time, read by offset through mmap (`sarsense.verify` checks them).

A sample is `{key}.npy` (uint8 or uint16, C x H x W or H x W) followed by `{key}.json`, and, in a labelled corpus, by
`{key}.labels.npy` (uint8, H x W). Plain USTAR with fixed times, owner and mode: `tar`, Python's `tarfile` and
`webdataset` read it. Pixels and labels lie uncompressed at known offsets, so that training reads a tile with one copy
out of the page cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sarsense.codes import as_8_bit, code_steps
from sarsense.errors import BadShardError, ShardError
from sarsense.files import atomic_write
from sarsense.places import Place, RemotePath

if TYPE_CHECKING:
    from sarsense.corpus import Corpus
    from sarsense.shard_cache import ShardCache


@dataclass(frozen=True)
class Shard:
    """What the corpus says of a shard."""

    path: str
    """relative to the corpus, with forward slashes"""
    split: str
    tiles: int
    bytes: int
    sha256: str


@lru_cache(maxsize=8)
def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The header of a .npy file (format 1.0) of a C-ordered array; numpy pads it so that data start on 64 bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


Sample = tuple[str, np.ndarray, dict[str, Any]]
"""key, array of codes, description"""
LabelledSample = tuple[str, np.ndarray, dict[str, Any], np.ndarray]
"""the same, and labels"""


def write_shard(root: Place, relative: str, split: str, samples: Iterable[Sample]) -> tuple[Shard, list[int]]:
    """Write a whole shard atomically; the shard, and the offset of each tile's first pixel in it.

    The bytes depend on the samples alone.
    """
    shard, offsets, _ = _write(root, relative, split, samples)
    return shard, offsets


def write_labelled_shard(
    root: Place, relative: str, split: str, samples: Iterable[LabelledSample]
) -> tuple[Shard, list[int], list[int]]:
    """The same of tiles with labels; and the offset of each tile's first label."""
    return _write(root, relative, split, samples)


def _write(
    root: Place, relative: str, split: str, samples: Iterable[Sample | LabelledSample]
) -> tuple[Shard, list[int], list[int]]:
    offsets: list[int] = []
    label_offsets: list[int] = []
    digest, position = hashlib.sha256(), 0
    with atomic_write(root / relative, read_soon=False) as file:

        def write(*parts: bytes | memoryview) -> None:
            nonlocal position
            for part in parts:
                digest.update(part)
                file.write(part)
                position += len(part)

        def write_array(name: str, array: np.ndarray, starts: list[int]) -> None:
            header = npy_header(array.shape, array.dtype)
            write(member_header(name, len(header) + array.nbytes), header)
            starts.append(position)
            write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, _padding(position + array.nbytes))

        for key, tile, description, *labels in samples:
            write_array(f"{key}.npy", tile, offsets)
            text = sample_text(description)
            write(member_header(f"{key}.json", len(text)), text, _padding(len(text)))
            for one in labels:
                write_array(f"{key}.labels.npy", one, label_offsets)
        write(b"\0" * (2 * tarfile.BLOCKSIZE))  # the end of an archive, filled up to a record
        write(b"\0" * (-position % tarfile.RECORDSIZE))
        return Shard(relative, split, len(offsets), position, digest.hexdigest()), offsets, label_offsets


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def sample_text(description: dict[str, Any]) -> bytes:
    """The JSON of a sample: the same bytes for the same description."""
    return _ENCODER.encode(description).encode()


def member_header(name: str, size: int) -> bytes:
    """Of a member of a tar: time 0, owner 0, no names: nothing of this machine or this hour."""
    raw = name.encode()
    if len(raw) > 100 or size >= 8**11:
        return _tarfile_header(name, size)
    # as tarfile makes it, a tenth of its time: name and size change, and the checksum with them
    told = b"%011o" % size
    checksum = b"%06o\0" % (_NAMELESS_SUM + sum(raw) + sum(told) - 11 * ord("0"))
    return b"".join((raw.ljust(100, b"\0"), _NAMELESS[100:124], told, _NAMELESS[135:148], checksum, _NAMELESS[155:]))


def _tarfile_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


_NAMELESS = _tarfile_header("", 0)
_NAMELESS_SUM = int(_NAMELESS[148:154], 8)


def _padding(length: int) -> bytes:
    """What fills the last block of a member."""
    return b"\0" * (-length % tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class TileSpeckle:
    """What is known of the speckle of N tiles, by tile."""

    step_db: np.ndarray
    """float64 (N,): dB from one 8-bit code to the next"""
    enl: np.ndarray
    """float64 (N,): looks of the first channel; NaN where they are unknown, or it is an 8-bit picture"""
    bias_db: np.ndarray
    """float64 (N,): mean of log-speckle, taken off the first channel before coding"""
    filtered: np.ndarray
    """bool (N,): the last channel is the first one, filtered"""


class TileReader:
    """Random access to the tiles of a split of a corpus; of a remote one by a request a tile, for a few of them.

    Safe to use from several threads. Raises ShardError, naming the shard, where one is missing or shorter than
    the corpus says: a truncated shard is never a shorter epoch.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str | None = None,
        eight_bit: bool = False,
        cache: ShardCache | None = None,
        leave_out: Collection[str] = (),
    ) -> None:
        """eight_bit: whatever the corpus holds, read 8-bit codes (`sarsense.codes.as_8_bit`); cache: where shards of a
        remote corpus are kept, to read many of its tiles; leave_out: shards whose tiles are not asked for."""
        self._corpus, self._split = corpus, split
        self.contents = corpus.contents
        self._leave_out = leave_out
        table = self._rows(["key", "offset", *(["label_offset"] if corpus.labelled else [])])
        if empty := [name for name in table.column_names if table[name].null_count]:
            raise ShardError(
                f"{corpus.root / 'tiles.parquet'}: {empty[0]} of each tile expected, found empty cells: the table was "
                "changed; `sarsense shards verify` tells where, restore it"
            )
        self.keys: list[str] = table["key"].to_pylist()
        self.ids = tile_ids(self.keys)
        self.shape = corpus.tile_shape
        """(C, H, W)"""
        self._stored = corpus.dtype
        self._nbytes = int(np.prod(self.shape)) * self._stored.itemsize
        self.dtype = np.dtype(np.uint8) if eight_bit else self._stored
        """of what is read: uint8 or uint16"""
        self._offsets = table["offset"].to_numpy()
        self._label_offsets = table["label_offset"].to_numpy() if corpus.labelled else None
        names: list[str] = table["shard"].to_pylist()
        order = {name: index for index, name in enumerate(dict.fromkeys(names))}
        self.shard_of = np.array([order[name] for name in names], dtype=np.int64)
        """int64 (N,): in which of the shards of the split each tile lies"""
        known = {shard.path: shard for shard in corpus.shards}
        if lacking := [name for name in order if name not in known]:
            raise ShardError(
                f"{corpus.root / 'tiles.parquet'}: shards of corpus.json expected, found {lacking[0]!r}: the table was "
                "changed; `sarsense shards verify` tells where, restore it"
            )
        self.shards = [known[name] for name in order]
        self._cache = cache
        self._hashes: dict[str, list[str]] = {}
        """by column, of tiles that come by a request each: nobody has looked at the bytes of their shards"""
        if cache is None and not isinstance(corpus.root, Path):
            names = ["content_hash", *(["label_hash"] if corpus.labelled else [])]
            hashes = self._rows(names)
            self._hashes = {name: hashes[name].to_pylist() for name in names}
        self._maps = [_map(corpus.root / shard.path, shard, cache) for shard in self.shards]

    def __len__(self) -> int:
        return len(self.keys)

    def _rows(self, columns: list[str]) -> pa.Table:
        """Of the tiles, with their shards."""
        table = self._corpus.tiles(self._split, columns=[*columns, "shard"])
        return table.filter(~pc.field("shard").isin(list(self._leave_out))) if self._leave_out else table

    def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The tiles at `indices` (any order, repeats allowed): (n, C, H, W) of `dtype`, into `out` where given."""
        if out is None:
            out = np.empty((len(indices), *self.shape), self.dtype)
        for row, index in enumerate(indices):
            start = self._offsets[index]
            raw = self._maps[self.shard_of[index]][start : start + self._nbytes]
            self._refuse_changed(index, raw, "content_hash")
            codes = raw.view(self._stored).reshape(self.shape)
            out[row] = codes if self.dtype == self._stored else as_8_bit(codes)
        return out

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """The labels of the tiles at `indices` (any order, repeats allowed): uint8 (n, H, W), values of the classes of
        the corpus or `sarsense.labels.IGNORED`. ShardError for a corpus without labels."""
        if self._label_offsets is None:
            raise ShardError(f"{self._corpus.root}: a labelled corpus expected, this one was built without --labels")
        height, width = self.shape[1:]
        out = np.empty((len(indices), height, width), np.uint8)
        for row, index in enumerate(indices):
            start = self._label_offsets[index]
            raw = self._maps[self.shard_of[index]][start : start + height * width]
            self._refuse_changed(index, raw, "label_hash")
            out[row] = raw.reshape(height, width)
        return out

    def _refuse_changed(self, index: int, raw: np.ndarray, column: str) -> None:
        """BadShardError where what came by a request is not what the corpus says."""
        if column in self._hashes and tile_hash(raw.tobytes()) != self._hashes[column][index]:
            shard = self.shards[self.shard_of[index]]
            raise BadShardError(
                f"{self._corpus.root / shard.path}: tile {self.keys[index]} is not what the corpus says: damaged or "
                "replaced; run `sarsense shards verify`, restore it",
                shard.path,
            )

    def expect(self, shards: np.ndarray) -> None:
        """These shards are going to be read, the first ones first: remote ones are fetched ahead."""
        if self._cache is not None:
            self._cache.expect([self.shards[index] for index in shards])

    def speckle(self) -> TileSpeckle:
        """Of each tile. ShardError for a corpus that was coded with the bias of speckle left in."""
        if self._corpus.manifest["config"]["normalization"] == "fixed":
            raise ShardError(
                f"{self._corpus.root}: built with --normalization fixed, which leaves speckle's bias in the codes; "
                "views that change speckle or level want one built with group or scene"
            )
        table = self._rows(["lo_db", "hi_db", "enl", "enl_bias_db", "group", "channels"])
        display = [name.endswith("/display") for name in table["group"].to_pylist()]
        enl = table["enl"].to_numpy().astype(np.float64)
        filtered = table["channels"].combine_chunks().flatten().field("filtered").to_numpy(zero_copy_only=False)
        return TileSpeckle(
            step_db=(table["hi_db"].to_numpy() - table["lo_db"].to_numpy()) / code_steps(8),
            enl=np.where(display, np.nan, enl),
            bias_db=table["enl_bias_db"].to_numpy(),
            filtered=filtered.reshape(len(table), -1)[:, -1],
        )


def tile_ids(keys: list[str]) -> np.ndarray:
    """A 64-bit identity of each tile (uint64), from its key alone: the first 8 bytes of its SHA-256."""
    digests = [hashlib.sha256(key.encode()).digest()[:8] for key in keys]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


class _RemoteBytes:
    """The bytes of a remote shard: a slice is a request."""

    def __init__(self, path: RemotePath, shard: str) -> None:
        self._path, self._shard = path, shard

    def __getitem__(self, wanted: slice) -> np.ndarray:
        try:
            found = self._path.read_range(int(wanted.start), int(wanted.stop - wanted.start))
        except FileNotFoundError as error:
            told = f"{self._path}: missing; a corpus has it: restore it or build again"
            raise BadShardError(told, self._shard) from error
        if len(found) != wanted.stop - wanted.start:
            told = f"{self._path}: ends before byte {wanted.stop}: truncated; run `sarsense shards verify`"
            raise BadShardError(told, self._shard)
        return np.frombuffer(found, np.uint8)


@dataclass(frozen=True)
class _CachedBytes:
    """The bytes of a remote shard that is fetched as a whole."""

    cache: ShardCache
    shard: Shard

    def __getitem__(self, wanted: slice) -> np.ndarray:
        return self.cache.bytes_of(self.shard)[wanted]


def _map(path: Place, shard: Shard, cache: ShardCache | None) -> np.ndarray | _RemoteBytes | _CachedBytes:
    if not isinstance(path, Path):
        return _RemoteBytes(path, shard.path) if cache is None else _CachedBytes(cache, shard)
    size = shard.bytes
    try:
        with path.open("rb") as file:
            found = path.stat().st_size
            if found != size:
                raise ShardError(
                    f"{path}: {found} bytes, the corpus says {size}: truncated or changed. "
                    "Run `sarsense shards verify`; restore it, or `sarsense build --reshard` makes the corpus anew"
                )
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise ShardError(f"{path}: a shard of the corpus cannot be read: {error.strerror or error}") from error


def tile_hash(pixels: bytes | memoryview) -> str:
    """The content hash of a tile: the first 128 bits of the SHA-256 of its codes, or of its labels, as hex."""
    return hashlib.sha256(pixels).hexdigest()[:32]
