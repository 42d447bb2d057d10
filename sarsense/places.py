"""A place where a corpus lies: a folder, or a prefix of a bucket (read-only: behind a URL), with the few methods of
pathlib.Path that corpora need.

Every request is done again where it fails for now. What is written goes to a local file first, and is there under its
name once it is whole, as `files.atomic_write` says.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from sarsense import remote
from sarsense.catalogue import gdal_path
from sarsense.errors import SettingError
from sarsense.stores import HTTP


@dataclass(frozen=True)
class RemotePath:
    """A file or folder of a store."""

    path: str
    """as GDAL has it"""
    work: Path
    """local folder: of the records of a build into this place, and of files on their way to it"""

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.path.rstrip('/')}/{name}", self.work)

    def __str__(self) -> str:
        return remote.address(self.path)

    def __lt__(self, other: RemotePath) -> bool:
        return self.path < other.path

    @property
    def name(self) -> str:
        return PurePosixPath(remote.address(self.path)).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return remote.exists(self.path)

    def is_dir(self) -> bool:
        return any(True for _ in self.iterdir())

    def iterdir(self) -> Iterator[RemotePath]:
        for name in remote.names_in(self.path, PurePosixPath(self.path).name, fresh=True) or ():
            yield self / name

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        return PurePosixPath(self.path).relative_to(other.path)

    def stat(self) -> SimpleNamespace:
        stamp = remote.stamp(self.path)
        if not stamp:
            raise FileNotFoundError(str(self))
        return SimpleNamespace(st_size=stamp[0])

    def read_bytes(self) -> bytes:
        return remote.read(self.path)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, size: int) -> bytes:
        return remote.read_range(self.path, start, size)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """To read, from memory: fetched once as long as it stays the same. For tables, not for shards."""
        if mode != "rb":
            raise ValueError(f"{self}: mode rb expected, {mode} found; atomic_write writes")
        return io.BytesIO(_content(self.path, tuple(remote.stamp(self.path))))

    def unlink(self, missing_ok: bool = False) -> None:
        remote.remove(self.path)

    def put(self, file: Path) -> None:
        """Send a local file here."""
        if self.path.startswith(HTTP):
            raise SettingError(f"{self}: https:// can be read, not written; give s3://, gs://, az:// or a folder")
        remote.send(file, self.path)


Place = Path | RemotePath


def place(text: str | Place, work: Path | None = None) -> Place:
    """The folder or remote prefix that is meant. work: see `RemotePath`; default: named by the address, in the current
    folder."""
    if not isinstance(text, str):
        return text
    if not remote.is_remote(path := gdal_path(text, Path())):
        return Path(text)
    path = path.rstrip("/")
    name = hashlib.sha256(path.encode()).hexdigest()[:12]
    return RemotePath(path, (work or Path(f".sarsense-build-{name}")).absolute())


def readable(path: Place) -> Path | io.BytesIO:
    """What readers of Parquet take."""
    return path if isinstance(path, Path) else path.open()


def work_folder(root: Place) -> Path:
    """Where a build into this place keeps its records: a local folder, seen by all workers."""
    return root / ".build" if isinstance(root, Path) else root.work


def shard_files(root: Place) -> dict[str, Place]:
    """Relative path -> place of what lies in the folders of the shards."""
    return {
        f"{split}/{path.name}": path
        for split in ("train", "val")
        if isinstance(root, RemotePath) or (root / split).is_dir()
        for path in (root / split).iterdir()
    }


def shard_sizes(root: Place, names: list[str]) -> dict[str, int | None]:
    """Bytes of each of the files; None: not there. Of a bucket by one list."""
    if isinstance(root, RemotePath) and not root.path.startswith(HTTP):
        found = remote.files_under(root.path)
        stamps = {name: found.get((root / name).path) for name in names}
        return {name: None if not stamp else int(stamp[0]) for name, stamp in stamps.items()}
    return {name: (root / name).stat().st_size if (root / name).is_file() else None for name in names}


@contextmanager
def local_copy(path: Place) -> Iterator[Path]:
    """A file as one of this machine: itself, or fetched for as long as the block lasts. FileNotFoundError."""
    if isinstance(path, Path):
        yield path
        return
    with scratch(path) as folder:
        copy = folder / path.name
        remote.fetch(path.path, copy)
        yield copy


@contextmanager
def scratch(path: RemotePath) -> Iterator[Path]:
    """A folder of one's own for files on their way: in the work folder where there is one."""
    folder = tempfile.mkdtemp(prefix="way-", dir=path.work if path.work.is_dir() else None)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=4)
def _content(path: str, _stamp: tuple[int | str, ...]) -> bytes:
    return remote.read(path)
