"""What a person wants to know of a run while it goes: one place for progress, metrics.jsonl and TensorBoard.

A line of metrics.jsonl holds means over the steps since the line before. All of it is a function of settings, corpus
and step, but for what lies under "time". When a run goes on from a checkpoint, lines of later steps are removed, so
that no step appears twice.

The loss is no measure of health: a collapsed network can have a falling one. `feature_std` is near 1 for vectors spread
over the sphere and near 0 for collapsed ones; `effective_rank` is at most the dimension D; `alignment` is the squared
distance of a query from its key, `uniformity` the logarithm of the mean Gaussian potential of pairs (Wang and Isola,
"Understanding contrastive representation learning", ICML 2020): -3.94 for 128 dimensions evenly filled,
0 for one point.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dic3l import distributed
from dic3l.base import Method, StepResult
from dic3l.checkpoint import write_text
from dic3l.config import Config
from dic3l.errors import Dic3lError
from dic3l.loggers import Logger, open_loggers

_LINE_SECONDS = 10.0
"""between two lines of progress where there is no terminal"""
_RANK_SAMPLE = 4096
"""newest keys whose effective rank is taken, at most"""
COLLAPSED_STD, COLLAPSED_RANK, _COLLAPSED_LINES = 0.1, 10.0, 3
"""feature_std and effective rank below which so many lines in a row are called a collapse. Both, since vectors about a
common mean may differ little and yet in all directions: young networks do whose keys no batch normalises"""
_GRACE = 0.05
"""of a run: an untrained network may tell tiles apart hardly at all"""


class Window:
    """Losses and gradient of each step since the last line, kept on the device so that no step waits for it."""

    def __init__(self, names: Sequence[str], rows: Tensor | None = None) -> None:
        """names: of the losses of a method; rows: float (steps, losses + 1), of a checkpoint."""
        self.names = (*names, "gradient_norm")
        self._rows = [] if rows is None else list(rows)

    def add(self, result: StepResult) -> None:
        self._rows.append(torch.cat((result.losses, result.gradient[None].to(result.losses.dtype))))

    def mean_over_ranks(self) -> Tensor:
        """float (steps, losses + 1) on the CPU, the same on all ranks. All ranks call it together; waits for the
        device."""
        if not self._rows:
            return torch.zeros(0, len(self.names))
        device = self._rows[-1].device  # rows of a checkpoint come from the CPU
        rows = torch.stack([row.to(device) for row in self._rows])
        return (distributed.all_reduce(rows) / distributed.world()).cpu()

    def means(self, rows: Tensor) -> dict[str, float]:
        """Means over steps, by the names of metrics.jsonl."""
        return dict(zip(self.names, rows.double().mean(0).tolist(), strict=True))

    def clear(self) -> None:
        self._rows.clear()


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


def uniformity(features: Tensor) -> float:
    """log of the mean of e^(-2 |x - y|^2) over pairs of unit vectors (N, D), N > 1."""
    features = features.double()
    potential = torch.exp(4 * (features @ features.T) - 4)  # |x - y|^2 = 2 - 2 x.y
    count = len(features)
    return math.log(float((potential.sum() - potential.diagonal().sum()) / (count * (count - 1))))


def health(method: Method, queries: Tensor, keys: Tensor) -> dict[str, float]:
    """Signs of collapse. queries, keys: this rank's unit vectors (n, D) of a batch; all ranks call it together.

    The effective rank is that of the newest keys of the queue, or of the batch where a method has none.
    """
    pairs = distributed.all_gather(torch.cat((queries, keys), dim=1), method.division.counts())
    queries, keys = pairs.chunk(2, dim=1)
    queue = method.queue
    found = {
        "feature_std": feature_std(queries),
        "effective_rank": effective_rank(queries if queue is None else queue.newest(_RANK_SAMPLE)),
        "alignment": float((queries - keys).double().square().sum(1).mean()),
        "uniformity": uniformity(queries),
    }
    return found if queue is None else {**found, "queue_filled": queue.filled}


def collapsed(rows: Sequence[Mapping[str, Any]], done: int, total: int) -> bool:
    """Whether the last lines of metrics, after `done` of `total` steps, say that all tiles look alike to it."""
    if done < _GRACE * total:
        return False
    last = rows[-_COLLAPSED_LINES:]
    return len(last) == _COLLAPSED_LINES and all(
        row.get("feature_std", 1.0) < COLLAPSED_STD and row.get("effective_rank", 0.0) < COLLAPSED_RANK for row in last
    )


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

    def __init__(self, run: Path, start: int, total: int, config: Config) -> None:
        self._run, self._start, self._total, self._config = run, start, total, config
        self._speaks = distributed.rank() == 0
        self._console = Console(stderr=True, quiet=not self._speaks)
        self._bar = Progress(
            TextColumn(config.method.arch),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._speaks and self._console.is_terminal),
        )
        self._task = self._bar.add_task(config.method.arch, total=total, completed=start, told="")
        self._last_line = -math.inf
        self._lines: list[Mapping[str, Any]] = []
        self._alarmed = False

    def __enter__(self) -> Monitor:
        if self._speaks:
            from torch.utils.tensorboard import SummaryWriter

            truncate_metrics(self._run / "metrics.jsonl", self._start)
            self._file = (self._run / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._start + 1)
            self._loggers = open_loggers(self._config, self._run)
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
            self._tell(lambda logger: logger.close(finished=kind is None))

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
        told = {name: _rounded(value) for name, value in values.items()}
        record = {"step": done, "total": self._total, "epoch": round(epoch, 4), **told}
        times = {name: round(value, 4) for name, value in timing.items()}
        try:
            self._file.write(json.dumps({**record, "time": times}) + "\n")
            self._file.flush()
        except OSError as error:
            told = error.strerror or error
            raise Dic3lError(f"{self._file.name}: cannot be written: {told}; make room and go on") from error
        scalars = {_tag(name): value for name, value in {**values, **times, "epoch": epoch}.items()}
        for tag, value in scalars.items():
            self._board.add_scalar(tag, value, done)
        self._tell(lambda logger: logger.log(scalars, done))
        self._lines = [*self._lines, values][-_COLLAPSED_LINES:]
        self._alarm(done)
        told = f"epoch {epoch:.2f}  loss {values['loss']:.3f}  {_contrast(values)}{times['tiles_per_s']:.0f} tiles/s"
        self._bar.update(self._task, told=told)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line >= _LINE_SECONDS or done == self._total):
            self._last_line = now
            left = (now - self._began) / (done - self._start) * (self._total - done)
            self.say(f"step {done}/{self._total}  {told}  {duration(left)} left")

    def _tell(self, say: Callable[[Logger], None]) -> None:
        """Say something to each tracker; one that fails is left out from then on: no run ends for it."""
        for logger in list(self._loggers):
            try:
                say(logger)
            except Exception as error:
                self._loggers.remove(logger)
                first = (str(error).splitlines() or [""])[0]
                self.say(f"note: {type(logger).__name__} failed ({type(error).__name__}: {first}) and is told no more")

    def _alarm(self, done: int) -> None:
        """Say once that the features have collapsed, and once that they have not any more."""
        now = collapsed(self._lines, done, self._total)
        if now and not self._alarmed:
            self.say(
                f"ALARM at step {done}: collapse: feature_std is {self._lines[-1]['feature_std']:.2g} (healthy: 0.5 to "
                "1), so all tiles look alike to the network, whatever the loss says. Stop the run; a lower --lr, a "
                "warm-up (optim.warmup_steps), a higher --momentum or a fuller queue are what usually helps"
            )
        elif self._alarmed and not now:
            self.say(f"step {done}: feature_std is {self._lines[-1]['feature_std']:.2g} again: no collapse")
        self._alarmed = now


def _contrast(values: Mapping[str, Any]) -> str:
    """Of methods that have one."""
    if "top1_global" not in values:
        return ""
    return f"contrast {values['loss_global']:.3f}  top-1 {100 * values['top1_global']:.0f} %  "


def _tag(name: str) -> str:
    """Groups of TensorBoard: loss, top1, health, time."""
    if name in ("tiles_per_s", "data_wait"):
        return f"time/{name}"
    group = name.split("_")[0]
    if group in ("top1", "top5"):
        return f"top/{name}"
    return f"loss/{name}" if group == "loss" else f"run/{name}"


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
