"""Atomic writes: a file is whole under its name, or it is not there."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from sarsense.places import Place, scratch

_FLUSH_BYTES = 16 * 2**20
_OPEN_FILES, _READ_AHEAD = 64, 8
"""of `read_parts`: files, parts"""


@contextmanager
def atomic_write(path: Place, read_soon: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`, else remove it. Of a remote
    one, a local file, which is sent.

    No two writers have one temporary name, be they threads, or processes of one number on two machines. An OSError
    names `path`, not the temporary. read_soon: else memory is not filled with what was written.
    """
    if not isinstance(path, Path):
        with scratch(path) as folder:
            with (folder / path.name).open("wb") as file:
                yield file
            path.put(folder / path.name)
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    created = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            created = True
            with _Flushed(file, read_soon) as flushed:
                yield flushed  # type: ignore[reportReturnType]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if created:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


class _Flushed:
    """A file whose bytes are sent to the disk while more are made: a thread flushes what was written so far, so that
    little is left to wait for at the end.

    What nobody reads soon is dropped from the page cache at once: pages that are used again and again cost a quarter of
    fresh ones (0.25 in place of 0.6 to 3 ns a byte), and what else is there may stay.
    """

    def __init__(self, file: BinaryIO, read_soon: bool) -> None:
        self._file, self._read_soon, self._ahead = file, read_soon, 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def write(self, data: Any) -> int:
        written = self._file.write(data)
        self._ahead += written
        if self._ahead >= _FLUSH_BYTES and (self._pending is None or self._pending.done()):
            self._settle()
            self._pool = self._pool or ThreadPoolExecutor(1)
            self._file.flush()
            self._pending, self._ahead = self._pool.submit(self._flush, self._file.fileno()), 0
        return written

    def _flush(self, descriptor: int) -> None:
        os.fdatasync(descriptor)
        if not self._read_soon and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Flushed:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        if kind is None:
            self._settle()


def read_parts(parts: Sequence[tuple[str, int, int]]) -> Iterator[memoryview]:
    """The bytes of parts of files (path, first byte, length), one after the other; each holds until the next.

    The next ones are asked for ahead, so that a disk that is slow to find them is not waited for; what was read is
    dropped from the page cache, since it is read once. OSError where a file ends before.
    """
    opened: OrderedDict[str, int] = OrderedDict()

    def descriptor(path: str) -> int:
        if path not in opened and len(opened) == _OPEN_FILES:
            os.close(opened.popitem(last=False)[1])
        opened[path] = opened.pop(path, -1) if path in opened else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return opened[path]

    def advise(part: tuple[str, int, int], advice: str) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor(part[0]), part[1], part[2], getattr(os, advice))

    buffer = memoryview(bytearray(max((size for _, _, size in parts), default=0)))
    try:
        for part in parts[:_READ_AHEAD]:
            advise(part, "POSIX_FADV_WILLNEED")
        for number, (path, start, size) in enumerate(parts):
            for part in parts[number + _READ_AHEAD : number + _READ_AHEAD + 1]:
                advise(part, "POSIX_FADV_WILLNEED")
            if os.preadv(descriptor(path), [buffer[:size]], start) != size:
                raise OSError(errno.EIO, f"ends before byte {start + size}", path)
            yield buffer[:size]
            advise(parts[number], "POSIX_FADV_DONTNEED")
    finally:
        for number in opened.values():
            os.close(number)


def write_json(path: Place, value: Any) -> None:
    """Write `value` as JSON with sorted keys and a final newline: same value, same bytes."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Place) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow table as it lies in memory: the same table, the same bytes."""
    with atomic_write(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def as_bytes(table: pa.Table) -> pa.Buffer:
    """A table as `write_table` writes it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def read_table(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
