"""What is wrong with a shard: its size and SHA-256, the structure of the tar, its members and their order, every
array's shape, dtype and codes, every JSON, against the rows of the table.

Everything in a shard but pixels and labels follows from the table, byte for byte, so that a damaged byte is named; of
pixels and labels the hash tells the tile. Members are found by their names, wherever they lie: what is whole is never
blamed for what is in front of it. Where the shard's own SHA-256 is right and a row says otherwise, the row is wrong.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tarfile import RECORDSIZE
from typing import Any

import numpy as np

from sarsense.places import Place, local_copy
from sarsense.samples import description
from sarsense.shards import Shard, member_header, npy_header, sample_text, tile_hash
from sarsense.verify.problem import TABLE, Problem
from sarsense.verify.walk import BLOCK, Member, Walk, first_difference, walk

_MOST = 20
"""problems of a kind that a shard is told of one by one; of more, their number"""


@dataclass(frozen=True)
class _Expected:
    """What the table says of a shard."""

    rows: Sequence[Mapping[str, Any]]
    array: bytes
    """header of the array of a tile"""
    labels: bytes
    """of its labels"""
    shape: tuple[int, ...]
    dtype: np.dtype

    @cached_property
    def bits(self) -> int:
        return 8 * self.dtype.itemsize

    @cached_property
    def array_bytes(self) -> int:
        """Of the member, with its header."""
        return len(self.array) + math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def label_bytes(self) -> int:
        return len(self.labels) + math.prod(self.shape[-2:])


def verify_shard(
    root: Place,
    shard: Shard,
    rows: Sequence[Mapping[str, Any]],
    shape: tuple[int, ...],
    dtype: np.dtype,
    quick: bool = False,
) -> list[Problem]:
    """Everything that is wrong with a shard; empty when it is what the corpus says.

    `rows`: the shard's rows of tiles.parquet in order: key, offset, content_hash, of labelled tiles label_offset and
    label_hash, and for its JSON what `sarsense.samples.description` needs. quick: size, and the first and the last
    header alone.
    """
    expected = _Expected(rows, npy_header(shape, dtype), npy_header(shape[-2:], np.dtype(np.uint8)), shape, dtype)
    try:
        with local_copy(root / shard.path) as path:
            if quick:
                return list(_quick(path, shard, expected))
            return _verify_file(path, shard, expected)
    except FileNotFoundError:
        return [Problem(shard.path, f"missing; {shard.tiles} tiles lie in it")]
    except OSError as error:
        return [Problem(shard.path, f"cannot be read: {error.strerror or error}")]


def _quick(path: Path, shard: Shard, expected: _Expected) -> Iterator[Problem]:
    size = path.stat().st_size
    if size != shard.bytes:
        yield Problem(shard.path, f"{size} bytes, expected {shard.bytes}")
    with path.open("rb") as file:
        for row in (*expected.rows[:1], *expected.rows[1:][-1:]):
            start = max(row["offset"] - len(expected.array), 0)
            file.seek(start)
            if file.read(len(expected.array)) != expected.array:
                yield Problem(
                    shard.path, f"no {expected.dtype.name} array of shape {expected.shape}", row["key"], start
                )


def _verify_file(path: Path, shard: Shard, expected: _Expected) -> list[Problem]:
    size = path.stat().st_size
    if size == 0:
        return [Problem(shard.path, f"0 bytes, expected {shard.bytes}")]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = memoryview(mapped)
        try:
            return list(_verify_bytes(data, path, shard, expected))
        finally:
            data.release()


def _verify_bytes(data: memoryview, path: Path, shard: Shard, expected: _Expected) -> Iterator[Problem]:
    if len(data) != shard.bytes:
        yield Problem(shard.path, f"{len(data)} bytes, expected {shard.bytes}")
    if shard.tiles != len(expected.rows):
        yield Problem(TABLE, f"{len(expected.rows)} tiles in {shard.path}, corpus.json says {shard.tiles}")
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(lambda: hashlib.sha256(data).hexdigest())
        well = _as_written(data, expected)
        digest = hashed.result()
    intact = digest == shard.sha256
    if not intact:
        yield Problem(shard.path, f"sha256 {digest[:12]}..., expected {shard.sha256[:12]}...")
    if not well:
        yield from _inside(data, path, shard, expected, intact)


def _as_written(data: memoryview, expected: _Expected) -> bool:
    """Whether the bytes are those that `sarsense.shards` writes of the rows, those of pixels and labels by their
    hashes: of nearly all shards this is all there is to do, in a fraction of the time of looking for what is wrong."""
    position, filling = 0, b""
    for row in expected.rows:
        if (told := _told(row, expected.bits)) is None:
            return False
        text = sample_text(told)
        arrays = [("npy", expected.array, expected.array_bytes, row["offset"], row["content_hash"])]
        if "label_hash" in row:
            label = ("labels.npy", expected.labels, expected.label_bytes, row["label_offset"], row["label_hash"])
            arrays.append(label)
        for kind, header, size, offset, digest in arrays:
            end = offset + size - len(header)
            before = filling + _header(f"{row['key']}.{kind}", size) + header
            if offset != position + len(before) or bytes(data[position:offset]) != before:
                return False
            if tile_hash(data[offset:end]) != digest:
                return False
            position, filling = end, b"\0" * (-end % BLOCK)
            if kind == "npy":
                filling += member_header(f"{row['key']}.json", len(text)) + text + b"\0" * (-len(text) % BLOCK)
    tail = filling + b"\0" * (2 * BLOCK)
    return bytes(data[position:]) == tail + b"\0" * (-(position + len(tail)) % RECORDSIZE)


def _inside(data: memoryview, path: Path, shard: Shard, expected: _Expected, intact: bool) -> Iterator[Problem]:
    """intact: the file has the SHA-256 that it should have, so that what differs is the table's fault."""
    names = _names(expected.rows)
    found = walk(data, lambda: _headers(expected), path)
    for name, byte in found.damaged:
        yield Problem(shard.path, f"the header of {name} is damaged", _key_of(name), byte)
    moved = list(_positions(found, shard, expected, intact))
    known = {member.name for member in found.members} & set(names)
    # what was put in by another program is a member too many, not a shard that was written anew
    if foreign := [byte for name, byte in found.foreign if name in known or not known]:
        yield _retarred(foreign, shard, moved)
    else:
        yield from moved
        yield from _tail(data, found, shard)
    yield from _membership(found, shard, names, intact)
    yield from _contents(data, found, shard, expected, intact)


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    kinds = ("npy", "json", "labels.npy")
    return [f"{row['key']}.{kind}" for row in rows for kind in kinds[: 3 if "label_hash" in row else 2]]


def _header(name: str, size: int) -> bytes:
    """Of a member; nothing of a name that is too long for one: a row says it, and no tar."""
    try:
        return member_header(name, size)
    except ValueError:
        return b""


def _headers(expected: _Expected) -> dict[int, tuple[str, int]]:
    """Byte of the header of each member -> its name and size, where the table tells it."""
    headers = {}
    for row in expected.rows:
        size = expected.array_bytes
        head = row["offset"] - len(expected.array) - BLOCK
        headers[head] = f"{row['key']}.npy", size
        if (told := _told(row, expected.bits)) is not None:
            headers[head + BLOCK + size + -size % BLOCK] = f"{row['key']}.json", len(sample_text(told))
        if "label_hash" in row:
            headers[row["label_offset"] - len(expected.labels) - BLOCK] = (
                f"{row['key']}.labels.npy",
                expected.label_bytes,
            )
    return {byte: (name, size) for byte, (name, size) in headers.items() if _header(name, size)}


def _told(row: Mapping[str, Any], bits: int) -> dict[str, Any] | None:
    """What the JSON of a row says; None where the row does not say enough."""
    return description(row, bits) if row.get("channels") else None


def _key_of(name: str) -> str:
    return name.removesuffix(".json").removesuffix(".npy").removesuffix(".labels")


# ------------------------------------------------------------------------------------------------------- structure


def _membership(found: Walk, shard: Shard, names: list[str], intact: bool) -> Iterator[Problem]:
    """Members that are missing, too many, or in another place among the others; of an intact shard, rows that are."""
    there = [member.name for member in found.members]
    if there == names:
        if found.stop is not None:
            yield Problem(shard.path, found.stop, None, found.end)
        return
    known, present = Counter(names), Counter(there)
    missing = [name for name in names if name not in present]
    if found.stop is not None:
        lost = list(dict.fromkeys(_key_of(name) for name in missing))
        first = f"; the first of {len(lost)} tiles that it lacks, or lacks a part of" if lost else ""
        yield Problem(shard.path, f"{found.stop}{first}", lost[0] if lost else None, found.end)
    else:
        gone = [
            Problem(TABLE, f"lies in {shard.path}, which has no {name}", _key_of(name))
            if intact
            else Problem(shard.path, f"{name} is missing", _key_of(name))
            for name in missing
        ]
        yield from _some(gone, "members missing")
    extra: list[Problem] = []
    counted: Counter[str] = Counter()
    kept: list[Member] = []
    for member in found.members:
        counted[member.name] += 1
        if member.name not in known:
            what = f"holds {member.name}, which no tile of the table names"
            extra.append(
                Problem(TABLE, f"{shard.path} {what}", _key_of(member.name))
                if intact
                else Problem(shard.path, what, None, member.head)
            )
        elif counted[member.name] > 1:
            extra.append(Problem(shard.path, f"holds {member.name} again", _key_of(member.name), member.head))
        else:
            kept.append(member)
    yield from _some(extra, "members too many")
    order = [name for name in names if name in present]
    swapped = [
        Problem(TABLE, f"its row is where {shard.path} holds {member.name}", _key_of(name))
        if intact
        else Problem(shard.path, f"{member.name} where {name} is expected", _key_of(member.name), member.head)
        for member, name in zip(kept, order, strict=True)
        if member.name != name
    ]
    yield from _some(swapped, "members in another order")


def _some(problems: list[Problem], kind: str) -> Iterator[Problem]:
    """Of many of one file, the first, and how many more."""
    yield from problems[:_MOST]
    if len(problems) > _MOST:
        yield Problem(problems[0].file, f"{len(problems) - _MOST} more {kind}")


def _positions(found: Walk, shard: Shard, expected: _Expected, intact: bool) -> Iterator[Problem]:
    """Arrays that do not begin where the table says."""
    at = {member.name: member.data for member in found.members}
    wrong: list[tuple[str, str, int, int]] = []
    for row in expected.rows:
        kinds = [("npy", "offset", len(expected.array))]
        if "label_hash" in row:
            kinds.append(("labels.npy", "label_offset", len(expected.labels)))
        for kind, column, header in kinds:
            data = at.get(f"{row['key']}.{kind}")
            if data is not None and data + header != row[column]:
                wrong.append((row["key"], column, row[column], data + header))
    if intact:
        problems = [
            Problem(TABLE, f"{column} {said}, in {shard.path} it is {is_at}", key) for key, column, said, is_at in wrong
        ]
        yield from _some(problems, "offsets that are wrong")
    elif wrong:
        key, column, said, is_at = wrong[0]
        kind = "labels" if column == "label_offset" else "pixels"
        yield Problem(
            shard.path,
            f"its {kind} begin here, by {is_at - said:+d} bytes off the table's {column}; "
            f"{len(wrong)} arrays are not where readers look for them",
            key,
            is_at,
        )


def _retarred(foreign: list[int], shard: Shard, moved: list[Problem]) -> Problem:
    off = "; tiles lie elsewhere than the table says: readers would take wrong bytes" if moved else ""
    told = f"written anew by another program: {len(foreign)} headers are not those of sarsense{off}"
    return Problem(
        shard.path, f"{told}; restore it, or `sarsense build --reshard` makes the shards anew", None, foreign[0]
    )


def _tail(data: memoryview, found: Walk, shard: Shard) -> Iterator[Problem]:
    """What fills up blocks and the archive is zeros."""
    for member in found.members:
        filling = bytes(data[member.data + member.size : member.end])
        if filling.strip(b"\0"):
            byte = member.data + member.size + _first_nonzero(filling)
            yield Problem(shard.path, f"not zeros behind {member.name}", _key_of(member.name), byte)
    if found.stop is None:
        rest = bytes(data[found.end :])
        if rest.strip(b"\0"):
            yield Problem(shard.path, "not zeros behind the last member", None, found.end + _first_nonzero(rest))


def _first_nonzero(data: bytes) -> int:
    return next(at for at, value in enumerate(data) if value)


# -------------------------------------------------------------------------------------------------------- contents


def _contents(data: memoryview, found: Walk, shard: Shard, expected: _Expected, intact: bool) -> Iterator[Problem]:
    members: dict[str, Member] = {}
    for member in found.members:
        members.setdefault(member.name, member)
    hashes = {row["content_hash"]: row["key"] for row in expected.rows}
    for row in expected.rows:
        if (member := members.get(f"{row['key']}.npy")) is not None:
            yield from _array(data, member, row, shard, expected, intact, hashes)
        if (member := members.get(f"{row['key']}.json")) is not None:
            yield from _json(data, member, row, shard, expected, intact)
        if "label_hash" in row and (member := members.get(f"{row['key']}.labels.npy")) is not None:
            yield from _array(data, member, row, shard, expected, intact, {})


def _array(
    data: memoryview,
    member: Member,
    row: Mapping[str, Any],
    shard: Shard,
    expected: _Expected,
    intact: bool,
    hashes: Mapping[str, str],
) -> Iterator[Problem]:
    labels = member.name.endswith(".labels.npy")
    header = expected.labels if labels else expected.array
    kind, column = ("labels", "label_hash") if labels else ("pixels", "content_hash")
    wanted = expected.label_bytes if labels else expected.array_bytes
    key = row["key"]
    start = member.data + len(header)
    if (head := bytes(data[member.data : start])) != header:
        shape, dtype = (expected.shape[-2:], "uint8") if labels else (expected.shape, expected.dtype.name)
        byte = member.data + first_difference(head, header)
        yield Problem(shard.path, f"{kind}: not a {dtype} array of shape {shape}", key, byte)
    if member.size != wanted:
        yield Problem(shard.path, f"{kind}: {member.size} bytes, expected {wanted}", key, member.data)
        return
    found = tile_hash(data[start : member.data + member.size])
    if found == row[column]:
        return
    if intact:
        yield Problem(TABLE, f"{column} {row[column][:12]}..., of its {kind} in {shard.path} {found[:12]}...", key)
    elif (other := hashes.get(found)) is not None:
        yield Problem(shard.path, f"{kind} are those of tile {other}", key, start)
    else:
        end = member.data + member.size - 1
        yield Problem(shard.path, f"{kind} differ from the table's hash, somewhere up to byte {end}", key, start)


def _json(
    data: memoryview, member: Member, row: Mapping[str, Any], shard: Shard, expected: _Expected, intact: bool
) -> Iterator[Problem]:
    raw = bytes(data[member.data : member.data + member.size])
    told = _told(row, expected.bits)
    # of an intact shard it is enough that both say the same: its bytes are those that were written
    wanted = None if told is None or intact else sample_text(told)
    if raw == wanted:
        return
    byte = member.data + (0 if wanted is None else first_difference(raw, wanted))
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        yield Problem(shard.path, "its JSON does not parse", row["key"], byte)
        return
    if told is None or (intact and said == told):
        return
    if not isinstance(said, dict):
        yield Problem(shard.path, "its JSON is no object", row["key"], byte)
        return
    differing = [name for name in told if name in said and said[name] != told[name]]
    for name in differing:
        if intact:
            what = f"{name} {_short(told[name])}, its JSON in {shard.path} says {_short(said[name])}"
            yield Problem(TABLE, what, row["key"])
        else:
            what = f"its JSON says {name} {_short(said[name])}, the table {_short(told[name])}"
            yield Problem(shard.path, what, row["key"], byte)
    if not differing and not intact and told.keys() == said.keys():
        yield Problem(shard.path, "its JSON is not written as sarsense writes it", row["key"], byte)
    elif not differing and not intact:
        names = ", ".join(sorted(map(repr, told.keys() ^ said.keys())))
        yield Problem(shard.path, f"its JSON has other names than the table: {names[:200]}", row["key"], byte)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
