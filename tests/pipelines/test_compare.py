"""Methods of one budget, probed alike, in one table: complete, resumed without doing anything again, told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dic3l.config import METHODS, resolve
from dic3l.errors import ConfigError
from pipelines import compare as module
from pipelines.build import build
from pipelines.compare import Task, compare, markdown, parse_methods, parse_task
from sarsense.config import BuildConfig
from sarsense.simulate import simulate

SMALL = {
    "views.crop_size": 32,
    "boxes.min_side": 8.0,
    "edges.side": 8.0,
    "method.hidden_dim": 16,
    "method.embedding_dim": 8,
    "method.queue_size": 16,
    "method.bn_groups": 2,
    "train.batch_size": 8,
    "train.steps": 2,
    "train.probe_tiles": 0,
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare") / "sim"
    simulate(root, scenes=3, size=256, looks=4.0, seed=1)
    build([str(root / "scenes")], root / "corpus", BuildConfig(tile_size=64, val_share=0.0), 0)
    return root


def test_each_method_is_trained_once_and_probed_on_each_task(simulated, tmp_path, monkeypatch):
    tasks = [Task("land", simulated), Task("roads", simulated, classes="other=0+1+2,road=3")]
    config = resolve("smoke", options=SMALL)
    arguments = (simulated / "corpus", tmp_path / "out", ["dic3l", "simclr"], tasks, config)
    result = compare(*arguments, seeds=2, pixels=300)
    runs = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert runs == [f"{name}-{seed}" for name in ("dic3l", "simclr") for seed in (0, 1)]
    for run in runs:
        line = json.loads((tmp_path / "out" / "runs" / run / "metrics.jsonl").read_text().splitlines()[-1])
        assert line["step"] == 2  # the same budget
    rows = [row for row in result["rows"] if row["task"] == "land"]
    assert {"random weights", "majority class", "dic3l", "simclr"} <= {row["name"] for row in rows}
    for row in rows:
        if row["probe"] != "-":
            assert len(row["miou"]["values"]) == 2
    own = next(row for row in rows if row["name"] == "dic3l")
    other = next(row for row in rows if row["name"] == "random weights")
    gains = [a - b for a, b in zip(own["miou"]["values"], other["miou"]["values"], strict=True)]
    assert own["gain"]["values"] == pytest.approx(gains)
    by_seed = zip(own["knn_miou"]["values"], other["knn_miou"]["values"], strict=True)
    assert own["knn_gain"]["values"] == pytest.approx([a - b for a, b in by_seed])
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "**land**" in text and "**roads**" in text and "IoU road |" in text
    assert "| mIoU | above random | kNN mIoU | above random |" in text and markdown(result) == text
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.width > 600
    # again: every step and score is there already
    steps = []
    monkeypatch.setattr(module, "evaluate", lambda *a, **k: steps.append(k) or json.loads(
        (a[2] / "evaluation.json").read_text()))  # fmt: skip
    again = compare(*arguments, seeds=2, pixels=300)
    assert again["rows"] == result["rows"] and len(steps) == 2
    for run in runs:
        assert len((tmp_path / "out" / "runs" / run / "metrics.jsonl").read_text().splitlines()) == 1


def test_texts_of_tasks():
    assert parse_task("water=/a/b") == Task("water", Path("/a/b"))
    told = parse_task("roads=data;layout=folder;classes=road=3,other=1+2;fractions=1,100")
    assert told == Task("roads", Path("data"), "folder", "road=3,other=1+2", (1.0, 100.0))
    for text in ("water", "a/b=c", "a=b;colour=red", "a=b;layout", "a=b;fractions=some"):
        with pytest.raises(ConfigError, match="--task"):
            parse_task(text)


def test_names_of_methods():
    assert parse_methods("all") == list(METHODS)
    assert parse_methods("simclr, dic3l") == ["dic3l", "simclr"]
    for text in ("", "simclr,simclr", "mocov3"):
        with pytest.raises(ConfigError, match="--methods"):
            parse_methods(text)


def test_what_cannot_be_compared_is_refused_first(tmp_path):
    config = resolve("smoke")
    with pytest.raises(ConfigError, match="--task: one or more"):
        compare(tmp_path, tmp_path / "out", ["dic3l"], [], config)
    with pytest.raises(ConfigError, match="--seeds"):
        compare(tmp_path, tmp_path / "out", ["dic3l"], [Task("a", tmp_path)], config, seeds=0)
    with pytest.raises(ConfigError, match="names that differ"):
        compare(tmp_path, tmp_path / "out", ["dic3l"], [Task("a", tmp_path)] * 2, config)
