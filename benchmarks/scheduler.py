"""What Dask costs beside the items that it runs.

    python -m benchmarks.scheduler

Items through `DaskRunner` on a LocalCluster of two processes: of nothing, of 10 ms, and of about what it takes to code
64 tiles of 256 x 256 pixels; beside them a task an item, as of a runner without batches. Two overheads:
- idle: 1 - (wall time inside the items) / (wall time x workers): what workers wait for. Items of nothing have none.
- processor: 1 - (processor time inside the items) / (that of all processes): what the scheduler and this process take
  from the workers' cores. Other programs of the machine change neither much; they change `wall`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from pipelines import runner
from pipelines.cluster import open_runner

WORKERS = 2


def main() -> None:
    machine = platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    print(
        f"\n{machine}, {os.cpu_count()} cores, load before {load:.1f}, LocalCluster of {WORKERS} processes: "
        "python -m benchmarks.scheduler\n"
    )
    print("| an item | items | wall, s | ms beside an item | idle | processor |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with open_runner(WORKERS) as batched:
        batched.run(tiles, [(1,)] * 100, lambda index, outcome: None)  # imports, on the workers
        tell("nothing", 10_000, batched, spin, 0.0)
        tell("10 ms", 10_000, batched, spin, 0.01)
        tell("64 tiles", 1_000, batched, tiles, 64)
        kept, runner._BATCH_SECONDS = runner._BATCH_SECONDS, 0.0
        try:
            tell("nothing, a task an item", 1_000, batched, spin, 0.0)
            tell("10 ms, a task an item", 1_000, batched, spin, 0.01)
        finally:
            runner._BATCH_SECONDS = kept


def spin(seconds: float) -> tuple[float, float]:
    """Work of so many seconds of processor time; the wall and the processor time that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < seconds:
        pass
    return time.perf_counter() - wall, time.process_time() - cpu


def tiles(count: int) -> tuple[float, float]:
    """Decibels and codes of so many tiles; the wall and the processor time that they took."""
    wall, cpu = time.perf_counter(), time.process_time()
    power = np.full((256, 256), 0.1, np.float32)
    for _ in range(count):
        np.clip(10 * np.log10(power) * 8 + 200, 1, 255).astype(np.uint8)
    return time.perf_counter() - wall, time.process_time() - cpu


def tell(name: str, count: int, through: runner.Runner, task: Callable[..., Any], argument: float) -> None:
    """Run so many items, print a row."""
    inside: list[tuple[float, float]] = []
    cpu, started = processor_seconds(), time.perf_counter()
    through.run(task, [(argument,)] * count, lambda index, outcome: inside.append(outcome))
    available = (time.perf_counter() - started) * WORKERS
    cpu = processor_seconds() - cpu
    wall_inside, cpu_inside = (sum(column) for column in zip(*inside, strict=True))
    assert len(inside) == count
    shares = (
        ["-", "-"]
        if wall_inside < 0.1 * available
        else [f"{1 - wall_inside / available:.1%}", f"{1 - cpu_inside / cpu:.1%}"]
    )
    beside = (available - wall_inside) / count * 1e3
    print(f"| {name} | {count:,} | {available / WORKERS:.2f} | {beside:.3f} | {' | '.join(shares)} |", flush=True)


def processor_seconds() -> float:
    """Of this process, with the scheduler in it, and of all workers."""
    this = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (this, *this.children(recursive=True)))


if __name__ == "__main__":
    main()
