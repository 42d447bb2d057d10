"""The README.md of a corpus: a datasheet in the spirit of Gebru et al., Datasheets for Datasets (CACM 64(12), 2021).

Written from the manifest and the tables; of pixels, the pictures read a few. The same corpus has the same bytes: no
date, no host. What nobody knows is counted as unknown. What only the maker can say (why, for whom, under which licence)
is asked for, not invented.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from sarsense.codes import code_steps
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus
from sarsense.files import atomic_write
from sarsense.labels import IGNORED
from sarsense.places import Place
from sarsense.report.classes import COLUMNS, spacing_names, with_classes
from sarsense.report.counts import group_statistics
from sarsense.report.markdown import code, markdown_table, plain
from sarsense.report.picture import require_tiles
from sarsense.report.pictures import draw_pictures, pictures_of
from sarsense.report.regions import SEASONS, UNKNOWN, zone_extent

_LONGEST = 40
"""rows of a table; what is left is summed up in one more"""


def write_datasheet(corpus: Corpus) -> list[Place]:
    """Write README.md and its pictures into the corpus's folder; the paths written. Raises CorpusError without tiles,
    ShardError where a shard that a picture looks into is not there."""
    text = datasheet(corpus)
    written = draw_pictures(corpus)
    readme = corpus.root / "README.md"
    with atomic_write(readme) as file:
        file.write(text.encode())
    return [readme, *written]


def is_current(corpus: Corpus) -> bool:
    """Whether the corpus's folder has its datasheet, and not one of an earlier state."""
    readme = corpus.root / "README.md"
    return readme.is_file() and corpus.manifest["order_digest"] in readme.read_text(encoding="utf-8")


def datasheet(corpus: Corpus) -> str:
    """The Markdown of a corpus's README. Reads the tables alone. Raises CorpusError where it has no tiles."""
    written = sections(corpus)
    written["pictures"] = _pictures(corpus)
    order = ["what", "pictures", *(name for name in written if name not in ("what", "pictures"))]
    return "\n\n".join(written[name] for name in order) + "\n"


def sections(corpus: Corpus) -> dict[str, str]:
    """The Markdown of the sections but the pictures, in their order: what, load, composition, levels, labels (of a
    corpus that has some), sources, made, licence. Raises CorpusError where there are no tiles."""
    table = corpus.tiles(columns=COLUMNS)
    require_tiles(table["split"], corpus)
    table = with_classes(table)
    table = table.set_column(table.schema.get_field_index("split"), "split", table["split"].fill_null(UNKNOWN))
    return {
        "what": _what(corpus, table),
        "load": _load(corpus),
        "composition": _composition(table),
        "levels": _levels(corpus),
        **({"labels": _labels(corpus)} if corpus.labelled else {}),
        "sources": _sources(corpus, table),
        "made": _made(corpus),
        "licence": _licence(),
    }


# ---------------------------------------------------------------------------------------------------------- sections


def _what(corpus: Corpus, table: pa.Table) -> str:
    manifest = corpus.manifest
    channels, height, width = corpus.tile_shape
    shape = f"{width} x {height} pixels" + (f", {channels} channels" if channels > 1 else "")
    scenes = len(table["scene"].unique())
    splits = ", ".join(f"{number:,} {name}" for name, number in sorted(manifest["splits"].items()))
    size = sum(shard.bytes for shard in corpus.shards) / 2**20
    facts = [
        ("tiles", f"{len(table):,} ({splits}), {shape}, {corpus.dtype.name}"),
        ("scenes", f"{scenes:,}"),
        ("shards", f"{len(corpus.shards):,}, {size:,.1f} MiB"),
        ("version", code(manifest["version"])),
        ("digest of the tiles", code(corpus.digest)),
        *([("digest of their order", code(manifest["order_digest"]))] if "order_digest" in manifest else []),
        ("made by", f"sarsense {manifest['sarsense']}, corpus format {manifest['format']}"),
    ]
    return (
        f"# {corpus.name} {manifest['version']}\n\n"
        "Synthetic-aperture radar tiles for training and testing image encoders: backscatter in decibels as codes, "
        "georeferenced, split by ground, in WebDataset tar shards.\n\n"
        f"{markdown_table(('', ''), facts)}\n\n"
        "This file is written by sarsense from the corpus's tables and is overwritten by it. Why the corpus was made, "
        "by whom and for whom, the tables do not say: write that into a file of its own."
    )


def _pictures(corpus: Corpus) -> str:
    shown = pictures_of(corpus)
    return "## Pictures\n\n" + "\n\n".join(f"![{caption}]({path})\n\n{caption}" for path, caption in shown.items())


def _load(corpus: Corpus) -> str:
    shard = corpus.shards[0].path
    steps = code_steps(8 * corpus.dtype.itemsize)
    if corpus.tile_shape[0] == 1:
        decode = '    db = np.where(codes == 0, np.nan, n["lo_db"] + (codes - 1.0) * (n["hi_db"] - n["lo_db"]) / STEPS'
        decode += ' + n["enl_bias_db"])'
        lines = ['    n = meta["normalization"]', decode.replace("STEPS", str(steps))]
    else:
        lines = [
            '    lo, hi, bias = (np.array([n[k] for n in meta["normalization"]])[:, None, None]',
            '                    for k in ("lo_db", "hi_db", "enl_bias_db"))',
            f"    db = np.where(codes == 0, np.nan, lo + (codes - 1.0) * (hi - lo) / {steps} + bias)",
        ]
    snippet = "\n".join(
        [
            "import numpy as np, webdataset",
            "",
            f'for sample in webdataset.WebDataset("{shard}", shardshuffle=False).decode():',
            '    codes, meta = sample["npy"], sample["json"]',
            *lines,
            *(['    labels = sample["labels.npy"]'] if corpus.labelled else []),
        ]
    )
    return (
        "## Loading\n\n"
        f"Code 0 is no data, codes 1 to {steps + 1} are equal steps of dB. In this folder:\n\n"
        f"```python\n{snippet}\n```\n\n"
        "`tiles.parquet` is GeoParquet: QGIS, DuckDB and `geopandas.read_parquet` open it. `scenes.parquet` has a row "
        "for each file found, `duplicates.parquet` one for each scene or tile that repeats another. "
        "`sarsense shards verify` checks every byte."
    )


def _composition(table: pa.Table) -> str:
    spacing_order = [*spacing_names(), UNKNOWN]
    parts = [
        ("Sensors", "sensor", None, ""),
        ("Polarisations", "polarisation", None, ""),
        ("Modes", "mode", None, ""),
        (
            "Regions",
            "region",
            None,
            "Grid zones of the Military Grid Reference System, 6 degrees of longitude by 8 of latitude, by the tile's "
            "centre.",
        ),
        (
            "Seasons",
            "season",
            [*SEASONS, UNKNOWN],
            "Meteorological, of the tile's own hemisphere: winter is December to February in the north, June to August "
            "in the south. Between the tropics it names a quarter of the year.",
        ),
        ("Years", "year", sorted(table["year"].unique().to_pylist()), ""),
        ("Pixel spacing", "spacing", spacing_order, "On the ground, geometric mean along rows and columns."),
        ("Orbit directions", "orbit_direction", None, ""),
    ]
    blocks = ["## Composition\n\nTiles. Each of these tables counts all of them."]
    for title, column, order, note in parts:
        text = f"### {title}\n\n" + (f"{note}\n\n" if note else "")
        blocks.append(text + _count_table(table, column, order))
    blocks.append("### Sensor, mode and polarisation\n\n" + _cross_table(table))
    return "\n\n".join(blocks)


def _count_table(table: pa.Table, column: str, order: Sequence[str] | None) -> str:
    """Tiles by split and scenes, a row a value of `column`: by `order`, else the most frequent first."""
    scenes = table.group_by(column).aggregate([("scene", "count_distinct")])
    by_scene = dict(zip(scenes[column].to_pylist(), scenes["scene_count_distinct"].to_pylist(), strict=True))
    found = table.group_by([column, "split"]).aggregate([([], "count_all")]).to_pylist()
    tiles: dict[str, Counter[str]] = {name: Counter() for name in by_scene}
    for row in found:
        tiles[row[column]][row["split"]] += row["count_all"]
    if order is None:
        names = sorted(tiles, key=lambda name: (-tiles[name].total(), name))
    else:
        names = [name for name in order if name in tiles]
    splits = sorted({row["split"] for row in found})
    rows = [
        (
            _place(name) if column == "region" else plain(name),
            *(f"{tiles[name][split]:,}" for split in splits),
            f"{tiles[name].total():,}",
            f"{100 * tiles[name].total() / len(table):.1f} %",
            f"{by_scene[name]:,}",
        )
        for name in names[:_LONGEST]
    ]
    if len(names) > _LONGEST:
        rest: Counter[str] = sum((tiles[name] for name in names[_LONGEST:]), Counter())
        share = f"{100 * rest.total() / len(table):.1f} %"
        label = f"{len(names) - _LONGEST} others"
        rows.append((label, *(f"{rest[split]:,}" for split in splits), f"{rest.total():,}", share, ""))
    return markdown_table((column.replace("_", " "), *splits, "tiles", "share", "scenes"), rows, numbers=True)


def _cross_table(table: pa.Table) -> str:
    keys = ("sensor", "mode", "polarisation")
    counts = table.group_by(list(keys)).aggregate([([], "count_all"), ("scene", "count_distinct")]).to_pylist()
    counts.sort(key=lambda row: (-row["count_all"], *(row[key] for key in keys)))
    rows = [
        (", ".join(plain(row[key]) for key in keys), f"{row['count_all']:,}", f"{row['scene_count_distinct']:,}")
        for row in counts[:_LONGEST]
    ]
    if rest := counts[_LONGEST:]:
        rows.append((f"{len(rest)} others", f"{sum(row['count_all'] for row in rest):,}", ""))
    return markdown_table(("sensor, mode, polarisation", "tiles", "scenes"), rows, numbers=True)


def _levels(corpus: Corpus) -> str:
    ranges = {row["group"]: row for row in group_statistics(corpus)}
    channels = _channels(corpus)
    labels, contents = (channels[name].combine_chunks().dictionary_encode() for name in ("group", "content"))
    level, looks = (channels[name].to_numpy() for name in ("mean_db", "enl"))
    number = labels.indices.to_numpy() * len(contents.dictionary) + contents.indices.to_numpy()
    rows = []
    for label in np.unique(number):
        group, content = divmod(int(label), len(contents.dictionary))
        name, which = labels.dictionary[group].as_py(), contents.dictionary[content].as_py()
        members, row = number == label, ranges[name]
        own = "of each scene" if row["lo_db"] is None else f"{row['lo_db']:.2f} to {row['hi_db']:.2f}"
        ground = " / ".join(f"{row[key]:.1f}" for key in ("db_0.1", "db_50", "db_99.9"))
        tiles = " / ".join(f"{value:.1f}" for value in np.percentile(level[members], (5, 50, 95)))
        known = looks[members].astype(np.float64)
        known = known[np.isfinite(known)]
        enl = f"{np.median(known):.1f}" if known.size else UNKNOWN
        rows.append((code(name), which, f"{members.sum():,}", own, ground, tiles, enl))
    rows.sort()
    head = ("group", "content", "tiles", "range of codes", "ground, 0.1 / 50 / 99.9 %", "tiles, 5 / 50 / 95 %", "looks")
    return (
        "## Decibels\n\n"
        "dB by group (sensor/mode/polarisation/quantity). Range: of code 1 and the highest code. Ground: percentiles "
        "of despeckled pixels, on which the range was measured. Tiles: percentiles of the tiles' mean power. Looks: "
        "median of the estimates.\n\n" + markdown_table(head, rows, numbers=True, left=2)
    )


def _labels(corpus: Corpus) -> str:
    """Pixels and tiles of each class."""
    counts = corpus.tiles(columns=["label_counts"])["label_counts"].combine_chunks().flatten()
    found = pa.table({name: counts.field(name) for name in ("value", "pixels")}).group_by("value")
    by_value = {row["value"]: row for row in found.aggregate([("pixels", "sum"), ([], "count_all")]).to_pylist()}
    whole = sum(row["pixels_sum"] for row in by_value.values()) or 1
    rows = []
    for value, name in (corpus.classes or {}).items():
        row = by_value.get(value, {"pixels_sum": 0, "count_all": 0})
        share = f"{100 * row['pixels_sum'] / whole:.2f} %"
        rows.append((plain(name), f"{value}", f"{row['pixels_sum']:,}", share, f"{row['count_all']:,}"))
    return (
        "## Labels\n\n"
        f"`KEY.labels.npy`, uint8: the class of each pixel of `KEY.npy`. {IGNORED} is ignored: neither train on it nor "
        "score it. Shares are of the labelled pixels.\n\n"
        + markdown_table(("class", "value", "pixels", "share", "tiles with it"), rows, numbers=True)
    )


def _channels(corpus: Corpus) -> pa.Table:
    """group, content, mean_db and enl of every channel of every tile."""
    wanted = ["group", "content", "mean_db", "enl"]
    if corpus.tile_shape[0] == 1:  # the columns of the tile are those of its channel, and lighter
        return corpus.tiles(columns=wanted)
    channels = corpus.tiles(columns=["channels"])["channels"].combine_chunks().flatten()
    return pa.table({name: channels.field(name) for name in wanted})


def _sources(corpus: Corpus, table: pa.Table) -> str:
    rows = corpus.scenes.select(["path", "status", "reason", "product", "sensor", "tiles"]).to_pylist()
    status = Counter(row["status"] for row in rows)
    meaning = {
        "used": "tiles were cut from it",
        "duplicate": "repeats another file",
        "refused": "could not be taken, for the reasons below",
        "sidecar": "no raster",
        "excluded": "listed in `--exclude`",
    }
    blocks = [
        "## Sources\n\nEvery file found is in `scenes.parquet`.",
        markdown_table(
            ("files", "count", "what"),
            [(name, f"{count:,}", meaning.get(name, "")) for name, count in sorted(status.items())],
        ),
    ]
    used = [row for row in rows if row["status"] == "used"]
    for title, key in (("product, sensor", _product), ("first folder of the path", _folder)):
        files, tiles = Counter(map(key, used)), Counter()
        for row in used:
            tiles[key(row)] += row["tiles"] or 0
        lines = [(name, f"{number:,}", f"{tiles[name]:,}") for name, number in _most(files)]
        blocks.append(markdown_table((title, "files used", "tiles"), lines, numbers=True))
    paths = {row["path"] for row in rows}
    for name, title in (("refused", "Refused"), ("duplicate", "Duplicate scenes")):
        kinds = Counter(_reason_kind(row["reason"], paths) for row in rows if row["status"] == name)
        if kinds:
            lines = [(kind, f"{count:,}") for kind, count in _most(kinds)]
            blocks.append(f"### {title}\n\n" + markdown_table(("reason", "files"), lines, numbers=True))
    blocks.append("### Windows that are no tiles\n\n" + _left_out(corpus))
    return "\n\n".join(blocks)


def _left_out(corpus: Corpus) -> str:
    words = {
        "no_data": "too few valid pixels",
        "flat": "flat",
        "guard": "across the border of the splits",
        "duplicate": "repeats another tile",
        "near_evaluation": "near the ground of an evaluation set",
        "excluded": "listed in --exclude",
    }
    lines = [(words.get(name, plain(name)), f"{n:,}") for name, n in sorted(corpus.manifest["tiles_left_out"].items())]
    text = markdown_table(("reason", "windows"), lines, numbers=True)
    kinds = corpus.duplicates.group_by("kind").aggregate([([], "count_all")]).to_pylist()
    if kinds:
        rows = sorted((plain(row["kind"]), f"{row['count_all']:,}") for row in kinds)
        text += "\n\n" + markdown_table(("duplicates by test", "rows of duplicates.parquet"), rows, numbers=True)
    return text


def _made(corpus: Corpus) -> str:
    manifest = corpus.manifest
    default = json.loads(json.dumps(asdict(BuildConfig())))
    named = ("name", "version")
    changed = [
        (code(key), code(json.dumps(value)), code(json.dumps(default[key])) if key in default else "")
        for key, value in sorted(manifest["config"].items())
        if key not in named and (key not in default or default[key] != value)
    ]
    blocks = [
        "## How it was made",
        f"`sarsense build`, version {manifest['sarsense']}. The same sources and settings give the same bytes. "
        "All settings are in `corpus.json` under `config`; "
        + ("those that differ from the defaults of this version:" if changed else "all are the defaults."),
    ]
    if changed:
        blocks.append(markdown_table(("setting", "value", "default"), changed))
    if known := manifest["stats_from"]:
        blocks.append(f"The dB ranges are those of corpus {plain(known['corpus'])} {known['version']} "
                      f"({code(known['digest'])}).")  # fmt: skip
    if merged := manifest.get("merged"):
        rows = [(plain(one["name"]), plain(one["version"]), code(one["digest"])) for one in merged]
        blocks.append("Merged from:\n\n" + markdown_table(("corpus", "version", "digest"), rows))
    if growth := manifest.get("growth"):
        head = ("digest of the order", "tiles", "shards", "sarsense")
        rows = [
            (code(one["order_digest"]), f"{one['tiles']:,}", f"{one['shards']:,}", one["sarsense"]) for one in growth
        ]
        blocks.append("Grown, each time from:\n\n" + markdown_table(head, rows))
    digests = [(code(name), code(digest)) for name, digest in sorted(manifest["tables"].items())]
    blocks.append(markdown_table(("table", "SHA-256"), digests))
    return "\n\n".join(blocks)


def _licence() -> str:
    return (
        "## Licence\n\n"
        "The tiles are derived from the sources listed above, and their licences are those of these sources: sarsense "
        "does not read licences and grants none. Whoever passes this corpus on looks up the terms of each product and "
        "folder in the tables under Sources; `source` of `tiles.parquet` names the file of each tile."
    )


# ------------------------------------------------------------------------------------------------------------- words


def _product(row: dict[str, Any]) -> str:
    return f"{plain(row['product'] or UNKNOWN)}, {plain(row['sensor'] or UNKNOWN)}"


def _folder(row: dict[str, Any]) -> str:
    first, slash, _ = row["path"].partition("/")
    return code(f"{first}/") if slash else "(none)"


def _reason_kind(reason: str | None, paths: set[str]) -> str:
    """A reason without its particulars, and without the name of another file at its end."""
    said = (reason or UNKNOWN).split(":")[0].split(";")[0].split("(")[0].strip()
    for cut in range(len(said.split()), 0, -1):
        words = said.split()
        if " ".join(words[cut - 1 :]) in paths:
            return plain(" ".join([*words[: cut - 1], "another file"]))
    return plain(said)


def _most(counts: Counter[str]) -> Iterable[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    yield from ordered[:_LONGEST]
    if rest := ordered[_LONGEST:]:
        yield f"{len(rest)} others", sum(count for _, count in rest)


def _place(zone: str) -> str:
    """A grid zone with its bounds, for readers who do not know zones by heart."""
    if zone == UNKNOWN:
        return zone
    west, south, east, north = zone_extent(zone)
    return f"{zone} ({_span(south, north, 'S', 'N')}, {_span(west, east, 'W', 'E')})"


def _span(low: float, high: float, negative: str, positive: str) -> str:
    ends = (f"{abs(v):g}°{positive if v > 0 else negative if v < 0 else ''}" for v in (low, high))
    return " to ".join(ends)
