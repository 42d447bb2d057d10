"""Weights and labelled data -> tables of scores, against baselines that the reader would ask for.

The order of things: list the labelled places; for each seed split them by place; for each fraction of the labels give
every contender the same places, the same sampled pixels and the same probes; pool each test set into one tally; write
the tables. What was computed before, with the same data, weights and settings, is read from OUT/parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import dic3l
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import official_split, split_places, take_fraction
from dic3l.evaluate.fit import FitConfig
from dic3l.evaluate.metrics import Tally, scores
from dic3l.evaluate.tables import Row, finite, latex, markdown, summary
from pipelines.contenders import Contender, Weights, coded_otherwise, contenders, identity
from pipelines.draw import draw_fitted, draw_tested, open_data
from pipelines.fits import Desk, draw_pictures, kept_fit
from pipelines.parts import Parts
from pipelines.pictures import legend_of
from pipelines.probes import KINDS, OF_MAPS, OF_TILES, Kind, Setting, fits, majority, stepwise
from pipelines.protocol import describe_fitted, describe_split, protocol
from sarsense.corpus import open_corpus
from sarsense.files import atomic_write, write_json


def evaluate(
    weights: Sequence[Weights],
    data: Path,
    out: Path,
    layout: str = "folder",
    arch: str = "resnet18",
    seeds: int = 3,
    *,
    corpus: Path | None = None,
    classes: str | None = None,
    probes: Sequence[str] = (),
    finetune: bool = False,
    fractions: Sequence[float] = (100.0,),
    fit: FitConfig | None = None,
    pixels: int = 20_000,
    test_share: float = 0.3,
    official: bool = False,
    balanced: bool = False,
    save_models: Path | None = None,
    maps: Path | None = None,
    device: str = "auto",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Probe `weights` and the baselines on labelled data; write evaluation.json, .md and .tex to `out`.

    `weights`: files (as `dic3l export` or torchvision write them) or folders of runs, '{seed}' in whose path is
    replaced by the number of each seed, or 'imagenet', each alone or as (label, path); random initialisation is always
    a row. `corpus`: whose dB ranges turn GeoTIFF scenes into codes, and whose ground is marked as seen.
    `classes`: 'name=value,name=value+value', what label values mean; default: what the labels say.

    `probes`: default: segment-linear, or linear for tiles of one class. `finetune`: the backbone is trained along with
    the decoder. `fractions`: per cent of the train places whose labels are used. `fit`: of decoders (`frozen` and
    `balanced` are those of here). `pixels`: sampled for the fit of segment-linear. `official`: the data's own split in
    place of one by seed and `test_share`. `save_models`: folder of fitted segmenters, as `dic3l predict` reads them.
    `maps`: folder of predicted maps of the first seed.

    Returns what evaluation.json holds. Raises ConfigError, Dic3lError, SarsenseError.
    """
    _check(seeds, pixels, test_share, fractions, probes)
    on = _device(device)
    labelled = open_data(data, layout, None if corpus is None else open_corpus(corpus), classes)
    setting = Setting(
        tiles=labelled.tiles,
        classes=len(labelled.classes),
        fuse="change" if labelled.dates else "concat",
        balanced=balanced,
        finetune=finetune,
        fit=replace(fit or FitConfig(), frozen=not finetune, balanced=balanced),
        device=on,
    )
    kinds = _kinds(probes, setting, save_models, maps)
    places = labelled.places
    divided = [official_split(places) if official else split_places(places, seed, test_share) for seed in range(seeds)]
    rivals = contenders(weights, arch)
    # wrong data, probes and weights are refused before the first hour, not after it
    identities = {(rival, seed): identity(rival, seed) for rival in rivals for seed in range(seeds)}
    for option, folder in (("--out", out), ("--save-models", save_models), ("--maps", maps)):
        _require_writable(option, folder)
    otherwise = coded_otherwise(weights, arch, seeds, labelled.coding)
    for note in otherwise:
        progress(f"note: {note}")
    legend = legend_of(labelled.classes, labelled.values)
    desk = Desk(labelled, setting, legend, arch, Parts(out / "parts"), save_models, maps)
    rows: dict[tuple[str, str, float], Row] = {}
    splits: list[dict[str, Any]] = []

    def row(name: str, kind: str, fraction: float) -> Row:
        return rows.setdefault((name, kind, fraction), Row(name, kind, fraction))

    for seed, (train, test) in enumerate(divided):
        progress(f"seed {seed}: {len(train)} places to fit, {len(test)} to test")
        tested = draw_tested(places, test, seed)
        splits.append(describe_split(labelled, train, test, tested))
        for fraction in fractions:
            fitted = draw_fitted(places, take_fraction(places, train, fraction / 100, seed), seed, pixels)
            describe_fitted(splits[-1], fraction, fitted, labelled.classes)
            row("majority class", "-", fraction).tallies.append(majority(fitted, tested, setting))
            for kind in kinds:
                for rival in (one for one in rivals if fits(kind, one, setting)):
                    found = kept_fit(desk, kind, rival, identities[rival, seed], fraction, seed, fitted, tested)
                    _add(row(rival.name, kind, fraction), found)
                    told = f"{rival.name}, {kind}, {fraction:g} % of the labels"
                    progress(f"  {told}: mIoU {100 * scores(Tally.from_json(found['tally']).confusion).miou:.2f}")
                draw_pictures(desk, kind, fraction, seed, rivals, tested)

    digest = None if corpus is None else open_corpus(corpus).digest
    share = None if official else test_share
    result = {
        "protocol": protocol(layout, labelled, arch, kinds, setting, fractions, pixels, share, digest, splits),
        "splits": splits,
        "classes": labelled.classes,
        "rows": [summary(one, labelled.classes, _random_of(one, rows, rivals)) for one in rows.values()],
        "versions": {"dic3l": dic3l.__version__, "torch": torch.__version__},
    }
    result["protocol"]["notes"] += otherwise
    result = finite(result)
    write_json(out / "evaluation.json", result)
    for name, text in (("evaluation.md", markdown(result)), ("evaluation.tex", latex(result))):
        with atomic_write(out / name) as file:
            file.write(text.encode())
    return result


def _add(row: Row, found: dict[str, Any]) -> None:
    row.tallies.append(Tally.from_json(found["tally"]))
    row.features = found["features"]
    if found["knn"] is not None:
        row.knn.append(Tally.from_json(found["knn"]))
    if found["penalty"] is not None:
        row.penalties.append(found["penalty"])
    if found["loss"] is not None:
        row.losses.append(found["loss"])


def _random_of(row: Row, rows: dict[tuple[str, str, float], Row], rivals: Sequence[Contender]) -> Row | None:
    """The random network under the same probe; for the majority class, under the first one."""
    name = next(rival.name for rival in rivals if rival.random)
    same = [one for one in rows.values() if one.name == name and one.fraction == row.fraction]
    return next((one for one in same if row.probe in ("-", one.probe)), None)


# ----------------------------------------------------------------------------------------------------- refusals


def _kinds(probes: Sequence[str], setting: Setting, save_models: Path | None, maps: Path | None) -> list[Kind]:
    """The probes asked for, or that of the layout; ConfigError where one does not fit."""
    allowed = OF_TILES if setting.tiles else OF_MAPS
    asked = probes or ["linear" if setting.tiles else "segment-linear"]
    kinds: list[Kind] = [kind for kind in KINDS if kind in asked]
    for kind in kinds:
        if kind not in allowed:
            data = "tiles of one class (--layout classes)" if setting.tiles else "maps of classes"
            raise ConfigError(f"--probe {kind}: the data are {data}; one of {', '.join(allowed)} expected")
        if setting.finetune and not stepwise(kind, setting):
            raise ConfigError(f"--finetune: probe {kind} reads frozen features; a segment probe expected")
    if (save_models or maps) and (setting.tiles or kinds == ["knn"]):
        option = "--save-models" if save_models else "--maps"
        raise ConfigError(f"{option}: probe {', '.join(kinds)} makes no maps; a segment probe expected")
    return kinds


def _check(seeds: int, pixels: int, test_share: float, fractions: Sequence[float], probes: Sequence[str]) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds: 1 or more expected, {seeds} found")
    if pixels < 100:
        raise ConfigError(f"--pixels: 100 or more expected, {pixels} found")
    if not 0 < test_share < 1:
        raise ConfigError(f"--test-share: above 0, below 1 expected, {test_share:g} found")
    if not fractions or len(set(fractions)) != len(fractions) or not all(0 < one <= 100 for one in fractions):
        told = ",".join(f"{one:g}" for one in fractions)
        raise ConfigError(f"--fractions: per cent, above 0, at most 100, none twice, expected, '{told}' found")
    if unknown := [kind for kind in probes if kind not in KINDS]:
        raise ConfigError(f"--probe: one of {', '.join(KINDS)} expected, '{unknown[0]}' found")


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: auto, cpu or cuda expected, '{name}' found")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; leave it out or say cpu")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def _require_writable(option: str, folder: Path | None) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Dic3lError(f"{option} {folder}: cannot be made: {error.strerror}; choose another") from error
    if not os.access(folder, os.W_OK):
        raise Dic3lError(f"{option} {folder}: cannot be written; choose another")
