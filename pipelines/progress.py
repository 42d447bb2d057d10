"""How far a build is, on standard error: bars on a terminal, elsewhere (a log file, CI) a line now and then.

Pace and time left are of what this run does: what an earlier run had done already counts as done, and no more. Only
the monotonic clock is read, so that a clock that is set meanwhile changes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_LINE_SECONDS = 30.0
"""between two lines of one stage"""
_PACE_SECONDS = 1.0
"""before a pace is told"""
_THINGS = {
    "scan": "files", "labels": "scenes", "prepare": "scenes", "measure": "scenes", "cut": "scenes", "shard": "shards",
    "seal": "corpus", "verify": "shards",
}  # fmt: skip
"""what the items of a stage are; of others: items"""


class Pace:
    """Counts of one stage, and what follows from them."""

    def __init__(
        self, name: str, total: int, cost: float, there: int, clock: Callable[[], float], things: str = ""
    ) -> None:
        """cost: pixels of the items to do, 0: not known; there: items of `total` that an earlier run has done; things:
        what the items are, where the stage does not tell."""
        self.name, self.total, self.done = name, total, there
        self.things = things or _THINGS.get(name, "items")
        self._there, self._cost, self._cost_done = there, cost, 0.0
        self._clock, self._start = clock, clock()

    def advance(self, cost: float) -> None:
        self.done += 1
        self._cost_done += cost

    def announced(self) -> str:
        """measure: 1,589 scenes, 120 of them done before"""
        before = f", {self._there:,} of them done before" if self._there else ""
        return f"{self.name}: {self.total:,} {self.things}{before}"

    def told(self) -> str:
        """85 Mpx/s, 1.2 scenes/s, 3 min left"""
        seconds = self._clock() - self._start
        if self.done == self.total:
            return ", ".join([*self._rates(seconds), f"in {duration(seconds)}"])
        if seconds < _PACE_SECONDS or self.done == self._there:
            return ""
        share = (self.done - self._there) / (self.total - self._there)
        if self._cost and self._cost_done:
            share = self._cost_done / self._cost
        return ", ".join([*self._rates(seconds), f"{duration(seconds * max(1 / share - 1, 0))} left"])

    def line(self) -> str:
        """measure: 120/1,589 scenes, 85 Mpx/s, 1.2 scenes/s, 3 min left"""
        head = f"{self.name}: {self.done:,}/{self.total:,} {self.things}"
        return f"{head}, {told}" if (told := self.told()) else head

    def _rates(self, seconds: float) -> list[str]:
        if seconds < _PACE_SECONDS:
            return []
        rates = [f"{_short(self._cost_done / seconds / 1e6)} Mpx/s"] * bool(self._cost_done)
        if self.total - self._there > 1:
            rates.append(f"{_short((self.done - self._there) / seconds)} {self.things}/s")
        return rates


class ProgressLines:
    """A line at the start of a stage, one about every half minute, and one at its end."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def say(self, line: str) -> None:
        self._write(line)

    def stage(self, name: str, total: int, cost: float = 0.0, there: int = 0, things: str = "") -> None:
        self._pace = Pace(name, total, cost, there, self._clock, things)
        self._written = self._clock()
        self._write(self._pace.announced())

    def advance(self, cost: float = 0.0) -> None:
        self._pace.advance(cost)
        now = self._clock()
        if self._pace.done == self._pace.total or now - self._written >= _LINE_SECONDS:
            self._written = now
            self._write(self._pace.line())


class ProgressBars:
    """A bar a stage, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            console=console,
        )

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False)

    def stage(self, name: str, total: int, cost: float = 0.0, there: int = 0, things: str = "") -> None:
        self._pace = Pace(name, total, cost, there, time.monotonic, things)
        self._task: TaskID = self._bars.add_task(name, total=total, completed=there, told="")

    def advance(self, cost: float = 0.0) -> None:
        self._pace.advance(cost)
        self._bars.update(self._task, advance=1, told=self._pace.told())


class Silent:
    """Nobody wants to know."""

    def say(self, line: str) -> None: ...
    def stage(self, name: str, total: int, cost: float = 0.0, there: int = 0, things: str = "") -> None: ...
    def advance(self, cost: float = 0.0) -> None: ...


def show_progress() -> ProgressBars | ProgressLines:
    """Bars where standard error is a terminal, lines elsewhere."""
    console = Console(stderr=True)
    return ProgressBars(console) if console.is_terminal else ProgressLines(_to_stderr)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()  # a log file is read while it grows


def duration(seconds: float) -> str:
    """45 s, 3 min, 2 h 05 min"""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _short(value: float) -> str:
    """Two digits at least: 0.12, 1.2, 85, 1,234"""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
