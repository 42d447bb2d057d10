"""Commands that make corpora or tell of whole ones: simulate, scan, build, stats, diff, merge, export, report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import CORPUS, JSON, SHARDS, SOURCES, UNIT_HELP, AnyPlace, check_unit, parse_place
from pipelines.commands.terminal import cell, print_json, print_table, say, stoppable
from sarsense.config import CONVENTIONS, BuildConfig

if TYPE_CHECKING:
    from pipelines.companions import CompanionFiles
    from sarsense.places import Place

_BUILD = BuildConfig()
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


def simulate(
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


def scan(
    sources: Annotated[list[str], SOURCES],
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = _BUILD.tile_size,
    unit: Annotated[str | None, typer.Option(help=UNIT_HELP)] = None,
    calibrate: Annotated[str, typer.Option(help=_CALIBRATE_HELP)] = _BUILD.calibrate,
    multilook: Annotated[str, typer.Option(help=_MULTILOOK_HELP)] = _BUILD.multilook,
    spacing: Annotated[float | None, typer.Option(help=_SPACING_HELP)] = None,
    polarisations: Annotated[str, typer.Option(help="Take only these, separated by commas; empty: all.")] = "",
    bands: Annotated[_Bands, typer.Option(help=_BANDS_HELP)] = _Bands.single,
    allow_unplaced: Annotated[bool, typer.Option(help="Take rasters without georeferencing.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: this process.")] = 0,
    strict: Annotated[bool, typer.Option(help="Exit with 3 when a raster is refused.")] = False,
    as_json: Annotated[bool, JSON] = False,
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
        print_json(rows)
    else:
        from pipelines.messages import scan_lines

        say(scan_lines(rows))
    if strict and any(row["status"] == "refused" for row in rows):
        raise typer.Exit(3)


def build(
    sources: Annotated[list[str], SOURCES],
    out: Annotated[
        AnyPlace,
        typer.Option(
            metavar="PATH",
            parser=parse_place,
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
        AnyPlace | None,
        typer.Option(
            metavar="PATH",
            parser=parse_place,
            help="A finished corpus whose dB ranges are taken, so that codes are comparable.",
        ),
    ] = None,
    bits: Annotated[int, typer.Option(help="Of a code: 8, or 16 (the trainer reads them as 8).")] = _BUILD.bits,
    unit: Annotated[str | None, typer.Option(help=UNIT_HELP)] = None,
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
    as_json: Annotated[bool, JSON] = False,
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
    with stoppable():
        with show_progress() as progress:
            summary = build(sources, out, config, count, scheduler, progress, stats_from, companions, anew)
        if not is_current(open_corpus(out)):
            write_datasheet(open_corpus(out))
    if as_json:
        from dataclasses import asdict

        print_json(asdict(summary))
    else:
        from pipelines.messages import build_lines

        say(build_lines(summary))
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
        print_json(planned.to_json())
    else:
        say(plan_lines(planned))
    if planned.refusal:
        raise SarsenseError(planned.refusal)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().upper() for word in text.split(",") if word.strip())


def _build_config(**settings: Any) -> BuildConfig:
    check_unit(settings.get("unit"))
    calibrate = settings.get("calibrate")
    if calibrate not in CONVENTIONS:
        raise typer.BadParameter(
            f"sigma0, beta0, gamma0 or none expected, '{calibrate}' found", param_hint="--calibrate"
        )
    return BuildConfig(**settings)


def stats(
    corpus: Annotated[AnyPlace, CORPUS],
    plot: Annotated[
        Path | None, typer.Option(help="Write the despeckled histogram and the range of each group to this PNG.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
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
        print_json({**{name: made[name] for name in names}, "stats_from": source, "groups": rows})
        return
    where = "" if source is None else f", ranges of corpus {source['corpus']} ({source['digest'][:12]})"
    say([f"{opened.name}: normalised by {made['normalization']}, {made['content']}, {made['bits']} bits{where}"])
    columns = list(rows[0]) if rows else []
    print_table(columns, [[cell(row[name]) for name in columns] for row in rows])
    if plot is not None:
        typer.echo(str(plot))


def diff(
    a: Annotated[AnyPlace, typer.Argument(metavar="A", parser=parse_place, help="A finished corpus.")],
    b: Annotated[
        AnyPlace, typer.Argument(metavar="B", parser=parse_place, help="Another, or a later state of the same.")
    ],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say what changed from corpus A to B: tiles, splits, dB ranges, scenes, settings. Ends with 1 if anything did."""
    from pipelines.messages import diff_lines
    from sarsense.corpus import open_corpus
    from sarsense.diff import compare

    found = compare(open_corpus(a), open_corpus(b))
    if as_json:
        print_json(found.to_json())
    else:
        say(diff_lines(found))
    if not found.nothing:
        raise typer.Exit(1)


def merge(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a finished corpus.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another, made with the same settings and ranges.")],
    out: Annotated[Path, typer.Option(help="Folder of the corpus that holds the tiles of both: new or empty.")],
    name: Annotated[str | None, typer.Option(help="Name of the new corpus; default: that of one of them.")] = None,
    corpus_version: Annotated[str, typer.Option(help="Your version of the new corpus.")] = _BUILD.version,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: this process.")] = 0,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Put the tiles of two corpora into one, without their duplicates. The order of A and B changes nothing."""
    from pipelines.merge import merge
    from pipelines.messages import merge_lines
    from pipelines.progress import show_progress
    from sarsense.report.datasheet import write_datasheet

    with stoppable():
        with show_progress() as progress:
            corpus, dropped = merge(a, b, out, name, corpus_version, workers, progress)
        write_datasheet(corpus)
    if as_json:
        print_json({"out": str(out), "digest": corpus.digest, "tiles": corpus.manifest["splits"], "left_out": dropped})
    else:
        say(merge_lines(corpus, dropped))


def describe(
    corpus: Annotated[AnyPlace, CORPUS],
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
    say(str(path) for path in export(open_corpus(corpus), out or corpus, croissant, stac))


def report(
    source: Annotated[str, SHARDS],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file, which holds everything.")] = Path("report.html"),
    as_json: Annotated[bool, JSON] = False,
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
        print_json({"out": str(out), "bytes": out.stat().st_size, "digest": digest})
    else:
        typer.echo(str(out))
