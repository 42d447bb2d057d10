"""Any GeoTIFF: what its tags say (those that `sarsense simulate` writes, too), else the words of its name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sarsense.products import Facts, iso_time
from sarsense.remote import plain_path

_MATRIX_ELEMENT = re.compile(r"^[CT](\d)(\d)(_real|_imag)?$", re.IGNORECASE)
_SENSORS = {
    "S1": "S1", "S1A": "S1", "S1B": "S1", "S1C": "S1", "S1D": "S1", "CSK": "CSK", "CSG": "CSG", "TSX": "TSX",
    "TDX": "TSX", "PAZ": "PAZ", "RS1": "RS1", "RS2": "RS2", "RCM": "RCM", "ALOS": "PALSAR",
    "ALOS2": "PALSAR", "GF3": "GF3", "ERS1": "ERS", "ERS2": "ERS", "ASAR": "ENVISAT", "NISAR": "NISAR",
}  # fmt: skip
"""words of names that say which sensor; as the product modules call them"""
_SENTINEL1_MODES = ("IW", "EW", "SM", "WV")
_TIME = re.compile(r"(?<!\d)\d{8}T\d{6}(?!\d)")


def recognise(path: str, tags: Mapping[str, str]) -> Facts:
    stem = plain_path(path).stem
    looks = tags.get("LOOKS")
    said = [word.upper() for word in re.split(r"[^A-Za-z0-9]+", stem)]
    sensor = next((_SENSORS[word] for word in said if word in _SENSORS), "unknown")
    mode = next((word for word in said if word in _SENTINEL1_MODES), "unknown") if sensor == "S1" else "unknown"
    time = _TIME.search(stem)
    matrix = _MATRIX_ELEMENT.match(stem)
    diagonal = matrix is not None and matrix[1] == matrix[2]
    return Facts(
        product="PolSAR matrix" if matrix else "generic",
        sensor=tags.get("SENSOR", sensor),
        mode=tags.get("MODE", mode),
        datetime=tags.get("ACQUISITION_DATETIME") or (iso_time(time[0]) if time else None),
        # the diagonal of a covariance or coherency matrix is a mean power (PolSARpro naming: C11, T22, ...)
        unit="power" if diagonal else None,
        quantity="backscatter" if diagonal else None,
        looks=float(looks) if looks and re.fullmatch(r"\d+(\.\d+)?", looks) else None,
        evidence=f"name {stem}: diagonal of a matrix" if diagonal else "",
    )
