"""Country-scale regions and seasons of places: grid zones of the Military Grid Reference System, quarters of a year.

Grid zone designators need no boundary data and no names that anyone disputes: 6 degrees of longitude by 8 of latitude
(NGA.STND.0037, Universal Grids and the Transverse Mercator and Polar Stereographic Map Projections, 2014, chapter 3),
wider or narrower around Norway and Svalbard, and four polar zones. Knows arrays of degrees only, no corpus.
"""

from __future__ import annotations

import numpy as np

BANDS = "CDEFGHJKLMNPQRSTUVWX"
"""of latitude, from 80 S on, 8 degrees each; X has 12"""
UNKNOWN = "unknown"
SEASONS = ("winter", "spring", "summer", "autumn")
_X = 19
_SVALBARD = ((31, 0, 9), (33, 9, 21), (35, 21, 33), (37, 33, 42))
"""zone, west and east in degrees, in band X; 32, 34 and 36 are not there"""


def numbered_zones(lon: np.ndarray, lat: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Grid zone designators (as '33U', 'Z') of places: those that there are, and which of them (int, (n,)) each has;
    'unknown' where a coordinate is not finite.

    lon, lat: float (n,), degrees; longitudes may pass 180. Zones hold their west and south edges, X holds 84 N too.
    """
    known = np.isfinite(lon) & np.isfinite(lat)
    lon = (np.where(known, lon, 0.0) + 180.0) % 360.0 - 180.0
    lat = np.where(known, lat, 0.0)
    band = np.clip((lat + 80.0) // 8.0, 0, _X).astype(np.int64)
    zone = ((lon + 180.0) // 6.0).astype(np.int64) + 1
    zone = np.where((BANDS.index("V") == band) & (lon >= 3.0) & (lon < 12.0), 32, zone)  # the west coast of Norway
    for number, west, east in _SVALBARD:
        zone = np.where((band == _X) & (lon >= west) & (lon < east), number, zone)
    west_half = (lon < 0.0) & (lon > -180.0)
    # one number a designator, so that half a million places make few strings
    code = zone * len(BANDS) + band
    code = np.where(lat > 84.0, np.where(west_half, -1, -2), np.where(lat < -80.0, np.where(west_half, -3, -4), code))
    numbers, place = np.unique(np.where(known, code, -5), return_inverse=True)
    return [_designator(int(number)) for number in numbers], place.reshape(lon.shape)


def _designator(code: int) -> str:
    if code < 0:
        return ("Y", "Z", "A", "B", UNKNOWN)[-code - 1]
    zone, band = divmod(code, len(BANDS))
    return f"{zone}{BANDS[band]}"


def zone_extent(designator: str) -> tuple[float, float, float, float]:
    """West, south, east and north of a grid zone in degrees; (-180, 84, 0, 90) for Y and so on. ValueError if none."""
    polar = {"Y": (-180, 84, 0, 90), "Z": (0, 84, 180, 90), "A": (-180, -90, 0, -80), "B": (0, -90, 180, -80)}
    if designator in polar:
        return polar[designator]
    number, letter = int(designator[:-1]), designator[-1]
    band = BANDS.index(letter)
    south, north = 8 * band - 80, 8 * band - 72 + 4 * (band == _X)
    west, east = 6 * number - 186, 6 * number - 180
    if letter == "V" and number in (31, 32):
        west, east = (0, 3) if number == 31 else (3, 12)
    if letter == "X" and 31 <= number <= 37:
        west, east = next((west, east) for zone, west, east in _SVALBARD if zone == number)
    return west, south, east, north


def numbered_seasons(month: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Meteorological season of each place and month, its own hemisphere's: December to February is winter north of the
    equator and on it, summer south of it. Numbers of SEASONS (int, (n,)); len(SEASONS) where month is 0 or lat is not
    finite.

    month: int (n,), 1 to 12, 0 unknown. lat: float (n,), degrees. Between the tropics it names a quarter of the year.
    """
    quarter = (np.asarray(month) % 12) // 3
    quarter = np.where(lat < 0, (quarter + 2) % 4, quarter)
    known = (np.asarray(month) > 0) & np.isfinite(lat)
    return np.where(known, quarter, len(SEASONS))
