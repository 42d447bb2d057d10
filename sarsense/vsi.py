"""Rasters over the network, through GDAL's /vsi: opened again and read again where GDAL gives up.

GDAL asks again when a request is refused for now or cannot be made (`sarsense.stores`), but not when a body ends early.
Then a read fails, which is told, or a part of the header is left out, which is only warned of: a scene would lose its
place on the ground, or its mask. So everything of the header is looked at as soon as a raster is open, and a warning of
this kind is a failure.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError, RasterioIOError

from sarsense import remote
from sarsense.errors import NOT_FETCHED, RemoteError
from sarsense.stores import CREDENTIALS, HTTP, LONGEST_SECONDS, gdal_settings, is_refused, patience

T = TypeVar("T")

_HTTP_TOLD = re.compile(r"HTTP (error|response) code", re.IGNORECASE)
"""what GDAL says of requests: of the network and the hour, not of the raster"""
_LEFT_OUT = re.compile(r"IO error|[Rr]ead error|[Cc]annot read|[Ee]rror reading|[Ff]ailed to read|TIFFReadDirectory")
_ABSENT = re.compile(r"does not exist|No such file|NoSuchKey|NoSuchBucket|response code: (404|410)")
_MASKS_SOUGHT = 3
"""a .msk that GDAL did not take so often is none for it"""


class _IncompleteError(RasterioError):
    """Opened, but a part of it did not come."""


class RemoteRaster:
    """A raster over the network: what rasterio's dataset is, whose reads are done again where they fail.

    messages: the list that collects GDAL's warnings; those of the network are taken out of it. Opened inside the
    rasterio.Env of `remote_settings`. RemoteError where it cannot be opened or read.
    """

    def __init__(self, path: str, messages: list[str]) -> None:
        self._path, self._shown, self._messages = path, remote.address(path), messages
        self._dataset: Any = None
        self._masks_sought = 0
        self._again(self._open)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read(self, *arguments: Any, **options: Any) -> Any:
        return self._again(lambda: self._opened().read(*arguments, **options))

    def read_masks(self, *arguments: Any, **options: Any) -> Any:
        return self._again(lambda: self._opened().read_masks(*arguments, **options))

    def close(self) -> None:
        if self._dataset is not None:
            self._dataset.close()
            self._dataset = None

    def _opened(self) -> Any:
        if self._dataset is None:
            self._open()
        return self._dataset

    def _open(self) -> None:
        self._dataset = rasterio.open(self._path)
        # GDAL reads these when they are first asked for, and warns if it cannot
        for name in ("crs", "transform", "gcps", "rpcs", "nodata", "colorinterp", "mask_flag_enums", "descriptions"):
            getattr(self._dataset, name)
        self._dataset.tags()
        masked = any(MaskFlags.per_dataset in flags for flags in self._dataset.mask_flag_enums)
        if not masked and self._masks_sought < _MASKS_SOUGHT and _has_mask_file(self._path):
            self._masks_sought += 1
            raise _IncompleteError("its mask (.msk) was not read")

    def _again(self, call: Callable[[], T]) -> T:
        again, delay = patience()
        while True:
            before = len(self._messages)
            try:
                value = call()
                if told := [text for text in self._messages[before:] if _is_failure(text)]:
                    raise _IncompleteError(told[0])
                return value
            except (RasterioError, CPLE_BaseError) as error:
                self.close()
                reason = " ".join(str(error.__cause__ or error).split())
                if again <= 0 or is_refused(reason, self._shown) or _ABSENT.search(reason):
                    raise RasterioIOError(reason) from error
                again -= 1
                del self._messages[before:]
            finally:
                self._messages[before:] = [text for text in self._messages[before:] if not _HTTP_TOLD.search(text)]
            time.sleep(delay)
            delay = min(2 * delay, LONGEST_SECONDS)


def remote_settings(path: str) -> dict[str, str]:
    """GDAL's settings for a raster over the network."""
    settings = gdal_settings()
    if not _may_have_sidecars(path):
        settings["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR"
    return settings


def remote_error(path: str, reason: str) -> RemoteError:
    """Why a raster over the network could not be read, in GDAL's words, and what to do."""
    shown = remote.address(path)
    if is_refused(reason, shown):
        return RemoteError(f"{NOT_FETCHED}: {CREDENTIALS} ({reason})")
    return RemoteError(f"{NOT_FETCHED}: {reason}; check its address {shown}")


def _is_failure(text: str) -> bool:
    return bool(_LEFT_OUT.search(text)) and not _HTTP_TOLD.search(text)


def _may_have_sidecars(path: str) -> bool:
    """Whether something beside a raster may be part of it for GDAL: mask, world file, RPC. Where not, GDAL does not
    list its folder, which costs a request a raster. Nothing beside a signed URL has its signature."""
    if path.startswith(HTTP):
        return "?" not in path
    name = PurePosixPath(path).name
    endings = {PurePosixPath(other).suffix.lower() for other in _names(path) if other != name}
    return bool(endings - {PurePosixPath(name).suffix.lower()})


def _has_mask_file(path: str) -> bool:
    return not path.startswith(HTTP) and f"{PurePosixPath(path).name}.msk" in _names(path)


def _names(path: str) -> list[str]:
    return remote.names_in(path, ".") or []
