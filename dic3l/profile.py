"""Where the time of a step goes: spans, a table of them, and a trace for chrome://tracing or Perfetto.

A span is timed on the device: by events on its stream for CUDA, where a clock on the host would only tell when work
was asked for; by the clock for a CPU. A span inside another is taken off it, so that the rows add up to the step. Spans
of the stream that makes views ("copy", "views") run beside the others, and so do gradients on their way to other ranks
("all-reduce"), whose time is that of the backend's own operations in the trace.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dic3l.errors import Dic3lError

WARM_UP = 5
"""steps before the first one that is looked at: memory is taken, kernels are chosen"""
BESIDE = ("copy", "views")
"""spans that run beside the step"""
_active: _Spans | None = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """A part of a step. Costs nothing while nobody looks."""
    if torch.compiler.is_compiling():  # first: what a compiler reads it guards, and compiles anew when that changes
        yield
        return
    spans = _active
    if spans is None:
        yield
        return
    with torch.profiler.record_function(f"dic3l::{name}"):
        begin = spans.mark()
        spans.open.append([])
        try:
            yield
        finally:
            inner = spans.open.pop()
            spans.found.append((name, begin, spans.mark(), inner))
            if spans.open and name not in BESIDE:
                spans.open[-1].append((begin, spans.found[-1][2]))


class _Spans:
    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.open: list[list[tuple[Any, Any]]] = []
        self.found: list[tuple[str, Any, Any, list[tuple[Any, Any]]]] = []

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        """Milliseconds."""
        return begin.elapsed_time(end) if self._cuda else (end - begin) * 1e3

    def totals(self) -> dict[str, float]:
        """Milliseconds of each span without those inside it, over all steps. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for name, begin, end, inner in self.found:
            found[name] += self.between(begin, end) - sum(self.between(*part) for part in inner)
        return dict(found)


class Profiler:
    """Looks at some steps of a run after its first ones. Without steps, it does nothing."""

    def __init__(self, folder: Path, steps: int, device: torch.device) -> None:
        """folder: of the trace; steps: how many are looked at."""
        self._folder, self._steps, self._device = folder, steps, device
        self._left = WARM_UP + steps if steps else 0
        self._trace: Any = None
        self._began = 0.0

    def step(self) -> list[str]:
        """Called after each step; once, at the end of the last one that is looked at, the lines to print."""
        global _active
        if not self._left:
            return []
        self._left -= 1
        if self._left == self._steps:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
                torch.cuda.synchronize()
            self._trace = torch.profiler.profile(activities=activities)
            self._trace.__enter__()
            _active, self._began = _Spans(self._device), time.perf_counter()
        if self._left or _active is None:
            return []
        totals = _active.totals()
        seconds = time.perf_counter() - self._began
        self.close()
        return [*table(totals, _collectives(self._trace), seconds * 1e3, self._steps), self._write()]

    @property
    def unfinished(self) -> bool:
        """Whether the run ended before all steps were looked at."""
        return self._left > 0

    def close(self) -> None:
        """Look no more."""
        global _active
        if _active is not None and self._trace is not None:
            _active = None
            self._trace.__exit__(None, None, None)
        self._left = 0

    def _write(self) -> str:
        path = self._folder / "trace.json.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._trace.export_chrome_trace(str(path))
        except OSError as error:
            raise Dic3lError(f"{path}: cannot be written: {error.strerror or error}") from error
        return f"trace: {path} (open it in https://ui.perfetto.dev or chrome://tracing)"


def _collectives(trace: Any) -> float:
    """Milliseconds of all reductions, those of counts and statistics too, by the backend's own account: of the latter
    the host waits, and their time is also in the spans of the step."""
    events = {event.key: event for event in trace.key_averages()}
    for name in ("gloo:all_reduce", "nccl:all_reduce"):
        if name in events:
            event = events[name]
            return max(float(event.cpu_time_total), float(getattr(event, "device_time_total", 0.0))) / 1e3
    return 0.0


def table(totals: dict[str, float], reduced: float, milliseconds: float, steps: int) -> list[str]:
    """Markdown rows: a span, milliseconds a step, its share. milliseconds: of all steps, by the clock."""
    inside = {name: value for name, value in totals.items() if name not in BESIDE}
    beside = {name: value for name, value in totals.items() if name in BESIDE}
    if reduced:
        beside["all-reduce (gradients, counts, statistics)"] = reduced
    rows = [*inside.items(), ("other", max(0.0, milliseconds - sum(inside.values()))), ("a step", milliseconds)]
    lines = [f"where {steps} steps spent their time:", "| part | ms a step | share |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {value / steps:.2f} | {value / milliseconds:.1%} |" for name, value in rows]
    lines += [
        f"| beside it: {name} | {value / steps:.2f} | {value / milliseconds:.1%} |" for name, value in beside.items()
    ]
    return lines
