"""Timing side by side: the best of some repetitions, interleaved, so that a busy moment hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def best_seconds(ways: Mapping[str, Callable[[], object]], repetitions: int = 3) -> dict[str, float]:
    """Name of each way -> seconds of its fastest run."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repetitions):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def print_rates(title: str, unit: str, amount: float, seconds: Mapping[str, float]) -> None:
    """A Markdown table of amount / seconds; the last way is the physical limit."""
    limit = amount / list(seconds.values())[-1]
    print(f"\n{title}\n\n| way | {unit} | of the limit |\n| --- | ---: | ---: |")
    for name, value in seconds.items():
        print(f"| {name} | {amount / value:,.0f} | {amount / value / limit:.0%} |")
