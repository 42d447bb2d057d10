"""What a person is told of a scan, a build, a comparison: lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.entries import BuildSummary, reason_kind
from sarsense.corpus import Corpus
from sarsense.diff import Difference

_SHOWN = 5
"""keys or paths of a list; `--json` has all"""


def scan_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    rasters = [row for row in rows if row["status"] != "sidecar"]
    for row in rasters:
        what = row["reason"] or "; ".join(
            f"{pol}: {unit}, {quantity} ({evidence}; confidence {confidence:.2g})"
            for pol, unit, quantity, evidence, confidence in zip(
                *(row[name] for name in ("polarisations", "units", "quantities", "evidence", "confidence")), strict=True
            )
        )
        facts = "" if row["reason"] else f"{row['product']}, {row['height']} x {row['width']}, {row['geometry']}; "
        yield f"{row['status']:8} {row['path']}: {facts}{what}"
        for note in row.get("notes") or []:
            yield f"{'':8}   note: {note}"
    usable = sum(row["status"] == "usable" for row in rows)
    yield (
        f"{len(rows)} files: {usable} usable, {len(rasters) - usable} refused, {len(rows) - len(rasters)} not rasters"
    )
    for reason, count in Counter(reason_kind(row["reason"]) for row in rasters if row["reason"]).most_common():
        yield f"  {count} refused: {reason}"


def build_lines(summary: BuildSummary) -> Iterator[str]:
    already = " (already built; `sarsense shards verify` checks every byte)" if summary.already_built else ""
    yield f"{summary.name}: {summary.out}{already}"
    yield (
        f"  {summary.files} files: {summary.scenes_used} scenes used, {summary.scenes_duplicate} duplicates, "
        f"{summary.scenes_refused} refused, {summary.sidecars} not rasters"
    )
    for reason, count in summary.reasons.items():
        yield f"    {count} refused: {reason}"
    splits = ", ".join(f"{count} {split}" for split, count in sorted(summary.tiles.items()))
    left = ", ".join(f"{count} {why}" for why, count in summary.tiles_left_out.items() if count)
    yield f"  {sum(summary.tiles.values())} tiles ({splits}){'; left out: ' + left if left else ''}"
    if summary.tiles_before and not summary.already_built:
        new = sum(summary.tiles.values()) - summary.tiles_before
        yield f"  {new} of them are new; all older shards are as they were"
    if summary.duplicates:
        told = ", ".join(f"{count} {kind}" for kind, count in summary.duplicates.items())
        yield f"  left out for what else there is: {told} (duplicates.parquet)"
    if not summary.tiles.get("train"):
        yield "  warning: no tile is in train; another --seed, a smaller --cell-km or --val-share 0 changes that"
    elif (note := _val_share_note(summary)) and not summary.already_built:
        yield note
    yield f"  {summary.shards} shards, {summary.bytes / 2**20:.1f} MiB, in {summary.seconds:g} s"
    yield f"  digest {summary.digest}"
    if summary.scenes_refused:
        yield f"  why each was refused: {summary.out}/scenes.parquet, or `sarsense scan`"
    if summary.scenes_for_later:
        yield (
            f"  {summary.scenes_for_later} of them may do better another time (not fetched, or changed meanwhile): "
            "the same command tries them again"
        )


def _val_share_note(summary: BuildSummary) -> str:
    """A line where the splits came out far from what was asked for, as cells of few scenes do."""
    total = sum(summary.tiles.values())
    found, asked = summary.tiles.get("val", 0) / total, summary.val_share
    if asked is None or asked / 2 <= found <= 2 * asked:
        return ""
    return (
        f"  note: {found:.0%} of the tiles are val, {asked:.0%} asked for: whole cells of the ground go to one side, "
        "and few scenes touch few cells; a smaller --cell-km comes nearer"
    )


def diff_lines(found: Difference) -> Iterator[str]:
    if found.nothing:
        yield "the same: tiles, order, scenes, settings"
        return
    if found.same_tiles:
        yield f"the same tiles in the same splits{'' if found.same_order else ', in another order'}"
    tiles = {
        "tiles in": found.tiles_in,
        "tiles out": found.tiles_out,
        "tiles in both, renormalised": found.renormalised,
        "tiles in both, of other codes": found.changed,
        "tiles in both, in another split": found.moved,
        "scenes in": found.scenes_in,
        "scenes out": found.scenes_out,
    }
    for what, names in tiles.items():
        if names:
            yield f"{len(names)} {what}: {_few(names)}"
    for what, values in (("version", found.versions), ("setting", found.settings)):
        yield from (f"{what} {name}: {before} -> {after}" for name, (before, after) in values.items())
    for name, ranges in found.groups.items():
        before, after = ("none" if value is None else f"{value[0]} to {value[1]} dB" for value in ranges)
        yield f"range of {name}: {before} -> {after}"


def merge_lines(corpus: Corpus, left_out: Mapping[str, int]) -> Iterator[str]:
    splits = ", ".join(f"{count} {split}" for split, count in sorted(corpus.manifest["splits"].items()))
    yield f"{corpus.name}: {corpus.root}"
    yield f"  {sum(corpus.manifest['splits'].values())} tiles ({splits}), {len(corpus.shards)} shards"
    if left_out:
        yield "  left out: " + ", ".join(f"{count} {kind}" for kind, count in left_out.items())
    yield f"  digest {corpus.digest}"


def _few(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
