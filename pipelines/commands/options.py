"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Any

import typer

from dic3l import config as settings
from pipelines.commands.terminal import cell
from sarsense.config import STATED_UNITS

SOURCES = typer.Argument(
    metavar="SOURCE",
    help="Files, folders (searched to the bottom), zips (also as /vsizip/), globs, s3:// gs:// az:// prefixes, "
    "https:// files, or a list of scenes: STAC (JSON), CSV, Parquet.",
)
AnyPlace = Any
"""a folder or remote address, as `sarsense.places` reads it: typer takes no union of types"""


def check_unit(unit: str | None) -> None:
    """BadParameter where it is none of those that rasters may be said to have."""
    if unit is not None and unit not in STATED_UNITS:
        raise typer.BadParameter(f"power, amplitude, db or dn expected, '{unit}' found", param_hint="--unit")


def parse_place(text: str) -> AnyPlace:
    from sarsense.places import place

    return place(text)


CORPUS = typer.Argument(
    metavar="CORPUS",
    parser=parse_place,
    help="Folder of a finished corpus, or its address: s3:// gs:// az:// https://.",
)
SHARDS = typer.Argument(
    metavar="CORPUS",
    help="Folder of a corpus, or its address; a tar, also of another program; a glob of tars, in quotes.",
)
JSON = typer.Option("--json", help="Print JSON for machines.")
UNIT_HELP = "How values are stored: power, amplitude, db or dn (digital numbers, uncalibrated); of all sources."
WHERE = typer.Option(
    help="Only these tiles: a condition of SQL on columns of tiles.parquet, as \"sensor = 'S1' and enl < 5\"."
)
PRESET_HELP = (
    "paper: the published settings; sarsense: what we would change in them (corpora of --content both); smoke: a few "
    "minutes on two CPU cores."
)
CONFIG_HELP = "TOML file of settings, over the preset; the config.toml of a run is one."
SET = typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any setting; may be repeated.")

OPTION_SETTINGS = {
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


def setting_help(name: str) -> str:
    """What a setting means, its default, and its value in the presets that have another."""
    values = {
        preset: cell(list(value) if isinstance(value := settings.value_of(config, name), tuple) else value)
        for preset, config in _PRESET_SETTINGS.items()
    }
    told = [f"default {(default := values[settings.DEFAULT_PRESET])}"]
    told += [f"{preset}: {value}" for preset, value in values.items() if value != default]
    return f"{_SETTING_NOTES[name]} ({'; '.join(told)})"


def setting(option: str, *flags: str) -> Any:
    return typer.Option(*flags, help=setting_help(OPTION_SETTINGS[option]), show_default=False)
