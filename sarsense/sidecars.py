"""Files beside a raster, in a folder or inside a zip: annotation, calibration tables, JSON.

Paths are strings as GDAL takes them: `/data/x.tif`, or `/vsizip//data/x.zip/inside.tif`.
"""

from __future__ import annotations

import glob
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from sarsense import remote
from sarsense.errors import RemoteError, SceneError
from sarsense.remote import Stamp

ZIP_PREFIX = "/vsizip/"


def split_zip(path: str) -> tuple[Path, str] | None:
    """(zip file, name inside: empty for the zip itself) of a /vsizip/ path; None for a plain one."""
    if not path.startswith(ZIP_PREFIX):
        return None
    rest = path.removeprefix(ZIP_PREFIX)
    outer, inside, inner = rest.partition(".zip/")
    return Path(f"{outer}.zip" if inside else rest), inner


Consulted = list[list[Any]]
"""of each search beside a raster: raster, folder, pattern, the file found, and that file's stamp. Plain values."""

_consulted: ContextVar[Consulted | None] = ContextVar("consulted", default=None)


@contextmanager
def consulting() -> Iterator[Consulted]:
    """Collects what is looked for beside rasters meanwhile: what was found then tells whether a result still holds."""
    found: Consulted = []
    token = _consulted.set(found)
    try:
        yield found
    finally:
        _consulted.reset(token)


def still_holds(consulted: Consulted) -> bool | None:
    """Whether each search would find the same file again, unchanged; None where the network does not say."""
    try:
        return all(
            _find(path, folder, pattern) == found and _stamp_beside(found) == stamp
            for path, folder, pattern, found, stamp in consulted
        )
    except RemoteError:
        return None
    except (OSError, zipfile.BadZipFile):
        return False


def stamp_of(path: str) -> Stamp:
    """Size and time of a file (inside a zip: of the zip), of a remote one size and version; empty where there is none.

    RemoteError where the network does not say."""
    if remote.is_remote(path):
        return remote.stamp(path)
    zipped = split_zip(path)
    try:
        facts = (zipped[0] if zipped else Path(path)).stat()
    except OSError:
        return []
    return [facts.st_size, facts.st_mtime_ns]


def find_beside(path: str, folder: str, pattern: str) -> str | None:
    """The first file, by name, of `folder` (relative to the raster's own, as "../annotation") whose name matches
    `pattern` (fnmatch, in any case); None where there is none. SceneError where the folder cannot be listed."""
    try:
        found = _find(path, folder, pattern)
    except (OSError, zipfile.BadZipFile) as error:
        raise SceneError(f"the metadata beside it cannot be listed: {error}; fetch the product again") from error
    if (record := _consulted.get()) is not None:
        record.append([path, folder, pattern, found, _stamp_beside(found)])
    return found


def _stamp_beside(found: str | None) -> Stamp:
    """Of a file that was just found: of a remote one as its folder's list has it, which costs nothing more."""
    if found is None:
        return []
    return remote.listed_stamp(found) if remote.is_remote(found) else stamp_of(found)


def _find(path: str, folder: str, pattern: str) -> str | None:
    if remote.is_remote(path):
        names = remote.names_in(path, folder)
        if names is None:  # a name that is known can be asked for without a list
            exact = None if glob.has_magic(_unescaped(pattern)) else remote.beside(path, folder, _unescaped(pattern))
            return exact if exact is not None and remote.exists(exact) else None
        name = next((name for name in names if fnmatch(name.lower(), pattern.lower())), None)
        return None if name is None else remote.beside(path, folder, name)
    zipped = split_zip(path)
    if zipped is not None:
        archive, inner = zipped
        wanted = _normal(PurePosixPath(inner).parent / folder)
        listed = _zip_names(archive, archive.stat().st_mtime_ns)
        names = [PurePosixPath(name) for name in listed if _normal(PurePosixPath(name).parent) == wanted]
        found = sorted(str(name) for name in names if fnmatch(name.name.lower(), pattern.lower()))
        return f"{ZIP_PREFIX}{archive}/{found[0]}" if found else None
    place = Path(path).parent / folder
    if not place.is_dir():
        return None
    names = _names(place, place.stat().st_mtime_ns)
    matching = next((name for name in names if fnmatch(name.lower(), pattern.lower())), None)
    return None if matching is None else str(place / matching)


def read_xml(path: str) -> ElementTree.Element:
    """The root of an XML file; SceneError, with the file named, where it cannot be read."""
    try:
        return ElementTree.fromstring(_read(path))
    except (OSError, KeyError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise SceneError(f"its metadata {path} cannot be read: {error}; fetch the product again") from error


def read_json_beside(path: str) -> dict[str, Any]:
    """A JSON object; SceneError, with the file named, where it cannot be read."""
    try:
        value = json.loads(_read(path))
    except (OSError, KeyError, zipfile.BadZipFile, ValueError) as error:
        raise SceneError(f"its metadata {path} cannot be read: {error}; fetch the product again") from error
    if not isinstance(value, dict):
        raise SceneError(f"its metadata {path}: a JSON object expected, {type(value).__name__} found")
    return value


def text_of(root: ElementTree.Element, tag: str) -> str | None:
    """Text of the first element named `tag` at any depth, in any namespace (RADARSAT and RCM use them)."""
    for element in root.iter():
        if element.tag.rpartition("}")[2] == tag and element.text:
            return element.text.strip()
    return None


def number_of(root: ElementTree.Element, tag: str, path: str) -> float:
    """The number in the first element named `tag`; SceneError, with the file named, where there is none."""
    text = text_of(root, tag)
    try:
        return float(text or "")
    except ValueError:
        found = "nothing" if text is None else f"'{text[:40]}'"
        raise SceneError(f"its metadata {path}: a number expected in <{tag}>, {found} found") from None


def _unescaped(pattern: str) -> str:
    """A pattern without what `glob.escape` did to it."""
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


def _read(path: str) -> bytes:
    if remote.is_remote(path):
        return remote.read(path)
    zipped = split_zip(path)
    if zipped is None:
        return Path(path).read_bytes()
    with zipfile.ZipFile(zipped[0]) as archive:
        return archive.read(zipped[1])


@lru_cache(maxsize=16)
def _names(folder: Path, _mtime: int) -> tuple[str, ...]:
    """Sorted; read once a folder and state of it, not once a raster."""
    return tuple(sorted(child.name for child in folder.iterdir()))


@lru_cache(maxsize=16)
def _zip_names(archive: Path, _mtime: int) -> tuple[str, ...]:
    with zipfile.ZipFile(archive) as opened:
        return tuple(opened.namelist())


def _normal(path: PurePosixPath) -> tuple[str, ...]:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    return tuple(parts)
