"""Shards of a remote corpus on a disk of this machine: whole, checked, at most so many bytes, shared by processes.

A file is named by the SHA-256 that the manifest gives its shard, and gets that name once its bytes are those: whatever
is there under its name is right, whoever fetched it, of whichever corpus. Ranks of a machine share the folder; a lock a
shard lets one of them fetch it while the others wait, and tells a file on its way from one that a killed process left.
Room is made by removing what was asked for the longest time ago; who still reads such a file goes on reading it,
and its bytes are free once nobody does. Files of other names are nobody's business here.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sarsense import remote
from sarsense.errors import BadShardError, ShardError
from sarsense.places import RemotePath
from sarsense.shards import Shard
from sarsense.stores import LONGEST_SECONDS, patience

_FETCHED_AT_ONCE = 4
"""shards, ahead of their need"""
_EVICTED_AT_MOST = 10
"""times that a shard is removed between its arrival and its first reading, before the limit is said to be too small"""
_WHOLE = re.compile(r"[0-9a-f]{64}\.tar")
_PART = re.compile(r"([0-9a-f]{64})\.(\d+)\.part")
"""sha256 and bytes of the shard that is on its way"""


class ShardCache:
    """Shards of one corpus. Safe to use from several threads; several processes may share the folder."""

    def __init__(
        self, root: RemotePath, folder: Path, limit: int, on_bad: Callable[[BadShardError], None] | None = None
    ) -> None:
        """folder: made where it is not there; limit: bytes; on_bad: told once of each shard that is found bad, by the
        thread that finds it. ShardError where the folder cannot be written."""
        self._root, self._folder, self._limit = root, folder, limit
        self._maps: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bad: dict[str, str] = {}
        """sha256 -> what is wrong: it is not fetched again and again"""
        self._on_bad = on_bad
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._ahead = ThreadPoolExecutor(_FETCHED_AT_ONCE, thread_name_prefix="sarsense-shards")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for part in _named(folder, _PART):
                self._remove_left(part)
        except OSError as error:
            raise ShardError(f"{folder}: cannot be written ({error.strerror}); choose another --cache") from error

    @property
    def limit(self) -> int:
        return self._limit

    def close(self) -> None:
        """Fetch nothing more ahead."""
        self._ahead.shutdown(wait=True, cancel_futures=True)

    def expect(self, shards: Sequence[Shard]) -> None:
        """Fetch these in the background, the first ones first; what goes wrong is said when they are read."""
        for shard in shards:
            self._ahead.submit(self._quietly, shard)

    def _quietly(self, shard: Shard) -> None:
        try:
            self.fetch(shard)
        except Exception:
            return  # told to who reads it

    def bytes_of(self, shard: Shard) -> np.ndarray:
        """All bytes of a shard, mapped into memory: uint8. Errors as of `fetch`."""
        with self._guard:
            if (found := self._maps.get(shard.sha256)) is not None:
                self._maps.move_to_end(shard.sha256)
                return found
        for _ in range(_EVICTED_AT_MOST):
            path = self.fetch(shard)
            try:
                with path.open("rb") as file:
                    found = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
                break
            except FileNotFoundError:  # another process has just made room
                continue
        else:
            raise ShardError(
                f"{self._folder}: {shard.path} was removed again each time before it could be read: --cache-gib is too "
                "small for all that use this folder at once; give more, or each run a --cache of its own"
            )
        with self._guard:
            self._maps[shard.sha256] = found
        return found

    def fetch(self, shard: Shard) -> Path:
        """The file of a shard, fetched where it is not there. BadShardError where the store has another one, or none;
        RemoteError where it does not answer; ShardError where the disk is full, or the folder gone."""
        path = self._folder / f"{shard.sha256}.tar"
        with self._owned(shard.sha256):
            if told := self._bad.get(shard.sha256):
                raise BadShardError(told, shard.path)
            if _size(path) == shard.bytes:
                with suppress(FileNotFoundError):
                    os.utime(path)  # used now
                return path
            path.unlink(missing_ok=True)  # of a machine that lost its power
            # nobody else has the lock: what is there under its name was left by a killed process
            part = self._folder / f"{shard.sha256}.{shard.bytes}.part"
            try:
                part.unlink(missing_ok=True)
                self._make_room(shard.bytes, part)
                self._fetch_whole(shard, part)
                part.replace(path)
            except BadShardError as error:
                self._bad[shard.sha256] = str(error)
                if self._on_bad is not None:
                    self._on_bad(error)
                raise
            except OSError as error:
                if not self._folder.is_dir():
                    raise self._gone() from error
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ShardError(
                    f"{self._folder}: {error.strerror} while fetching {shard.path}; free the disk, or give a smaller "
                    "--cache-gib"
                ) from error
            finally:
                part.unlink(missing_ok=True)
        self._forget_removed()
        return path

    def _forget_removed(self) -> None:
        """What is mapped takes room also once its name is gone: let go of it."""
        with self._guard:
            for name in [name for name in self._maps if not (self._folder / f"{name}.tar").exists()]:
                del self._maps[name]

    def _gone(self) -> ShardError:
        return ShardError(f"{self._folder}: the folder was removed while it was in use; run the same command again")

    def _fetch_whole(self, shard: Shard, part: Path) -> None:
        address = self._root / shard.path
        again, delay = patience()
        while True:
            try:
                remote.fetch(address.path, part)
                with part.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    os.fsync(file.fileno())  # its name will vouch for it
                if digest == shard.sha256:
                    return
                fault = (
                    f"{part.stat().st_size} bytes of sha256 {digest[:12]}..., the corpus says {shard.bytes} of "
                    f"{shard.sha256[:12]}...: damaged or replaced; run `sarsense shards verify`, restore it"
                )
            except FileNotFoundError as error:
                if not self._folder.is_dir():
                    raise self._gone() from error
                fault = "missing, and the corpus has it; restore it"
            if again <= 0:
                raise BadShardError(f"{address}: {fault}", shard.path)
            again -= 1
            time.sleep(delay)
            delay = min(2 * delay, LONGEST_SECONDS)

    def _make_room(self, wanted: int, part: Path) -> None:
        """Remove what was asked for the longest time ago until `wanted` bytes more are within the limit, and take them
        by an empty `part`, whose name tells others how many they are."""
        with self._owned("room"):
            wanted += sum(int(match[2]) for path in _named(self._folder, _PART) if (match := _PART.match(path.name)))
            part.touch()
            there = []
            for path in _named(self._folder, _WHOLE):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    there.append((stat.st_mtime_ns, stat.st_size, path))
            total = sum(size for _, size, _ in there) + wanted
            for _, size, path in sorted(there):
                if total <= self._limit:
                    return
                path.unlink(missing_ok=True)
                total -= size

    def _remove_left(self, part: Path) -> None:
        """Remove a part that nobody is fetching: its shard's lock is free."""
        with self._lock_file(part.name.partition(".")[0]).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            part.unlink(missing_ok=True)

    def _lock_file(self, name: str) -> Path:
        return self._folder / f".{name}.lock"

    @contextmanager
    def _owned(self, name: str) -> Iterator[None]:
        """One thread of one process at a time."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            try:
                file = self._lock_file(name).open("w")
            except FileNotFoundError as error:
                raise self._gone() from error
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Our files of a folder, in which there may be others."""
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
