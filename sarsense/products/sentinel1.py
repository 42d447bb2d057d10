"""Sentinel-1: names of the mission and of those who re-process it.

Names: Sentinel-1 Product Specification (S1-RS-MDA-52-7441), section 3.4; the measurement files of a SAFE; pyroSAR
(`S1A__IW___A_20150309T173017_VV_...`) and the Equi7 products of TU Wien (`...S1AIWGRDH1VVA...`, dB x `scale_factor`).
`sentinel1_safe` calibrates the measurements of a SAFE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sarsense.products import Facts, iso_time, sentinel1_safe
from sarsense.radiometry import Quantity
from sarsense.remote import plain_path

_PRODUCT = re.compile(
    r"S1(?P<unit>[A-D])[_-]+(?P<mode>IW|EW|WV|S\d|SM)\d?[_-]+(?P<kind>GRD|SLC|RTC|[AD])[FHM_-]*.*?"
    r"(?P<start>\d{8}T\d{6})",
    re.IGNORECASE,
)
_EQUI7 = re.compile(r"S1(?P<unit>[A-D])(?P<mode>IW|EW|SM)GRD[HMF]\d(?P<pol>VV|VH|HH|HV)[AD]")


def recognise(full_path: str, tags: Mapping[str, str], calibrate: Quantity | None) -> Facts | None:
    path = plain_path(full_path)
    equi7 = _EQUI7.search(path.name)
    if equi7:
        stored_db = tags.get("variable_name") == "SIG0"
        return Facts(
            product="Sentinel-1 Equi7",
            sensor="S1",
            mode=equi7["mode"],
            datetime=iso_time(tags.get("time_begin", "")),
            polarisation=equi7["pol"],
            unit="db" if stored_db else None,
            quantity="sigma0" if stored_db else None,
            scale_factor=float(tags.get("scale_factor", 1.0)),
            evidence="tag variable_name=SIG0, scale_factor" if stored_db else "",
        )
    found = [match for part in (path.name, *reversed(path.parts[:-1])) if (match := _PRODUCT.search(part))]
    if not found:
        return None
    match = found[0]
    kind = match["kind"].upper()
    # only the mission's own measurement files hold digital numbers; others borrow the name for their products
    measurement = "measurement" in path.parts[:-1]
    facts = Facts(
        product=f"Sentinel-1 {kind}" if kind in ("GRD", "SLC", "RTC") else "Sentinel-1 derived",
        sensor="S1",
        mode=match["mode"].upper(),
        datetime=iso_time(match["start"]),
        unit=None if not measurement else "complex" if kind == "SLC" else "amplitude",
        quantity="uncalibrated" if measurement else None,
        evidence=f"measurement of a Sentinel-1 {kind}" if measurement else "",
    )
    return sentinel1_safe.complete(full_path, facts, calibrate) if measurement else facts
