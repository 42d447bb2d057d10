"""`dic3l status` and `dic3l plot`: from the files of runs written here by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli import dic3l_app
from dic3l.config import resolve, to_toml
from dic3l.errors import ConfigError, Dic3lError
from dic3l.watch import plot, read_metrics, status

TILES, BATCH = 1360, 64


def a_run(folder: Path, steps: int, **changes: Any) -> Path:
    """A run of preset smoke over TILES tiles, 100 tiles/s, a line each ten steps; the newest is of time 1e9."""
    (folder / "checkpoints").mkdir(parents=True)
    config = resolve("smoke", options={"train.steps": 0, "train.epochs": 20.0})
    (folder / "config.toml").write_text(to_toml(config))
    lines = []
    for step in range(10, steps + 1, 10):
        losses = {"loss": 9 - step / 100, "loss_global": 5.0, "loss_contour": 5.0, "loss_instances": 0.5}
        rest = {"top1_global": 0.1, "top1_contour": 0.1, "feature_std": 0.8, "effective_rank": 50.0} | changes
        times = {"tiles_per_s": 100.0, "data_wait": rest.pop("data_wait", 0.01)}
        row = {"step": step, "total": 425, "epoch": round(step * BATCH / TILES, 4), **losses, **rest, "time": times}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    return folder


@pytest.mark.parametrize(
    ("steps", "later_s", "state"), [(200, 10, "going on"), (200, 3000, "silent"), (425, 3000, "finished")]
)
def test_status_says_how_far_a_run_is(tmp_path: Path, steps, later_s, state):
    run = a_run(tmp_path / "run", steps)
    if steps == 425:  # the last line of a run is of its last step
        text = (run / "metrics.jsonl").read_text().replace('"step": 420', '"step": 425').replace("19.7647", "20.0")
        (run / "metrics.jsonl").write_text(text)
        os.utime(run / "metrics.jsonl", (1e9, 1e9))
    (run / "checkpoints/step-00000100.pt").write_bytes(b"")
    found = status(run, now=1e9 + later_s)
    assert (found.state, found.step, found.total, found.checkpoint) == (state, steps, 425, 100)  # 20 * 1360 / 64
    assert found.silent_s == later_s and not found.notes
    assert found.left_s == (pytest.approx(225 * 64 / 100) if state == "going on" else None)


def test_status_before_the_first_line_and_of_a_line_being_written(tmp_path: Path):
    run = a_run(tmp_path / "run", 0)
    assert status(run).state == "no line yet"
    (run / "metrics.jsonl").write_text('{"step": 10, "epo')
    assert read_metrics(run) == []
    (run / "metrics.jsonl").unlink()
    assert status(run).state == "no line yet"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"feature_std": 0.01, "effective_rank": 2.0}, "collapse"),
        ({"data_wait": 0.5}, "waits for data 50%"),
        ({"loss": float("nan")}, "nan"),
    ],
)
def test_status_says_what_looks_wrong(tmp_path: Path, changes, told):
    run = a_run(tmp_path / "run", 50, **changes)
    assert told in " ".join(status(run).notes)
    printed = CliRunner().invoke(dic3l_app, ["status", str(run)])
    assert printed.exit_code == 0 and "look: " in printed.output and "step 50 of 425" in printed.output


def test_what_is_no_run_is_refused_by_name(tmp_path: Path):
    with pytest.raises(Dic3lError, match=r"no run of `dic3l pretrain`"):
        status(tmp_path)
    run = a_run(tmp_path / "run", 30)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("torn\n")
    with pytest.raises(Dic3lError, match=r"metrics\.jsonl: line 4 is no line of metrics"):
        status(run)


def test_curves_are_drawn(tmp_path: Path):
    runs = [a_run(tmp_path / "a", 200), a_run(tmp_path / "b", 100, feature_std=0.3)]
    plot(runs, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1000 and len(np.unique(np.asarray(image.convert("L")))) > 20
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        plot(runs, tmp_path / "curves.pdf")
    with pytest.raises(Dic3lError, match="no line of metrics yet"):
        plot([a_run(tmp_path / "c", 0)], tmp_path / "curves.png")
