"""The label rasters of a build: which scene has which, and what is refused for its labels.

Pairing and the checks of a raster are in `sarsense.labels`. Here is what takes all scenes: the files of a stack have
the same labels, a value has one name, and one scene does not come with two sets of labels.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pyarrow.compute as pc

from pipelines.cluster import Runner
from pipelines.entries import Entry, identity_hash
from pipelines.stages import Job, Progress, run_stage
from pipelines.tasks import label_task
from sarsense.corpus import Corpus
from sarsense.cut import scene_digest
from sarsense.errors import SarsenseError, SceneError
from sarsense.labels import LabelFolder, LabelRaster


def set_apart(entries: list[Entry], folder: LabelFolder) -> None:
    """The label rasters among the files of the sources are no scenes. SarsenseError where nothing else is there."""
    for entry in entries:
        if folder.holds(entry.file.path):
            entry.status, entry.reason = "sidecar", "in the folder of --labels"
    if all(entry.status == "sidecar" for entry in entries):
        raise SarsenseError(
            f"--labels {folder.root}: holds all rasters of the sources; labels in a folder of their own"
        )


def label_all(
    entries: list[Entry],
    folder: LabelFolder,
    base: Corpus | None,
    work: Path,
    runner: Runner,
    progress: Progress,
) -> None:
    """Give each scanned scene its labels, checked; refuse those that have none, or whose labels do not fit.

    `base`: the corpus that grows, whose names of classes hold.
    """
    jobs: list[Job] = []
    for entry in entries:
        scene = entry.scene
        if scene is None:
            continue
        try:
            file = folder.label_of(entry.file.relative)
        except SceneError as error:
            _refuse(entry, str(error))
            continue
        stamp = file.stamp()
        entry.label_seen = [file.path, stamp]
        grid = [scene.height, scene.width, scene.crs, scene.transform, scene.gcps]
        plan = None if scene.preparation is None else asdict(scene.preparation)
        result = work / "labels" / f"{identity_hash([asdict(file), stamp, grid, plan])}.json"
        jobs.append((entry, result, (scene, file, [(file.path, stamp)])))
    for entry, value in run_stage("labels", runner, progress, label_task, jobs):
        entry.labels = LabelRaster.from_json(value["labels"])
    for entry, _, _ in jobs:
        if entry.labels is None:
            entry.scene = None
    _refuse_unlike_stacks(entries)
    _refuse_other_names(entries, {} if base is None else base.classes or {})


def _refuse(entry: Entry, reason: str) -> None:
    entry.refuse(reason)
    entry.scene = entry.labels = None


def _refuse_unlike_stacks(entries: list[Entry]) -> None:
    """The files of a stack make one tile, which has one set of labels."""
    for leader in entries:
        labels = [member.labels for member in leader.stack if member.labels is not None]
        if len({raster.hash for raster in labels}) > 1:
            told = " and ".join(dict.fromkeys(raster.file.relative for raster in labels))
            for member in leader.stack:
                _refuse(member, f"--labels of the files of a stack differ: the same expected, {told} found; give one")


def _refuse_other_names(entries: list[Entry], known: dict[int, str]) -> None:
    """Of rasters that name a class otherwise than those before them, in the order of paths, the scenes."""
    names = {value: name for value, name in known.items() if name != str(value)}
    for entry in sorted(entries, key=lambda entry: (entry.file.relative, entry.file.path)):
        if entry.labels is None:
            continue
        for value, name in entry.labels.classes:
            if names.setdefault(value, name) != name:
                _refuse(
                    entry,
                    f"--labels raster names a class otherwise: {value} is {name!r} in its CLASSES tag, "
                    f"{names[value]!r} in others; one name for a value expected",
                )
                break


def refuse_contradictions(entries: list[Entry], base: Corpus | None) -> None:
    """Of scenes of the same values at the same place, measured by now, those are refused whose labels are others than
    of the one that a corpus holds already, or of the smallest path: nobody knows which are right."""
    kept: dict[str, tuple[str, str]] = {}
    if base is not None:
        used = base.scenes.filter(pc.field("status") == "used").select(["digest", "path", "labels_hash"])
        kept = {row["digest"]: (row["path"], row["labels_hash"]) for row in used.to_pylist()}
    for entry in sorted(entries, key=lambda entry: (entry.file.relative, entry.file.path)):
        if entry.status != "used" or entry.scene is None or entry.measurement is None or entry.labels is None:
            continue
        digest = scene_digest(entry.scene, entry.measurement)
        path, labels = kept.setdefault(digest, (entry.file.relative, entry.labels.hash))
        if labels != entry.labels.hash:
            entry.refuse(f"--labels contradict each other: the same values as {path}, with other labels; remove one")
