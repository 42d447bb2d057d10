"""What a person is told of a scan, a build, a comparison: lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.entries import BuildSummary, reason_kind
from pipelines.needs import size_of
from sarsense.corpus import Corpus
from sarsense.diff import Difference

if TYPE_CHECKING:
    from pipelines.plan import Plan

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
    if summary.scenes_excluded:
        yield f"    {summary.scenes_excluded} excluded: listed in --exclude"
    splits = ", ".join(f"{count} {split}" for split, count in sorted(summary.tiles.items()))
    left = ", ".join(f"{count} {why}" for why, count in summary.tiles_left_out.items() if count)
    yield f"  {sum(summary.tiles.values())} tiles ({splits}){'; left out: ' + left if left else ''}"
    if summary.tiles_before and not summary.already_built:
        new = sum(summary.tiles.values()) - summary.tiles_before
        yield f"  {new} of them are new; all older shards are as they were"
    if summary.duplicates:
        told = ", ".join(f"{count} {kind}" for kind, count in summary.duplicates.items())
        yield f"  left out for what else there is: {told} (duplicates.parquet)"
    if summary.unmatched:
        what = f"{len(summary.unmatched)} names of --exclude" if len(summary.unmatched) > 1 else "a name of --exclude"
        told = _few([repr(name[:100]) for name in summary.unmatched])
        yield f"  warning: {what} that match no tile, scene or source: {told}"
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


def plan_lines(plan: Plan) -> Iterator[str]:
    needs, speed = plan.needs, plan.speed
    refused = needs.files - needs.usable
    yield f"plan of {plan.out} (nothing is written):"
    told = f"{needs.usable} usable, {refused} refused, {plan.known} not rasters or in the corpus already"
    yield f"  {plan.files} files: {told}"
    for reason, count in list(needs.refused.items())[:_SHOWN]:
        yield f"    {count} refused: {reason}"
    if not needs.usable:
        yield "  nothing to build"
        return
    yield f"  {needs.pixels:,} pixels of all bands: at most {needs.tiles:,} tiles in {needs.shards:,} shards"
    yield (
        f"  disk: at most {size_of(needs.disk_bytes)} ({size_of(needs.corpus_bytes)} of the corpus, "
        f"{size_of(needs.temporary_bytes)} until the build ends); {plan.free}"
    )
    yield f"  memory: up to {size_of(needs.worker_bytes)} a worker, {size_of(needs.main_bytes)} the main process"
    how = (
        f"with {plan.workers} worker{'s' * (plan.workers != 1)}, {plan.at_once} at once"
        if plan.workers
        else "in one process"
    )
    yield f"  time: about {_about(plan.seconds)} {how}"
    disk = "no room on the disk for a try: 100 MB/s assumed"
    if speed.write is not None and speed.read is not None:
        disk = f"the disk writes {size_of(speed.write)}/s, reads {size_of(speed.read)}/s"
    yield (
        f"  measured here: {speed.measure_ns:.0f} ns a pixel to measure, {speed.cut_ns:.0f} to cut, "
        f"{speed.shard_ns:.1f} to put into shards; the scan took {plan.scan_seconds:g} s; {disk}"
    )
    slow = "; complex and resampled scenes take twice the time" if needs.prepared_pixels else ""
    yield f"  assumed: every window makes a tile, sources are on such a disk, no other load on the machine{slow}"
    if plan.warning:
        yield f"  warning: {plan.warning}"


def _about(seconds: float) -> str:
    """A duration as roughly as it is known: 14 minutes, 2.5 hours."""
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 10 else f"{hours:.0f} hours"


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
        "tiles in both, of other labels": found.relabelled,
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
