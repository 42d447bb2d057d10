"""Experiment trackers that are used where they are installed and asked for: Weights & Biases, MLflow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dic3l.config import Config
from dic3l.errors import ConfigError

_PROJECT = "dic3l"


class Logger(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self, finished: bool) -> None:
        """finished: not ended by an error."""
        ...


def check_loggers(names: Sequence[str]) -> None:
    """ConfigError where one is not installed: before the first step, not after it."""
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, as wandb makes them, is no package
            raise ConfigError(f"train.loggers: {name} is not installed; `pip install {name}`, or leave it out")


def open_loggers(config: Config, run: Path) -> list[Logger]:
    """Those that the settings name. A run that goes on is the same run to them: told by its folder."""
    check_loggers(config.train.logger_names)
    makers: dict[str, type[WandbLogger] | type[MlflowLogger]] = {"wandb": WandbLogger, "mlflow": MlflowLogger}
    return [makers[name](config, run) for name in dict.fromkeys(config.train.logger_names)]


def _identity(run: Path) -> str:
    return hashlib.blake2b(str(run.resolve()).encode(), digest_size=8).hexdigest()


def _flat(config: Config) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in asdict(config).items() for key, value in values.items()}


class WandbLogger:
    """A run of Weights & Biases; where it goes is its own business (WANDB_PROJECT, WANDB_MODE, ...)."""

    def __init__(self, config: Config, run: Path) -> None:
        wandb = import_module("wandb")

        identity = _identity(run)
        self._run = wandb.init(
            project=_PROJECT, id=identity, name=run.name, dir=str(run), config=_flat(config), resume="allow"
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MlflowLogger:
    """A run of MLflow; where it goes is its own business (MLFLOW_TRACKING_URI, ...)."""

    def __init__(self, config: Config, run: Path) -> None:
        mlflow = import_module("mlflow")

        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(_PROJECT)
        identity = _identity(run)
        known = self._client.search_runs([experiment], f"tags.dic3l_run = '{identity}'", max_results=1)
        if known:
            self._id = known[0].info.run_id
            return
        self._id = self._client.create_run(experiment, tags={"dic3l_run": identity}, run_name=run.name).info.run_id
        for name, value in _flat(config).items():
            self._client.log_param(self._id, name, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, status="FINISHED" if finished else "FAILED")
