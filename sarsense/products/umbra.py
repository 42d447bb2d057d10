"""Umbra GEC: relative amplitude without calibration. It is never called sigma nought.

Name: `2023-10-03-02-10-49_UMBRA-05_GEC.tif`; polarisation from NAME_METADATA.json beside it, where it is there.
Source: Umbra Canopy documentation, "GEC" (8-bit, not radiometrically calibrated).
"""

from __future__ import annotations

import re

from sarsense.products import Facts, iso_time
from sarsense.remote import plain_path
from sarsense.sidecars import find_beside, read_json_beside

_NAME = re.compile(r"^(?P<start>\d{4}(-\d\d){5})_UMBRA-\d+_GEC")


def recognise(path: str) -> Facts | None:
    match = _NAME.match(plain_path(path).stem)
    if match is None:
        return None
    beside = find_beside(path, ".", f"{match[0].removesuffix('_GEC')}_METADATA.json")
    collects = read_json_beside(beside).get("collects") if beside else None
    first = collects[0] if isinstance(collects, list) and collects and isinstance(collects[0], dict) else {}
    polarisations = first.get("polarizations")
    return Facts(
        product="Umbra GEC",
        sensor="Umbra",
        mode="spotlight",
        datetime=iso_time(match["start"]),
        polarisation=polarisations[0] if isinstance(polarisations, list) and len(polarisations) == 1 else None,
        unit="amplitude",
        quantity="uncalibrated",
        evidence="Umbra GEC: relative amplitude, uncalibrated",
    )
