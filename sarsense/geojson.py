"""Files of GeoJSON (RFC 7946): names and geometries, in lon and lat; anything else is refused in a sentence.

Edges are straight in lon and lat; what passes 180 degrees is cut there, or written past it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from sarsense.errors import SettingError

_LONLAT = r"(CRS84|EPSG:+4326)['\"}\s]*$"


def read_geojson(path: Path) -> tuple[tuple[str, ...], list[BaseGeometry]]:
    """The names and the geometries of a FeatureCollection, a Feature or a geometry, at least one. The name is its
    feature's `name`, `id` or `title`, or 'feature k', counted from 1. Raises SettingError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SettingError(f"{path}: expected a GeoJSON file, found no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise SettingError(f"{path}: expected GeoJSON, found what cannot be read as JSON ({error})") from error
    if isinstance(content, dict) and "crs" in content and not re.search(_LONLAT, str(content["crs"])):
        raise SettingError(
            f"{path}: expected longitudes and latitudes of WGS 84, found crs {content['crs']}; reproject it, with "
            "ogr2ogr -t_srs EPSG:4326 -lco RFC7946=YES"
        )
    found = [(name, _geometry(path, name, value)) for name, value in _features(path, content)]
    if not found:
        raise SettingError(f"{path}: expected features, found a FeatureCollection without features")
    names, geometries = zip(*found, strict=True)
    return names, list(geometries)


def _features(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection":
        features = content.get("features")
        if not isinstance(features, list):
            raise SettingError(f"{path}: expected a list of features, found {type(features).__name__}")
        for number, feature in enumerate(features, 1):
            if not isinstance(feature, dict) or feature.get("type") != "Feature":
                raise SettingError(f"{path}: feature {number}: expected a GeoJSON Feature, found {str(feature)[:60]}")
            yield _name(feature, number), feature.get("geometry")
    elif kind == "Feature":
        yield _name(content, 1), content.get("geometry")
    elif isinstance(content, dict) and ("coordinates" in content or "geometries" in content):
        yield "feature 1", content
    else:
        found = f"type '{kind}'" if kind else f"a JSON {type(content).__name__} without a type"
        raise SettingError(f"{path}: expected a GeoJSON FeatureCollection, Feature or geometry, found {found}")


def _name(feature: dict[str, Any], number: int) -> str:
    properties = feature.get("properties")
    said = properties if isinstance(properties, dict) else {}
    for value in (said.get("name"), said.get("id"), said.get("title"), feature.get("id")):
        if isinstance(value, str | int) and str(value):
            return str(value)
    return f"feature {number}"


def _geometry(path: Path, name: str, value: Any) -> BaseGeometry:
    try:
        geometry = shapely.force_2d(shape(value))
    except Exception as error:  # shapely raises what it comes upon: TypeError, KeyError, IndexError, GEOSException
        found = value.get("type", value) if isinstance(value, dict) else value
        raise SettingError(f"{path}: {name}: expected a GeoJSON geometry, found {str(found)[:60]}") from error
    points = shapely.get_coordinates(geometry)
    if not len(points):
        raise SettingError(f"{path}: {name}: expected a geometry with coordinates, found an empty one; remove it")
    bad = ~((np.abs(points[:, 0]) <= 540) & (np.abs(points[:, 1]) <= 90))
    if bad.any():
        found = points[bad][0].tolist()
        raise SettingError(f"{path}: {name}: expected lon and lat in degrees, found {found}; convert it to EPSG:4326")
    for line in lines(np.array([geometry], object))[1]:
        step = np.abs(np.diff(line[:, 0])).max(initial=0.0)
        if 180 < step < 360:
            raise SettingError(
                f"{path}: {name}: expected edges of at most 180 degrees of longitude, found one of {step:g}; "
                "cut the geometry at 180 degrees or write its longitudes past 180"
            )
    return geometry


def lines(geometries: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The geometry (int64) and the vertices (float64 (v, 2), one for a point) of each point, line and ring."""
    parts, owner = shapely.get_parts(geometries, return_index=True)
    while (shapely.get_type_id(parts) >= 4).any():  # collections may hold collections
        parts, inner = shapely.get_parts(parts, return_index=True)
        owner = owner[inner]
    polygon = shapely.get_type_id(parts) == 3
    rings, inner = shapely.get_rings(parts[polygon], return_index=True)
    owner = np.concatenate([owner[~polygon], owner[polygon][inner]])
    points, whose = shapely.get_coordinates(np.concatenate([parts[~polygon], rings]), return_index=True)
    return owner, np.split(points, np.searchsorted(whose, np.arange(1, len(owner))))
