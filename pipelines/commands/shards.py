"""Commands that look into shards: ls, head, get, stats, map, show, browse, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import JSON, SHARDS, WHERE
from pipelines.commands.terminal import cell, print_counts, print_json, print_table, say


def ls(
    source: Annotated[str, SHARDS],
    where: Annotated[str | None, WHERE] = None,
    sort: Annotated[
        str | None, typer.Option(help="Columns with commas between, -column for the largest first; or as ORDER BY.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to list, with commas; all: every one.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Tiles to list; 0: all.")] = 20,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """List tiles: key, shard, place, level; or any columns, of those that a condition holds for."""
    from sarsense.inspection.listing import listing
    from sarsense.inspection.source import open_source

    names, rows, count = listing(open_source(source), where, sort, columns, limit)
    if as_json:
        print_json(rows)
        return
    print_table(names, [[cell(row[name]) for name in names] for row in rows])
    if len(rows) < count:
        typer.echo(f"{len(rows)} of {count:,} tiles; --limit 0 lists all")


def head(
    source: Annotated[str, SHARDS],
    count: Annotated[int, typer.Option("-n", min=1, help="Tiles.")] = 3,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """The first tiles, with everything that is known of them."""
    from sarsense.inspection.listing import heads
    from sarsense.inspection.source import open_source

    found = heads(open_source(source), count)
    if as_json:
        print_json(found)
        return
    for number, tile in enumerate(found):
        if number:
            typer.echo()
        print_table([], [[name, cell(value)] for name, value in tile.items()])


def get(
    source: Annotated[str, SHARDS],
    key: Annotated[str, typer.Argument(help="Key of the tile, as `shards ls` lists it.")],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help=".png to look at; .npy: as it lies in the shard; .tif: dB, at its place."),
    ],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Write a tile to a file: PNG, npy, or GeoTIFF in dB that QGIS opens at its place."""
    from sarsense.inspection.get import get
    from sarsense.inspection.source import open_source

    told = get(open_source(source), key, out)
    if as_json:
        print_json({"out": str(out), "key": key, "content": told})
    else:
        typer.echo(f"{out}: {told}")


def stats(
    source: Annotated[str, SHARDS],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN[,COLUMN]",
            help="Count by these, up to three: columns of tiles.parquet, or month, year, season, region, spacing. "
            "Default: sensor, polarisation, split, month, spacing and region, each on its own.",
        ),
    ] = None,
    where: Annotated[str | None, WHERE] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it, with histograms of dB by group, to this PNG.")] = None,
    as_json: Annotated[bool, JSON] = False,
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
        print_json(told)
        return
    for name in ("name", "version", "digest", "tiles", "shards", "bytes"):
        if told[name] is not None:
            say([f"{name:8} {cell(told[name])}"])
    if told["duplicates"]:
        say([f"repeats  {', '.join(f'{kind} {number}' for kind, number in told['duplicates'].items())}: left out"])
    if told["unknown"]:
        typer.echo(f"unknown  {', '.join(told['unknown'])}: nothing in these tars says them")
    for name, rows in told["by"].items():
        typer.echo()
        print_counts(name.split(","), rows, told["tiles"], 0 if by else 12)
    if told["groups"] and by is None:
        typer.echo()
        columns = list(told["groups"][0])
        print_table(columns, [[cell(row[name]) for name in columns] for row in told["groups"]])
    if plot is not None:
        typer.echo(str(plot))


def map_(
    source: Annotated[str, SHARDS],
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
    where: Annotated[str | None, WHERE] = None,
    thumbnails: Annotated[int, typer.Option(min=0, help="Pictures in the page, spread over scenes.")] = 400,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Draw where tiles lie: one HTML file with coastline, colours, pictures and provenance; or GeoJSON, GeoParquet."""
    from sarsense.inspection.map import write_map
    from sarsense.inspection.source import open_source
    from sarsense.places import place

    # not the signature of a signed address: a page is passed on
    drawn = write_map(open_source(source), out, color, where, thumbnails, str(place(source)))
    if as_json:
        print_json(drawn.to_json())
        return
    pictures = f", {drawn.thumbnails} pictures" if drawn.thumbnails else ""
    typer.echo(f"{out}: {drawn.tiles - drawn.unplaced:,} tiles{pictures}, {out.stat().st_size / 2**20:,.1f} MiB")
    if drawn.unplaced:
        typer.echo(f"{drawn.unplaced:,} tiles have no place")
    if drawn.unreadable:
        typer.echo(f"{drawn.unreadable} pictures could not be read; `sarsense shards verify` tells why")


def show(
    source: Annotated[str, SHARDS],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="PNG of the sheet. Default: into a terminal that shows pictures, else contact-sheet.png.",
        ),
    ] = None,
    where: Annotated[str | None, WHERE] = None,
    by: Annotated[str | None, typer.Option(help="Set tiles apart by a column: sensor, polarisation, split...")] = None,
    near: Annotated[str | None, typer.Option(metavar="LON,LAT", help="The tiles nearest to a place.")] = None,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="The tiles least like the others of their group.")
    ] = False,
    footprints: Annotated[Path | None, typer.Option(help="Also write a map of the footprints to this PNG.")] = None,
    count: Annotated[int, typer.Option(help="Tiles on the sheet.")] = 24,
    columns: Annotated[int, typer.Option(help="Tiles a row.")] = 6,
    seed: Annotated[int, typer.Option(help="Another seed shows other tiles.")] = 0,
    as_json: Annotated[bool, JSON] = False,
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
        print_json(shown.to_json())
        return
    typer.echo(shown.sequence if shown.path is None else str(shown.path), nl=shown.path is not None)
    if footprints is not None:
        typer.echo(str(footprints))


def browse(
    source: Annotated[str, SHARDS],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0: any that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than loopback lets other machines ask.")
    ] = "127.0.0.1",
    flags: Annotated[
        Path, typer.Option(help="CSV of the tiles and scenes that are flagged, for `sarsense build --exclude`.")
    ] = Path("flags.csv"),
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the page in a browser.")] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Look through tiles on a local page, and flag those that a build is to leave out. Ctrl-C ends it."""
    from pipelines.signals import Stopped, stop_signals
    from sarsense.browse.session import browse, open_page

    try:
        with stop_signals(), browse(source, host, port, flags) as server:
            listed = server.desk.flags
            if as_json:
                print_json({"url": server.url, "flags": str(listed.path), "tiles": server.desk.table.total})
            else:
                say([f"{server.desk.source.name}: {server.desk.table.total:,} tiles"])
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


def verify(
    source: Annotated[str, SHARDS],
    quick: Annotated[
        bool, typer.Option("--quick", help="Tables, sizes, and both ends of each shard; no pixels are read.")
    ] = False,
    as_json: Annotated[bool, JSON] = False,
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
        print_json({"problems": [vars(problem) for problem in problems]})
    else:
        say(plain(str(problem), 1000) for problem in problems)
        tiles = sum(shard.tiles for shard in checked)
        well = "as they should be, as far as --quick looks" if quick else "all as written"
        verdict = f"{len(problems)} problems" if problems else well
        typer.echo(f"{len(checked)} shards, {tiles} tiles: {verdict}")
    if problems:
        raise typer.Exit(1)
