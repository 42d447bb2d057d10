"""Radiometrically terrain-corrected Sentinel-1 that others made: ASF HyP3, OPERA RTC-S1, Planetary Computer.

ASF, "Sentinel-1 RTC Product Guide", naming convention: the first letter of e.g. `gpuned` is the convention (gamma,
sigma), the second the scale (power, decibel, amplitude), the fourth says whether speckle was filtered. OPERA RTC-S1
product specification and Planetary Computer `sentinel-1-rtc`: gamma nought, linear power.
"""

from __future__ import annotations

import re

from sarsense.errors import SceneError
from sarsense.products import Facts, iso_time
from sarsense.radiometry import POLARISATIONS, Quantity, Unit
from sarsense.remote import plain_path

_HYP3 = re.compile(
    r"^S1(?P<unit>[A-D])_(?P<mode>IW|EW|S\d)_(?P<start>\d{8}T\d{6})_\w{3}_RTC\d+_G_(?P<letters>[gs][pda][uw][nf]\w\w)_"
    r"[0-9A-F]{4}_(?P<layer>\w+)$"
)
_OPERA = re.compile(
    r"^OPERA_L2_RTC-S1_T\d{3}-\d{6}-(?P<mode>IW|EW)\d_(?P<start>\d{8}T\d{6})Z_.*_(?P<layer>VV|VH|HH|HV|mask)$"
)
_PLANETARY = re.compile(r"(?P<mode>iw|ew)-(?P<layer>vv|vh|hh|hv)\.rtc$", re.IGNORECASE)
_START = re.compile(r"_(\d{8}T\d{6})_")
_SCALES: dict[str, Unit] = {"p": "power", "d": "db", "a": "amplitude"}
_CONVENTIONS: dict[str, Quantity] = {"g": "gamma0", "s": "sigma0"}


def recognise(path: str) -> Facts | None:
    stem = plain_path(path).stem
    if match := _HYP3.match(stem):
        letters = match["letters"]
        despeckled = letters[3] == "f"
        return _facts(
            "HyP3 RTC",
            match,
            match["start"],
            unit=_SCALES[letters[1]],
            quantity=_CONVENTIONS[letters[0]],
            evidence=f"HyP3 name letters {letters}{', speckle filtered' if despeckled else ''}",
            despeckled=despeckled,
        )
    if match := _OPERA.match(stem):
        evidence = "OPERA RTC-S1: gamma nought, power"
        return _facts("OPERA RTC-S1", match, match["start"], unit="power", quantity="gamma0", evidence=evidence)
    if match := _PLANETARY.search(stem):
        evidence = "Planetary Computer sentinel-1-rtc: gamma nought, power"
        found = _START.search(str(plain_path(path)))  # in the name of a folder
        start = found[1] if found else ""
        return _facts("Planetary Computer RTC", match, start, unit="power", quantity="gamma0", evidence=evidence)
    return None


def _facts(
    product: str,
    match: re.Match[str],
    start: str,
    unit: Unit,
    quantity: Quantity,
    evidence: str,
    despeckled: bool = False,
) -> Facts:
    layer = match["layer"].upper()
    if layer not in POLARISATIONS:
        raise SceneError(f"not backscatter: layer '{match['layer']}' of a {product} product")
    return Facts(
        product=product,
        sensor="S1",
        mode=match["mode"].upper(),
        datetime=iso_time(start),
        polarisation=layer,
        unit=unit,
        quantity=quantity,
        evidence=evidence,
        despeckled=despeckled,
    )
