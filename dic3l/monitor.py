"""What a person wants to know of a run while it goes: one place for progress, metrics.jsonl and TensorBoard.

A line of metrics.jsonl holds means over the steps since the line before. All of it is a function of settings, corpus
and step, but for what lies under "time". When a run goes on from a checkpoint, lines of later steps are removed, so
that no step appears twice.

The loss is no measure of health: a collapsed network can have a falling one. `feature_std` is near 1 for vectors spread
over the sphere and near 0 for collapsed ones; `effective_rank` is at most the dimension D.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dic3l import distributed
from dic3l.checkpoint import write_text
from dic3l.method import DIC3L, Losses

_LINE_SECONDS = 10.0
"""between two lines of progress where there is no terminal"""
_RANK_SAMPLE = 4096
"""newest keys whose effective rank is taken, at most"""
_NAMES = {
    "total": "loss",
    "global_": "loss_global",
    "contour": "loss_contour",
    "instances": "loss_instances",
    "top1_global": "top1_global",
    "top1_contour": "top1_contour",
    "boxes_per_image": "boxes_per_image",
}
"""fields of `Losses` -> names in metrics.jsonl"""


class Window:
    """The losses of each step since the last line, kept on the device so that no step waits for it."""

    def __init__(self, rows: Tensor | None = None) -> None:
        """rows: float (steps, 7), of a checkpoint."""
        self._rows = [] if rows is None else list(rows)

    def add(self, losses: Losses) -> None:
        self._rows.append(torch.stack(list(losses)))

    def mean_over_ranks(self) -> Tensor:
        """float (steps, 7) on the CPU, the same on all ranks. All ranks call it together; waits for the device."""
        if not self._rows:
            return torch.zeros(0, len(_NAMES))
        device = self._rows[-1].device  # rows of a checkpoint come from the CPU
        rows = torch.stack([row.to(device) for row in self._rows])
        return (distributed.all_reduce(rows) / distributed.world()).cpu()

    def clear(self) -> None:
        self._rows.clear()


def window_means(rows: Tensor) -> dict[str, float]:
    """Means over steps of a window (steps, 7), by the names of metrics.jsonl."""
    return dict(zip((_NAMES[field] for field in Losses._fields), rows.double().mean(0).tolist(), strict=True))


def feature_std(features: Tensor) -> float:
    """Standard deviation over N of unit vectors (N, D), mean over D, times sqrt(D): 1 if spread evenly, 0 if equal."""
    features = features.double()
    return float(features.std(0, correction=0).mean()) * math.sqrt(features.shape[1])


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023) of vectors (N, D): exp of the entropy of the normalised singular values.

    Between 1 and min(N, D). Unlike in the paper, epsilon guards the logarithm only, so that it adds no rank.
    """
    features = features.double()
    gram = features.T @ features
    singular = torch.linalg.eigvalsh(gram.cpu()).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.exp(-(share * torch.log(share + 1e-12)).sum()))


def health(method: DIC3L, features: Tensor) -> dict[str, float]:
    """Signs of collapse. features: this rank's query vectors (n, D) of a batch; all ranks call it together."""
    queue = method.queue_global
    newest = min(queue.filled, _RANK_SAMPLE)
    rows = torch.arange(queue.pointer - newest, queue.pointer, device=queue.keys.device) % len(queue.keys)
    return {
        "feature_std": feature_std(distributed.all_gather(features)),
        "effective_rank": effective_rank(queue.keys[rows]),
        "queue_filled": queue.filled,
    }


def _rounded(value: Any) -> Any:
    """Seven significant digits: what float32 holds."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def truncate_metrics(path: Path, step: int) -> None:
    """Remove the lines of metrics.jsonl after `step`, and one that a killed run left unfinished."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            whole = line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            whole = False
        if whole:
            kept.append(line)
    if "".join(kept) != text:
        write_text(path, "".join(kept))


class Monitor:
    """Progress on standard error, metrics.jsonl, TensorBoard. Silent on all ranks but the first.

    On a terminal a bar; elsewhere a line every ten seconds, at the next line of metrics.
    """

    def __init__(self, run: Path, start: int, total: int, title: str) -> None:
        self._run, self._start, self._total = run, start, total
        self._speaks = distributed.rank() == 0
        self._console = Console(stderr=True, quiet=not self._speaks)
        self._bar = Progress(
            TextColumn(title),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._speaks and self._console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=total, completed=start, told="")
        self._last_line = -math.inf

    def __enter__(self) -> Monitor:
        if self._speaks:
            from torch.utils.tensorboard import SummaryWriter

            truncate_metrics(self._run / "metrics.jsonl", self._start)
            self._file = (self._run / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._start + 1)
        self._bar.start()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._speaks:
            self._file.close()
            self._board.close()

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, done: int) -> None:
        """`done` steps are done. Does not wait for the device."""
        self._bar.update(self._task, completed=done)

    def log(self, done: int, epoch: float, values: Mapping[str, Any], timing: Mapping[str, float]) -> None:
        """A line of metrics after `done` steps."""
        if not self._speaks:
            return
        record = {"step": done, "epoch": round(epoch, 4), **{name: _rounded(value) for name, value in values.items()}}
        times = {name: round(value, 4) for name, value in timing.items()}
        self._file.write(json.dumps({**record, "time": times}) + "\n")
        self._file.flush()
        for name, value in {**values, **times, "epoch": epoch}.items():
            self._board.add_scalar(_tag(name), value, done)
        told = (
            f"epoch {epoch:.2f}  loss {values['loss']:.3f}  contrast {values['loss_global']:.3f}  "
            f"top-1 {100 * values['top1_global']:.0f} %  "
            f"{times['tiles_per_s']:.0f} tiles/s"
        )
        self._bar.update(self._task, told=told)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line >= _LINE_SECONDS or done == self._total):
            self._last_line = now
            left = (now - self._began) / (done - self._start) * (self._total - done)
            self.say(f"step {done}/{self._total}  {told}  {duration(left)} left")


def _tag(name: str) -> str:
    """Groups of TensorBoard: loss, top1, health, time."""
    if name in ("tiles_per_s", "data_wait"):
        return f"time/{name}"
    group = name.split("_")[0]
    return f"{group}/{name}" if group in ("loss", "top1") else f"run/{name}"


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
