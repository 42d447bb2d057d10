"""What the files of a provider say of a scene: one small module a provider, behind one function.

A product module has `recognise(path, ...) -> Facts | None`: facts read from names, tags and metadata, never guesses.
The first module that recognises a file speaks for it; `generic` speaks for all others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sarsense.calibration import Calibration
from sarsense.radiometry import Quantity, Unit


@dataclass(frozen=True)
class Facts:
    """What a product says of a raster; None where it says nothing."""

    product: str
    sensor: str = "unknown"
    mode: str = "unknown"
    datetime: str | None = None
    """ISO 8601, UTC, start of the acquisition"""
    polarisation: str | None = None
    unit: Unit | None = None
    quantity: Quantity | None = None
    scale_factor: float = 1.0
    """stored value / physical value"""
    looks: float | None = None
    """nominal number of looks"""
    evidence: str = ""
    """which name or tag says the unit"""
    calibration: Calibration | None = None
    """how digital numbers become `quantity`; None: the values are it, or nothing is known"""
    gcps: tuple[tuple[float, ...], ...] = ()
    """row, col, lon, lat of ground control points that the metadata hold, for rasters without georeferencing; rows are
    those of the joined image where there are `segments`"""
    segments: tuple[tuple[int, int], ...] = ()
    """rows first..last (exclusive) to join, a range a burst; empty: the raster is one image"""
    multilook: tuple[int, int] = (1, 1)
    """looks (azimuth, range) that make pixels about square on the ground, of single-look complex rasters"""
    despeckled: bool = False
    """the product says that its speckle was filtered already"""
    quadrature: bool = False
    """bands 1 and 2 are I and Q of one complex image"""


def iso_time(text: str) -> str | None:
    """20180716T004042, '2016-01-29 17:15:12', 2023-10-03-02-10-49 -> 2018-07-16T00:40:42Z; None if it is no time."""
    digits = re.sub(r"\D", "", text)
    if len(digits) != 14:
        return None
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}T{digits[8:10]}:{digits[10:12]}:{digits[12:]}Z"


def recognise(path: str, tags: Mapping[str, str], calibrate: Quantity | None = "sigma0") -> Facts:
    """The facts of the first product module that knows the raster at `path` (as GDAL opens it).

    `calibrate`: the convention wanted of products that deliver several; None: digital numbers as they are.
    """
    from sarsense.products import alos, capella, gaofen, generic, iceye, radarsat, rtc, sentinel1, terrasar, umbra

    return (
        rtc.recognise(path)
        or sentinel1.recognise(path, tags, calibrate)
        or capella.recognise(path, tags)
        or umbra.recognise(path)
        or iceye.recognise(path, tags)
        or terrasar.recognise(path, calibrate)
        or radarsat.recognise(path, calibrate)
        or alos.recognise(path)
        or gaofen.recognise(path)
        or generic.recognise(path, tags)
    )
