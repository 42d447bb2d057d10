"""Object stores: how each is called, what the environment says of it, and how often it is asked again.

GDAL reads rasters, fsspec everything else. Users set one environment; here alone it is told to both.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar

from sarsense.errors import NOT_FETCHED, RemoteError, SceneError

T = TypeVar("T")

CREDENTIALS = "credentials expired, wrong or missing: renew them, then run the same command again"


@dataclass(frozen=True)
class Protocol:
    """A kind of store."""

    gdal: str
    """prefix of GDAL's paths"""
    extra: str
    """of this package: brings what fsspec needs"""


PROTOCOLS = {
    "s3": Protocol("/vsis3/", "s3"),
    "gs": Protocol("/vsigs/", "gcs"),
    "az": Protocol("/vsiaz/", "azure"),
}
"""by the scheme of their addresses, which is fsspec's name too"""
HTTP = "/vsicurl/"
LONGEST_SECONDS = 20.0
"""between two tries"""

_DEFAULTS = {
    # 429, 500, 502 to 504 and connections that cannot be made are asked again by GDAL itself. GDAL_HTTP_RETRY_CODES
    # stays unset: ALL asks 4 times for each sidecar that is not there (404), a list leaves out reset connections
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    # a body that stands still; no limit of the whole transfer (GDAL_HTTP_TIMEOUT), which a slow line would break
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    # nothing is kept of a file that was closed: neither what an object held that was replaced since, nor a "not there"
    # that was a failure
    "CPL_VSIL_CURL_NON_CACHED": ":".join([HTTP, *(protocol.gdal for protocol in PROTOCOLS.values())]),
}
"""GDAL's settings for what is remote, where the environment has no other. Those that are not here are GDAL's own:
read in whole rows, each byte of a raster is fetched once with them, tiled or in strips (docs/remote.md)"""


def gdal_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What GDAL is told in place of, and beside, the environment, to read what is remote."""
    settings = {name: value for name, value in _DEFAULTS.items() if name not in environment}
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint and "AWS_S3_ENDPOINT" not in environment:
        scheme, _, host = endpoint.rpartition("://")
        settings["AWS_S3_ENDPOINT"] = host.rstrip("/")
        settings["AWS_HTTPS"] = "NO" if scheme == "http" else "YES"
        # a store of one's own seldom has a host name for each bucket
        settings["AWS_VIRTUAL_HOSTING"] = environment.get("AWS_VIRTUAL_HOSTING", "FALSE")
    return settings


def fsspec_settings(scheme: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What fsspec's store of this scheme is told, so that it does what GDAL does with this environment."""
    settings: dict[str, Any] = {"use_listings_cache": False}  # a list of yesterday is no list
    if scheme == "s3":
        # `patiently` and s3fs ask again: botocore within them would do so a hundred times
        settings["config_kwargs"] = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 20,
            "read_timeout": still_seconds(),
        }
        if environment.get("AWS_S3_ENDPOINT") and not {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & environment.keys():
            plain = "http" if environment.get("AWS_HTTPS", "YES").upper() in ("NO", "FALSE", "OFF") else "https"
            settings["endpoint_url"] = f"{plain}://{environment['AWS_S3_ENDPOINT']}"
        if environment.get("AWS_REQUEST_PAYER") == "requester":
            settings["requester_pays"] = True
    if environment.get({"s3": "AWS_NO_SIGN_REQUEST", "gs": "GS_NO_SIGN_REQUEST"}.get(scheme, ""), "").upper() in (
        "YES",
        "TRUE",
        "ON",
    ):
        settings |= {"anon": True} if scheme == "s3" else {"token": "anon"}
    return settings


_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""failures that no store is to blame for"""
_refusals = 0
"""how often a store said no: after that it is connected to anew, with credentials that may have been renewed"""


def filesystem(scheme: str) -> Any:
    """fsspec's filesystem of a scheme; one for all calls with the same environment, until a store refuses us.
    SceneError where it needs more packages."""
    told = tuple(
        sorted(
            item
            for item in os.environ.items()
            if item[0].startswith(("AWS_", "GS_", "GOOGLE_", "AZURE_", "GDAL_HTTP_"))
        )
    )
    return _connected(scheme, told, _refusals)


@cache
def _connected(scheme: str, _told: tuple[tuple[str, str], ...], _refused: int) -> Any:
    try:
        import fsspec

        store = fsspec.filesystem(scheme, skip_instance_cache=True, **fsspec_settings(scheme))
        store.retries = max(1, patience()[0])  # of s3fs: a part of an upload is sent again, not all of it
        return store
    except ImportError as error:
        extra = PROTOCOLS[scheme].extra
        raise SceneError(f"{scheme}:// needs more packages: pip install 'sarsense[{extra}]'") from error


def still_seconds() -> float:
    """For which an answer may stand still before it is given up."""
    return float({**_DEFAULTS, **os.environ}["GDAL_HTTP_LOW_SPEED_TIME"])


def patience() -> tuple[int, float]:
    """How often what failed is done again, and the seconds before the first time: doubled from time to time, up to
    `LONGEST_SECONDS`."""
    told = {**_DEFAULTS, **os.environ}
    return int(told["GDAL_HTTP_MAX_RETRY"]), float(told["GDAL_HTTP_RETRY_DELAY"])


def patiently(call: Callable[[], T], shown: str) -> T:
    """What `call` returns; again after failures that may pass. FileNotFoundError where it is not there, RemoteError,
    with the address `shown`, where it is refused or fails for long."""
    again, delay = patience()
    while True:
        try:
            return call()
        except (FileNotFoundError, SceneError):
            raise
        except Exception as error:  # each store raises its own
            if isinstance(error, OSError) and error.errno in _OWN_DISK:
                raise
            if is_refused(error, shown):
                global _refusals
                _refusals += 1
                raise RemoteError(f"{NOT_FETCHED}: {shown}: {CREDENTIALS} ({_said(error)})") from error
            if again <= 0:
                raise RemoteError(f"{NOT_FETCHED}: {shown}: {_said(error)}") from error
            again -= 1
        time.sleep(delay)
        delay = min(2 * delay, LONGEST_SECONDS)


_REFUSALS = (
    "credential",  # NoCredentialsError, "Unable to locate credentials", DefaultCredentialsError
    "expired",
    "access key",
    "signature",
    "AWS_SECRET_ACCESS_KEY",
    "accessdenied",
    "access denied",
    "forbidden",
    "authenticat",
    "authoriz",
)


def is_refused(error: BaseException | str, shown: str) -> bool:
    """Whether a store said no, and will say no again: its own error, or GDAL's words, about the address `shown`, whose
    own words do not count."""
    if isinstance(error, PermissionError):
        return True
    text = error if isinstance(error, str) else f"{type(error).__name__} {error}"
    for own in (shown, *PurePosixPath(shown).parts):
        text = text.replace(own, "")
    return any(word.lower() in text.lower() for word in _REFUSALS)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
