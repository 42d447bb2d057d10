"""A run of five thousand steps takes no more memory at its end than at its beginning."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.test_pretrain import command


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_five_thousand_steps(many_shards: Path, tmp_path: Path):
    """Checkpoints, lines of metrics and 147 epochs on the way."""
    run = tmp_path / "run"
    options = ["train.steps=5000", "train.log_every=20", "train.checkpoint_every=500", "train.loader_threads=2"]
    process = subprocess.Popen(
        command(many_shards, run, *[part for option in options for part in ("--set", option)]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: list[tuple[int, float]] = []
    metrics = run / "metrics.jsonl"
    while process.poll() is None:
        time.sleep(0.25)
        if metrics.is_file() and (lines := metrics.read_text().splitlines()):
            try:
                seen.append((json.loads(lines[-1])["step"], resident_mib(process.pid)))
            except (ValueError, ProcessLookupError, FileNotFoundError):
                continue  # a line that is being written, a process that just ended
    assert process.returncode == 0
    steps, resident = np.array(seen).T
    early, late = (np.median(resident[(steps >= low) & (steps < low + 1000)]) for low in (1000, 4000))
    print(f"{early:.0f} MiB at steps 1,000 to 2,000, {late:.0f} MiB at 4,000 to 5,000")
    assert late <= 1.02 * early + 8
