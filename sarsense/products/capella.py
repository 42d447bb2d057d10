"""Capella GEO, GEC and SLC: JSON in the TIFF's description, or beside it as NAME_extended.json.

backscatter = (scale_factor |DN|)^2: the factor is one of amplitude, and `radiometry` says the convention.
Source: Capella Space SAR Products Format Specification 1.8, "image" metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sarsense.calibration import Calibration
from sarsense.products import Facts, iso_time
from sarsense.radiometry import Quantity
from sarsense.remote import plain_path
from sarsense.sidecars import find_beside, read_json_beside

_NAME = re.compile(r"^CAPELLA_C\d+_(?P<mode>SM|SP|SS|SL)_(?P<kind>GEO|GEC|SLC)_(?P<pol>HH|HV|VH|VV)_(?P<start>\d{14})")
_CONVENTIONS: dict[str, Quantity] = {"sigma_nought": "sigma0", "beta_nought": "beta0", "gamma_nought": "gamma0"}


def recognise(path: str, tags: Mapping[str, str]) -> Facts | None:
    match = _NAME.match(plain_path(path).stem)
    if match is None:
        return None
    image = _image(path, tags)
    factor, radiometry = image.get("scale_factor"), _CONVENTIONS.get(str(image.get("radiometry", "")))
    facts = Facts(
        product=f"Capella {match['kind']}",
        sensor="Capella",
        mode=match["mode"],
        datetime=iso_time(match["start"]),
        polarisation=match["pol"],
        unit="complex" if match["kind"] == "SLC" else "amplitude",
        quantity="uncalibrated",
        evidence="Capella name; no scale_factor and radiometry in its metadata",
    )
    if not isinstance(factor, int | float) or factor <= 0 or radiometry is None:
        return facts
    return replace(
        facts,
        quantity=radiometry,
        calibration=Calibration(gain=float(factor) ** 2),
        evidence=f"Capella metadata: scale_factor {factor:g}, {image['radiometry']}",
    )


def _image(path: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """The `collect.image` object of the metadata; empty where there are none."""
    metadata: Any = None
    description = tags.get("TIFFTAG_IMAGEDESCRIPTION", "")
    if description.lstrip().startswith("{"):
        try:
            metadata = json.loads(description)
        except ValueError:
            metadata = None
    beside = find_beside(path, ".", f"{plain_path(path).stem}_extended.json")
    if metadata is None and beside is not None:
        metadata = read_json_beside(beside)
    for key in ("collect", "image"):
        metadata = metadata.get(key) if isinstance(metadata, dict) else None
    return metadata if isinstance(metadata, dict) else {}
