"""Which files together hold the channels of a tile: all polarisations in one file, or one in each of several."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pipelines.entries import Entry


def join_stacks(entries: list[Entry], wanted: tuple[str, ...]) -> None:
    """Give each entry that leads a stack its members; refuse those whose polarisations no stack completes.

    Files belong together that lie in one folder, are of one product and time, and share their grid to the bit.
    """
    together: dict[Any, list[Entry]] = defaultdict(list)
    for entry in entries:
        scene = entry.scene
        if scene is None:
            continue
        if {band.polarisation for band in scene.bands} == set(wanted) and len(scene.bands) == len(wanted):
            entry.stack = [entry] * len(wanted)
            continue
        place = str(PurePosixPath(entry.file.relative).parent)
        of = (scene.product, scene.sensor, scene.mode, scene.datetime)
        together[place, *of, scene.height, scene.width, scene.crs, scene.transform, scene.gcps].append(entry)
    for members in together.values():
        _join(members, wanted)


def _join(members: list[Entry], wanted: tuple[str, ...]) -> None:
    """Members of one product and grid: those of one place name belong together, else all of them."""
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in members:
        if entry.scene is not None:
            by_name[entry.scene.place_name].append(entry)
    # names may differ in more than the polarisation, as those of a SAFE in their number
    parts = list(by_name.values()) if all(_complete(part, wanted) for part in by_name.values()) else [members]
    for part in parts:
        if not _complete(part, wanted):
            found = ", ".join(sorted(_polarisation(entry) for entry in part))
            for entry in part:
                entry.refuse(
                    f"--bands stack: {_polarisation(entry)} alone, {', '.join(wanted)} wanted: the files of its "
                    f"product and grid in its folder hold {found}; one of each expected"
                )
                entry.scene = None
            continue
        by_polarisation = {_polarisation(entry): entry for entry in part}
        leader = by_polarisation[wanted[0]]
        leader.stack = [by_polarisation[polarisation] for polarisation in wanted]
        for entry in leader.stack[1:]:
            assert entry.scene is not None
            entry.follows = True
            note = f"stacked with {leader.file.relative}, whose row counts the tiles"
            entry.scene = replace(entry.scene, notes=(*entry.scene.notes, note))


def _complete(part: list[Entry], wanted: tuple[str, ...]) -> bool:
    return sorted(_polarisation(entry) for entry in part) == sorted(wanted)


def _polarisation(entry: Entry) -> str:
    assert entry.scene is not None
    return "+".join(band.polarisation for band in entry.scene.bands)


def refuse_broken(entries: list[Entry]) -> None:
    """A stack of which one file was refused or repeats another is none."""
    for leader in entries:
        lost = next((member for member in leader.stack if member.status != "used"), None)
        if lost is not None:
            for member in leader.stack:
                if member.status == "used":
                    member.refuse(f"--bands stack: its partner {lost.file.relative} is left out: {lost.reason}")
