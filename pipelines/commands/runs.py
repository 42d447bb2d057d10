"""Commands that train: pretrain, compare; and that look at runs: views, status, plot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dic3l import config as settings
from pipelines.commands.options import (
    CONFIG_HELP,
    CORPUS,
    JSON,
    OPTION_SETTINGS,
    PRESET_HELP,
    SET,
    AnyPlace,
    setting,
    setting_help,
)
from pipelines.commands.terminal import print_json

OTHER_SETTINGS = "\n\n".join(
    ["Settings for --set and --config:"]
    + [f"{name}: {setting_help(name)}" for name in settings.names() if name not in OPTION_SETTINGS.values()]
)


def pretrain(
    corpus: Annotated[AnyPlace, CORPUS],
    out: Annotated[Path, typer.Option(help="Folder of the run: new, or of a run to go on with.")],
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = settings.DEFAULT_PRESET,
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP)] = None,
    method: Annotated[str | None, setting("method")] = None,
    arch: Annotated[str | None, setting("arch", "--arch", "-a")] = None,
    weights: Annotated[str | None, setting("weights")] = None,
    crop_size: Annotated[int | None, setting("crop_size")] = None,
    batch_size: Annotated[int | None, setting("batch_size")] = None,
    epochs: Annotated[float | None, setting("epochs")] = None,
    steps: Annotated[int | None, setting("steps")] = None,
    lr: Annotated[float | None, setting("lr")] = None,
    momentum: Annotated[float | None, setting("momentum")] = None,
    temperature: Annotated[float | None, setting("temperature")] = None,
    queue_size: Annotated[int | None, setting("queue_size")] = None,
    contour_stage: Annotated[int | None, setting("contour_stage")] = None,
    no_di: Annotated[
        bool, typer.Option("--no-di", help="Without Dynamic Instances: method.weight_instances=0; still measured.")
    ] = False,
    no_cc: Annotated[
        bool, typer.Option("--no-cc", help="Without Contour Consistency: method.weight_contour=0; still measured.")
    ] = False,
    seed: Annotated[int | None, setting("seed")] = None,
    precision: Annotated[str | None, setting("precision")] = None,
    device: Annotated[str | None, setting("device")] = None,
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
    assignments: Annotated[list[str] | None, SET] = None,
) -> None:
    """Pre-train an encoder on the train tiles of a corpus. Run it again after an interruption: it goes on."""
    given = locals()
    options = {name: given[option] for option, name in OPTION_SETTINGS.items() if given[option] is not None}
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


def compare(
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
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = settings.DEFAULT_PRESET,
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP)] = None,
    assignments: Annotated[list[str] | None, SET] = None,
    as_json: Annotated[bool, JSON] = False,
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
        print_json(result)
    else:
        typer.echo(markdown(result))
        for name in ("comparison.md", "comparison.json", "comparison.png"):
            typer.echo(out / name)


def views(
    corpus: Annotated[AnyPlace, CORPUS],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("views.png"),
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = settings.DEFAULT_PRESET,
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP)] = None,
    count: Annotated[int, typer.Option(help="Tiles to show.")] = 12,
    seed: Annotated[int | None, setting("seed")] = None,
    assignments: Annotated[list[str] | None, SET] = None,
) -> None:
    """Draw pairs of views with their matched boxes, as a run with these settings would see them."""
    resolved = settings.resolve(preset, config, {} if seed is None else {"train.seed": seed}, assignments or ())

    from pipelines.pretrain import draw_views

    draw_views(corpus, resolved, out, count)
    typer.echo(str(out))


def status(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, of any host.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say how far runs are, when they will end, and what looks wrong."""
    from dic3l.monitor import duration
    from dic3l.watch import status

    found = [status(run) for run in runs]
    if as_json:
        print_json([one.to_json() for one in found])
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


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, to compare.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("curves.png"),
) -> None:
    """Draw the curves of runs: losses, top-1, signs of collapse, speed."""
    from dic3l.watch import plot

    plot(runs, out)
    typer.echo(str(out))
