"""Small files over the network, by the paths that GDAL has for them: the metadata beside remote rasters.

https through the standard library; buckets through fsspec, with the extra of their store.
"""

from __future__ import annotations

import posixpath
import urllib.error
import urllib.request
from pathlib import PurePosixPath
from typing import Any

from sarsense.errors import NOT_FETCHED, RemoteError, SceneError

_STORES = {"/vsis3/": ("s3", "s3"), "/vsigs/": ("gs", "gcs"), "/vsiaz/": ("az", "azure")}
"""GDAL's prefix -> fsspec's protocol, and the extra of this package that brings it"""
_HTTP = "/vsicurl/"
_SECONDS = 60.0


def is_remote(path: str) -> bool:
    return path.startswith((_HTTP, *_STORES))


def plain_path(path: str) -> PurePosixPath:
    """A raster's path as its name is read: without the signature of a signed URL."""
    return PurePosixPath(path.partition("?")[0] if path.startswith(_HTTP) else path)


def beside(path: str, folder: str, name: str) -> str:
    """GDAL's path of a file called `name` in `folder`, relative to the folder of `path`; with its signature."""
    plain, mark, signature = path.partition("?")
    prefix, _, rest = plain.removeprefix(_HTTP).partition("://") if plain.startswith(_HTTP) else ("", "", plain)
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(rest), folder, name))
    return f"{_HTTP}{prefix}://{joined}{mark}{signature}" if prefix else joined


def names_in(path: str, folder: str) -> list[str] | None:
    """Sorted names of the files of a folder beside `path`; None where the store cannot list (https)."""
    if path.startswith(_HTTP):
        return None
    store, url = _store(beside(path, folder, ""))
    try:
        return sorted(posixpath.basename(name.rstrip("/")) for name in store.ls(url, detail=False))
    except FileNotFoundError:
        return []
    except Exception as error:  # each store raises its own
        raise RemoteError(f"{NOT_FETCHED}: {url}: {error}") from error


def files_under(path: str) -> list[str]:
    """GDAL's paths of the files under a prefix of a bucket, sorted; the file itself where it is one; empty where there
    is nothing. RemoteError where the store does not answer."""
    store, url = _store(path)
    prefix = next(prefix for prefix in _STORES if path.startswith(prefix))
    try:
        found = store.find(url)
    except FileNotFoundError:
        return []
    except Exception as error:
        raise RemoteError(f"{url}: {NOT_FETCHED}: {error}") from error
    return [f"{prefix}{name.lstrip('/')}" for name in sorted(found)]


def exists(path: str) -> bool:
    """Whether a file is there. RemoteError where the network does not say."""
    if not path.startswith(_HTTP):
        store, url = _store(path)
        try:
            return bool(store.exists(url))
        except Exception as error:
            raise RemoteError(f"{NOT_FETCHED}: {url}: {error}") from error
    try:
        _get(path, "HEAD")
    except FileNotFoundError:
        return False
    return True


def read(path: str) -> bytes:
    """The bytes of a small file. RemoteError where it could not be fetched; FileNotFoundError where it is not there."""
    if path.startswith(_HTTP):
        return _get(path, "GET")
    store, url = _store(path)
    try:
        return bytes(store.cat_file(url))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RemoteError(f"{NOT_FETCHED}: {url}: {error}") from error


def _get(path: str, method: str) -> bytes:
    url = path.removeprefix(_HTTP)
    shown = url.partition("?")[0]
    try:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):  # some stores hide by 403 what is not there
            raise FileNotFoundError(shown) from error
        raise RemoteError(f"{NOT_FETCHED}: {shown}: {error}") from error
    except OSError as error:
        raise RemoteError(f"{NOT_FETCHED}: {shown}: {error}") from error


def _store(path: str) -> tuple[Any, str]:
    prefix = next(prefix for prefix in _STORES if path.startswith(prefix))
    protocol, extra = _STORES[prefix]
    url = f"{protocol}://{path.removeprefix(prefix)}"
    try:
        import fsspec

        return fsspec.filesystem(protocol), url
    except ImportError as error:
        raise SceneError(f"metadata in {protocol}:// need more packages: pip install 'sarsense[{extra}]'") from error
