"""Shards of a remote corpus on a disk of this machine: whole, checked, at most so many bytes, shared by processes.

A file is named by the SHA-256 that the manifest gives its shard, and gets that name once its bytes are those: whatever
is there under its name is right, whoever fetched it, of whichever corpus. Ranks of a machine share the folder; a lock a
shard lets one of them fetch it while the others wait. Room is made by removing what was not used for the longest
time; who still reads such a file goes on reading it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sarsense import remote
from sarsense.errors import ShardError
from sarsense.places import RemotePath
from sarsense.shards import Shard
from sarsense.stores import LONGEST_SECONDS, patience

_FETCHED_AT_ONCE = 4
"""shards, ahead of their need"""


class BadShardError(ShardError):
    """A shard is not what the manifest says, however often it is fetched."""

    def __init__(self, message: str, shard: str) -> None:
        super().__init__(message)
        self.shard = shard


class ShardCache:
    """Shards of one corpus. Safe to use from several threads; several processes may share the folder."""

    def __init__(self, root: RemotePath, folder: Path, limit: int) -> None:
        """folder: made where it is not there; limit: bytes. ShardError where it cannot be written."""
        self._root, self._folder, self._limit = root, folder, limit
        self._maps: OrderedDict[str, np.ndarray] = OrderedDict()
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._ahead = ThreadPoolExecutor(_FETCHED_AT_ONCE, thread_name_prefix="sarsense-shards")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._owned("room"):
                for part in folder.glob("*.part"):
                    if not _lives(part):
                        part.unlink(missing_ok=True)
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
        while True:
            try:
                with self.fetch(shard).open("rb") as file:
                    found = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
                break
            except FileNotFoundError:  # another process has just made room
                continue
        with self._guard:
            self._maps[shard.sha256] = found
            # what is mapped takes room, also once its name is gone
            for name in [name for name in self._maps if not (self._folder / f"{name}.tar").exists()]:
                del self._maps[name]
        return found

    def fetch(self, shard: Shard) -> Path:
        """The file of a shard, fetched where it is not there. BadShardError where the store has another one, or none;
        RemoteError where it does not answer; ShardError where the disk is full."""
        path = self._folder / f"{shard.sha256}.tar"
        with self._owned(shard.sha256):
            if _size(path) == shard.bytes:
                with suppress(FileNotFoundError):
                    os.utime(path)  # used now
                return path
            path.unlink(missing_ok=True)  # of a machine that lost its power
            for stale in self._folder.glob(f"{shard.sha256}.*.part"):
                stale.unlink(missing_ok=True)  # of a process that was killed: nobody else has the lock
            part = self._folder / f"{shard.sha256}.{shard.bytes}.{os.getpid()}.part"
            try:
                self._make_room(shard.bytes, part)
                self._fetch_whole(shard, part)
                part.replace(path)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ShardError(
                    f"{self._folder}: {error.strerror} while fetching {shard.path}; free the disk, or give a smaller "
                    "--cache-gib"
                ) from error
            finally:
                part.unlink(missing_ok=True)
        return path

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
            except FileNotFoundError:
                fault = "missing, and the corpus has it; restore it"
            if again <= 0:
                raise BadShardError(f"{address}: {fault}", shard.path)
            again -= 1
            time.sleep(delay)
            delay = min(2 * delay, LONGEST_SECONDS)

    def _make_room(self, wanted: int, part: Path) -> None:
        """Remove what was used least recently until `wanted` bytes more are within the limit, and take them by an empty
        `part`, whose name tells others how many they are."""
        with self._owned("room"):
            there = []
            wanted += sum(int(path.suffixes[-3][1:]) for path in self._folder.glob("*.part"))
            part.touch()
            for path in self._folder.glob("*.tar"):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                there.append((stat.st_mtime_ns, stat.st_size, path))
            total = sum(size for _, size, _ in there) + wanted
            for _, size, path in sorted(there):
                if total <= self._limit:
                    return
                path.unlink(missing_ok=True)
                total -= size

    @contextmanager
    def _owned(self, name: str) -> Iterator[None]:
        """One thread of one process at a time."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock, (self._folder / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _lives(part: Path) -> bool:
    """Whether the process of this machine that fetches it is there."""
    try:
        os.kill(int(part.suffixes[-2][1:]), 0)
    except (ProcessLookupError, ValueError, IndexError):
        return False
    except PermissionError:
        return True
    return True
