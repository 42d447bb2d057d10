"""The run folder: settings, checkpoints, and which of them to go on from.

RUN/
  config.toml                 resolved settings
  checkpoints/step-NNNNNNNN.pt  the newest `train.keep`, and multiples of `train.keep_every`; NNNNNNNN = steps done
  checkpoints/last.pt         a link to the newest
  metrics.jsonl, tensorboard/   (dic3l.monitor)

A checkpoint is whole: weights, momentum weights, queues, optimiser, what the monitor has gathered since its last line,
settings, and the corpus they belong to. Draws and order are functions of the step, so there is no other state. A file
is whole under its name or not there: it is written beside, flushed to the disk, and renamed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
import torchvision

import dic3l
from dic3l.config import Config, differences, from_toml, override, read_toml, to_toml
from dic3l.errors import CheckpointError, Dic3lError

FORMAT = 3
_FILE = re.compile(r"step-(\d{8,})\.pt")
_LAST = "last.pt"
FREE = {
    *("device", "precision", "accumulate", "epochs", "steps", "log_every", "checkpoint_every", "keep", "keep_every"),
    *("probe_tiles", "loggers", "loader_threads", "render", "compile"),
}
"""settings of [train] that a run may change when it goes on: where, how long, and what is written when"""


@dataclass(frozen=True)
class CorpusFacts:
    """What a run remembers of its corpus."""

    name: str
    version: str
    digest: str
    groups: dict[str, dict[str, Any]]
    """normalisation: dB range of each group"""
    whole: str = ""
    """digest of the corpus with all of its shards, where bad ones are left out"""


@dataclass(frozen=True)
class Checkpoint:
    """A state between two steps. Tensors are on the CPU when it was read."""

    step: int
    """steps done"""
    config: str
    """settings, as TOML"""
    corpus: dict[str, Any]
    """CorpusFacts as a plain dictionary"""
    method: dict[str, Any]
    """state dict of DIC3L"""
    optimiser: dict[str, Any]
    window: torch.Tensor
    """what the monitor has gathered since its last line (`dic3l.monitor`)"""
    versions: dict[str, str]
    format: int = FORMAT


def versions() -> dict[str, str]:
    """Of what computes: plain texts."""
    return {
        "dic3l": dic3l.__version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


# -------------------------------------------------------------------------------------------------------- files


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path`; at the end flush it to the disk and rename it, or remove it after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(steps done, file) of a run's checkpoints, oldest first."""
    folder = run / "checkpoints"
    found = [(_FILE.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(match[1]), path) for match, path in found if match)


def save(run: Path, checkpoint: Checkpoint, keep: int, keep_every: int = 0) -> Path:
    """Write a checkpoint; then remove all but the newest `keep` and the multiples of `keep_every` steps, and what
    killed writers left. Raises CheckpointError, with the last good checkpoint named, where it cannot be written."""
    folder = run / "checkpoints"
    path = folder / f"step-{checkpoint.step:08d}.pt"
    try:
        with atomic_write(path) as file:
            torch.save({field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        good = checkpoints(run)
        left = f"the last good checkpoint is {good[-1][1]}" if good else "there is no earlier checkpoint"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: cannot be written ({reason}; {_free(folder)} free); {left}: make room and give the same command "
            "again to go on from there"
        ) from error
    with suppress(OSError):  # the state is written: what is in the way of tidying up ends no run
        _link(folder / _LAST, path.name)
        for step, old in checkpoints(run)[:-keep]:
            if not keep_every or step % keep_every:
                old.unlink(missing_ok=True)
        for pattern in (".step-*.tmp", f".{_LAST}.*.tmp"):
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
    return path


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB"
    except OSError:
        return "unknown space"


def _link(link: Path, name: str) -> None:
    """A relative symbolic link, replaced atomically; left out where the file system has none."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(link)


def load(path: Path) -> Checkpoint:
    """A checkpoint from its file. CheckpointError where it is missing, damaged, or no checkpoint."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # pickle and zip raise many kinds
        # torch explains an UnpicklingError at length, with how to switch its safety off
        told = not isinstance(error, UnpicklingError) and str(error)
        reason = str(error).splitlines()[0] if told else type(error).__name__
        ours = _FILE.fullmatch(path.name) is not None
        advice = "delete it to go on from the one before it" if ours else "`dic3l pretrain` writes step-NNNNNNNN.pt"
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({reason}); {advice}") from error
    if not isinstance(content, dict) or "format" not in content or "method" not in content:
        raise CheckpointError(f"{path}: expected a checkpoint of `dic3l pretrain`, found something else")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {content['format']}, this dic3l reads {FORMAT}")
    return Checkpoint(**content)


def find(place: Path) -> Path:
    """The checkpoint that `place` means: a file, or the newest of a run folder."""
    if place.is_file():
        return place
    found = checkpoints(place)
    if not found:
        what = "holds no checkpoint" if place.is_dir() else "no such file or folder"
        raise CheckpointError(f"{place}: {what}; expected a checkpoint (.pt) or the folder of a run that wrote one")
    return found[-1][1]


# ------------------------------------------------------------------------------------------------------ resuming


def open_run(
    run: Path, config: Config, corpus: CorpusFacts, resume: str = "auto", allow_corpus_change: bool = False
) -> Checkpoint | None:
    """Make or reopen a run folder; the checkpoint to go on from, or None at the beginning. Writes nothing.

    resume: 'auto' (from the newest checkpoint in `run`, if any), 'never' (`run` must hold none), or the path of a
    checkpoint or run. Refused where settings or corpus differ from those of the run in a way that makes it another;
    allow_corpus_change: another corpus is what the user means.
    """
    own = checkpoints(run)
    _refuse_other_folder(run)
    if resume == "never":
        if own:
            raise CheckpointError(
                f"{run}: already holds a run of {own[-1][0]} steps; --resume auto goes on with it, another --out "
                "starts a new one"
            )
        return None
    if resume != "auto":
        path = find(Path(resume))
        checkpoint = load(path)
        if own and own[-1][0] > checkpoint.step:
            raise CheckpointError(
                f"{run}: already holds later steps ({own[-1][0]}) than {path} ({checkpoint.step}); give another --out, "
                "or delete the later checkpoints"
            )
    elif own:
        path = own[-1][1]
        checkpoint = load(path)
    else:
        _refuse_other_settings(run / "config.toml", config)
        return None
    _refuse(str(path), from_toml(checkpoint.config, str(path)), config)
    same = (corpus.whole or corpus.digest) == (checkpoint.corpus.get("whole") or checkpoint.corpus["digest"])
    if checkpoint.corpus["digest"] != corpus.digest and not (allow_corpus_change or same):
        raise CheckpointError(
            f"{path}: trained on corpus {checkpoint.corpus['name']} ({checkpoint.corpus['digest'][:12]}), found "
            f"{corpus.name} ({corpus.digest[:12]}); give the same corpus, another --out for a new run, or "
            "--allow-corpus-change to go on with the other one"
        )
    return checkpoint


def _refuse_other_folder(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"{run}: is a file; --out names the folder of a run")
    if not run.is_dir() or (run / "config.toml").is_file() or (run / "checkpoints").is_dir():
        return
    if any(not path.name.startswith(".") for path in run.iterdir()):
        raise CheckpointError(f"{run}: not empty and not a run (no config.toml); choose a new folder for --out")


def _refuse_other_settings(path: Path, config: Config) -> None:
    """A run that was stopped before its first checkpoint still has settings."""
    if path.is_file():
        _refuse(str(path), override(Config(), [(str(path), read_toml(path))]), config)


def _refuse(source: str, old: Config, new: Config) -> None:
    other = {name: pair for name, pair in differences(old, new).items() if name.removeprefix("train.") not in FREE}
    if other:
        told = ", ".join(f"{name} = {before} (now {after})" for name, (before, after) in list(other.items())[:4])
        more = f" and {len(other) - 4} more" if len(other) > 4 else ""
        raise CheckpointError(
            f"{source}: the run in this folder has other settings: {told}{more}; give the same settings to go on with "
            "it, or another --out for a new run"
        )


def write_config(run: Path, config: Config, corpus: CorpusFacts) -> None:
    """Save the resolved settings in the run folder, with the corpus that they were used on."""
    head = (
        f"# settings of this run, resolved by dic3l {dic3l.__version__}\n"
        f"# corpus {corpus.name} {corpus.version}, digest {corpus.digest}\n"
    )
    write_text(run / "config.toml", head + to_toml(config))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; Dic3lError where the place does not allow it."""
    try:
        with atomic_write(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise Dic3lError(f"{path}: cannot be written: {error.strerror or error}; choose another --out") from error


def restore_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give `optimiser` the momentum of a checkpoint; its groups keep their own settings (fused, weight decay)."""
    own = optimiser.state_dict()["param_groups"]
    if [group["params"] for group in own] != [group["params"] for group in state["param_groups"]]:
        raise CheckpointError("the optimiser's groups differ from those of the checkpoint; it is of another dic3l")
    optimiser.load_state_dict({"state": state["state"], "param_groups": own})
