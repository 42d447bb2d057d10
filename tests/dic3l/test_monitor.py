"""What a run tells: means, signs of collapse, and a metrics.jsonl without a step twice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dic3l.base import StepResult
from dic3l.config import resolve
from dic3l.groups import Division
from dic3l.method import DIC3L
from dic3l.monitor import (
    Monitor,
    Window,
    effective_rank,
    feature_std,
    health,
    truncate_metrics,
    uniformity,
)

VALUES = {"loss": 5.123456789, "loss_global": 4.5, "top1_global": 0.25, "lr": 0.01, "queue_filled": 64}
CONFIG = resolve("smoke", options={"method.queue_size": 20})
TIMING = {"tiles_per_s": 123.456789, "data_wait": 0.01}


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def a_method(images: int) -> DIC3L:
    return DIC3L(CONFIG.method, 0, Division(images, CONFIG.method.bn_groups))


def test_spread_vectors_have_std_one_and_full_rank_collapsed_ones_neither():
    torch.manual_seed(0)
    spread, collapsed = unit(torch.randn(4096, 128)), unit(torch.ones(4096, 128) + 1e-3 * torch.randn(4096, 128))
    assert feature_std(spread) == pytest.approx(1.0, abs=0.01) and effective_rank(spread) > 126
    assert feature_std(collapsed) < 0.02 and effective_rank(collapsed) < 8  # the noise has 127 dimensions
    plane = unit(torch.randn(500, 3)) @ torch.randn(3, 128)
    assert effective_rank(plane) < 3.1


def test_effective_rank_is_that_of_the_singular_values():
    torch.manual_seed(1)
    features = unit(torch.randn(60, 16) @ torch.diag(torch.linspace(0.1, 2, 16)))
    singular = np.linalg.svd(features.double().numpy(), compute_uv=False)
    share = singular / singular.sum()
    assert effective_rank(features) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_health_is_of_the_newest_keys_alone():
    method = a_method(8)
    equal = unit(torch.ones(12, 128))
    method.queue_global.enqueue(equal)
    method.queue_global.enqueue(equal)  # wraps around: all 20 keys are equal, the pointer is at 4
    queries = unit(torch.randn(8, 128))
    found = health(method, queries, -queries)
    assert found["alignment"] == pytest.approx(4, abs=1e-5)  # as far apart as unit vectors can be
    assert found["queue_filled"] == 20 and found["effective_rank"] == pytest.approx(1, abs=1e-4)
    assert found["feature_std"] > 0.8
    fresh = a_method(12)
    fresh.queue_global.enqueue(equal[:3])
    found = health(fresh, equal, equal)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-4)  # of 3 keys, not of random rows
    assert [found[name] for name in ("feature_std", "alignment", "uniformity")] == pytest.approx([0, 0, 0], abs=1e-6)


def test_uniformity_is_the_mean_potential_of_pairs():
    torch.manual_seed(0)
    spread = unit(torch.randn(2000, 128))
    assert uniformity(spread) == pytest.approx(-3.94, abs=0.02)  # of the sphere: -4 + 8 / 128
    few = unit(torch.randn(5, 3)).double()
    pairs = [math.exp(-2 * float((few[i] - few[j]).square().sum())) for i in range(5) for j in range(5) if i != j]
    assert uniformity(few) == pytest.approx(math.log(sum(pairs) / 20), abs=1e-6)


def test_three_lines_of_collapsed_features_raise_the_alarm_once_and_its_end_is_told(tmp_path, capsys):
    with Monitor(tmp_path, 0, 100, CONFIG) as monitor:
        for number, std in enumerate([0.8, 0.05, 0.05, 0.09, 0.01, 0.2, 0.05, 0.05]):
            monitor.log(10 * (number + 1), 1.0, VALUES | {"feature_std": std}, TIMING)
    told = [line for line in capsys.readouterr().err.splitlines() if "collapse" in line]
    assert len(told) == 2
    assert told[0].startswith("ALARM at step 40: collapse: feature_std is 0.09") and "--lr" in told[0]
    assert told[1].startswith("step 60: feature_std is 0.2 again")


def test_vectors_that_differ_little_but_in_all_directions_raise_none(tmp_path, capsys):
    with Monitor(tmp_path, 0, 100, CONFIG) as monitor:
        for number in range(5):
            monitor.log(10 * (number + 1), 1.0, VALUES | {"feature_std": 0.07, "effective_rank": 30.0}, TIMING)
    assert "ALARM" not in capsys.readouterr().err


def result(value: float, gradient: float) -> StepResult:
    nothing = torch.zeros(1, 1)
    return StepResult(value + torch.arange(9.0), nothing, nothing, torch.tensor(gradient))


def test_a_window_that_was_saved_goes_on_as_if_it_had_not_been():
    whole, first = Window(DIC3L.columns), Window(DIC3L.columns)
    for step in range(5):
        whole.add(result(0.1 * step, 2.0 + step))
    for step in range(2):
        first.add(result(0.1 * step, 2.0 + step))
    second = Window(DIC3L.columns, first.mean_over_ranks())
    for step in range(2, 5):
        second.add(result(0.1 * step, 2.0 + step))
    assert second.mean_over_ranks().equal(whole.mean_over_ranks())
    assert Window(DIC3L.columns).mean_over_ranks().shape == (0, 10)


def test_means_have_the_names_of_the_metrics():
    window = Window(DIC3L.columns)
    window.add(result(1, 4.0))
    window.add(result(3, 8.0))
    means = window.means(window.mean_over_ranks())
    assert means["loss"] == 2 and means["loss_global"] == 3 and means["boxes_per_image"] == 9
    names = "loss loss_global loss_contour loss_instances top1_global top5_global top1_contour boxes_per_image"
    assert list(means) == [*names.split(), "points_per_image", "gradient_norm"] and means["gradient_norm"] == 6


def test_a_tracker_that_fails_is_left_out_and_ends_no_run(tmp_path, capsys, monkeypatch):
    class Failing:
        calls = 0

        def log(self, values, step):
            Failing.calls += 1
            raise ConnectionError("no route\nto host")

        def close(self, finished):
            raise AssertionError("it is told no more")

    monkeypatch.setattr("dic3l.monitor.open_loggers", lambda config, run: [Failing()])
    with Monitor(tmp_path, 0, 20, CONFIG) as monitor:
        monitor.log(10, 1.0, VALUES, TIMING)
        monitor.log(20, 2.0, VALUES, TIMING)
    assert Failing.calls == 1 and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "note" in line] == [
        "note: Failing failed (ConnectionError: no route) and is told no more"
    ]


def test_metrics_are_lines_of_json_with_the_clock_apart(tmp_path: Path):
    with Monitor(tmp_path, 0, 20, CONFIG) as monitor:
        monitor.step(10)
        monitor.log(10, 1.25, VALUES, TIMING)
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record.pop("time") == {"tiles_per_s": 123.4568, "data_wait": 0.01}
    assert record == {"step": 10, "total": 20, "epoch": 1.25, **VALUES, "loss": 5.123457}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_lines_after_the_checkpoint_and_half_lines_go(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (10, 20, 30)]
    path.write_text("".join(lines) + '{"step": 4')
    truncate_metrics(path, 20)
    assert path.read_text() == "".join(lines[:2])
    truncate_metrics(path, 0)
    assert path.read_text() == ""
    truncate_metrics(tmp_path / "absent", 3)


def test_away_from_a_terminal_progress_is_lines_not_more_than_one_in_ten_seconds(tmp_path: Path, capsys):
    with Monitor(tmp_path, 0, 30, CONFIG) as monitor:
        monitor.say("to begin [with]")
        for done in (10, 20, 30):
            monitor.log(done, done / 10, VALUES, TIMING)
    out, told = capsys.readouterr()
    lines = told.splitlines()
    assert out == "" and lines[0] == "to begin [with]"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 10/30", "step 30/30"]
    assert "loss 5.123  contrast 4.500" in lines[1] and "top-1 25 %" in lines[1] and "123 tiles/s" in lines[1]


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("dic3l.distributed.rank", lambda: 1)
    with Monitor(tmp_path, 0, 10, CONFIG) as monitor:
        monitor.say("hello")
        monitor.step(10)
        monitor.log(10, 1.0, VALUES, TIMING)
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())
