"""Commands that use weights: export, embed, search, evaluate, predict."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import JSON, UNIT_HELP, AnyPlace, check_unit, parse_place
from pipelines.commands.terminal import cell, print_json, print_table, say, stoppable


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run (its newest checkpoint) or a checkpoint.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .pt, .pth, .safetensors or .onnx.")],
    scores: Annotated[
        Path | None,
        typer.Option(
            help="evaluation.json of `dic3l evaluate`, or comparison.json of `dic3l compare`, with a row of this run, "
            "for the card."
        ),
    ] = None,
) -> None:
    """Write the encoder of a run as a torchvision state dict, or as ONNX from codes to features; beside it a note
    (JSON) and a card (Markdown) of what it is."""
    from dic3l.export import export

    note = export(run, out, scores)
    typer.echo(f"{note['arch']} after {note['steps']} steps on corpus {note['corpus']['name']}")
    for suffix in (out.suffix, ".json", ".md"):
        typer.echo(f"  {out.with_suffix(suffix)}")


def embed(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="File of `dic3l export`, or folder of a run.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Folder of a finished corpus, or its address: s3:// ...; or rasters: GeoTIFF files."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.")] = Path("embeddings.parquet"),
    corpus: Annotated[
        AnyPlace | None,
        typer.Option(
            metavar="CORPUS", parser=parse_place, help="Whose dB ranges turn rasters into codes; default: measured."
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
    as_json: Annotated[bool, JSON] = False,
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
        print_json(facts)
        return
    of = done.facts["weights"]
    scenes = f"{done.scenes} scene{'' if done.scenes == 1 else 's'}"
    typer.echo(f"{done.rows:,} tiles of {scenes}, {done.dim} numbers each, by {of['arch']} {of['digest'][:12]}")
    typer.echo(f"  {out}")


def search(
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
        AnyPlace | None,
        typer.Option(
            metavar="CORPUS", parser=parse_place, help="Where the tiles of --picture are; default: where they were."
        ),
    ] = None,
    as_json: Annotated[bool, JSON] = False,
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
        print_json(found.to_json())
        return
    typer.echo(f"tile {found.query.key}")
    rows = [
        [str(hit.rank), f"{hit.cosine:.4f}", hit.key, hit.scene, cell(hit.lon), cell(hit.lat), cell(hit.distance_km)]
        for hit in found.hits
    ]
    print_table(["rank", "cosine", "key", "scene", "lon", "lat", "km"], rows)
    if picture is not None:
        typer.echo(str(picture))


def evaluate(
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
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Compare weights with a random network by probes on labelled places: tables of scores with spreads."""
    shares = _numbers(fractions, "--fractions")

    from dic3l.evaluate.fit import FitConfig
    from dic3l.evaluate.tables import markdown
    from pipelines.evaluate import evaluate

    given = {"steps": steps, "batch_size": batch_size, "crop": crop, "lr": lr}
    with stoppable():
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
        print_json(result)
        return
    typer.echo(markdown(result))
    for name in ("evaluation.md", "evaluation.tex", "evaluation.json"):
        typer.echo(str(out / name))


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"numbers with commas expected, '{text}' found", param_hint=option) from None


def predict(
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
    unit: Annotated[str | None, typer.Option(help=UNIT_HELP)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Segment whole scenes by overlapping windows: a GeoTIFF of label values for each, on its grid. A scene that
    cannot be read is told in a line, the others are done, and the command ends with 1."""
    from pipelines.predict import PredictConfig, predict
    from pipelines.progress import show_progress
    from pipelines.signals import Stopped, stop_signals

    check_unit(unit)
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
        print_json({"made": [one.to_json() for one in made], "failed": failures})
    else:
        for one in made:
            typer.echo(one.told())
            say(f"  {path}" for path in (one.result, one.probabilities) if path is not None)
    if failed:
        raise typer.Exit(1)
