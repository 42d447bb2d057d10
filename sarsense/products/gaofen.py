"""Gaofen-3 as GeoTIFF: sigma nought = (DN x QualifyValue / N)^2 x 10^(-K / 10), each per polarisation.

N is 65535 for level 2 (uint16 amplitude) and 32767 for level 1A (I and Q as int16 in two bands); the wrong one is an
error of 6.02 dB. QualifyValue and K (CalibrationConst) stand in NAME.meta.xml; level 1A is placed by its RPC.
Source: GF-3 product format (CRESDA); the divisors as in ESA SNAP's Gaofen-3 reader.
"""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

from sarsense.calibration import Calibration
from sarsense.errors import SceneError
from sarsense.products import Facts, iso_time
from sarsense.remote import plain_path
from sarsense.sidecars import find_beside, read_xml

_NAME = re.compile(
    r"^GF3[A-D]?_\w+?_(?P<mode>[A-Z0-9]+)_\d+_[EW][\d.]+_[NS][\d.]+_(?P<day>\d{8})_L(?P<level>1A|1B|2)_"
    r"(?P<pol>HH|HV|VH|VV)_"
)
_FULL_SCALE = {"1A": 32767.0, "2": 65535.0}
"""N by level"""


def recognise(path: str) -> Facts | None:
    match = _NAME.match(plain_path(path).name)
    if match is None:
        return None
    level = match["level"]
    if level not in _FULL_SCALE:
        raise SceneError(f"Gaofen-3 level {level}: its digital numbers are not documented; take level 1A or 2")
    beside = find_beside(path, ".", "*.meta.xml")
    facts = Facts(
        product=f"Gaofen-3 L{level}",
        sensor="GF3",
        mode=match["mode"],
        datetime=iso_time(f"{match['day']}T000000"),
        polarisation=match["pol"],
        unit="complex" if level == "1A" else "amplitude",
        quantity="uncalibrated",
        evidence=f"Gaofen-3 level {level} without QualifyValue and CalibrationConst beside it",
        quadrature=level == "1A",
    )
    if beside is None:
        return facts
    root = read_xml(beside)
    qualify, constant = (_of(root, tag, match["pol"], beside) for tag in ("QualifyValue", "CalibrationConst"))
    if qualify is None or constant is None:
        return facts
    return replace(
        facts,
        quantity="sigma0",
        calibration=Calibration(gain=(qualify / _FULL_SCALE[level]) ** 2 * 10.0 ** (-constant / 10.0)),
        evidence=f"QualifyValue {qualify:g} over {_FULL_SCALE[level]:g}, K {constant:g} dB",
    )


def _of(root: ElementTree.Element, tag: str, polarisation: str, path: str) -> float | None:
    """The number of a polarisation; None where it is NULL, as of polarisations that were not acquired."""
    element = next(root.iter(tag), None)
    text = (element.findtext(polarisation) if element is not None else None) or "NULL"
    if text.strip().upper() == "NULL":
        return None
    try:
        return float(text)
    except ValueError:
        raise SceneError(f"its metadata {path}: a number expected in <{tag}><{polarisation}>, '{text}' found") from None
