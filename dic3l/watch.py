"""A run seen from outside: how far it is, and its curves. Reads its folder alone, of any host."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dic3l.checkpoint import checkpoints
from dic3l.config import Config, from_toml
from dic3l.errors import Dic3lError
from dic3l.monitor import collapsed
from dic3l.picture import DPI, check_picture, save

_LATE, _LATE_SECONDS = 5.0, 60.0
"""times the usual pause between two lines of metrics, and at least so long, after which a run is called silent"""
_WAITS = 0.2
"""share of the time spent on waiting for data that is worth a note"""
_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss",)),
    ("loss, its parts", ("loss_global", "loss_contour", "loss_instances")),
    ("top-1 of the contrast", ("top1_global", "top1_contour")),
    ("feature_std (1: spread, 0: collapsed)", ("feature_std",)),
    ("effective rank", ("effective_rank",)),
    ("alignment (solid) and -uniformity", ("alignment", "-uniformity")),
    ("kNN: scene of val tiles found", ("knn_scene",)),
    ("tiles a second", ("tiles_per_s",)),
)
_COLOURS = ("#2b6ca3", "#d1622b", "#4f8a4b", "#8a4b8a", "#7a6a1f")
_STYLES = ("-", "--", ":")


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    run: str
    state: str
    """finished, going on, silent (no line for long: stopped, killed or hung), or no line yet"""
    step: int
    total: int | None
    """steps; None before the first line"""
    checkpoint: int | None
    """newest step that is saved"""
    silent_s: float
    """since the last line"""
    left_s: float | None
    """to the end at the latest speed; None where it does not go on"""
    metrics: dict[str, Any]
    """the last line of metrics.jsonl"""
    notes: list[str]
    """what a person should look at"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, times among the other values; Dic3lError where `run` is no run."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError as error:
        if (run / "config.toml").is_file():
            return []
        raise Dic3lError(f"{run}: no run of `dic3l pretrain` ({error.strerror or error}: metrics.jsonl)") from error
    rows = []
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):  # being written
            break
        try:
            row = json.loads(line)
            rows.append({**{name: value for name, value in row.items() if name != "time"}, **row["time"]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = f"{run / 'metrics.jsonl'}: line {len(rows) + 1}"
            raise Dic3lError(f"{where} is no line of metrics ({error}); restore it or remove it") from error
    return rows


def status(run: Path, now: float | None = None) -> Status:
    """Where a run stands. now: seconds since the epoch, by default the clock's. Raises Dic3lError."""
    rows = read_metrics(run)
    config = _config(run)
    saved = checkpoints(run)
    checkpoint = saved[-1][0] if saved else None
    file = run / ("metrics.jsonl" if rows else "config.toml")
    silent = max(0.0, (time.time() if now is None else now) - file.stat().st_mtime)
    if not rows:
        return Status(str(run), "no line yet", 0, None, checkpoint, silent, None, {}, [])
    last = rows[-1]
    batch, step, total = config.train.batch_size, int(last["step"]), int(last.get("total", config.train.steps))
    a_step = batch / max(last["tiles_per_s"], 1e-9)
    if step >= total:
        state = "finished"
    elif silent > max(_LATE_SECONDS, _LATE * a_step * config.train.log_every):
        state = "silent"
    else:
        state = "going on"
    left = (total - step) * a_step if state == "going on" else None
    return Status(str(run), state, step, total, checkpoint, silent, left, last, _notes(rows, total))


def plot(runs: Sequence[Path], out_png: Path) -> None:
    """The curves of runs over steps, to a PNG: a colour a run. Raises ConfigError and Dic3lError."""
    check_picture(out_png)
    metrics = {str(run): read_metrics(run) for run in runs}
    if empty := [run for run, rows in metrics.items() if not rows]:
        raise Dic3lError(f"{empty[0]}: no line of metrics yet; nothing to plot")
    figure = Figure(figsize=(13.4, 5.6), dpi=DPI, layout="constrained", facecolor="white")
    for axes, (title, names) in zip(figure.subplots(2, 4).flat, _PANELS, strict=True):
        for (run, rows), colour in zip(metrics.items(), cycle(_COLOURS), strict=False):
            steps = np.array([row["step"] for row in rows])
            for name, style in zip(names, _STYLES, strict=False):
                values = np.array([row.get(name.lstrip("-"), np.nan) for row in rows], dtype=np.float64)
                values = -values if name.startswith("-") else values
                known = np.isfinite(values)  # a probe is not asked at every line
                label = run if len(names) == 1 else name.removeprefix("loss_").removeprefix("top1_")
                marker = "." if 0 < known.sum() < len(values) / 2 else None
                axes.plot(steps[known], values[known], color=colour, ls=style, lw=1.1, label=label, marker=marker)
        axes.set_title(title, size=9, loc="left")
        axes.set_xlabel("step", size=8)
        axes.tick_params(labelsize=7)
        if not title.startswith("loss"):
            axes.set_ylim(bottom=0)
        axes.grid(color="0.9", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(handles[: len(names)], labels[: len(names)], fontsize=7, frameon=False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=7.5, frameon=False, ncols=2)
    save(figure, out_png)


def _config(run: Path) -> Config:
    path = run / "config.toml"
    try:
        return from_toml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise Dic3lError(f"{path}: settings of the run cannot be read: {error.strerror or error}") from error


def _notes(rows: Sequence[dict[str, Any]], total: int) -> list[str]:
    row, notes = rows[-1], []
    if not np.isfinite(row["loss"]):
        notes.append(f"loss is {row['loss']}")
    if collapsed(rows, int(row["step"]), total):
        notes.append(f"collapse: feature_std is {row['feature_std']:.2g}: all tiles look alike to the network")
    if row.get("data_wait", 0.0) > _WAITS:
        notes.append(f"waits for data {row['data_wait']:.0%} of the time: more train.loader_threads, or a faster disk")
    return notes
