"""How are the values of a band stored? Explicit beats product beats name beats dtype beats statistics.

dB is easy to tell. Power and amplitude of unknown looks cannot be told apart (amplitude of L looks has the spread
of intensity with about 4 L looks), so there the band is refused with the option to use, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from sarsense.config import StatedUnit
from sarsense.errors import SceneError
from sarsense.products import Facts
from sarsense.radiometry import Quantity, Unit

_UNIT_WORDS: dict[str, Unit] = {
    "db": "db",
    "decibel": "db",
    "amp": "amplitude",
    "amplitude": "amplitude",
    "power": "power",
    "pow": "power",
    "intensity": "power",
    "linear": "power",
}
_NOT_BACKSCATTER = frozenset(
    "label labels labelhand mask masks lulc landcover slope aspect dem dsm elevation incidence angle layover "
    "shadow coherence phase imag real entropy alpha anisotropy qa classes".split()
)
_OPTICAL = re.compile(
    r"MSIL[12][AC]|^T\d{2}[A-Z]{3}_\d{8}T\d{6}_|^L[COTEM]0[4-9]_L[12]|^M[OY]D\d\d|(?<![A-Z])(NDVI|NDWI|RGB|TCI|NIR|SWIR)(?![A-Z])",
    re.IGNORECASE,
)
"""names of Sentinel-2 products and tiles, Landsat, MODIS; of optical bands, pictures and indices"""
_QUANTITIES: dict[str, Quantity] = {"sigma0": "sigma0", "gamma0": "gamma0", "beta0": "beta0"}
_SNAP = re.compile(r"^(sigma|gamma|beta)0_(IW\d_|EW\d_)?(VV|VH|HH|HV)(?!.*_db)", re.IGNORECASE)
"""band names of ESA SNAP: linear power, unless they end in _db"""
_FILLS = (-9999.0, -32768.0, -999.0, -99999.0)
_FILTERED = frozenset(["dspk", "despeckled", "despeckle", "filtered"])
_FEW_VALUES = 16
"""of a class map"""
_FIRST_SAMPLES = 4096
"""among which an image has more"""
_MIN_DB, _MAX_DB = -120.0, 60.0


@dataclass(frozen=True)
class UnitChoice:
    """How values are stored, what they mean, which rule said so and how sure it is."""

    unit: Unit
    quantity: Quantity
    evidence: str
    confidence: float


def words(text: str) -> list[str]:
    """Lower-case words of a name: 'Sigma0_VH_db' -> ['sigma0', 'vh', 'db']."""
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def refuse_other_quantities(names: list[str]) -> None:
    """Raise SceneError where a name says that the band is no backscatter, or a filtered copy of it."""
    for name in names:
        tokens = set(words(name))
        if other := sorted(tokens & _NOT_BACKSCATTER):
            raise SceneError(f"not backscatter: '{name}' says {', '.join(other)}")
        if found := _OPTICAL.search(name):
            raise SceneError(f"not backscatter: '{name}' says {found[0]}, an optical product or a picture")
        if tokens & _FILTERED:
            raise SceneError(f"'{name}' is a despeckled copy; the speckled band is taken")


def refuse_without_signal(sample: np.ndarray, dtype: np.dtype, zero_is_nodata: bool) -> None:
    """Raise SceneError where sampled values hold no image: nothing valid, one value, or a class map.

    `sample`: 1-D valid values in the stored dtype, zeros included.
    """
    seen = sample[sample != 0] if zero_is_nodata else sample
    if not seen.size:
        raise SceneError("no valid pixel: every sampled value is no data, zero or NaN")
    if (seen == seen[0]).all():
        raise SceneError(f"constant: every sampled valid pixel is {seen[0]}, so there is no image in it")
    if not np.issubdtype(dtype, np.integer) or np.unique(sample[:_FIRST_SAMPLES]).size > _FEW_VALUES:
        return  # to sort them all takes longer than all else that is asked of a scene
    distinct = np.unique(sample)
    if distinct.size <= _FEW_VALUES:
        listed = ", ".join(str(value) for value in distinct[:6])
        raise SceneError(
            f"looks like a class map or mask: integers with {distinct.size} distinct values ({listed}); "
            "backscatter has many"
        )


def choose_unit(
    sample: np.ndarray, dtype: np.dtype, facts: Facts, band_unit: str, names: list[str], explicit: StatedUnit | None
) -> UnitChoice:
    """The storage unit of a band, or SceneError with the option to use.

    `sample`: 1-D valid values (no zeros for floats); `band_unit`: the raster's own unit text; `names`: file stem and
    band description, searched for unit words.
    """
    calibrated: Quantity = facts.quantity or _named_quantity(names) or "backscatter"
    negative = float(np.mean(sample < 0)) if sample.size and np.isrealobj(sample) else 0.0
    if explicit not in (None, "db") and negative > 0.5:
        raise SceneError(
            f"--unit {explicit}, but {negative:.0%} of its values are negative, as those of dB are; give --unit db for "
            "it, or leave --unit out"
        )
    if explicit == "dn":
        stored: Unit = "complex" if np.issubdtype(dtype, np.complexfloating) else "amplitude"
        return UnitChoice(stored, "uncalibrated", "--unit dn: digital numbers", 1.0)
    if explicit and np.issubdtype(dtype, np.complexfloating):
        raise SceneError(
            f"complex samples (dtype {dtype}), --unit {explicit} says they are real: their imaginary part would be "
            "lost; leave --unit out, their power is I^2 + Q^2"
        )
    if explicit:
        quantity = calibrated if np.issubdtype(dtype, np.inexact) else facts.quantity or "uncalibrated"
        doubt = ", though none of its values is negative" if explicit == "db" and negative == 0 else ""
        return UnitChoice(explicit, quantity, f"--unit {explicit}{doubt}", 1.0)
    if facts.unit:
        return UnitChoice(facts.unit, calibrated, facts.evidence, 1.0)
    if np.issubdtype(dtype, np.complexfloating):
        return UnitChoice("complex", "uncalibrated", f"dtype {dtype}", 0.9)
    if np.issubdtype(dtype, np.integer):
        if sample.size and sample.min() < 0:
            raise SceneError(
                f"integers of {dtype} with negative values ({sample.min()}): scaled dB? give --unit db, "
                "or convert it to float dB"
            )
        quantity = "display" if dtype == np.uint8 else "uncalibrated"
        return UnitChoice("amplitude", quantity, f"dtype {dtype}: digital numbers are amplitude", 0.8)
    said: set[Unit] = {unit for name in [band_unit, *names] for word in words(name) if (unit := _UNIT_WORDS.get(word))}
    if len(said) > 1:
        raise SceneError(f"its names say {' and '.join(sorted(said))} at once; give --unit")
    looks_db, share = _looks_like_db(sample)
    if not looks_db and (fills := [fill for fill in _FILLS if np.count_nonzero(sample == fill) > 1]):
        raise SceneError(
            f"holds {fills[0]:g} more than once, a fill value that is not declared as no data: declare it "
            f"(gdal_edit.py -a_nodata {fills[0]:g} FILE), or give --unit"
        )
    if not said and not looks_db and share == 0 and (snap := next(filter(_SNAP.match, names), None)):
        return UnitChoice("power", calibrated, f"name {snap}: linear, as SNAP names bands", 0.9)
    if said:
        (unit,) = said
        if (unit == "db") != looks_db:
            raise SceneError(
                f"its name or unit tag says {unit}, its values do not look like it "
                f"(1st percentile {np.percentile(sample, 1):.3g}, {share:.0%} negative); give --unit"
            )
        return UnitChoice(unit, calibrated, f"name or unit tag says {unit}", 0.9)
    if looks_db:
        return UnitChoice("db", calibrated, f"values: {share:.0%} negative, as dB", share)
    if share > 0.01:
        raise SceneError(
            f"signed values ({share:.0%} negative, {sample.min():.3g} to {sample.max():.3g}) that are not dB: "
            "not backscatter, or give --unit"
        )
    raise SceneError(
        "power or amplitude? positive floats of unknown looks do not tell; give --unit power or --unit amplitude"
    )


def _named_quantity(names: list[str]) -> Quantity | None:
    """sigma0, gamma0 or beta0, where exactly one of them is a word of the names."""
    found: list[Quantity] = [_QUANTITIES[word] for name in names for word in words(name) if word in _QUANTITIES]
    return found[0] if len(set(found)) == 1 else None


def _looks_like_db(sample: np.ndarray) -> tuple[bool, float]:
    """Whether values can be dB of backscatter, and the share of negative ones."""
    negative = float(np.mean(sample < 0))
    low = float(np.percentile(sample, 1))
    plausible = sample.min() >= _MIN_DB and sample.max() <= _MAX_DB
    return bool(plausible and negative >= 0.8 and low <= -5.0), negative
