"""ICEYE GRD as GeoTIFF: sigma nought = calibration_factor x DN^2 (the sine of the incidence angle is already in DN).

The factor stands in a tag of the TIFF, or in NAME.xml or NAME.json beside it. Scan modes are delivered uncalibrated.
Source: ICEYE product documentation, "Radiometric calibration".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sarsense.calibration import Calibration
from sarsense.products import Facts, iso_time
from sarsense.remote import plain_path
from sarsense.sidecars import find_beside, read_json_beside, read_xml, text_of

_NAME = re.compile(
    r"^ICEYE_X\d+_(QUICKLOOK_)?GRD_(?P<mode>[A-Z]+)_\d+_(?P<start>\d{8}T\d{6})|^ICEYE_.*_X\d+_.*GRD", re.IGNORECASE
)
_FACTOR = "calibration_factor"


def recognise(path: str, tags: Mapping[str, str]) -> Facts | None:
    stem = plain_path(path).stem
    match = _NAME.match(stem)
    if match is None:
        return None
    mode = (match["mode"] or "unknown").upper()
    factor = _positive(_factor(path, stem, tags))
    if mode.startswith("SC"):
        factor = None  # "scan mode products are not currently calibrated"
    return Facts(
        product="ICEYE GRD",
        sensor="ICEYE",
        mode=mode,
        datetime=iso_time(match["start"] or ""),
        polarisation="VV",  # of all ICEYE satellites
        unit="amplitude",
        quantity="sigma0" if factor else "uncalibrated",
        calibration=Calibration(gain=factor) if factor else None,
        evidence=f"ICEYE {_FACTOR} {factor:g}" if factor else f"ICEYE GRD without a {_FACTOR} that holds",
    )


def _factor(path: str, stem: str, tags: Mapping[str, str]) -> Any:
    for name, value in tags.items():
        if name.lower().endswith(_FACTOR):
            return value
    if xml := find_beside(path, ".", f"{stem}.xml"):
        return text_of(read_xml(xml), _FACTOR)
    if beside := find_beside(path, ".", f"{stem}.json"):
        return _find(read_json_beside(beside))
    return None


def _find(value: Any) -> Any:
    """The first value at any depth whose key ends in calibration_factor (STAC prefixes it)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if str(key).endswith(_FACTOR):
                return inner
    inner_values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for inner in inner_values if (found := _find(inner)) is not None), None)


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None
