"""What the files of a provider say of a scene: one small module a provider, behind one function.

A product module has `recognise(path, tags) -> Facts | None`: facts read from names and tags alone, never guesses.
The first module that recognises a file speaks for it; `generic` speaks for all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from sarsense.radiometry import Quantity, Unit


@dataclass(frozen=True)
class Facts:
    """What a product says of a raster; None where it says nothing."""

    product: str
    sensor: str = "unknown"
    mode: str = "unknown"
    datetime: str | None = None
    """ISO 8601, UTC, start of the acquisition"""
    polarisation: str | None = None
    unit: Unit | None = None
    quantity: Quantity | None = None
    scale_factor: float = 1.0
    """stored value / physical value"""
    looks: float | None = None
    """nominal number of looks"""
    evidence: str = ""
    """which name or tag says the unit"""


def recognise(path: PurePosixPath, tags: Mapping[str, str]) -> Facts:
    """The facts of the first product module that knows the file. `path` is relative to its source."""
    from sarsense.products import generic, sentinel1

    return sentinel1.recognise(path, tags) or generic.recognise(path, tags)
