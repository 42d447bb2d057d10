"""A finished corpus that grows: which files it knows, and how its tables are joined with those of what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.entries import Entry, inputs_as_read
from pipelines.runner import WORKER_LOST
from sarsense.corpus import FORMAT, Corpus, open_corpus
from sarsense.errors import CHANGED, NOT_FETCHED, CorpusError
from sarsense.files import read_json, write_json
from sarsense.labels import LabelFolder
from sarsense.places import Place, work_folder
from sarsense.sidecars import still_holds

_INPUTS = "inputs.json"
_ASKED_AGAIN = (NOT_FETCHED, CHANGED, "--bands stack", "--labels")
"""reasons that another day, or another file, may mend"""


def settle(corpus: Corpus, entries: list[Entry], labels: LabelFolder | None = None) -> None:
    """Mark the entries whose files the corpus has seen: `settled`, with the status that they have in it.

    A file is told by its path on this machine, its size and its time. Where these are not known, as of a corpus or
    sources that were copied here, or while a server does not answer, an entry of a known name is `claimed`: its content
    will tell (`confirm`); so it will where its label raster in `labels` is another one, or was touched. Files that
    could not be read last time are new. CorpusError where a file was changed since, or the corpus is of an older
    format.
    """
    rows = {row["path"]: row for row in corpus.scenes.select(["path", "status", "reason"]).to_pylist()}
    recorded = work_folder(corpus.root) / _INPUTS
    was = {path: rest for path, *rest in read_json(recorded)} if recorded.is_file() else {}
    for entry in entries:
        if entry.file.path in was and (name := was[entry.file.path][2]) in rows:
            entry.file = replace(entry.file, relative=name)  # sources that clash have longer names together than alone
        row = rows.get(entry.file.relative)
        reason = row["reason"] or "" if row is not None else ""
        if row is None or reason.startswith(_ASKED_AGAIN) or WORKER_LOST in reason:
            continue
        if entry.status == "sidecar" == row["status"]:
            entry.settled = True
            continue
        stamp, consulted, _, *label = was.get(entry.file.path, ([], [], ""))
        holds = still_holds(consulted) if stamp and entry.stamp else None
        if holds is None:
            entry.claimed = True
            continue
        if stamp != entry.stamp or not holds:
            raise CorpusError(
                f"{entry.file.path}: it, or the metadata beside it, was changed since {corpus.root} was made of "
                "it; --reshard or --refresh-stats make all of it anew, another --out leaves this one as it is"
            )
        now = [] if labels is None else labels.find(entry.file.relative)
        if now and [[file.path, file.stamp()] for file in now] != label:
            entry.claimed = True
            continue
        entry.settled, entry.status, entry.reason = True, row["status"], row["reason"] or ""
        entry.consulted, entry.label_seen = consulted, label[0] if label else []
    if corpus.manifest["format"] != FORMAT and not all(entry.settled for entry in entries):
        raise CorpusError(
            f"{corpus.root}: of format {corpus.manifest['format']}, whose splits and duplicates were told otherwise, "
            "so it cannot grow; --reshard makes it anew with its dB ranges, another --out leaves it as it is"
        )


def confirm(corpus: Corpus, entries: list[Entry]) -> None:
    """Of claimed entries, measured by now: those of the content that the corpus knows under their name are settled, and
    those that cannot be read now, whose tiles it holds.

    CorpusError where it is other content: two files of one name would be one in the tables; or has other labels.
    """
    _refuse_relabelled(corpus, entries)
    columns = ["path", "status", "reason", "content_hash"]
    rows = {row["path"]: row for row in corpus.scenes.select(columns).to_pylist()}
    for entry in entries:
        if not entry.claimed:
            continue
        row = rows[entry.file.relative]
        found = None if entry.measurement is None else entry.measurement.content_hash
        if found is not None and row["content_hash"] is not None and found != row["content_hash"]:
            raise CorpusError(
                f"{entry.file.path}: {corpus.root} has another file of the name {entry.file.relative}; give the folder "
                "above as source, so that their names differ"
            )
        if found in (None, row["content_hash"]):
            entry.settled, entry.status, entry.reason = True, row["status"], row["reason"] or ""


def _refuse_relabelled(corpus: Corpus, entries: list[Entry]) -> None:
    """CorpusError where a file that a labelled corpus has used comes with other labels now, or with wrong ones."""
    columns = ["path", "labels", "labels_hash"]
    rows = {row["path"]: row for row in corpus.scenes.select(columns).to_pylist()} if corpus.labelled else {}
    for entry in entries:
        row = rows.get(entry.file.relative)
        if row is None or row["labels_hash"] is None or not entry.claimed or not entry.label_seen:
            continue
        if entry.labels is None or entry.labels.hash != row["labels_hash"]:
            raise CorpusError(
                f"{entry.label_seen[0]}: other labels than {corpus.root} has of {entry.file.relative}, from "
                f"{row['labels']}; --reshard makes all of it anew, another --out leaves this one as it is"
            )


def refuse_missing(out: Place, entries: list[Entry], anew: str) -> None:
    """CorpusError where scenes of a corpus that is to be made anew are not among the sources, measured by now, whatever
    their names: they would be lost."""
    given = {entry.measurement.content_hash for entry in entries if entry.measurement is not None}
    used = open_corpus(out).scenes.filter(pc.field("status") == "used").select(["path", "content_hash"]).to_pylist()
    lost = sorted(row["path"] for row in used if row["content_hash"] not in given)
    if lost:
        option = "--reshard" if anew == "shards" else "--refresh-stats"
        raise CorpusError(
            f"{option}: {len(lost)} scenes of {out} are not among the sources, or cannot be read, as {lost[0]}; "
            "give all sources that it was made of"
        )


def remember_inputs(work: Path, entries: list[Entry]) -> None:
    """Stamps of all files that the corpus has seen on this machine, these entries' and those of earlier builds."""
    path = work / _INPUTS
    known = {row[0]: row for row in (read_json(path) if path.is_file() else [])}
    # what nobody said of a file, as of one behind a server that did not answer, takes nothing back
    known |= {row[0]: row for row in inputs_as_read(entries) if row[1] or row[0] not in known}
    write_json(path, [known[name] for name in sorted(known)])


class Tables(NamedTuple):
    tiles: pa.Table
    scenes: pa.Table
    duplicates: pa.Table


def join(base: Corpus | None, tiles: pa.Table, scenes: pa.Table, duplicates: pa.Table) -> Tables:
    """The tables of a corpus that grew: rows of `base` first, but for the scenes that were looked at anew."""
    if base is None:
        return Tables(tiles, scenes, duplicates)
    stay = base.scenes.filter(~pc.field("path").isin(scenes["path"].to_pylist()))
    all_scenes = pa.concat_tables([stay, scenes]).sort_by("path")
    return Tables(
        pa.concat_tables([base.tiles(), tiles]),
        all_scenes,
        pa.concat_tables([base.duplicates, duplicates]),
    )


def settled_digests(corpus: Corpus | None) -> dict[str, str]:
    """Digest -> path of the scenes whose tiles a corpus holds."""
    if corpus is None:
        return {}
    used = corpus.scenes.filter(pc.field("status") == "used").select(["digest", "path"]).to_pylist()
    return {row["digest"]: row["path"] for row in used}
