"""Lists of scenes as a SOURCE: a STAC item or item collection (JSON), stac-geoparquet, or a plain table (CSV, Parquet)
with a column `path` and, where wanted, what is known of each file.

What a table says is the user's word and beats the product; what STAC says fills in what the product does not say.
STAC extensions read: sar, sat, raster (https://stac-extensions.github.io).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from sarsense.config import STATED_UNITS, StatedUnit
from sarsense.errors import SarsenseError
from sarsense.radiometry import POLARISATIONS
from sarsense.stores import HTTP, PROTOCOLS

CATALOGUE_SUFFIXES = frozenset([".json", ".geojson", ".csv", ".parquet", ".geoparquet"])
_REMOTE = {f"{scheme}://": protocol.gdal for scheme, protocol in PROTOCOLS.items()}
_REMOTE |= {"https://": f"{HTTP}https://", "http://": f"{HTTP}http://"}
_NO_DATA_ROLES = frozenset(["thumbnail", "overview", "metadata", "mask", "data-mask", "calibration", "noise", "visual"])
_RASTER_ENDINGS = (".tif", ".tiff", ".vrt", ".jp2")
_PLATFORMS = {"sentinel-1": "S1", "capella": "Capella", "umbra": "Umbra", "iceye": "ICEYE", "alos": "PALSAR"}


@dataclass(frozen=True)
class Stated:
    """What a list says of a raster; None where it says nothing."""

    sensor: str | None = None
    mode: str | None = None
    datetime: str | None = None
    polarisation: str | None = None
    unit: StatedUnit | None = None
    looks: float | None = None
    orbit_direction: str | None = None
    """ascending or descending"""
    explicit: bool = False
    """the user's own words: they beat the product"""


@dataclass(frozen=True)
class Listed:
    """A raster that a list names."""

    path: str
    """as GDAL opens it"""
    relative: str
    stated: Stated


def read_catalogue(path: Path) -> list[Listed]:
    """The rasters that a list names, in its order. SarsenseError, with the file named, where it is no such list."""
    try:
        if path.suffix.lower() in (".json", ".geojson"):
            return _stac(json.loads(path.read_text()), path)
        rows = _rows(path)
    except (OSError, ValueError) as error:
        raise SarsenseError(f"{path}: cannot be read as a list of scenes: {error}") from error
    if rows and "assets" in rows[0]:
        return [listed for row in rows for listed in _item({**row, "properties": row}, path)]
    return [_table_row(row, path, number) for number, row in enumerate(rows, 1)]


def gdal_path(href: str, base: Path) -> str:
    """What GDAL opens for a URL, an absolute path, or a path relative to the list in `base`."""
    for prefix, virtual in _REMOTE.items():
        if href.startswith(prefix):
            return virtual + href.removeprefix(prefix)
    plain = href.removeprefix("file://")
    return plain if plain.startswith("/vsi") else str((base / plain).resolve())


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [dict(row) for row in csv.DictReader(file)]
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def _table_row(row: Mapping[str, Any], path: Path, number: int) -> Listed:
    href = row.get("path") or row.get("href")
    if not href:
        raise SarsenseError(
            f"{path}: row {number} has no 'path'; expected a column path (or href), and any of "
            + ", ".join(field.name for field in fields(Stated) if field.name != "explicit")
        )
    said = {field.name: row.get(field.name) or None for field in fields(Stated) if field.name != "explicit"}
    unit = said["unit"]
    if unit is not None and unit not in STATED_UNITS:
        raise SarsenseError(f"{path}: row {number}: unit '{unit}'; expected power, amplitude, db or dn")
    try:
        looks = None if said["looks"] is None else float(said["looks"])
    except ValueError:
        raise SarsenseError(f"{path}: row {number}: looks '{said['looks']}'; expected a number") from None
    stated = Stated(**{**said, "looks": looks, "datetime": _text(said["datetime"]), "explicit": True})
    return Listed(gdal_path(str(href), path.parent), _relative(str(href)), stated)


def _stac(value: Any, path: Path) -> list[Listed]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "FeatureCollection":
        return [listed for item in value.get("features", []) for listed in _item(item, path)]
    if kind == "Feature":
        return _item(value, path)
    raise SarsenseError(
        f"{path}: a STAC item or item collection expected (type Feature or FeatureCollection), type {kind!r} found"
    )


def _item(item: Mapping[str, Any], path: Path) -> list[Listed]:
    """The SAR rasters among the assets of an item."""
    assets = item.get("assets")
    if not isinstance(assets, dict):
        raise SarsenseError(f"{path}: item {item.get('id')!r} has no assets; expected a STAC item")
    properties = item.get("properties") or {}
    listed = []
    for key, asset in sorted(assets.items()):
        if not isinstance(asset, dict) or not _is_raster(asset):
            continue
        href = str(asset["href"])
        name = PurePosixPath(href.partition("?")[0]).name
        stated = _stated(properties, key, asset)
        listed.append(Listed(gdal_path(href, path.parent), f"{item.get('id', path.stem)}/{name}", stated))
    return listed


def _is_raster(asset: Mapping[str, Any]) -> bool:
    href = str(asset.get("href") or "").partition("?")[0].lower()
    roles = set(asset.get("roles") or ())
    return bool(href) and href.endswith(_RASTER_ENDINGS) and not roles & _NO_DATA_ROLES


def _stated(properties: Mapping[str, Any], key: str, asset: Mapping[str, Any]) -> Stated:
    platform = str(properties.get("platform") or properties.get("constellation") or "")
    sensors = [short for word, short in _PLATFORMS.items() if platform.lower().startswith(word)]
    polarisations = asset.get("sar:polarizations") or (
        [key.upper()] if key.upper() in POLARISATIONS else properties.get("sar:polarizations") or []
    )
    bands = asset.get("raster:bands") or [{}]
    unit = str(bands[0].get("unit") or "").lower()
    looks = properties.get("sar:looks_equivalent_number")
    return Stated(
        sensor=sensors[0] if sensors else platform or None,
        mode=properties.get("sar:instrument_mode"),
        datetime=_text(properties.get("datetime") or properties.get("start_datetime")),
        polarisation=polarisations[0] if len(polarisations) == 1 else None,
        unit="db" if unit in ("db", "decibel") else None,
        looks=float(looks) if looks else None,
        orbit_direction=properties.get("sat:orbit_state"),
    )


def _text(value: Any) -> str | None:
    """ISO 8601 of a text or of a Parquet time stamp."""
    if value is None:
        return None
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if hasattr(value, "strftime") else str(value)


def _relative(href: str) -> str:
    """The name under which a row counts: its path without what depends on the machine or, in the signature of a URL, on
    the hour."""
    scheme, _, rest = href.partition("://")
    parts: Iterable[str] = PurePosixPath(rest.partition("?")[0] if rest else scheme).parts
    return "/".join(part for part in parts if part not in ("/", "..", "."))
