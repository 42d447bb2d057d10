"""PALSAR and PALSAR-2 as GeoTIFF: backscatter = DN^2 x 10^(-8.3). DN squared: 10 log10(DN) - 83 halves it in dB.

Level 1.5, 2.1 and 3.1 (`IMG-HH-ALOS2...`): sigma nought. Global mosaic (`N35E139_20_sl_HH_F02DAR`): gamma nought.
Source: JAXA, "Calibration Result of ALOS-2/PALSAR-2 JAXA Standard Products" (CF = -83.0 dB) and "Global 25 m Resolution
PALSAR-2 Mosaic: Dataset Description".
"""

from __future__ import annotations

import re

from sarsense.calibration import Calibration
from sarsense.products import Facts, iso_time
from sarsense.radiometry import Quantity
from sarsense.remote import plain_path

_GAIN = 10.0**-8.3
_SCENE = re.compile(
    r"^IMG-(?P<pol>HH|HV|VH|VV)-ALOS(?P<unit>2?)\w*?-(?P<day>\d{6})-(?P<mode>[A-Z]{3})\w*?(1\.5|2\.1|3\.1)"
)
_MOSAIC = re.compile(r"^[NS]\d\d[EW]\d{3}_(?P<year>\d\d)_(sl_)?(?P<pol>HH|HV)(_F\w+)?$")


def recognise(path: str) -> Facts | None:
    name = plain_path(path).name
    if match := _SCENE.match(name):
        day = iso_time(f"20{match['day']}T000000")
        return _facts("ALOS-2 PALSAR-2" if match["unit"] else "ALOS PALSAR", match, match["mode"], "sigma0", day)
    if match := _MOSAIC.match(plain_path(path).stem):
        return _facts("PALSAR mosaic", match, "mosaic", "gamma0", None)
    return None


def _facts(product: str, match: re.Match[str], mode: str, quantity: Quantity, day: str | None) -> Facts:
    return Facts(
        product=product,
        sensor="PALSAR",
        mode=mode,
        datetime=day,
        polarisation=match["pol"],
        unit="amplitude",
        quantity=quantity,
        calibration=Calibration(gain=_GAIN),
        evidence=f"{product}: {quantity} = DN^2, -83.0 dB",
    )
