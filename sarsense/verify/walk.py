"""The members of a tar, read header by header, also where it is damaged: a header that no longer adds up is taken for
the one that the corpus says is there, so that what lies behind it can still be judged.

The format is USTAR as `sarsense.shards` writes it (POSIX 1003.1); of tars with other headers Python's tarfile tells the
members.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sarsense.shards import member_header

BLOCK = tarfile.BLOCKSIZE
_TEMPLATE = member_header("", 0)
_REST = (slice(100, 124), slice(136, 148), slice(156, 345), slice(500, 512))
"""of a header of ours: what is the same in all of them: mode, owner, time; kind, link, names; filling"""


@dataclass(frozen=True)
class Member:
    name: str
    head: int
    """byte of its header"""
    data: int
    """byte of its content"""
    size: int

    @property
    def end(self) -> int:
        """Byte behind its last block."""
        return self.data + self.size + -self.size % BLOCK


@dataclass
class Walk:
    """What was found in a tar."""

    members: list[Member] = field(default_factory=list)
    damaged: list[tuple[str, int]] = field(default_factory=list)
    """name that a header should have, and the first byte at which it is not what it should be"""
    foreign: list[tuple[str, int]] = field(default_factory=list)
    """members whose whole headers another program wrote, and the bytes of these"""
    end: int = 0
    """byte behind the last whole member"""
    stop: str | None = None
    """why nothing could be read from `end` on; None: the archive ends there as it should"""


def walk(data: memoryview, expected: Callable[[], Mapping[int, tuple[str, int]]], path: Path) -> Walk:
    """expected: makes, where it is needed, byte of a header -> name and size of the member that the corpus says begins
    there."""
    headers: Mapping[int, tuple[str, int]] | None = None
    found, position = Walk(), 0
    while True:
        found.end = position
        head = bytes(data[position : position + BLOCK])
        if len(head) < BLOCK:
            found.stop = f"ends at byte {len(data)}, without the end of an archive"
            return found
        if not any(head):
            headers = expected() if headers is None else headers
            if not _goes_on(data, position, headers):
                return found
        if not _adds_up(head):
            headers = expected() if headers is None else headers
            if position not in headers:
                found.stop = "no header of a tar where one should be"
                return found
            name, size = headers[position]
            found.damaged.append((name, position + first_difference(head, member_header(name, size))))
            member = Member(name, position, position + BLOCK, size)
        else:
            if head[156:157] not in (b"0", b"\0"):
                return _of_tarfile(found, data, path)
            name = _field(head[:100])
            if head[345]:
                name = f"{_field(head[345:500])}/{name}"
            try:
                member = Member(name, position, position + BLOCK, int(head[124:136].strip(b" \0") or b"0", 8))
            except ValueError:  # a size of more than 8 GiB, in another notation
                return _of_tarfile(found, data, path)
            if member.size < 0:  # octal digits with a sign: it would lead back
                found.stop = f"the header of {name} says a size of {member.size} bytes"
                return found
            if not _ours(head):
                found.foreign.append((name, position))
        if member.data + member.size > len(data):
            found.stop = f"ends at byte {len(data)}, inside {member.name}"
            return found
        found.members.append(member)
        position = member.end


def _of_tarfile(found: Walk, data: memoryview, path: Path) -> Walk:
    """Of a tar with headers that USTAR has not (PAX, GNU), or with members that are no files."""
    found.members.clear()
    found.foreign.clear()
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.size < 0:
                    raise tarfile.ReadError(f"the header of {info.name} says a size of {info.size} bytes")
                if info.offset + BLOCK != info.offset_data or not _ours(bytes(data[info.offset : info.offset_data])):
                    found.foreign.append((info.name, info.offset))
                size = info.size if info.isreg() else 0
                found.members.append(Member(info.name, info.offset, info.offset_data, size))
                found.end = tar.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        found.stop = str(error)
    return found


def _goes_on(data: memoryview, position: int, headers: Mapping[int, tuple[str, int]]) -> bool:
    """Whether a block of zeros was a header: one belongs there, and its content is there."""
    if position not in headers:
        return False
    start = position + BLOCK
    return bool(bytes(data[start : start + headers[position][1]]).strip(b"\0"))


def _ours(head: bytes) -> bool:
    return all(head[part] == _TEMPLATE[part] for part in _REST)


def _adds_up(head: bytes) -> bool:
    """Whether the header's checksum is that of its bytes."""
    said = head[148:156]
    try:
        return int(said.strip(b" \0"), 8) == sum(head) - sum(said) + 8 * 32
    except ValueError:
        return False


def _field(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def first_difference(one: bytes, other: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
