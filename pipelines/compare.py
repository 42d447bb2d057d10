"""Methods -> runs of one budget -> scores on labelled tasks -> one table and one picture, with spreads.

Every method sees the tiles of one corpus in the same number of steps and batches, from the same initial seeds; every
run is probed on every task in the same way (`pipelines.evaluate`). What is finished is not done again: runs go on from
their checkpoints, scores are read from what was written.

OUT/
  runs/METHOD-SEED/            as `dic3l pretrain` leaves them
  scores/TASK/                 as `dic3l evaluate` does
  comparison.json, .md, .png
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import dic3l
from dic3l.config import METHODS, Config, MethodName, override
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.tables import cell, spread_of
from pipelines.evaluate import evaluate
from pipelines.pretrain import pretrain
from sarsense.corpus import open_corpus
from sarsense.files import atomic_write, write_json

_RANDOM = "random weights"
_MEASURES = (("miou", "gain", "mIoU"), ("knn_miou", "knn_gain", "kNN mIoU"))
"""keys of a score and of its difference to random weights, and the score's name"""
_OPTIONS = ("layout", "classes", "fractions")


@dataclass(frozen=True)
class Task:
    """Labelled data that runs are probed on."""

    name: str
    data: Path
    layout: str = "folder"
    classes: str | None = None
    fractions: tuple[float, ...] = (100.0,)
    """per cent of the train places whose labels are used"""


def parse_task(text: str) -> Task:
    """'NAME=DIR', 'NAME=DIR;layout=ombria;classes=water=1,land=2+3;fractions=1,100'."""
    head, *options = text.split(";")
    name, sign, data = head.partition("=")
    if not sign or not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"--task: expected NAME=DIR, NAME of letters, digits, '-', '_' and '.', found '{text}'")
    found: dict[str, str] = {}
    for option in options:
        key, sign, value = option.partition("=")
        if key not in _OPTIONS or not sign:
            raise ConfigError(f"--task {name}: expected {', '.join(_OPTIONS)} with =value, found '{option}'")
        found[key] = value
    try:
        fractions = tuple(float(part) for part in found.get("fractions", "100").split(","))
    except ValueError as error:
        raise ConfigError(f"--task {name}: fractions: numbers expected, found '{found['fractions']}'") from error
    return Task(name, Path(data), found.get("layout", "folder"), found.get("classes"), fractions)


def parse_methods(text: str) -> list[MethodName]:
    """Names with commas between, or 'all'."""
    names = list(METHODS) if text == "all" else [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [name for name in names if name not in METHODS]:
        raise ConfigError(f"--methods: expected all, or some of {', '.join(METHODS)}, found '{unknown[0]}'")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"--methods: expected one or more names, none of them twice, found '{text}'")
    return [name for name in get_args(MethodName) if name in names]


def compare(
    corpus: Path,
    out: Path,
    methods: Sequence[MethodName],
    tasks: Sequence[Task],
    config: Config,
    seeds: int = 3,
    probes: Sequence[str] = (),
    pixels: int = 20_000,
    others: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train `methods` on `corpus` under the budget of `config` (`train.steps` or `train.epochs`), seeds 0, 1, ..., and
    probe them; what comparison.json holds.

    others: label -> weights ('imagenet', or a path, with '{seed}') that are probed beside them. Raises ConfigError,
    Dic3lError, SarsenseError.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds: 1 or more expected, {seeds} found")
    if not tasks:
        raise ConfigError("--task: one or more expected, none found")
    if len({task.name for task in tasks}) != len(tasks):
        raise ConfigError(f"--task: names that differ expected, found {', '.join(task.name for task in tasks)}")
    settings = {method: override(config, [("--methods", {"method.name": method})]) for method in methods}
    for seed in range(seeds):
        for method, chosen in settings.items():
            progress(f"{method}, seed {seed}")
            run = out / "runs" / f"{method}-{seed}"
            ended = pretrain(corpus, run, replace(chosen, train=replace(chosen.train, seed=seed)))
            if ended is not None and ended.signal:
                raise Dic3lError(f"{run}: stopped by {ended.signal}; the same command goes on")
    contenders = [(method, str(out / "runs" / f"{method}-{{seed}}")) for method in methods]
    contenders += list((others or {}).items())
    scored = {}
    for task in tasks:
        progress(f"probing on {task.name}")
        scored[task.name] = evaluate(
            contenders,
            task.data,
            out / "scores" / task.name,
            task.layout,
            config.method.arch,
            seeds,
            corpus=corpus,
            classes=task.classes,
            probes=probes,
            fractions=task.fractions,
            pixels=pixels,
            progress=progress,
        )
    result = _result(corpus, [name for name, _ in contenders], scored, config, seeds)
    write_json(out / "comparison.json", result)
    with atomic_write(out / "comparison.md") as file:
        file.write(markdown(result).encode())
    plot(result, out / "comparison.png")
    return result


def _result(
    corpus: Path, names: Sequence[str], scored: Mapping[str, dict[str, Any]], config: Config, seeds: int
) -> dict[str, Any]:
    opened = open_corpus(corpus)
    rows = []
    for task, found in scored.items():
        of_random = {(r["probe"], r["fraction"]): r["knn_miou"] for r in found["rows"] if _is_random(r)}
        for row in found["rows"]:
            name = _RANDOM if _is_random(row) else row["name"]
            base = of_random.get((row["probe"], row["fraction"]))
            rows.append({"task": task, **row, "name": name, "knn_gain": _difference(row["knn_miou"], base)})
    return {
        "corpus": {"name": opened.name, "digest": opened.digest},
        "methods": list(names),
        "seeds": seeds,
        "budget": {
            "steps": config.train.steps,
            "epochs": None if config.train.steps else config.train.epochs,
            "batch_size": config.train.batch_size,
            "arch": config.method.arch,
            "crop_size": config.views.crop_size,
        },
        "rows": rows,
        "tasks": {task: {"classes": found["classes"], "protocol": found["protocol"]} for task, found in scored.items()},
        "versions": {"dic3l": dic3l.__version__},
    }


def _is_random(row: dict[str, Any]) -> bool:
    return row["name"].endswith(", random")


def _difference(scores: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    """Seed by seed; empty where either has none."""
    pairs = [] if base is None or not scores["values"] else zip(scores["values"], base["values"], strict=True)
    return spread_of([one - other for one, other in pairs])


# --------------------------------------------------------------------------------------------- table and picture


def columns(result: dict[str, Any]) -> list[tuple[str, str, float]]:
    """(task, probe, fraction) in the order in which they were scored."""
    found = [(row["task"], row["probe"], row["fraction"]) for row in result["rows"] if row["probe"] != "-"]
    return list(dict.fromkeys(found))


def markdown(result: dict[str, Any]) -> str:
    """One row a contender; of each task its mIoU, how much that is above random weights, and the IoU of classes."""
    budget, corpus, lines = result["budget"], result["corpus"], []
    length = f"{budget['steps']} steps" if budget["steps"] else f"{budget['epochs']:g} epochs"
    lines += [
        f"{length} of {budget['batch_size']} tiles, {budget['arch']}, views of {budget['crop_size']} px, "
        f"{result['seeds']} seeds; corpus {corpus['name']} ({corpus['digest'][:12]}). Per cent, mean "
        "± standard deviation over seeds; above random: the difference to random weights in the score before it, seed "
        "by seed; kNN: the vote of the nearest fitted pixels, on the same frozen features.",
        "",
    ]
    for task, probe, fraction in columns(result):
        classes = result["tasks"][task]["classes"]
        shown = classes[1:] if len(classes) == 2 else classes
        scored = _measures(result, task, probe, fraction)
        lines += [
            f"**{task}**, probe {probe}, {fraction:g} % of the labels",
            "",
            "| features | "
            + " | ".join(f"{title} | above random" for _, _, title in scored)
            + "".join(f" | IoU {name}" for name in shown)
            + " |",
            "| --- |" + " ---: |" * (2 * len(scored) + len(shown)),
        ]
        for row in _rows(result, task, probe, fraction):
            cells = [cell(row[key]) for score, gain, _ in scored for key in (score, gain)]
            cells += [cell(row["classes"][name]["iou"]) for name in shown]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        lines.append("")
        lines += [f"- {note}" for note in result["tasks"][task]["protocol"]["notes"]]
        lines.append("")
    return "\n".join(lines)


def _measures(result: dict[str, Any], task: str, probe: str, fraction: float) -> list[tuple[str, str, str]]:
    """Those of _MEASURES that a table has values of."""
    rows = _rows(result, task, probe, fraction)
    return [one for one in _MEASURES if any(row[one[0]]["values"] for row in rows)]


def _rows(result: dict[str, Any], task: str, probe: str, fraction: float) -> list[dict[str, Any]]:
    """Of one table; the majority class has no probe."""
    return [
        row
        for row in result["rows"]
        if row["task"] == task and row["probe"] in ("-", probe) and row["fraction"] == fraction
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    """mIoU above random weights: a row a task and probe, of it a panel a score, a line a contender: mean, spread, and
    every seed."""
    from matplotlib.figure import Figure

    panels = [(*column, _measures(result, *column)) for column in columns(result)]
    names, wide = result["methods"], max(len(measures) for *_, measures in panels)
    size = (1.5 + 3.4 * wide, (1.0 + 0.26 * len(names)) * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), wide, sharey=True, squeeze=False)
    for line, (task, probe, fraction, measures) in zip(grid, panels, strict=True):
        for axis, measure in zip(line, measures, strict=False):
            _draw_gains(axis, _rows(result, task, probe, fraction), names, *measure[1:])
            told = probe if measure[0] == "miou" else "kNN"
            axis.set_title(f"{task}, {told}, {fraction:g} % of labels", fontsize=9)
        for axis in line[len(measures) :]:
            axis.set_visible(False)
    for axis in grid[:, 0]:
        axis.set_yticks(range(len(names)), names, fontsize=8)
    grid[0, 0].invert_yaxis()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _draw_gains(axis: Any, rows: list[dict[str, Any]], names: Sequence[str], gain: str, title: str) -> None:
    by_name = {row["name"]: row for row in rows}
    for place, name in enumerate(names):
        values = [100 * one for one in by_name[name][gain]["values"] if one is not None] if name in by_name else []
        if not values:
            continue
        told, colour = spread_of(values), "tab:orange" if name == "dic3l" else "tab:blue"
        axis.plot(values, [place] * len(values), "o", color=colour, markersize=3, alpha=0.5)
        axis.errorbar(told["mean"], place, xerr=told["std"] or 0.0, fmt="D", color=colour, markersize=5, capsize=3)
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_xlabel(f"{title} above random weights, points", fontsize=8)
    axis.grid(axis="x", alpha=0.3)
