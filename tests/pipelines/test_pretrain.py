"""The command: from a corpus on disk to a run, in one process and in several, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dic3l.checkpoint import checkpoints, find, load
from dic3l.config import Config, resolve
from dic3l.errors import CheckpointError, ConfigError, Dic3lError
from pipelines.build import build
from pipelines.pretrain import _run_ranks, pretrain
from sarsense.config import BuildConfig
from sarsense.errors import CorpusError
from sarsense.simulate import simulate

TINY = {
    "views.crop_size": 32,
    "boxes.min_side": 8.0,
    "method.hidden_dim": 16,
    "method.queue_size": 16,
    "method.bn_groups": 2,
    "train.batch_size": 8,
    "train.steps": 6,
    "train.log_every": 2,
    "train.checkpoint_every": 100,
    "train.precision": "fp32",
}
DIC3L = [sys.executable, "-m", "dic3l"]


def tiny(**changes: object) -> Config:
    return resolve("smoke", options=TINY | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of 64 px of one simulated scene, all of them train."""
    root = tmp_path_factory.mktemp("pretrain")
    simulate(root / "sim", scenes=1, size=256, looks=4.0, seed=0)
    build([str(root / "sim" / "scenes")], root / "corpus", BuildConfig(tile_size=64, val_share=0.0), workers=0)
    return root / "corpus"


def command(corpus: Path, run: Path, *more: str) -> list[str]:
    settings = [f"{name}={json.dumps(value)}" for name, value in TINY.items()]
    assignments = [part for setting in settings for part in ("--set", setting)]
    return [*DIC3L, "pretrain", str(corpus), "--out", str(run), "--preset", "smoke", *assignments, *more]


def call(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    variables |= {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=timeout)


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_quiet(told: str) -> None:
    """Progress and notes, but no warning and no traceback of anyone."""
    for word in ("Traceback", "Warning", "[W", "W1", "UserWarning", "rank0]:", "libc10"):
        assert word not in told, told


def test_a_corpus_on_disk_is_trained_on_and_the_run_knows_it(corpus, tmp_path):
    outcome = pretrain(corpus, tmp_path / "run", tiny())
    assert outcome is not None and (outcome.steps, outcome.signal) == (6, None)
    assert steps_of(tmp_path / "run") == [2, 4, 6]
    manifest = json.loads((corpus / "corpus.json").read_text())
    facts = load(find(tmp_path / "run")).corpus
    assert facts["digest"] == manifest["digest"] and facts["groups"] == manifest["groups"]


@pytest.mark.slow
def test_the_command_says_what_it_made_and_goes_on_when_run_again(corpus, tmp_path):
    run = tmp_path / "run"
    first = call(*command(corpus, run, "--set", "train.steps=2"))
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == f"next: dic3l export {run} --out encoder.pt"
    assert "resnet18 from random weights, fp32 on cpu, 1 process; corpus corpus" in first.stderr
    assert_quiet(first.stderr)
    again = call(*command(corpus, run))
    assert again.returncode == 0 and "going on from step 2" in again.stderr and steps_of(run) == [2, 4, 6]
    done = call(*command(corpus, run))
    assert done.returncode == 0 and "nothing to do: the run has its 6 steps" in done.stdout
    exported = call(*DIC3L, "export", str(run), "--out", str(tmp_path / "encoder.safetensors"))
    assert exported.returncode == 0 and "resnet18 after 6 steps" in exported.stdout
    assert (tmp_path / "encoder.json").is_file()


def test_sigterm_writes_a_checkpoint_and_ends_well(corpus, tmp_path):
    run = tmp_path / "run"
    process = start(command(corpus, run, "--set", "train.steps=100000"), run)
    process.send_signal(signal.SIGTERM)
    out, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert_quiet(told)
    assert "stopped by SIGTERM after step" in out
    assert checkpoints(run)[-1][0] >= steps_of(run)[-1]


def start(arguments: list[str], run: Path, **environment: str) -> subprocess.Popen[str]:
    """The command in the background, once it has written a line of metrics."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(arguments, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1])


# -------------------------------------------------------------------------------------------------- several ranks


@pytest.mark.slow
def test_two_processes_train_end_and_go_on_from_ctrl_c(corpus, tmp_path):
    run = tmp_path / "run"
    process = start(command(corpus, run, "--nproc", "2", "--set", "train.steps=100000"), run)
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert_quiet(told)
    assert "2 processes" in told and out.count("stopped by SIGINT after step") == 1
    done = checkpoints(run)[-1][0]
    again = call(*command(corpus, run, "--nproc", "2", "--set", f"train.steps={done + 3}"))
    assert again.returncode == 0, again.stderr
    assert_quiet(again.stderr)
    assert f"going on from step {done}" in again.stderr and again.stdout.count("3 steps in") == 1
    assert checkpoints(run)[-1][0] == done + 3


@pytest.mark.slow
def test_ranks_do_not_outlive_their_parent(corpus, tmp_path):
    run = tmp_path / "run"
    process = start(command(corpus, run, "--nproc", "2", "--set", "train.steps=100000"), run)
    ranks = children(process.pid)
    assert len(ranks) == 2
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while any(alive(rank) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(rank) for rank in ranks)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_rank_that_dies_in_a_step_ends_the_job_within_a_minute_with_a_message(corpus, tmp_path):
    run = tmp_path / "run"
    process = start(command(corpus, run, "--nproc", "2", "--set", "train.steps=100000"), run)
    ranks = [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()]
    assert len(ranks) == 2
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began < 60 and process.returncode == 1
    assert "a process was ended by SIGKILL; the same command goes on from the last checkpoint" in told


def test_a_rank_that_fails_ends_the_others_and_gives_its_code():
    rank = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.pretrain._GRACE_SECONDS", 0.5)
        with pytest.raises(SystemExit) as ended:
            _run_ranks([sys.executable, "-c", rank], 2)
        assert ended.value.code == 3 and time.monotonic() - began < 30
        killed = "import os; os.kill(os.getpid(), 9)"
        with pytest.raises(Dic3lError, match="a process was ended by SIGKILL; the same command goes on"):
            _run_ranks([sys.executable, "-c", killed], 2)


@pytest.mark.slow
def test_torchrun_starts_ranks_too(corpus, tmp_path):
    run = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = call(*torchrun, *command(corpus, run)[1:])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("6 steps in") == 1 and steps_of(run) == [2, 4, 6]


# ---------------------------------------------------------------------------------------------------------- errors


def test_wrong_requests_are_refused_in_a_sentence(corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="--nproc: expected 1 or more, found 0"):
        pretrain(corpus, tmp_path / "run", tiny(), nproc=0)
    with pytest.raises(
        ConfigError, match=r"method\.bn_groups: expected at least one for each of the 4 processes, found 2"
    ):
        pretrain(corpus, tmp_path / "run", tiny(), nproc=4)
    with pytest.raises(CorpusError, match="no such folder"):
        pretrain(tmp_path / "absent", tmp_path / "run", tiny())
    with pytest.raises(ConfigError, match="expected at most the 32 train tiles of the corpus, found 64"):
        pretrain(corpus, tmp_path / "run", tiny(train__batch_size=64))
    with pytest.raises(CheckpointError, match="not empty and not a run"):
        pretrain(corpus, corpus, tiny(), nproc=2)
    with pytest.raises(CheckpointError, match="absent: no such file or folder"):
        pretrain(corpus, tmp_path / "run", tiny(), resume=str(tmp_path / "absent"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun already decides"):
        pretrain(corpus, tmp_path / "run", tiny(), nproc=2)


def test_a_corpus_without_train_tiles_is_refused(corpus, tmp_path):
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(copy / "tiles.parquet")
    column = table.column_names.index("split")
    pq.write_table(table.set_column(column, "split", pa.array(["val"] * len(table))), copy / "tiles.parquet")
    with pytest.raises(ConfigError, match="no tile in the train split"):
        pretrain(copy, tmp_path / "run", tiny())


@pytest.mark.slow
def test_parts_of_the_method_are_switched_off_by_name(corpus, tmp_path):
    run = tmp_path / "run"
    ended = call(*command(corpus, run, "--no-di", "--no-cc", "--contour-stage", "2", "--set", "train.steps=1"))
    assert ended.returncode == 0, ended.stderr
    method = resolve(file=run / "config.toml").method
    assert (method.weight_instances, method.weight_contour, method.contour_stage) == (0.0, 0.0, 2)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(method.weight_global * last["loss_global"], rel=1e-5)
    assert last["loss_contour"] > 0 and last["loss_instances"] > 0  # still measured


def test_an_error_is_one_line_and_its_code_says_whose(corpus, tmp_path):
    usage = call(*command(corpus, tmp_path / "run", "--set", "optim.lrr=3"))
    assert usage.returncode == 2
    told = "dic3l: error: --set: unknown setting 'optim.lrr'; did you mean 'optim.lr'?\n"
    assert usage.stderr == told
    absent = call(*command(tmp_path / "absent", tmp_path / "run"))
    assert absent.returncode == 1 and absent.stderr.count("\n") == 1 and "no such folder" in absent.stderr
    shard = next((corpus / "train").glob("*.tar"))
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    with (copy / "train" / shard.name).open("r+b") as file:
        file.truncate(1000)
    torn = call(*command(copy, tmp_path / "run", "--nproc", "2"))
    assert torn.returncode == 1 and torn.stderr.count("\n") == 1 and shard.name in torn.stderr
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------------ help


HEAVY = "torch torchvision numpy cv2 scipy dask distributed rasterio webdataset pyarrow tensorboard".split()
HELP = """
import sys
import cli
try:
    cli.dic3l_app({arguments!r}, prog_name="dic3l")
except SystemExit as ended:
    assert not ended.code, ended.code
print("HEAVY", [name for name in {heavy!r} if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pretrain", "--help"], ["export", "--help"]])
def test_help_and_version_import_nothing_heavy(arguments):
    ended = call(sys.executable, "-c", HELP.format(arguments=arguments, heavy=HEAVY), COLUMNS="200")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


def test_help_shows_every_setting_with_its_default():
    ended = call(*DIC3L, "pretrain", "--help", COLUMNS="250")
    text = " ".join(ended.stdout.split())
    from dic3l.config import names
    from pipelines.commands.options import OPTION_SETTINGS

    for name in names():
        if name not in OPTION_SETTINGS.values():
            assert f" {name}: " in text, name
    for option in OPTION_SETTINGS:
        assert f"--{option.replace('_', '-')}" in text
    for told in ("(default resnet101; smoke: resnet18)", "(default 448; smoke: 96)", "(default 0.2)", "(default 3)"):
        assert told in text, told
    assert torch.__version__ not in text
