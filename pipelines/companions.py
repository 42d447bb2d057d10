"""Files that decide about a corpus beside its sources: a region or scenes that are val, ground of evaluation sets,
lists of what is left out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shapely.geometry.base import BaseGeometry

from sarsense.config import BuildConfig
from sarsense.dedup.leakage import Evaluation, read_evaluation
from sarsense.errors import SettingError
from sarsense.exclusion import Exclusion, read_exclusion
from sarsense.labels import IGNORED, LabelFolder
from sarsense.splits import read_names, read_region


@dataclass(frozen=True)
class CompanionFiles:
    """Where they lie; None: not wanted."""

    val_region: Path | None = None
    """GeoJSON: what lies inside is val"""
    val_scenes: Path | None = None
    """text, a name or pattern a line: scenes that are val"""
    exclude_near: Path | None = None
    """GeoJSON: footprints of evaluation sets"""
    labels: Path | None = None
    """folder of label rasters: each scene is to have one"""
    exclude: Path | None = None
    """text or CSV: tiles and scenes that are left out"""


@dataclass(frozen=True)
class Companions:
    """What they hold."""

    val_region: BaseGeometry | None = None
    val_scenes: tuple[str, ...] | None = None
    evaluation: Evaluation | None = None
    labels: LabelFolder | None = None
    exclusion: Exclusion | None = None
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """for corpus.json: name and SHA-256 of each file, by its option; of labels, whose files may become more, the value
    that is ignored: corpora with labels and without differ in their settings, also to versions that know no labels"""


def read_companions(files: CompanionFiles, config: BuildConfig) -> Companions:
    """Raises SettingError where one cannot be read, or two of them ask for other splits."""
    ways = [name for name in ("val_region", "val_scenes") if getattr(files, name) is not None]
    ways += ["val_sensors"] if config.val_sensors else []
    if len(ways) > 1:
        told = " and ".join(f"--{way.replace('_', '-')}" for way in ways)
        raise SettingError(f"{told}: one way to choose the val tiles expected, {len(ways)} found; leave the others out")
    given = {name: path for name, path in vars(files).items() if path is not None and name != "labels"}
    region, scenes, near, exclude = (
        given.get(name) for name in ("val_region", "val_scenes", "exclude_near", "exclude")
    )
    labels = None if files.labels is None else LabelFolder(files.labels)
    facts: dict[str, dict[str, Any]] = {} if labels is None else {"labels": {"ignored": IGNORED}}
    return Companions(
        None if region is None else read_region(region),
        None if scenes is None else read_names(scenes),
        None if near is None else read_evaluation(near),
        labels,
        None if exclude is None else read_exclusion(exclude),
        {**{name: {"name": path.name, "sha256": _sha256(path)} for name, path in sorted(given.items())}, **facts},
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
