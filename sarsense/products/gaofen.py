"""Gaofen-3 level 2 as GeoTIFF: sigma nought = (DN x QualifyValue / 65535)^2 x 10^(-K / 10), each per polarisation.

QualifyValue and K (CalibrationConst) stand in NAME.meta.xml. Level 1A (I and Q, over 32767) keeps them in two
bands, which are not read as one complex band: it is refused. The wrong divisor is an error of 6.02 dB.
Source: GF-3 product format (CRESDA); the divisors as in ESA SNAP's Gaofen-3 reader.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath
from xml.etree import ElementTree

from sarsense.calibration import Calibration
from sarsense.errors import SceneError
from sarsense.products import Facts, iso_time
from sarsense.sidecars import find_beside, read_xml

_NAME = re.compile(
    r"^GF3[A-D]?_\w+?_(?P<mode>[A-Z0-9]+)_\d+_[EW][\d.]+_[NS][\d.]+_(?P<day>\d{8})_L(?P<level>1A|1B|2)_"
    r"(?P<pol>HH|HV|VH|VV)_"
)


def recognise(path: str) -> Facts | None:
    match = _NAME.match(PurePosixPath(path).name)
    if match is None:
        return None
    if match["level"] != "2":
        raise SceneError(
            f"Gaofen-3 level {match['level']}: I and Q in two bands are not read yet; take level 2, or make power of it"
        )
    beside = find_beside(path, ".", "*.meta.xml")
    facts = Facts(
        product="Gaofen-3 L2",
        sensor="GF3",
        mode=match["mode"],
        datetime=iso_time(f"{match['day']}T000000"),
        polarisation=match["pol"],
        unit="amplitude",
        quantity="uncalibrated",
        evidence="Gaofen-3 level 2 without QualifyValue and CalibrationConst beside it",
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
        calibration=Calibration(gain=(qualify / 65535.0) ** 2 * 10.0 ** (-constant / 10.0)),
        evidence=f"QualifyValue {qualify:g} over 65535, K {constant:g} dB",
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
