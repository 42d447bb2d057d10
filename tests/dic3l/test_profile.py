"""Spans add up to the step, and tell where its time went."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from dic3l import profile
from dic3l.profile import Profiler, span, table
from dic3l.trainer import train
from tests.dic3l.test_stream import FakeTiles
from tests.dic3l.test_trainer import CORPUS, tiny

CPU = torch.device("cpu")


def test_a_span_inside_another_is_taken_off_it(monkeypatch):
    clock = iter([0.0, 1.0, 1.5, 4.0, 4.25, 6.0, 7.0, 7.5])
    spans = profile._Spans(CPU)
    monkeypatch.setattr(spans, "mark", lambda: next(clock))
    monkeypatch.setattr(profile, "_active", spans)
    with span("query"):  # 0 to 6
        with span("roi"):  # 1 to 1.5
            pass
        with span("roi"):  # 4 to 4.25
            pass
    with span("losses"):  # 7 to 7.5
        pass
    assert spans.totals() == pytest.approx({"roi": 750.0, "query": 5250.0, "losses": 500.0})


def test_nothing_is_noted_while_nobody_looks():
    with span("query"):
        pass
    assert profile._active is None
    assert Profiler(Path("nowhere"), 0, CPU).step() == []


def test_rows_add_up_to_the_step_and_what_runs_beside_it_is_apart():
    lines = table({"query": 30.0, "backward": 50.0, "copy": 20.0}, reduced=8.0, milliseconds=100.0, steps=2)
    rows = dict(re.findall(r"\| ([^|]+?) \| ([\d.]+) \|", "\n".join(lines)))
    assert {name: float(value) for name, value in rows.items()} == {
        "query": 15.0, "backward": 25.0, "other": 10.0, "a step": 50.0,
        "beside it: copy": 10.0, "beside it: all-reduce (gradients, counts, statistics)": 4.0,
    }  # fmt: skip


def test_a_run_tells_where_its_steps_spent_their_time(tmp_path, capsys):
    train(FakeTiles(), CORPUS, tiny(), tmp_path, "auto", CPU, profiled=4)
    told = capsys.readouterr().err
    assert "where 4 steps spent their time:" in told and profile._active is None
    rows = {name: float(value) for name, value in re.findall(r"\| (\S[^|]*?) +\| +([\d.]+) +\|", told)}
    assert {"data", "momentum", "key", "query", "roi", "losses", "backward", "optimiser", "a step"} <= rows.keys()
    parts = sum(value for name, value in rows.items() if name != "a step" and not name.startswith("beside"))
    assert parts == pytest.approx(rows["a step"], rel=0.02)
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name") == "dic3l::backward" for event in events) == 4
