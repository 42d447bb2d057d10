"""Which files a SOURCE names: a file, a folder (searched to the bottom), a zip, a list, a glob. Every file counts.

The members of a zip count as files of their own: a zipped SAFE is read without unpacking.
"""

from __future__ import annotations

import glob
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from sarsense.catalogue import CATALOGUE_SUFFIXES, Stated, gdal_path, read_catalogue
from sarsense.errors import RemoteError, SarsenseError
from sarsense.remote import Stamp, files_under, is_remote, plain_path
from sarsense.sidecars import ZIP_PREFIX, split_zip, stamp_of

RASTER_SUFFIXES = frozenset(".tif .tiff .gtiff .png .jpg .jpeg .jp2 .bin .img .vrt .npy .nitf .ntf .h5 .nc".split())
_NEEDS_HEADER = frozenset([".bin", ".img"])
_ASKED_AT_ONCE = 16


@dataclass(frozen=True)
class SourceFile:
    """A file that a source holds."""

    path: str
    """absolute"""
    relative: str
    """inside its source, with forward slashes; where two sources have files of one such name, with as many of the
    folders above as tell them apart"""
    is_raster: bool
    """False for annotation, headers, read-me files and the like: what stands beside rasters"""
    stated: Stated = field(default_factory=Stated)
    """what the list says that names it"""
    listed: Stamp | None = field(default=None, compare=False)
    """its stamp, where the store's list told it together with its name"""

    def stamp(self) -> Stamp:
        """Size and time of the file, or what a store has in their place: what is kept of it by an earlier build holds
        as long as these stay, and the metadata that were consulted. Empty: it vanished, or cannot be asked for now."""
        try:
            return stamp_of(self.path) if self.listed is None else self.listed
        except RemoteError:
            return []


def stamps(files: list[SourceFile]) -> list[Stamp]:
    """Of each file; those for which a server has to be asked one by one are asked for some at once."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
        asked = {
            file.path: threads.submit(file.stamp) for file in files if file.listed is None and is_remote(file.path)
        }
        return [asked[file.path].result() if file.path in asked else file.stamp() for file in files]


def list_sources(sources: list[str], exclude: Path | None = None) -> list[SourceFile]:
    """All files of the sources, sorted by relative path, each once; what lies in `exclude` is left out.

    Raises SarsenseError where a source does not exist, or where no source holds a raster.
    """
    found: dict[str, SourceFile] = {}
    hidden = exclude.resolve() if exclude else None
    for source in sources:
        if Path(source).is_file() and Path(source).suffix.lower() in CATALOGUE_SUFFIXES:
            for listed in read_catalogue(Path(source)):
                found.setdefault(listed.path, SourceFile(listed.path, listed.relative, True, listed.stated))
            continue
        if (zipped := split_zip(source)) is not None:
            for file in _inside(source, *zipped):
                found.setdefault(file.path, file)
            continue
        if is_remote(virtual := gdal_path(source, Path())):
            for file in _remote_files(source, virtual):
                found.setdefault(file.path, file)
            continue
        root, paths = _expand(source)
        for path in paths:
            absolute = path.resolve()
            if hidden is not None and absolute.is_relative_to(hidden):
                continue
            relative = path.relative_to(root).as_posix()
            for file in _members(absolute, relative) or [SourceFile(str(absolute), relative, _is_raster(path))]:
                found.setdefault(file.path, file)
    files = sorted(_told_apart(list(found.values())), key=lambda file: (file.relative, file.path))
    if not any(file.is_raster for file in files):
        listed = ", ".join(sources)
        endings = " ".join(sorted(RASTER_SUFFIXES))
        raise SarsenseError(f"{listed}: no raster among {len(files)} files; expected files that end in {endings}")
    return files


def _told_apart(files: list[SourceFile]) -> list[SourceFile]:
    """The files, those of one relative path under longer ones: no two rows of scenes.parquet share a name."""
    names = Counter(file.relative for file in files)
    if len(names) == len(files):
        return files
    clashing = [file for file in files if names[file.relative] > 1]
    kept = [file for file in files if names[file.relative] == 1]
    taken = {file.relative for file in kept}
    more, longer = 1, [_longer(file, 1) for file in clashing]
    while len(set(longer) | taken) < len(files) and more < max(len(_parts(file)) for file in clashing):
        more += 1
        longer = [_longer(file, more) for file in clashing]
    return kept + [replace(file, relative=name) for file, name in zip(clashing, longer, strict=True)]


def _longer(file: SourceFile, more: int) -> str:
    """Relative path with up to `more` folders above it; the whole path where there are no more."""
    parts, inside = _parts(file), len(PurePosixPath(file.relative).parts)
    return "/".join(parts[max(0, len(parts) - inside - more) :])


def _parts(file: SourceFile) -> list[str]:
    return [part for part in PurePosixPath(file.path.removeprefix(ZIP_PREFIX)).parts if part != "/"]


def _expand(source: str) -> tuple[Path, list[Path]]:
    path = Path(source)
    if path.is_dir():
        return path, [p for p in path.rglob("*") if p.is_file()]
    if path.is_file():
        return path.parent, [path]
    matches = [Path(match) for match in glob.glob(source, recursive=True)]  # noqa: PTH207 (an absolute pattern is fine here)
    if not matches:
        raise SarsenseError(f"{source}: no such file or folder, and no file matches it as a pattern")
    parts = path.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part)) if matches else 0
    root = Path(*parts[:fixed]) if fixed else Path()
    files: list[Path] = []
    for match in matches:
        files += [p for p in match.rglob("*") if p.is_file()] if match.is_dir() else [match]
    return root, files


def _remote_files(source: str, virtual: str) -> list[SourceFile]:
    """A file behind a URL, or the files under a prefix of a bucket. https has no folders."""
    if virtual.startswith("/vsicurl/"):
        plain = plain_path(virtual)
        return [SourceFile(virtual, plain.name, _has_raster_suffix(Path(plain.name)))]
    top = virtual.rstrip("/")
    paths = files_under(top)
    if not paths:
        raise SarsenseError(f"{source}: nothing of this name in the store, or no right to list it")
    return [
        SourceFile(path, relative, _has_raster_suffix(Path(relative)), listed=listed)
        for path, listed in paths.items()
        for relative in [path.removeprefix(f"{top}/") if path != top else PurePosixPath(path).name]
    ]


def _inside(source: str, archive: Path, inner: str) -> list[SourceFile]:
    """The members of a zip that a /vsizip/ path means: one, or those of a folder; all where it ends at the zip."""
    inner = inner.rstrip("/")
    members = _members(archive.resolve(), archive.name) if archive.is_file() else []
    prefix = f"{archive.name}/{inner}" if inner else archive.name
    chosen = [file for file in members if file.relative == prefix or file.relative.startswith(f"{prefix}/")]
    if not chosen:
        raise SarsenseError(f"{source}: no such file or folder in a zip of that name")
    return chosen


def _members(archive: Path, relative: str) -> list[SourceFile]:
    """The files in a zip; none where it is no zip. A damaged zip stays a file, which is then refused as a raster."""
    if archive.suffix.lower() != ".zip":
        return []
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [member.filename for member in opened.infolist() if not member.is_dir()]
    except (OSError, zipfile.BadZipFile):
        return [SourceFile(str(archive), relative, True)]
    return [
        SourceFile(f"{ZIP_PREFIX}{archive}/{name}", f"{relative}/{name}", _has_raster_suffix(Path(name)))
        for name in names
    ]


def _has_raster_suffix(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in RASTER_SUFFIXES and suffix not in _NEEDS_HEADER


def _is_raster(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in _NEEDS_HEADER:
        return suffix == ".img" or path.with_suffix(".hdr").exists() or Path(f"{path}.hdr").exists()
    return _has_raster_suffix(path)
