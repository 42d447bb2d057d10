"""Trackers: refused where they are not installed, used as themselves where they are."""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from typing import Any

import pytest

from dic3l import loggers
from dic3l.config import resolve
from dic3l.errors import ConfigError
from dic3l.loggers import check_loggers, open_loggers


def config(names: str):
    return resolve("smoke", options={"train.loggers": names})


def test_without_a_wish_there_is_none(tmp_path):
    assert open_loggers(config(""), tmp_path) == []


def test_what_is_not_installed_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"train\.loggers: wandb is not installed; `pip install wandb`"):
        check_loggers(["wandb"])


def test_wandb_is_told_settings_steps_and_that_a_run_goes_on(tmp_path, monkeypatch):
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda exit_code: calls.append(exit_code)
    )
    fake: Any = types.ModuleType("wandb")
    fake.init = lambda **named: (calls.append(named), run)[1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(loggers, "find_spec", lambda name: types.SimpleNamespace(origin="wandb/__init__.py"))
    for _ in range(2):
        (logger,) = open_loggers(config("wandb, wandb"), tmp_path / "run")
        logger.log({"loss/loss": 1.5}, 10)
        logger.close(finished=True)
    first, second = calls[0], calls[3]
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["name"] == "run"
    assert first["config"]["train.batch_size"] == 64
    assert calls[1:3] == [(10, {"loss/loss": 1.5}), 0]
    (logger,) = open_loggers(config("wandb"), tmp_path / "run")
    logger.close(finished=False)
    assert calls[-1] == 1


def test_a_folder_of_its_name_is_not_a_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # where wandb has run
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if (found := find_spec("wandb")) is not None and found.origin is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(ConfigError, match="wandb is not installed"):
        check_loggers(["wandb"])


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_itself_holds_one_run_of_a_folder(tmp_path, monkeypatch):
    import mlflow  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for step in (10, 20):  # twice: the run goes on
        (logger,) = open_loggers(config("mlflow"), tmp_path / "run")
        logger.log({"loss/loss": float(step)}, step)
        logger.close(finished=step == 20)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("dic3l")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/loss")
    assert [(metric.step, metric.value) for metric in history] == [(10, 10.0), (20, 20.0)]
    assert run.data.params["train.batch_size"] == "64"
