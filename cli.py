"""The two command lines, `sarsense` and `dic3l`: parse, call, print.

Nothing heavy is imported at module level, so that `--help` and `--version` are instant: a command imports what it
calls. Errors that we raise on purpose are printed in one line (`--debug` shows the traceback) and end with exit
code 1; wrong usage ends with 2, a strict build that refused a scene with 3, a signal with 128 + its number (Ctrl-C:
130, SIGTERM: 143).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dic3l import config as settings
from sarsense.config import CONVENTIONS, STATED_UNITS, BuildConfig

if TYPE_CHECKING:
    from pipelines.companions import CompanionFiles
    from sarsense.places import Place

_BUILD = BuildConfig()

sarsense_app = typer.Typer(
    name="sarsense",
    help="Build, inspect and simulate corpora of SAR tiles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
dic3l_app = typer.Typer(
    name="dic3l",
    help="Pre-train encoders on a SARSense corpus with DIC3L, export and evaluate them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# ---------------------------------------------------------------------------------------------------- sarsense

shards_app = typer.Typer(help="Look into a corpus: list, count, show, verify.", no_args_is_help=True)
sarsense_app.add_typer(shards_app, name="shards")

_SOURCES = typer.Argument(
    metavar="SOURCE",
    help="Files, folders (searched to the bottom), zips (also as /vsizip/), globs, s3:// gs:// az:// prefixes, "
    "https:// files, or a list of scenes: STAC (JSON), CSV, Parquet.",
)
_Place = Any
"""a folder or remote address, as `sarsense.places` reads it: typer takes no union of types"""


def _parse_place(text: str) -> _Place:
    from sarsense.places import place

    return place(text)


_CORPUS = typer.Argument(
    metavar="CORPUS",
    parser=_parse_place,
    help="Folder of a finished corpus, or its address: s3:// gs:// az:// https://.",
)
_SHARDS = typer.Argument(
    metavar="CORPUS",
    help="Folder of a corpus, or its address; a tar, also of another program; a glob of tars, in quotes.",
)
_JSON = typer.Option("--json", help="Print JSON for machines.")
_CALIBRATE_HELP = "Of products with look-up tables (Sentinel-1 SAFE): sigma0, beta0, gamma0; none: digital numbers."
_BANDS_HELP = "single: a tile is one polarisation; stack: all of --polarisations, in that order (C x H x W)."
_CONTENT_HELP = "speckled: as seen; despeckled: refined Lee, 7 x 7; both: the one after the other, as channels."
_NORMALIZATION_HELP = (
    "Whose dB range becomes the codes: group (sensor, mode, polarisation, quantity), each scene's own, or fixed: "
    "-30 to 5 dB, cross-polarised -35 to 0."
)
_MULTILOOK_HELP = "Looks of single-look complex rasters, as 1x4 (azimuth x range); auto: pixels about square."
_SPACING_HELP = "Resample all scenes, on power, to pixels of this many metres; default: each scene's own grid."
_DEDUP_HELP = "Duplicates that are looked for: exact, geographic, speckle, perceptual, with commas; none: none of them."
_UNIT_HELP = "How values are stored: power, amplitude, db or dn (digital numbers, uncalibrated); of all sources."


class _Bands(StrEnum):
    single = "single"
    stack = "stack"


class _Content(StrEnum):
    speckled = "speckled"
    despeckled = "despeckled"
    both = "both"


class _Normalization(StrEnum):
    group = "group"
    scene = "scene"
    fixed = "fixed"


class _Near(StrEnum):
    drop = "drop"
    mark = "mark"


def _print_version(package: str, wanted: bool) -> None:
    if wanted:
        from importlib import import_module

        typer.echo(f"{package} {import_module(package).__version__}")
        raise typer.Exit


@sarsense_app.callback()
def _sarsense(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda wanted: _print_version("sarsense", wanted), is_eager=True, help="Print it."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Build, inspect and simulate corpora of SAR tiles."""


@sarsense_app.command("simulate")
def _simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write scenes, labels and truth.json to.")],
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 8,
    size: Annotated[int, typer.Option(help="Side of a scene in pixels.")] = 1024,
    looks: Annotated[float, typer.Option(help="Looks L of the speckle (its ENL).")] = 4.0,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    polarisations: Annotated[str, typer.Option(help="VV, VH or both, separated by commas.")] = "VV,VH",
) -> None:
    """Simulate speckled scenes over known land cover, with labels and truth."""
    from sarsense.simulate import simulate

    truth = simulate(out, scenes, size, looks, seed, polarisations=_words(polarisations))
    typer.echo(f"{scenes} scenes of {size} x {size} pixels, {looks:g} looks, seed {seed}")
    for name in ("scenes", "labels", "truth.json"):
        typer.echo(f"  {out / name}")
    codes = sorted((facts["code"], name) for name, facts in truth["classes"].items())
    typer.echo(f"  classes: {', '.join(f'{code} {name}' for code, name in codes)}")


@sarsense_app.command("scan")
def _scan(
    sources: Annotated[list[str], _SOURCES],
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = _BUILD.tile_size,
    unit: Annotated[str | None, typer.Option(help=_UNIT_HELP)] = None,
    calibrate: Annotated[str, typer.Option(help=_CALIBRATE_HELP)] = _BUILD.calibrate,
    multilook: Annotated[str, typer.Option(help=_MULTILOOK_HELP)] = _BUILD.multilook,
    spacing: Annotated[float | None, typer.Option(help=_SPACING_HELP)] = None,
    polarisations: Annotated[str, typer.Option(help="Take only these, separated by commas; empty: all.")] = "",
    bands: Annotated[_Bands, typer.Option(help=_BANDS_HELP)] = _Bands.single,
    allow_unplaced: Annotated[bool, typer.Option(help="Take rasters without georeferencing.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: this process.")] = 0,
    strict: Annotated[bool, typer.Option(help="Exit with 3 when a raster is refused.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Say what each file is and whether a build would take it; write nothing."""
    from pipelines.build import scan

    config = _build_config(
        tile_size=tile_size,
        unit=unit,
        calibrate=calibrate,
        multilook=multilook,
        spacing=spacing,
        polarisations=_words(polarisations),
        bands=bands.value,
        allow_unplaced=allow_unplaced,
    )
    rows = scan(sources, config, workers)
    if as_json:
        _print_json(rows)
    else:
        from pipelines.messages import scan_lines

        _say(scan_lines(rows))
    if strict and any(row["status"] == "refused" for row in rows):
        raise typer.Exit(3)


@sarsense_app.command("build")
def _build(
    sources: Annotated[list[str], _SOURCES],
    out: Annotated[
        _Place,
        typer.Option(
            metavar="PATH",
            parser=_parse_place,
            help="Folder of the corpus: new, empty, or of an unfinished build; or s3:// gs:// az:// and a prefix.",
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the corpus and of its shards.")] = _BUILD.name,
    corpus_version: Annotated[str, typer.Option(help="Your version of the corpus.")] = _BUILD.version,
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = _BUILD.tile_size,
    stride: Annotated[int | None, typer.Option(help="Pixels between tiles; default: the tile size.")] = None,
    polarisations: Annotated[str, typer.Option(help="Take only these, separated by commas; empty: all.")] = "",
    bands: Annotated[_Bands, typer.Option(help=_BANDS_HELP)] = _Bands.single,
    content: Annotated[_Content, typer.Option(help=_CONTENT_HELP)] = _Content.speckled,
    normalization: Annotated[_Normalization, typer.Option(help=_NORMALIZATION_HELP)] = _Normalization.group,
    stats_from: Annotated[
        _Place | None,
        typer.Option(
            metavar="PATH",
            parser=_parse_place,
            help="A finished corpus whose dB ranges are taken, so that codes are comparable.",
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Of a code: 8, or 16 (the trainer reads them as 8).")] = _BUILD.bits,
    unit: Annotated[str | None, typer.Option(help=_UNIT_HELP)] = None,
    calibrate: Annotated[str, typer.Option(help=_CALIBRATE_HELP)] = _BUILD.calibrate,
    multilook: Annotated[str, typer.Option(help=_MULTILOOK_HELP)] = _BUILD.multilook,
    spacing: Annotated[float | None, typer.Option(help=_SPACING_HELP)] = None,
    allow_unplaced: Annotated[
        bool, typer.Option(help="Take rasters without georeferencing: no footprint, split by scene.")
    ] = False,
    min_valid: Annotated[float, typer.Option(help="Smallest share of valid pixels of a tile.")] = _BUILD.min_valid,
    val_share: Annotated[float, typer.Option(help="Share of the ground that goes to val.")] = _BUILD.val_share,
    cell_km: Annotated[float, typer.Option(help="Side of the ground cells split as a whole.")] = _BUILD.cell_km,
    guard_km: Annotated[
        float | None, typer.Option(help="Kilometres between train and val tiles; default: a fiftieth of --cell-km.")
    ] = None,
    val_sensors: Annotated[str, typer.Option(help="Instead of cells: val is what these sensors saw; commas.")] = "",
    val_region: Annotated[Path | None, typer.Option(help="Instead of cells: val lies in this GeoJSON's areas.")] = None,
    val_scenes: Annotated[
        Path | None,
        typer.Option(help="Instead of cells: val are the scenes of this text file, a name or pattern a line."),
    ] = None,
    dedup: Annotated[str, typer.Option(help=_DEDUP_HELP)] = ",".join(_BUILD.dedup),
    overlap: Annotated[
        float, typer.Option(help="Share of a tile's ground that its acquisition has twice, from which it is left out.")
    ] = _BUILD.overlap,
    max_repeats: Annotated[
        int | None, typer.Option(help="Observations of a place, in a polarisation, that stay; default: all.")
    ] = None,
    max_flat: Annotated[float, typer.Option(help="Largest share of flat tiles: open sea, desert.")] = _BUILD.max_flat,
    exclude_near: Annotated[
        Path | None, typer.Option(help="GeoJSON of the ground of evaluation sets: tiles near it are left out.")
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(
            help="List of tiles and scenes to leave out: CSV of `sarsense shards browse`, or a key, scene or source a "
            "line."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of label rasters, each of the name and on the grid of its scene: each tile gets its labels."
        ),
    ] = None,
    distance: Annotated[str, typer.Option(help="How near: 2km, 500m.")] = f"{_BUILD.distance_km:g}km",
    near_evaluation: Annotated[
        _Near, typer.Option(help="drop: leave such tiles out; mark: keep them, told by their column near_evaluation.")
    ] = _Near.drop,
    shard_mib: Annotated[int, typer.Option(help="Size of a shard, at most, in MiB.")] = _BUILD.shard_mib,
    seed: Annotated[int, typer.Option(help="Of the splits and of the order of tiles.")] = _BUILD.seed,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes of the Dask LocalCluster; 0: this process; default: cores."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Of a remote --out: local folder of the build's records and of shards on their way, which all workers "
            "see; default: .sarsense-build-... in the current folder."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Dask cluster to join: tcp://host:port of its scheduler, or its scheduler file."),
    ] = None,
    reshard: Annotated[
        bool, typer.Option("--reshard", help="Make all of a finished corpus anew, with the dB ranges that it has.")
    ] = False,
    refresh_stats: Annotated[
        bool, typer.Option("--refresh-stats", help="Make all of a finished corpus anew, its dB ranges too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would make, and need of disk, memory and time.")
    ] = False,
    strict: Annotated[bool, typer.Option(help="Exit with 3 when a raster was refused.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Build a corpus of tiles from SAR rasters. Run it again after an interruption: it goes on; with more sources: it
    grows, and every shard stays as it is."""
    from pipelines.build import build
    from pipelines.cluster import default_workers
    from pipelines.companions import CompanionFiles
    from pipelines.progress import show_progress
    from sarsense.corpus import open_corpus
    from sarsense.dedup.leakage import parse_distance
    from sarsense.places import place
    from sarsense.report.datasheet import is_current, write_datasheet

    if reshard and refresh_stats:
        raise typer.BadParameter("it includes --reshard: leave that out", param_hint="--refresh-stats")
    if dry_run and scheduler is not None:
        raise typer.BadParameter("it measures this machine: leave --scheduler out", param_hint="--dry-run")

    config = _build_config(
        name=name,
        version=corpus_version,
        tile_size=tile_size,
        stride=stride,
        polarisations=_words(polarisations),
        bands=bands.value,
        content=content.value,
        normalization=normalization.value,
        bits=bits,
        unit=unit,
        calibrate=calibrate,
        multilook=multilook,
        spacing=spacing,
        allow_unplaced=allow_unplaced,
        min_valid=min_valid,
        val_share=val_share,
        cell_km=cell_km,
        guard_km=guard_km,
        val_sensors=tuple(word.strip() for word in val_sensors.split(",") if word.strip()),
        dedup=() if dedup == "none" else tuple(word.lower() for word in _words(dedup)),
        overlap=overlap,
        max_repeats=max_repeats,
        max_flat=max_flat,
        distance_km=parse_distance(distance),
        near_evaluation=near_evaluation.value,
        shard_mib=shard_mib,
        seed=seed,
    )
    if work is not None:
        if isinstance(out, Path):
            raise typer.BadParameter("of a remote --out; a folder keeps its records itself", param_hint="--work")
        out = place(str(out), work)
    anew = "stats" if refresh_stats else "shards" if reshard else None
    companions = CompanionFiles(val_region, val_scenes, exclude_near, labels, exclude)
    count = default_workers() if workers is None else workers
    if dry_run:
        _print_plan(sources, out, config, count, stats_from, companions, anew is not None, as_json)
        return
    with _stoppable():
        with show_progress() as progress:
            summary = build(sources, out, config, count, scheduler, progress, stats_from, companions, anew)
        if not is_current(open_corpus(out)):
            write_datasheet(open_corpus(out))
    if as_json:
        from dataclasses import asdict

        _print_json(asdict(summary))
    else:
        from pipelines.messages import build_lines

        _say(build_lines(summary))
    if strict and summary.scenes_refused:
        raise typer.Exit(3)


def _print_plan(
    sources: list[str],
    out: Place,
    config: BuildConfig,
    workers: int,
    stats_from: Place | None,
    companions: CompanionFiles,
    anew: bool,
    as_json: bool,
) -> None:
    from pipelines.messages import plan_lines
    from pipelines.plan import plan
    from pipelines.progress import show_progress
    from sarsense.errors import SarsenseError

    with show_progress() as progress:
        planned = plan(sources, out, config, workers, progress, stats_from, companions, anew)
    if as_json:
        _print_json(planned.to_json())
    else:
        _say(plan_lines(planned))
    if planned.refusal:
        raise SarsenseError(planned.refusal)


@sarsense_app.command("stats")
def _stats(
    corpus: Annotated[_Place, _CORPUS],
    plot: Annotated[
        Path | None, typer.Option(help="Write the despeckled histogram and the range of each group to this PNG.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Say what the dB range of each group was measured on: scenes, looks, levels of the despeckled ground."""
    from sarsense.corpus import open_corpus
    from sarsense.report import group_statistics, statistics_figure

    opened = open_corpus(corpus)
    rows = group_statistics(opened)
    if plot is not None:
        statistics_figure(opened, plot)
    made, source = opened.manifest["config"], opened.manifest["stats_from"]
    if as_json:
        names = ("normalization", "content", "bits")
        _print_json({**{name: made[name] for name in names}, "stats_from": source, "groups": rows})
        return
    where = "" if source is None else f", ranges of corpus {source['corpus']} ({source['digest'][:12]})"
    typer.echo(f"{opened.name}: normalised by {made['normalization']}, {made['content']}, {made['bits']} bits{where}")
    columns = list(rows[0]) if rows else []
    _print_table(columns, [[_cell(row[name]) for name in columns] for row in rows])
    if plot is not None:
        typer.echo(str(plot))


@sarsense_app.command("diff")
@shards_app.command("diff")
def _diff(
    a: Annotated[_Place, typer.Argument(metavar="A", parser=_parse_place, help="A finished corpus.")],
    b: Annotated[
        _Place, typer.Argument(metavar="B", parser=_parse_place, help="Another, or a later state of the same.")
    ],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Say what changed from corpus A to B: tiles, splits, dB ranges, scenes, settings. Ends with 1 if anything did."""
    from pipelines.messages import diff_lines
    from sarsense.corpus import open_corpus
    from sarsense.diff import compare

    found = compare(open_corpus(a), open_corpus(b))
    if as_json:
        _print_json(found.to_json())
    else:
        _say(diff_lines(found))
    if not found.nothing:
        raise typer.Exit(1)


@sarsense_app.command("merge")
def _merge(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a finished corpus.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another, made with the same settings and ranges.")],
    out: Annotated[Path, typer.Option(help="Folder of the corpus that holds the tiles of both: new or empty.")],
    name: Annotated[str | None, typer.Option(help="Name of the new corpus; default: that of one of them.")] = None,
    corpus_version: Annotated[str, typer.Option(help="Your version of the new corpus.")] = _BUILD.version,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: this process.")] = 0,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Put the tiles of two corpora into one, without their duplicates. The order of A and B changes nothing."""
    from pipelines.merge import merge
    from pipelines.messages import merge_lines
    from pipelines.progress import show_progress
    from sarsense.report.datasheet import write_datasheet

    with _stoppable():
        with show_progress() as progress:
            corpus, dropped = merge(a, b, out, name, corpus_version, workers, progress)
        write_datasheet(corpus)
    if as_json:
        _print_json({"out": str(out), "digest": corpus.digest, "tiles": corpus.manifest["splits"], "left_out": dropped})
    else:
        _say(merge_lines(corpus, dropped))


@sarsense_app.command("export")
def _describe(
    corpus: Annotated[_Place, _CORPUS],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the descriptions; default: the corpus itself.")
    ] = None,
    croissant: Annotated[bool, typer.Option("--croissant", help="Croissant (MLCommons): croissant.json.")] = False,
    stac: Annotated[bool, typer.Option("--stac", help="STAC: collection.json, and an item a scene.")] = False,
) -> None:
    """Describe a corpus for catalogues: Croissant, STAC."""
    from sarsense.corpus import open_corpus
    from sarsense.export import export

    if not croissant and not stac:
        raise typer.BadParameter("--croissant, --stac or both expected", param_hint="export")
    _say(str(path) for path in export(open_corpus(corpus), out or corpus, croissant, stac))


@sarsense_app.command("report")
def _report(
    source: Annotated[str, _SHARDS],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file, which holds everything.")] = Path("report.html"),
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Write the page of a corpus: numbers and pictures of a paper's data section, for a browser or for print."""
    from sarsense.inspection.source import open_source
    from sarsense.report.document import write_report

    if out.suffix.lower() != ".html":
        raise typer.BadParameter(f"a name that ends in .html expected, '{out}' found", param_hint="--out")
    opened = open_source(source)
    write_report(opened, out)
    if as_json:
        digest = None if opened.corpus is None else opened.corpus.digest
        _print_json({"out": str(out), "bytes": out.stat().st_size, "digest": digest})
    else:
        typer.echo(str(out))


_WHERE = typer.Option(
    help="Only these tiles: a condition of SQL on columns of tiles.parquet, as \"sensor = 'S1' and enl < 5\"."
)


@shards_app.command("ls")
def _shards_ls(
    source: Annotated[str, _SHARDS],
    where: Annotated[str | None, _WHERE] = None,
    sort: Annotated[
        str | None, typer.Option(help="Columns with commas between, -column for the largest first; or as ORDER BY.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to list, with commas; all: every one.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Tiles to list; 0: all.")] = 20,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """List tiles: key, shard, place, level; or any columns, of those that a condition holds for."""
    from sarsense.inspection.listing import listing
    from sarsense.inspection.source import open_source

    names, rows, count = listing(open_source(source), where, sort, columns, limit)
    if as_json:
        _print_json(rows)
        return
    _print_table(names, [[_cell(row[name]) for name in names] for row in rows])
    if len(rows) < count:
        typer.echo(f"{len(rows)} of {count:,} tiles; --limit 0 lists all")


@shards_app.command("head")
def _shards_head(
    source: Annotated[str, _SHARDS],
    count: Annotated[int, typer.Option("-n", min=1, help="Tiles.")] = 3,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """The first tiles, with everything that is known of them."""
    from sarsense.inspection.listing import heads
    from sarsense.inspection.source import open_source

    found = heads(open_source(source), count)
    if as_json:
        _print_json(found)
        return
    for number, tile in enumerate(found):
        if number:
            typer.echo()
        _print_table([], [[name, _cell(value)] for name, value in tile.items()])


@shards_app.command("get")
def _shards_get(
    source: Annotated[str, _SHARDS],
    key: Annotated[str, typer.Argument(help="Key of the tile, as `shards ls` lists it.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help=".png to look at; .npy: as it lies in the shard; .tif: dB, at its place."),
    ],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Write a tile to a file: PNG, npy, or GeoTIFF in dB that QGIS opens at its place."""
    from sarsense.inspection.get import get
    from sarsense.inspection.source import open_source

    told = get(open_source(source), key, out)
    if as_json:
        _print_json({"out": str(out), "key": key, "content": told})
    else:
        typer.echo(f"{out}: {told}")


@shards_app.command("stats")
def _shards_stats(
    source: Annotated[str, _SHARDS],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN[,COLUMN]",
            help="Count by these, up to three: columns of tiles.parquet, or month, year, season, region, spacing. "
            "Default: sensor, polarisation, split, month, spacing and region, each on its own.",
        ),
    ] = None,
    where: Annotated[str | None, _WHERE] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it, with histograms of dB by group, to this PNG.")] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Count tiles by sensor, polarisation, split, month, spacing and region, or by any columns, with bytes, levels,
    looks, valid shares and duplicates; and by group of codes."""
    from sarsense.inspection.source import open_source
    from sarsense.inspection.statistics import statistics

    opened = open_source(source)
    names = None if by is None else [name.strip() for name in by.split(",") if name.strip()]
    told = statistics(opened, names, where)
    if plot is not None:
        from sarsense.report.overview import overview_figure

        overview_figure(opened, told, plot, where)
    if as_json:
        _print_json(told)
        return
    for name in ("name", "version", "digest", "tiles", "shards", "bytes"):
        if told[name] is not None:
            typer.echo(f"{name:8} {_cell(told[name])}")
    if told["duplicates"]:
        typer.echo(f"repeats  {', '.join(f'{kind} {number}' for kind, number in told['duplicates'].items())}: left out")
    if told["unknown"]:
        typer.echo(f"unknown  {', '.join(told['unknown'])}: nothing in these tars says them")
    for name, rows in told["by"].items():
        typer.echo()
        _print_counts(name.split(","), rows, told["tiles"], 0 if by else 12)
    if told["groups"] and by is None:
        typer.echo()
        columns = list(told["groups"][0])
        _print_table(columns, [[_cell(row[name]) for name in columns] for row in told["groups"]])
    if plot is not None:
        typer.echo(str(plot))


@shards_app.command("map")
def _shards_map(
    source: Annotated[str, _SHARDS],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help=".html: a page that works offline; .geojson, .parquet (GeoParquet): for a GIS."
        ),
    ] = Path("map.html"),
    color: Annotated[
        str | None,
        typer.Option(help="Column that colours the page, or month, year, season, region, spacing. Default: split."),
    ] = None,
    where: Annotated[str | None, _WHERE] = None,
    thumbnails: Annotated[int, typer.Option(min=0, help="Pictures in the page, spread over scenes.")] = 400,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Draw where tiles lie: one HTML file with coastline, colours, pictures and provenance; or GeoJSON, GeoParquet."""
    from sarsense.inspection.map import write_map
    from sarsense.inspection.source import open_source

    drawn = write_map(open_source(source), out, color, where, thumbnails, source)
    if as_json:
        _print_json(drawn.to_json())
        return
    pictures = f", {drawn.thumbnails} pictures" if drawn.thumbnails else ""
    typer.echo(f"{out}: {drawn.tiles - drawn.unplaced:,} tiles{pictures}, {out.stat().st_size / 2**20:,.1f} MiB")
    if drawn.unplaced:
        typer.echo(f"{drawn.unplaced:,} tiles have no place")
    if drawn.unreadable:
        typer.echo(f"{drawn.unreadable} pictures could not be read; `sarsense shards verify` tells why")


@shards_app.command("show")
def _shards_show(
    source: Annotated[str, _SHARDS],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="PNG of the sheet. Default: into a terminal that shows pictures, else contact-sheet.png.",
        ),
    ] = None,
    where: Annotated[str | None, _WHERE] = None,
    by: Annotated[str | None, typer.Option(help="Set tiles apart by a column: sensor, polarisation, split...")] = None,
    near: Annotated[str | None, typer.Option(metavar="LON,LAT", help="The tiles nearest to a place.")] = None,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="The tiles least like the others of their group.")
    ] = False,
    footprints: Annotated[Path | None, typer.Option(help="Also write a map of the footprints to this PNG.")] = None,
    count: Annotated[int, typer.Option(help="Tiles on the sheet.")] = 24,
    columns: Annotated[int, typer.Option(help="Tiles a row.")] = 6,
    seed: Annotated[int, typer.Option(help="Another seed shows other tiles.")] = 0,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Draw a contact sheet: tiles spread over groups and scenes, near a place, or unlike the others."""
    from sarsense.inspection.show import show
    from sarsense.inspection.source import open_source

    opened = open_source(source)
    if footprints is not None and opened.corpus is None:
        raise typer.BadParameter("a corpus expected: of other tars no footprints are known", param_hint="--footprints")
    shown = show(opened, out, count, columns, seed, where, by, near, outliers, to_terminal=sys.stdout.isatty())
    if footprints is not None and opened.corpus is not None:
        from sarsense.report import footprint_map

        footprint_map(opened.corpus, footprints)
    if as_json:
        _print_json(shown.to_json())
        return
    typer.echo(shown.sequence if shown.path is None else str(shown.path), nl=shown.path is not None)
    if footprints is not None:
        typer.echo(str(footprints))


@shards_app.command("browse")
def _shards_browse(
    source: Annotated[str, _SHARDS],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than loopback lets other machines ask.")
    ] = "127.0.0.1",
    flags: Annotated[
        Path, typer.Option(help="CSV of the tiles and scenes that are flagged, for `sarsense build --exclude`.")
    ] = Path("flags.csv"),
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the page in a browser.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Look through tiles on a local page, and flag those that a build is to leave out. Ctrl-C ends it."""
    from pipelines.signals import Stopped, stop_signals
    from sarsense.browse.session import browse, open_page

    try:
        with stop_signals(), browse(source, host, port, flags) as server:
            listed = server.desk.flags
            if as_json:
                _print_json({"url": server.url, "flags": str(listed.path), "tiles": server.desk.table.total})
            else:
                typer.echo(f"{server.desk.source.name}: {server.desk.table.total:,} tiles")
                typer.echo(f"  {server.url}")
                typer.echo(f"  flags: {listed.path} ({len(listed.read())} so far); Ctrl-C ends")
            if not server.loopback:
                typer.echo(
                    "  warning: whoever can reach this machine and sees that address can look and flag", err=True
                )
            sys.stdout.flush()
            if not no_open:
                open_page(server)
            server.serve_forever(poll_interval=0.1)
    except Stopped as stop:
        raise typer.Exit(128 + stop.number) from None


@shards_app.command("verify")
def _shards_verify(
    source: Annotated[str, _SHARDS],
    quick: Annotated[
        bool, typer.Option("--quick", help="Tables, sizes, and both ends of each shard; no pixels are read.")
    ] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Check every shard and every tile against the corpus' tables, to the byte."""
    from pipelines.progress import show_progress
    from sarsense.errors import CorpusError
    from sarsense.inspection.source import open_source
    from sarsense.inspection.text import plain
    from sarsense.verify import verify_corpus

    opened = open_source(source)
    if opened.corpus is None:
        # all that can be checked has been: that each is a whole tar
        raise CorpusError(
            f"{source}: whole tars, of no corpus that is here: nothing says what should be in them; "
            "name the corpus, the folder with corpus.json"
        )
    checked = [shard for shard in opened.corpus.shards if opened.shards is None or shard.path in opened.shards]
    with show_progress() as progress:
        progress.stage("verify", len(checked))
        problems = verify_corpus(opened.corpus, quick, opened.shards, progress.advance)
    if as_json:
        _print_json({"problems": [vars(problem) for problem in problems]})
    else:
        _say(plain(str(problem), 1000) for problem in problems)
        tiles = sum(shard.tiles for shard in checked)
        well = "as they should be, as far as --quick looks" if quick else "all as written"
        verdict = f"{len(problems)} problems" if problems else well
        typer.echo(f"{len(checked)} shards, {tiles} tiles: {verdict}")
    if problems:
        raise typer.Exit(1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().upper() for word in text.split(",") if word.strip())


def _build_config(**settings: Any) -> BuildConfig:
    unit = settings.get("unit")
    if unit is not None and unit not in STATED_UNITS:
        raise typer.BadParameter(f"power, amplitude, db or dn expected, '{unit}' found", param_hint="--unit")
    calibrate = settings.get("calibrate")
    if calibrate not in CONVENTIONS:
        raise typer.BadParameter(
            f"sigma0, beta0, gamma0 or none expected, '{calibrate}' found", param_hint="--calibrate"
        )
    return BuildConfig(**settings)


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return str(value)


def _print_table(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sarsense.inspection.text import plain

    # away from a terminal nothing is cut: a line is as long as it needs to be
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:  # as Text: what stands in brackets is no markup
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def _print_counts(names: Sequence[str], rows: list[dict[str, Any]], tiles: int, most: int) -> None:
    """Rows of `sarsense.inspection.statistics`, the first `most` of them (0: all) and what is left in one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sarsense.inspection.text import plain

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for name in "tiles,share,,scenes,MiB,mean dB,spread,ENL,valid,repeats left out".split(","):
        table.add_column(name, justify="left" if name in ("", "repeats left out") else "right")
    shown = rows[:most] if most and len(rows) > most + 1 else rows
    for row in shown:
        share, size = row["tiles"] / max(tiles, 1), None if row["bytes"] is None else row["bytes"] / 2**20
        measured = [(row["mean_db"], ".2f"), (row["spread_db"], ".2f"), (row["median_enl"], ".2f")]
        cells = [
            *("-" if row[name] is None else plain(_cell(row[name]), 60) for name in names),
            f"{row['tiles']:,}",
            f"{share:.1%}",
            "\u2588" * round(12 * share) or "\u258f",
            f"{row['scenes']:,}" if row["scenes"] else "-",
            "-" if size is None else f"{size:,.1f}",
            *("-" if value is None else f"{value:{form}}" for value, form in measured),
            "-" if row["valid"] is None else f"{row['valid']:.1%}",
            ", ".join(f"{kind} {number:,}" for kind, number in sorted(row["duplicates"].items())),
        ]
        table.add_row(*map(Text, cells))
    if rest := rows[len(shown) :]:
        count = sum(row["tiles"] for row in rest)
        cells = [f"{len(rest)} others", *[""] * (len(names) - 1), f"{count:,}", f"{count / max(tiles, 1):.1%}"]
        table.add_row(*map(Text, cells))
    (Console() if sys.stdout.isatty() else Console(width=1000)).print(table)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A signal to stop ends the command with one line, and with 128 + its number."""
    from pipelines.signals import Stopped, stop_signals

    try:
        with stop_signals():
            yield
    except Stopped as stop:
        with suppress(OSError):  # of SIGHUP: the terminal is gone
            typer.echo(f"stopped by {stop}; the same command goes on from here", err=True)
        raise typer.Exit(128 + stop.number) from None


# ------------------------------------------------------------------------------------------------------- dic3l


@dic3l_app.callback()
def _dic3l(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda wanted: _print_version("dic3l", wanted), is_eager=True, help="Print it."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Pre-train encoders on a SARSense corpus with DIC3L, export and evaluate them."""


_OPTION_SETTINGS = {
    "method": "method.name",
    "arch": "method.arch",
    "weights": "method.weights",
    "crop_size": "views.crop_size",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
    "steps": "train.steps",
    "lr": "optim.lr",
    "momentum": "method.momentum",
    "temperature": "method.temperature",
    "queue_size": "method.queue_size",
    "contour_stage": "method.contour_stage",
    "seed": "train.seed",
    "precision": "train.precision",
    "device": "train.device",
}
"""options of `dic3l pretrain` -> the settings that they change"""
_PRESET_SETTINGS = {name: settings.preset(name) for name in settings.PRESETS}
_SETTING_NOTES = settings.notes()


def _setting_help(name: str) -> str:
    """What a setting means, its default, and its value in the presets that have another."""
    values = {
        preset: _cell(list(value) if isinstance(value := settings.value_of(config, name), tuple) else value)
        for preset, config in _PRESET_SETTINGS.items()
    }
    told = [f"default {(default := values[settings.DEFAULT_PRESET])}"]
    told += [f"{preset}: {value}" for preset, value in values.items() if value != default]
    return f"{_SETTING_NOTES[name]} ({'; '.join(told)})"


def _setting(option: str, *flags: str) -> Any:
    return typer.Option(*flags, help=_setting_help(_OPTION_SETTINGS[option]), show_default=False)


_PRESET_HELP = (
    "paper: the published settings; sarsense: what we would change in them (corpora of --content both); smoke: a few "
    "minutes on two CPU cores."
)
_CONFIG_HELP = "TOML file of settings, over the preset; the config.toml of a run is one."
_OTHER_SETTINGS = "\n\n".join(
    ["Settings for --set and --config:"]
    + [f"{name}: {_setting_help(name)}" for name in settings.names() if name not in _OPTION_SETTINGS.values()]
)


@dic3l_app.command("pretrain", epilog=_OTHER_SETTINGS)
def _pretrain(
    corpus: Annotated[_Place, _CORPUS],
    out: Annotated[Path, typer.Option(help="Folder of the run: new, or of a run to go on with.")],
    preset: Annotated[str, typer.Option(help=_PRESET_HELP)] = settings.DEFAULT_PRESET,
    config: Annotated[Path | None, typer.Option(help=_CONFIG_HELP)] = None,
    method: Annotated[str | None, _setting("method")] = None,
    arch: Annotated[str | None, _setting("arch", "--arch", "-a")] = None,
    weights: Annotated[str | None, _setting("weights")] = None,
    crop_size: Annotated[int | None, _setting("crop_size")] = None,
    batch_size: Annotated[int | None, _setting("batch_size")] = None,
    epochs: Annotated[float | None, _setting("epochs")] = None,
    steps: Annotated[int | None, _setting("steps")] = None,
    lr: Annotated[float | None, _setting("lr")] = None,
    momentum: Annotated[float | None, _setting("momentum")] = None,
    temperature: Annotated[float | None, _setting("temperature")] = None,
    queue_size: Annotated[int | None, _setting("queue_size")] = None,
    contour_stage: Annotated[int | None, _setting("contour_stage")] = None,
    no_di: Annotated[
        bool, typer.Option("--no-di", help="Without Dynamic Instances: method.weight_instances=0; still measured.")
    ] = False,
    no_cc: Annotated[
        bool, typer.Option("--no-cc", help="Without Contour Consistency: method.weight_contour=0; still measured.")
    ] = False,
    seed: Annotated[int | None, _setting("seed")] = None,
    precision: Annotated[str | None, _setting("precision")] = None,
    device: Annotated[str | None, _setting("device")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes of this machine; one a GPU.")] = 1,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: go on from the newest checkpoint in the folder, if any; never: refuse a folder that has one; "
            "or the path of a checkpoint or run to go on from."
        ),
    ] = "auto",
    allow_corpus_change: Annotated[
        bool, typer.Option("--allow-corpus-change", help="Go on with another corpus than the checkpoint's.")
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of this machine that keeps shards of a corpus in a store; ranks share it. Default: "
            "~/.cache/sarsense/shards/ and the machine's name."
        ),
    ] = None,
    cache_gib: Annotated[float, typer.Option(min=0.0, help="GiB of it; what was not used for longest goes.")] = 50.0,
    skip_bad_shards: Annotated[
        bool,
        typer.Option(
            "--skip-bad-shards",
            help="Leave out missing or damaged shards (of a folder: missing or shorter), instead of ending.",
        ),
    ] = False,
    profile: Annotated[
        int,
        typer.Option(min=0, metavar="STEPS", help="Look at so many steps: a table of where their time went, a trace."),
    ] = 0,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
    ] = None,
) -> None:
    """Pre-train an encoder on the train tiles of a corpus. Run it again after an interruption: it goes on."""
    given = locals()
    options = {name: given[option] for option, name in _OPTION_SETTINGS.items() if given[option] is not None}
    switches = {"method.weight_instances": no_di, "method.weight_contour": no_cc}
    options |= {name: 0.0 for name, off in switches.items() if off}
    resolved = settings.resolve(preset, config, options, assignments or ())

    from pipelines.pretrain import pretrain
    from pipelines.shard_source import ShardSource

    source = ShardSource(limit=int(cache_gib * 2**30), skip_bad=skip_bad_shards)
    source = source if cache is None else replace(source, cache=cache)
    outcome = pretrain(corpus, out, resolved, resume, nproc, allow_corpus_change, source, profile)
    if outcome is None:  # of several processes, the first has told
        return
    _print_pretrain(outcome, out)
    if outcome.signal == "SIGINT":
        raise typer.Exit(130)


def _print_pretrain(outcome: Any, run: Path) -> None:
    if outcome.signal:
        typer.echo(
            f"stopped by {outcome.signal} after step {outcome.steps} of {outcome.total}; the checkpoint is written, "
            "the same command goes on from it"
        )
    elif outcome.start == outcome.steps:
        typer.echo(f"nothing to do: the run has its {outcome.steps} steps; more --steps or --epochs train it further")
    else:
        typer.echo(
            f"{outcome.steps - outcome.start} steps in {outcome.seconds:.0f} s, {outcome.tiles_per_s:.0f} tiles/s"
        )
    if outcome.metrics:
        shown = ("loss", "top1_global", "top1_contour", "feature_std", "effective_rank")
        told = [f"{name} {outcome.metrics[name]:.3g}" for name in shown if name in outcome.metrics]
        typer.echo("  " + ", ".join(told))
    for name in ("config.toml", "metrics.jsonl", "tensorboard", "checkpoints"):
        typer.echo(f"  {run / name}")
    if not outcome.signal:
        typer.echo(f"next: dic3l export {run} --out encoder.pt")


@dic3l_app.command("compare")
def _compare(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Folder of a finished corpus.")],
    out: Annotated[Path, typer.Option(help="Folder of runs, scores, table and picture; again: it goes on.")],
    tasks: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="NAME=DIR",
            help="Labelled data to probe on, as `dic3l evaluate` reads them; more after semicolons: layout=, classes=, "
            "fractions=. May be repeated.",
        ),
    ],
    methods: Annotated[str, typer.Option(help="Names of `dic3l pretrain --method` with commas, or all.")] = "all",
    budget: Annotated[int, typer.Option(min=1, metavar="STEPS", help="Optimiser steps of every run.")] = 400,
    seeds: Annotated[int, typer.Option(help="Runs of each method; each has a split of its own.")] = 3,
    probes: Annotated[
        list[str] | None, typer.Option("--probe", help="As of `dic3l evaluate`; may be repeated.")
    ] = None,
    pixels: Annotated[int, typer.Option(help="Pixels that a linear probe is fitted to.")] = 20_000,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="LABEL=WEIGHTS", help="Other weights to probe: imagenet, or a file."),
    ] = None,
    preset: Annotated[str, typer.Option(help=_PRESET_HELP)] = settings.DEFAULT_PRESET,
    config: Annotated[Path | None, typer.Option(help=_CONFIG_HELP)] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Train methods on the same tiles in as many steps, probe them on labelled data: one table, with spreads."""
    resolved = settings.resolve(preset, config, {"train.steps": budget}, assignments or ())

    from pipelines.compare import compare, markdown, parse_methods, parse_task

    found = [pair.partition("=") for pair in others or []]
    if wrong := [label for label, sign, _ in found if not sign]:
        raise typer.BadParameter(f"LABEL=WEIGHTS expected, '{wrong[0]}' found", param_hint="--with")
    result = compare(
        corpus,
        out,
        parse_methods(methods),
        [parse_task(text) for text in tasks],
        resolved,
        seeds,
        probes or (),
        pixels,
        {label: weights for label, _, weights in found},
        progress=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        _print_json(result)
    else:
        typer.echo(markdown(result))
        for name in ("comparison.md", "comparison.json", "comparison.png"):
            typer.echo(out / name)


@dic3l_app.command("views")
def _views(
    corpus: Annotated[_Place, _CORPUS],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("views.png"),
    preset: Annotated[str, typer.Option(help=_PRESET_HELP)] = settings.DEFAULT_PRESET,
    config: Annotated[Path | None, typer.Option(help=_CONFIG_HELP)] = None,
    count: Annotated[int, typer.Option(help="Tiles to show.")] = 12,
    seed: Annotated[int | None, _setting("seed")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")
    ] = None,
) -> None:
    """Draw pairs of views with their matched boxes, as a run with these settings would see them."""
    resolved = settings.resolve(preset, config, {} if seed is None else {"train.seed": seed}, assignments or ())

    from pipelines.pretrain import draw_views

    draw_views(corpus, resolved, out, count)
    typer.echo(str(out))


@dic3l_app.command("status")
def _status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, of any host.")],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Say how far runs are, when they will end, and what looks wrong."""
    from dic3l.monitor import duration
    from dic3l.watch import status

    found = [status(run) for run in runs]
    if as_json:
        _print_json([one.to_json() for one in found])
        return
    for one in found:
        of = "" if one.total is None else f", step {one.step} of {one.total}"
        left = "" if one.left_s is None else f", {duration(one.left_s)} left"
        saved = "none yet" if one.checkpoint is None else f"step {one.checkpoint}"
        typer.echo(f"{one.run}: {one.state}{of}{left}; last line {duration(one.silent_s)} ago, checkpoint: {saved}")
        if one.metrics:
            shown = ("epoch", "loss", "top1_global", "feature_std", "effective_rank", "tiles_per_s")
            told = ", ".join(f"{name} {one.metrics[name]:.3g}" for name in shown if name in one.metrics)
            typer.echo(f"  {told}")
        for note in one.notes:
            typer.echo(f"  look: {note}")


@dic3l_app.command("plot")
def _plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, to compare.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("curves.png"),
) -> None:
    """Draw the curves of runs: losses, top-1, signs of collapse, speed."""
    from dic3l.watch import plot

    plot(runs, out)
    typer.echo(str(out))


@dic3l_app.command("export")
def _export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run (its newest checkpoint) or a checkpoint.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .pt, .pth, .safetensors or .onnx.")],
    scores: Annotated[
        Path | None, typer.Option(help="evaluation.json of `dic3l evaluate`, with a row of this run, for the card.")
    ] = None,
) -> None:
    """Write the encoder of a run as a torchvision state dict, or as ONNX from codes to features; beside it a note
    (JSON) and a card (Markdown) of what it is."""
    from dic3l.export import export

    note = export(run, out, scores)
    typer.echo(f"{note['arch']} after {note['steps']} steps on corpus {note['corpus']['name']}")
    for suffix in (out.suffix, ".json", ".md"):
        typer.echo(f"  {out.with_suffix(suffix)}")


@dic3l_app.command("embed")
def _embed(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="File of `dic3l export`, or folder of a run.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Folder of a finished corpus, or its address: s3:// ...; or rasters: GeoTIFF files."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.")] = Path("embeddings.parquet"),
    corpus: Annotated[
        _Place | None,
        typer.Option(
            metavar="CORPUS", parser=_parse_place, help="Whose dB ranges turn rasters into codes; default: measured."
        ),
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option(help="Side of the windows of rasters; default: of --corpus, else of a build.")
    ] = None,
    l2: Annotated[bool, typer.Option("--l2", help="Embeddings of Euclidean length 1.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[
        Path, typer.Option(help="Folder of this machine that keeps shards of a corpus in a store.")
    ] = Path("~/.cache/sarsense/shards"),
    cache_gib: Annotated[float, typer.Option(min=0.0, help="GiB of it.")] = 50.0,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Write an embedding of each tile of a corpus, or of each window of rasters: GeoParquet with footprints."""
    from pipelines.embed import embed
    from pipelines.shard_source import ShardSource

    source = ShardSource(cache, int(cache_gib * 2**30))

    def told(rows: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{rows:,} tiles", nl=False, err=True)

    done = embed(weights, sources, out, corpus, tile_size, l2, device, source, told)
    if sys.stderr.isatty():
        typer.echo(err=True)
    facts = {"out": str(out), "tiles": done.rows, "scenes": done.scenes, "dim": done.dim, **done.facts}
    if as_json:
        _print_json(facts)
        return
    of = done.facts["weights"]
    typer.echo(
        f"{done.rows:,} tiles of {done.scenes} scenes, {done.dim} numbers each, by {of['arch']} {of['digest'][:12]}"
    )
    typer.echo(f"  {out}")


@dic3l_app.command("search")
def _search(
    embeddings: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="Parquet file of `dic3l embed`.")],
    key: Annotated[str | None, typer.Option(help="The tile of this key.")] = None,
    at: Annotated[
        str | None, typer.Option("--place", metavar="LON,LAT", help="The tile that covers this place, in degrees.")
    ] = None,
    tile: Annotated[int | None, typer.Option(min=0, help="The tile of this row of the file, from 0.")] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="Tiles to find.")] = 12,
    elsewhere: Annotated[float, typer.Option(metavar="KM", help="Leave out tiles that lie nearer than this.")] = 0.0,
    picture: Annotated[Path | None, typer.Option(help="Draw the tiles side by side to this PNG.")] = None,
    corpus: Annotated[
        _Place | None,
        typer.Option(
            metavar="CORPUS", parser=_parse_place, help="Where the tiles of --picture are; default: where they were."
        ),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Find the tiles that are most like a tile: exact, by cosine."""
    from pipelines.search import Query, draw, parse_place, search
    from sarsense.report.picture import check_picture

    if sum(given is not None for given in (key, at, tile)) != 1:
        raise typer.BadParameter("one of --key, --place and --tile expected", param_hint="search")
    if picture is not None:
        check_picture(picture)
    found = search(embeddings, Query(key, None if at is None else parse_place(at), tile), count, elsewhere)
    if picture is not None:
        draw(found, picture, corpus)
    if as_json:
        _print_json(found.to_json())
        return
    typer.echo(f"tile {found.query.key}")
    rows = [
        [str(hit.rank), f"{hit.cosine:.4f}", hit.key, hit.scene, _cell(hit.lon), _cell(hit.lat), _cell(hit.distance_km)]
        for hit in found.hits
    ]
    _print_table(["rank", "cosine", "key", "scene", "lon", "lat", "km"], rows)
    if picture is not None:
        typer.echo(str(picture))


@dic3l_app.command("evaluate")
def _evaluate(
    data: Annotated[Path, typer.Option(help="Folder of the labelled data.")],
    out: Annotated[Path, typer.Option(help="Folder to write evaluation.json, .md, .tex and parts to go on from to.")],
    weights: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WEIGHTS",
            help="Run folders, files of `dic3l export`, torchvision or timm (.pt, .pth, .safetensors), or imagenet; "
            "'{seed}' in a path: the number of each seed; random is always compared.",
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="folder: scenes/ and labels/ (or images/ and masks/) of the same stems; classes: a folder a class; or "
            "of a public set: ombria, sen1floods11, terramind, air-polsar-seg, gaofen, fusar-map, whu-opt-sar, "
            "dfc2020, roads; shards: a corpus of `sarsense build --labels`."
        ),
    ] = "folder",
    arch: Annotated[
        str, typer.Option("--arch", "-a", help="resnet18, resnet34, resnet50, resnet101, or a network of timm.")
    ] = "resnet18",
    probe: Annotated[
        str | None,
        typer.Option(
            help="Of maps: segment-linear (default), knn, fcn, upernet, unet, pspnet, deeplabv3plus, danet, farseg; of "
            "classes: linear (default), knn. Several with commas."
        ),
    ] = None,
    finetune: Annotated[bool, typer.Option("--finetune", help="Train the backbone too; default: frozen.")] = False,
    fractions: Annotated[
        str, typer.Option(help="Per cent of the train places whose labels are used: 1,10,100.")
    ] = "100",
    seeds: Annotated[int, typer.Option(help="Repetitions: other splits, pixels and random networks.")] = 3,
    corpus: Annotated[
        Path | None, typer.Option(help="Corpus whose dB ranges turn GeoTIFF scenes into codes; default: measured.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="What label values mean: 'water=1,land=2+3'; default: what the labels say.")
    ] = None,
    pixels: Annotated[int, typer.Option(help="Pixels that segment-linear is fitted to.")] = 20_000,
    test_share: Annotated[float, typer.Option(help="Share of the places that is tested.")] = 0.3,
    official: Annotated[
        bool, typer.Option("--official-split", help="Fit to the data's own train part, test on its test part.")
    ] = False,
    balanced: Annotated[bool, typer.Option(help="Weight each class by 1 / its share in the fit.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Of decoders: steps of the fit.", show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Of decoders: crops a step.", show_default=False)
    ] = None,
    crop: Annotated[
        int | None, typer.Option(min=32, help="Of decoders: side of the crops, pixels.", show_default=False)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Of decoders: highest learning rate.", show_default=False)] = None,
    save_models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save every fitted segmenter here, for `dic3l predict`.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Maps of the first seed's tested places: GeoTIFF, and pictures beside image and truth."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Compare weights with a random network by probes on labelled places: tables of scores with spreads."""
    shares = _numbers(fractions, "--fractions")

    from dic3l.evaluate.fit import FitConfig
    from dic3l.evaluate.tables import markdown
    from pipelines.evaluate import evaluate

    given = {"steps": steps, "batch_size": batch_size, "crop": crop, "lr": lr}
    with _stoppable():
        result = evaluate(
            weights or [],
            data,
            out,
            layout,
            arch,
            seeds,
            corpus=corpus,
            classes=classes,
            probes=() if probe is None else [name.strip() for name in probe.split(",")],
            finetune=finetune,
            fractions=shares,
            fit=FitConfig(**{name: value for name, value in given.items() if value is not None}),
            pixels=pixels,
            test_share=test_share,
            official=official,
            balanced=balanced,
            save_models=save_models,
            maps=maps,
            device=device,
            progress=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        _print_json(result)
        return
    typer.echo(markdown(result))
    for name in ("evaluation.md", "evaluation.tex", "evaluation.json"):
        typer.echo(str(out / name))


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"numbers with commas expected, '{text}' found", param_hint=option) from None


@dic3l_app.command("predict")
def _predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A segmenter, as `dic3l evaluate` saves it.")],
    scenes: Annotated[list[Path], typer.Argument(metavar="SCENE", help="Rasters to segment, GeoTIFF or the like.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the maps, each of its scene's name; of one scene also a .tif."),
    ],
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also NAME.probabilities.tif: a band a class, 254 is 1, 255 no data."),
    ] = False,
    overviews: Annotated[bool, typer.Option("--overviews", help="Reduced copies inside the maps.")] = False,
    nodata: Annotated[int, typer.Option(help="Value where no image of the scene has data.")] = 255,
    window: Annotated[
        int | None, typer.Option(help="Largest side of a window in pixels; default: what memory and network need.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help=_UNIT_HELP)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Segment whole scenes by overlapping windows: a GeoTIFF of label values for each, on its grid. A scene that
    cannot be read is told in a line, the others are done, and the command ends with 1."""
    from pipelines.predict import PredictConfig, predict
    from pipelines.progress import show_progress
    from pipelines.signals import Stopped, stop_signals

    if unit is not None and unit not in STATED_UNITS:
        raise typer.BadParameter(f"power, amplitude, db or dn expected, '{unit}' found", param_hint="--unit")
    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"auto, cpu or cuda expected, '{device}' found", param_hint="--device")
    config = PredictConfig(window, nodata, probabilities, overviews, unit, device)  # type: ignore[arg-type]
    try:
        with stop_signals(), show_progress() as progress:
            made, failed = predict(model, scenes, out, config, progress)
    except Stopped as stop:
        with suppress(OSError):
            typer.echo(f"stopped by {stop}; maps that were begun are not there, the others are whole", err=True)
        raise typer.Exit(128 + stop.number) from None
    if as_json:
        failures = {str(scene): reason for scene, reason in failed.items()}
        _print_json({"made": [one.to_json() for one in made], "failed": failures})
    else:
        for one in made:
            typer.echo(one.told())
            _say(f"  {path}" for path in (one.result, one.probabilities) if path is not None)
    if failed:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------ entry points


def _run(app: Callable[[], None], name: str) -> None:
    """Run an app; print a deliberate error in one line, anything else with its traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from dic3l.errors import ConfigError, Dic3lError
        from sarsense.errors import SarsenseError, SettingError

        if debug or not isinstance(error, (Dic3lError, SarsenseError, OSError)):
            raise
        told = str(error)
        if isinstance(error, OSError) and error.strerror:  # a disk or a right that is missing: no fault of the code
            told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                told += "; free the disk or mend it, then run the same command again"
        typer.echo(f"{name}: error: {told}", err=True)
        sys.exit(2 if isinstance(error, (SettingError, ConfigError)) else 1)


def run_sarsense() -> None:
    _run(sarsense_app, "sarsense")


def run_dic3l() -> None:
    _run(dic3l_app, "dic3l")
