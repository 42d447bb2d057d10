"""RADARSAT-2 and RCM: gains by column from lut*.xml."""

from __future__ import annotations

from sarsense.calibration import Calibration, RowTables


def load_tables(calibration: Calibration) -> RowTables:
    raise NotImplementedError
