"""The two command lines, `sarsense` and `dic3l`: parse, call, print.

Nothing heavy is imported at module level, so that `--help` and `--version` are instant: a command imports what it
calls. Errors that we raise on purpose are printed in one line (`--debug` shows the traceback) and end with exit
code 1; wrong usage ends with 2, a strict build that refused a scene with 3, Ctrl-C with 130.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sarsense.config import BuildConfig

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

_SOURCES = typer.Argument(metavar="SOURCE...", help="Files, folders (searched to the bottom) or globs.")
_CORPUS = typer.Argument(metavar="CORPUS", help="Folder of a finished corpus.")
_JSON = typer.Option("--json", help="Print JSON for machines.")
_UNIT_HELP = "How values are stored: power, amplitude or db; for all sources. Without it: product, name, values."


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
    typer.echo(f"  classes: {', '.join(truth['classes'])}" if isinstance(truth.get("classes"), dict) else "")


@sarsense_app.command("scan")
def _scan(
    sources: Annotated[list[str], _SOURCES],
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = _BUILD.tile_size,
    unit: Annotated[str | None, typer.Option(help=_UNIT_HELP)] = None,
    polarisations: Annotated[str, typer.Option(help="Take only these, separated by commas; empty: all.")] = "",
    allow_unplaced: Annotated[bool, typer.Option(help="Take rasters without georeferencing.")] = False,
    workers: Annotated[int, typer.Option(help="Worker processes; 0: this process.")] = 0,
    strict: Annotated[bool, typer.Option(help="Exit with 3 when a raster is refused.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Say what each file is and whether a build would take it; write nothing."""
    from pipelines.build import scan

    config = _build_config(
        tile_size=tile_size, unit=unit, polarisations=_words(polarisations), allow_unplaced=allow_unplaced
    )
    rows = scan(sources, config, workers)
    if as_json:
        _print_json(rows)
    else:
        _print_scan(rows)
    if strict and any(row["status"] == "refused" for row in rows):
        raise typer.Exit(3)


@sarsense_app.command("build")
def _build(
    sources: Annotated[list[str], _SOURCES],
    out: Annotated[Path, typer.Option(help="Folder of the corpus: new, empty, or of an unfinished build.")],
    name: Annotated[str, typer.Option(help="Name of the corpus and of its shards.")] = _BUILD.name,
    corpus_version: Annotated[str, typer.Option(help="Your version of the corpus.")] = _BUILD.version,
    tile_size: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = _BUILD.tile_size,
    stride: Annotated[int | None, typer.Option(help="Pixels between tiles; default: the tile size.")] = None,
    polarisations: Annotated[str, typer.Option(help="Take only these, separated by commas; empty: all.")] = "",
    unit: Annotated[str | None, typer.Option(help=_UNIT_HELP)] = None,
    allow_unplaced: Annotated[
        bool, typer.Option(help="Take rasters without georeferencing: no footprint, split by scene.")
    ] = False,
    min_valid: Annotated[float, typer.Option(help="Smallest share of valid pixels of a tile.")] = _BUILD.min_valid,
    val_share: Annotated[float, typer.Option(help="Share of the ground that goes to val.")] = _BUILD.val_share,
    cell_km: Annotated[float, typer.Option(help="Side of the ground cells split as a whole.")] = _BUILD.cell_km,
    shard_mib: Annotated[int, typer.Option(help="Size of a shard, at most, in MiB.")] = _BUILD.shard_mib,
    seed: Annotated[int, typer.Option(help="Of the splits and of the order of tiles.")] = _BUILD.seed,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes of the Dask LocalCluster; 0: this process; default: cores.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to use, tcp://host:port.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 3 when a raster was refused.")] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Build a corpus of tiles from SAR rasters. Run it again after an interruption: it goes on."""
    from pipelines.build import build
    from pipelines.tasks import default_workers

    config = _build_config(
        name=name,
        version=corpus_version,
        tile_size=tile_size,
        stride=stride,
        polarisations=_words(polarisations),
        unit=unit,
        allow_unplaced=allow_unplaced,
        min_valid=min_valid,
        val_share=val_share,
        cell_km=cell_km,
        shard_mib=shard_mib,
        seed=seed,
    )
    count = default_workers() if workers is None else workers
    with _StageProgress() as progress:
        summary = build(sources, out, config, count, scheduler, progress)
    if as_json:
        from dataclasses import asdict

        _print_json(asdict(summary))
    else:
        _print_build(summary)
    if strict and summary.scenes_refused:
        raise typer.Exit(3)


@shards_app.command("ls")
def _shards_ls(
    corpus: Annotated[Path, _CORPUS],
    split: Annotated[str | None, typer.Option(help="train or val; default: both.")] = None,
    limit: Annotated[int, typer.Option(help="Tiles to list; 0: all.")] = 20,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """List tiles: key, shard, place, level."""
    from sarsense.corpus import open_corpus

    columns = "key shard split polarisation lon lat datetime mean_db enl valid_fraction".split()
    table = open_corpus(corpus).tiles(split, columns=columns).select(columns)
    rows = table.slice(0, limit or len(table)).to_pylist()
    if as_json:
        _print_json(rows)
        return
    _print_table(columns, [[_cell(row[name]) for name in columns] for row in rows])
    if len(rows) < len(table):
        typer.echo(f"{len(rows)} of {len(table)} tiles; --limit 0 lists all")


@shards_app.command("stats")
def _shards_stats(
    corpus: Annotated[Path, _CORPUS],
    plot: Annotated[Path | None, typer.Option(help="Write dB histograms by group to this PNG.")] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Count tiles by split and group, with levels, looks and ranges."""
    from sarsense.corpus import open_corpus
    from sarsense.report import corpus_statistics, histogram_figure

    opened = open_corpus(corpus)
    statistics = corpus_statistics(opened)
    if plot is not None:
        histogram_figure(opened, plot)
    if as_json:
        _print_json(statistics)
        return
    for name in ("name", "version", "digest", "tiles", "shards", "bytes"):
        typer.echo(f"{name:8} {_cell(statistics[name])}")
    groups = statistics["groups"]
    columns = list(groups[0]) if groups else []
    _print_table(columns, [[_cell(row[name]) for name in columns] for row in groups])
    if plot is not None:
        typer.echo(str(plot))


@shards_app.command("show")
def _shards_show(
    corpus: Annotated[Path, _CORPUS],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG of the contact sheet.")] = Path("contact-sheet.png"),
    footprints: Annotated[Path | None, typer.Option(help="Also write a map of the footprints to this PNG.")] = None,
    count: Annotated[int, typer.Option(help="Tiles on the sheet.")] = 24,
    columns: Annotated[int, typer.Option(help="Tiles a row.")] = 6,
    seed: Annotated[int, typer.Option(help="Another seed shows other tiles.")] = 0,
) -> None:
    """Draw a contact sheet of tiles spread over groups and scenes."""
    from sarsense.corpus import open_corpus
    from sarsense.report import contact_sheet, footprint_map

    opened = open_corpus(corpus)
    contact_sheet(opened, out, count=count, columns=columns, seed=seed)
    typer.echo(str(out))
    if footprints is not None:
        footprint_map(opened, footprints)
        typer.echo(str(footprints))


@shards_app.command("verify")
def _shards_verify(corpus: Annotated[Path, _CORPUS], as_json: Annotated[bool, _JSON] = False) -> None:
    """Check every shard and every tile against the corpus' tables, to the bit."""
    from sarsense.corpus import open_corpus, verify_corpus

    opened = open_corpus(corpus)
    problems = verify_corpus(opened)
    if as_json:
        _print_json({"problems": problems})
    else:
        for problem in problems:
            typer.echo(problem)
        tiles = sum(shard.tiles for shard in opened.shards)
        verdict = f"{len(problems)} problems" if problems else "all as written"
        typer.echo(f"{len(opened.shards)} shards, {tiles} tiles: {verdict}")
    if problems:
        raise typer.Exit(1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().upper() for word in text.split(",") if word.strip())


def _build_config(**settings: Any) -> BuildConfig:
    unit = settings.get("unit")
    if unit is not None and unit not in ("power", "amplitude", "db"):
        raise typer.BadParameter(f"power, amplitude or db expected, '{unit}' found", param_hint="--unit")
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


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    # away from a terminal nothing is cut: a line is as long as it needs to be
    console.print(table, width=None if console.is_terminal else 400, soft_wrap=not console.is_terminal)


def _print_scan(rows: list[dict[str, Any]]) -> None:
    rasters = [row for row in rows if row["status"] != "sidecar"]
    for row in rasters:
        what = row["reason"] or " ".join(
            f"{pol}: {unit} ({evidence});"
            for pol, unit, evidence in zip(row["polarisations"], row["units"], row["evidence"], strict=True)
        )
        facts = "" if row["reason"] else f"{row['product']}, {row['height']} x {row['width']}, {row['geometry']}; "
        typer.echo(f"{row['status']:8} {row['path']}: {facts}{what}")
        for note in row.get("notes") or []:
            typer.echo(f"{'':8}   note: {note}")
    usable = sum(row["status"] == "usable" for row in rows)
    typer.echo(
        f"{len(rows)} files: {usable} usable, {len(rasters) - usable} refused, {len(rows) - len(rasters)} not rasters"
    )


def _print_build(summary: Any) -> None:
    typer.echo(f"{summary.name}: {summary.out}")
    typer.echo(
        f"  {summary.files} files: {summary.scenes_used} scenes used, {summary.scenes_duplicate} duplicates, "
        f"{summary.scenes_refused} refused, {summary.sidecars} not rasters"
    )
    for reason, count in summary.reasons.items():
        typer.echo(f"    {count} refused: {reason}")
    splits = ", ".join(f"{count} {split}" for split, count in sorted(summary.tiles.items()))
    left = ", ".join(f"{count} {why}" for why, count in summary.tiles_left_out.items() if count)
    typer.echo(f"  {sum(summary.tiles.values())} tiles ({splits}){'; left out: ' + left if left else ''}")
    if not summary.tiles.get("train"):
        typer.echo("  warning: no tile is in train; another --seed, a smaller --cell-km or --val-share 0 changes that")
    typer.echo(f"  {summary.shards} shards, {summary.bytes / 2**20:.1f} MiB, in {summary.seconds:g} s")
    typer.echo(f"  digest {summary.digest}")
    if summary.scenes_refused:
        typer.echo(f"  why each was refused: {summary.out}/scenes.parquet, or `sarsense scan`")


class _StageProgress:
    """Progress by stage on standard error: bars on a terminal, a line a stage elsewhere."""

    def __enter__(self) -> _StageProgress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._terminal = console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self._terminal,
        )
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        self._task = self._bars.add_task(name, total=total)
        if not self._terminal:
            typer.echo(f"{name}: {total}", err=True)

    def advance(self) -> None:
        self._bars.advance(self._task)


# ------------------------------------------------------------------------------------------------------- dic3l


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
        from dic3l.errors import Dic3lError
        from sarsense.errors import SarsenseError

        if debug or not isinstance(error, (Dic3lError, SarsenseError)):
            raise
        typer.echo(f"{name}: error: {error}", err=True)
        sys.exit(1)


def run_sarsense() -> None:
    _run(sarsense_app, "sarsense")


def run_dic3l() -> None:
    _run(dic3l_app, "dic3l")
