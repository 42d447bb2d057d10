"""RADARSAT-2 and RADARSAT Constellation (RCM) GeoTIFF: gains by range sample from lutSigma, lutBeta or lutGamma.

Detected: (DN^2 + offset) / gain; complex: |DN|^2 / gain^2. RADARSAT-2 has a gain for each column; RCM one at column
pixelFirstLutValue + k stepSize (either sign), linear between. RADARSAT-2: imagery_HH.tif, product.xml and lutSigma.xml
in one folder; RCM: imagery/..._HH.tif, calibration/lutSigma_HH.xml and metadata/product.xml.
Sources: RADARSAT-2 Product Format Definition (RN-RP-51-2713); RCM Image Product Format Definition, section 7.5.1.
"""

from __future__ import annotations

import re

import numpy as np

from sarsense.calibration import Calibration, Rows, RowTables
from sarsense.errors import SceneError
from sarsense.products import Facts, iso_time
from sarsense.radiometry import Quantity
from sarsense.remote import plain_path
from sarsense.sidecars import find_beside, number_of, read_xml, text_of

_RADARSAT2 = re.compile(r"^imagery_(?P<pol>HH|HV|VH|VV)$", re.IGNORECASE)
_RCM = re.compile(r"^RCM\d_.*_(?P<start>\d{8}_\d{6})_.*_(?P<pol>HH|HV|VH|VV|CH|CV|XC)$", re.IGNORECASE)
_TABLES: dict[str, str] = {"sigma0": "Sigma", "beta0": "Beta", "gamma0": "Gamma"}


def recognise(path: str, quantity: Quantity | None) -> Facts | None:
    stem = plain_path(path).stem
    if (match := _RADARSAT2.match(stem)) and (product := find_beside(path, ".", "product.xml")):
        name, sensor, lut = "RADARSAT-2", "RS2", "lut{}.xml"
        folder = "."
    elif match := _RCM.match(stem):
        product = find_beside(path, "../metadata", "product.xml")
        name, sensor, lut = "RCM", "RCM", f"lut{{}}_{match['pol']}.xml"
        folder = "../calibration"
    else:
        return None
    root = read_xml(product) if product else None
    kind = (text_of(root, "productType") if root is not None else None) or ("SLC" if "_SLC" in stem else "GRD")
    start = text_of(root, "rawDataStartTime") if root is not None else None
    table = find_beside(path, folder, lut.format(_TABLES[quantity])) if quantity in _TABLES else None
    return Facts(
        product=f"{name} {kind}",
        sensor=sensor,
        mode=(text_of(root, "beamModeMnemonic") if root is not None else None) or "unknown",
        datetime=iso_time((start or "")[:19]),
        polarisation=match["pol"].upper(),
        unit="complex" if kind == "SLC" else "amplitude",
        quantity=quantity if table else "uncalibrated",
        calibration=Calibration(tables="radarsat", files=(table,), variant="complex" if kind == "SLC" else "detected")
        if table
        else None,
        evidence=f"{name}: {plain_path(table).name}" if table else f"{name} without its look-up table",
    )


def load_tables(calibration: Calibration) -> RowTables:
    """Gain and (negated) offset by column."""
    path = calibration.files[0]
    root = read_xml(path)
    try:
        gains = np.array((text_of(root, "gains") or "").split(), dtype=np.float64)
    except ValueError as error:
        raise SceneError(f"its metadata {path}: numbers expected in <gains>: {error}") from error
    if not gains.size or not np.all(gains > 0):
        raise SceneError(f"its metadata {path}: positive <gains> expected; fetch the product again")
    offset = number_of(root, "offset", path)
    first, step = 0.0, 1.0
    if text_of(root, "stepSize") is not None:
        first, step = number_of(root, "pixelFirstLutValue", path), number_of(root, "stepSize", path)
    columns = first + step * np.arange(len(gains))
    order = np.argsort(columns)

    def rows(first_row: int, last_row: int, width: int) -> Rows:
        at = np.interp(np.arange(width), columns[order], gains[order])
        gain = 1.0 / at**2 if calibration.variant == "complex" else 1.0 / at
        shape = (last_row - first_row, width)
        noise = np.full(shape, -offset, np.float32) if offset and calibration.variant == "detected" else None
        return Rows(np.broadcast_to(gain.astype(np.float32), shape), noise)

    return rows
