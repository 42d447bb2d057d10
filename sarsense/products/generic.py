"""Any GeoTIFF: what its tags say. Also the tags that `sarsense simulate` writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from sarsense.products import Facts

_MATRIX_ELEMENT = re.compile(r"^[CT](\d)(\d)(_real|_imag)?$", re.IGNORECASE)


def recognise(path: str, tags: Mapping[str, str]) -> Facts:
    stem = PurePosixPath(path).stem
    looks = tags.get("LOOKS")
    matrix = _MATRIX_ELEMENT.match(stem)
    diagonal = matrix is not None and matrix[1] == matrix[2]
    return Facts(
        product="PolSAR matrix" if matrix else "generic",
        sensor=tags.get("SENSOR", "unknown"),
        mode=tags.get("MODE", "unknown"),
        datetime=tags.get("ACQUISITION_DATETIME"),
        # the diagonal of a covariance or coherency matrix is a mean power (PolSARpro naming: C11, T22, ...)
        unit="power" if diagonal else None,
        quantity="backscatter" if diagonal else None,
        looks=float(looks) if looks and re.fullmatch(r"\d+(\.\d+)?", looks) else None,
        evidence=f"name {stem}: diagonal of a matrix" if diagonal else "",
    )
