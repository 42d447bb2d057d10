"""TerraSAR-X, TanDEM-X and PAZ as GeoTIFF: beta nought = calFactor DN^2, sigma nought = beta nought sin(incidence).

NAME/IMAGEDATA/IMAGE_HH_....tif with NAME/NAME.xml. The incidence angle is the plane through those of the scene's
corners and centre (ellipsoid). The noise term NEBN is not taken off.
Source: TerraSAR-X Level 1b Product Format Specification (TX-GS-DD-3307); Radiometric Calibration of TerraSAR-X Data
(TSXX-ITD-TN-0049).
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np

from sarsense.calibration import Calibration, Rows, RowTables
from sarsense.errors import SceneError
from sarsense.products import Facts, iso_time
from sarsense.radiometry import Quantity
from sarsense.remote import plain_path
from sarsense.sidecars import find_beside, number_of, read_xml, text_of

_NAME = re.compile(r"^IMAGE_(?P<pol>HH|HV|VH|VV)_", re.IGNORECASE)


def recognise(path: str, quantity: Quantity | None) -> Facts | None:
    match = _NAME.match(plain_path(path).stem)
    annotation = find_beside(path, "..", "[tp][dsa][xz]1_sar_*.xml") if match else None
    if match is None or annotation is None:
        return None
    root = read_xml(annotation)
    polarisation = match["pol"].upper()
    factor = _factor(root, polarisation, annotation)
    kind = text_of(root, "productVariant") or "L1b"
    calibrations: dict[Quantity | None, Calibration] = {
        "beta0": Calibration(gain=factor),
        "sigma0": Calibration(gain=factor, tables="terrasar", files=(annotation,)),
    }
    wanted = quantity if quantity in calibrations else None
    return Facts(
        product=f"TerraSAR-X {kind}",
        sensor={"T": "TSX", "P": "PAZ"}[plain_path(annotation).name[0].upper()],
        mode=text_of(root, "imagingMode") or "unknown",
        datetime=iso_time((text_of(root, "timeUTC") or "")[:19]),
        polarisation=polarisation,
        unit="amplitude",
        quantity=wanted or "uncalibrated",
        calibration=calibrations.get(wanted),
        evidence=f"calFactor {factor:g}" + (", incidence from the scene's corners" if wanted == "sigma0" else ""),
    )


def load_tables(calibration: Calibration) -> RowTables:
    """The sine of the incidence angle at each pixel."""
    path = calibration.files[0]
    points = []
    for element in read_xml(path).iter():
        if element.tag in ("sceneCornerCoord", "sceneCenterCoord"):
            points.append([number_of(element, tag, path) for tag in ("refRow", "refColumn", "incidenceAngle")])
    if len(points) < 3:
        raise SceneError(f"its metadata {path}: incidence angles of the scene's corners expected; fetch it again")
    row, col, angle = np.array(points).T
    plane, *_ = np.linalg.lstsq(np.stack([np.ones_like(row), row, col], axis=1), angle, rcond=None)

    def rows(first: int, last: int, width: int) -> Rows:
        degrees = plane[0] + plane[1] * np.arange(first, last)[:, None] + plane[2] * np.arange(width)
        return Rows(np.sin(np.radians(degrees)).astype(np.float32))

    return rows


def _factor(root: ElementTree.Element, polarisation: str, path: str) -> float:
    constants = [e for e in root.iter("calibrationConstant") if e.findtext("polLayer") in (polarisation, None)]
    if not constants:
        raise SceneError(f"its metadata {path}: no calibrationConstant of {polarisation}; fetch the product again")
    return number_of(constants[0], "calFactor", path)
