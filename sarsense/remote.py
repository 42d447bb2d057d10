"""Small files over the network, by the paths that GDAL has for them: the metadata beside remote rasters, lists, and
what tells one state of a file from another.

https through the standard library; buckets through fsspec, with the extra of their store.
"""

from __future__ import annotations

import http.client
import posixpath
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sarsense.errors import NOT_FETCHED, RemoteError, SarsenseError
from sarsense.stores import CREDENTIALS, HTTP, PROTOCOLS, filesystem, patiently, still_seconds

Stamp = list[int | str]
"""size in bytes, and what else tells one state of a file from another: its time in ns, of a remote one its ETag, or
generation, or time as text. Plain values: it is written as JSON"""

_FRESH_SECONDS = 60.0
"""for which a list of a folder is believed: of a folder of thousands of scenes it is asked for once, not for each"""
_VERSIONS = ("ETag", "etag", "generation", "LastModified", "last_modified", "updated", "created")

_listed: dict[str, tuple[float, dict[str, Stamp]]] = {}
"""GDAL's path of a folder -> when it was listed (monotonic), name -> stamp of its files"""


def is_remote(path: str) -> bool:
    return path.startswith((HTTP, *(protocol.gdal for protocol in PROTOCOLS.values())))


def plain_path(path: str) -> PurePosixPath:
    """A raster's path as its name is read: without the signature of a signed URL."""
    return PurePosixPath(path.partition("?")[0] if path.startswith(HTTP) else path)


def address(path: str) -> str:
    """A path of GDAL as people write it, without the signature of a signed URL."""
    if path.startswith(HTTP):
        return path.removeprefix(HTTP).partition("?")[0]
    scheme, protocol = _protocol(path)
    return f"{scheme}://{path.removeprefix(protocol)}"


def beside(path: str, folder: str, name: str) -> str:
    """GDAL's path of a file called `name` in `folder`, relative to the folder of `path`; with its signature."""
    plain, mark, signature = path.partition("?")
    prefix, _, rest = plain.removeprefix(HTTP).partition("://") if plain.startswith(HTTP) else ("", "", plain)
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(rest), folder, name))
    return f"{HTTP}{prefix}://{joined}{mark}{signature}" if prefix else joined


def names_in(path: str, folder: str, fresh: bool = False) -> list[str] | None:
    """Sorted names of the files of a folder beside `path`; None where the store cannot list (https). At most a minute
    old, or of now."""
    if path.startswith(HTTP):
        return None
    whole = beside(path, folder, "")
    if fresh:
        _listed.pop(whole, None)
    return sorted(_list(whole))


def listed_stamp(path: str) -> Stamp:
    """Stamp of a file as its folder's list has it, at most a minute old; https: as `stamp`. Empty: not there."""
    return stamp(path) if path.startswith(HTTP) else _list(posixpath.dirname(path)).get(posixpath.basename(path), [])


def stamp(path: str) -> Stamp:
    """Size and version of a file as it is now; empty where it is not there. RemoteError where nobody says."""
    try:
        if path.startswith(HTTP):
            return _http_stamp(path)
        store, url = _store(path)
        facts = patiently(lambda: store.info(url), url)
        return [] if facts.get("type") == "directory" else _stamp(facts)
    except FileNotFoundError:
        return []


def files_under(path: str) -> dict[str, Stamp]:
    """GDAL's paths of the files under a prefix of a bucket, sorted, each with its stamp; the file itself where it is
    one; empty where there is nothing. One list for all. SarsenseError where the store does not answer."""
    store, url = _store(path)
    _, prefix = _protocol(path)
    try:
        found: Mapping[str, Any] = patiently(lambda: store.find(url, detail=True), url)
    except FileNotFoundError as error:
        raise SarsenseError(f"{url}: no such bucket or prefix ({error}); check its name and the endpoint") from error
    files = {f"{prefix}{name.lstrip('/')}": _stamp(found[name]) for name in sorted(found)}
    if path not in files:
        folders: dict[str, dict[str, Stamp]] = {path: {}}
        for name, facts in files.items():
            folders.setdefault(posixpath.dirname(name), {})[posixpath.basename(name)] = facts
        now = time.monotonic()
        _listed.update({folder: (now, names) for folder, names in folders.items()})
    return files


def exists(path: str) -> bool:
    """Whether a file is there. RemoteError where the network does not say."""
    return bool(stamp(path))


def read(path: str) -> bytes:
    """The bytes of a small file. RemoteError where it could not be fetched; FileNotFoundError where it is not there."""
    if path.startswith(HTTP):
        return _ask(path, {})[0]
    store, url = _store(path)
    return bytes(patiently(lambda: store.cat_file(url), url))


def read_range(path: str, start: int, size: int) -> bytes:
    """`size` bytes of a file from byte `start` on; fewer where it ends before. Errors as of `read`."""
    if path.startswith(HTTP):
        return _ask(path, {"Range": f"bytes={start}-{start + size - 1}"}, size)[0]
    store, url = _store(path)
    return bytes(patiently(lambda: store.cat_file(url, start=start, end=start + size), url))


def fetch(path: str, file: Path) -> None:
    """Copy a file to this machine. Errors as of `read`."""
    if path.startswith(HTTP):
        file.write_bytes(read(path))
        return
    store, url = _store(path)
    patiently(lambda: store.get_file(url, str(file)), url)


def send(file: Path, path: str) -> None:
    """Copy a file of this machine to a store: there whole, or not at all. RemoteError where that cannot be done."""
    store, url = _store(path)
    size = file.stat().st_size

    def put() -> None:
        store.put_file(str(file), url)
        if (found := int(store.info(url)["size"])) != size:
            raise OSError(f"{found} bytes arrived of {size}")

    try:
        patiently(put, url)
    except FileNotFoundError as error:
        raise RemoteError(f"{url}: no such bucket ({error}); check its name and the endpoint") from error


def remove(path: str) -> None:
    """Remove a file of a store, where it is there."""
    store, url = _store(path)
    with suppress(FileNotFoundError):
        patiently(lambda: store.rm_file(url), url)


def _list(folder: str) -> dict[str, Stamp]:
    when, names = _listed.get(folder, (0.0, None))
    if names is None or time.monotonic() - when > _FRESH_SECONDS:
        store, url = _store(folder)
        try:
            found = patiently(lambda: store.ls(url, detail=True), url)
        except FileNotFoundError:
            found = []
        names = {posixpath.basename(facts["name"].rstrip("/")): _stamp(facts) for facts in found}
        _listed[folder] = (time.monotonic(), names)
    return names


def _stamp(facts: Mapping[str, Any]) -> Stamp:
    version = next((facts[name] for name in _VERSIONS if facts.get(name)), "")
    return [int(facts.get("size") or 0), str(version).strip('"')]


def _http_stamp(path: str) -> Stamp:
    _, headers = _ask(path, {"Range": "bytes=0-0"}, 1)
    total = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    version = headers.get("ETag") or headers.get("Last-Modified") or ""
    return [int(total) if total.isdigit() else 0, version.strip('"')]


def _ask(path: str, headers: dict[str, str], size: int | None = None) -> tuple[bytes, Mapping[str, str]]:
    """Body, or its first `size` bytes, and headers of a GET: not HEAD, which URLs that were signed for GET refuse."""
    shown = address(path)
    request = urllib.request.Request(path.removeprefix(HTTP), headers=headers)

    def get() -> tuple[bytes, Mapping[str, str]]:
        try:
            with urllib.request.urlopen(request, timeout=still_seconds()) as answer:
                if "Range" in headers and size is not None and size > 1 and answer.status != 206:
                    raise RemoteError(f"{NOT_FETCHED}: {shown}: its server gives whole files only; copy it here first")
                body = answer.read(size)
                if (told := answer.headers.get("Content-Length", "")).isdigit() and len(body) < min(
                    int(told), len(body) + 1 if size is None else size
                ):
                    raise ConnectionError(f"{len(body)} bytes of {told} came")
                return body, answer.headers
        except urllib.error.HTTPError as error:
            # some stores hide by 403 what is not there
            if error.code in (403, 404, 410) and not _is_expired(error):
                raise FileNotFoundError(shown) from error
            if error.code in (401, 403):
                raise RemoteError(f"{NOT_FETCHED}: {shown}: {CREDENTIALS} ({error})") from error
            if error.code == 416:  # of an empty file there is no first byte
                return b"", {"Content-Length": "0"}
            if error.code < 500 and error.code != 429:
                raise RemoteError(f"{NOT_FETCHED}: {shown}: {error}") from error
            raise

    return patiently(get, shown)


def _is_expired(error: urllib.error.HTTPError) -> bool:
    """Whether a store says of a signed URL that its time is over, or that it is not well signed."""
    if error.code != 403:
        return False
    try:
        said = error.read(4096).lower()
    except (OSError, http.client.HTTPException):
        return False
    return any(word in said for word in (b"expired", b"signature", b"authenticat"))


def _protocol(path: str) -> tuple[str, str]:
    return next((scheme, found.gdal) for scheme, found in PROTOCOLS.items() if path.startswith(found.gdal))


def _store(path: str) -> tuple[Any, str]:
    """fsspec's filesystem, and the address in it."""
    return filesystem(_protocol(path)[0]), address(path)
