"""The loop: what is killed and resumed is what was never killed; signals, divergence, changes of world."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dic3l import config as settings
from dic3l import distributed, trainer
from dic3l.base import training_step
from dic3l.checkpoint import CorpusFacts, checkpoints, find, load
from dic3l.config import Config, from_toml
from dic3l.errors import CheckpointError, ConfigError, Dic3lError
from dic3l.feed import feed
from dic3l.knn import scene_probe
from dic3l.stream import Stream
from dic3l.trainer import DivergenceError, Outcome, choose_precision, train
from dic3l.watch import status
from tests.dic3l.test_stream import BothTiles, FakeTiles
from tests.dic3l.test_stream import settings as stream_settings

CORPUS = CorpusFacts("fake", "1.0.0", "ab" * 32, {})
CPU = torch.device("cpu")


def tiny(**changes: object) -> Config:
    """Ten steps of a ResNet-18 on views of 32 px; lines every 3 steps, checkpoints every 4."""
    fixed: dict[str, object] = {
        "method__hidden_dim": 16,
        "method__embedding_dim": 8,
        "method__queue_size": 12,
        "optim__warmup_steps": 2,
        "train__steps": 10,
        "train__log_every": 3,
        "train__checkpoint_every": 4,
        "train__precision": "fp32",
        "train__device": "cpu",
    }
    return stream_settings(**fixed | changes)


def run_tiny(run: Path, resume: str = "auto", **changes: object) -> Outcome:
    return train(FakeTiles(), CORPUS, tiny(**changes), run, resume, CPU)


def records(run: Path) -> list[dict]:
    """metrics.jsonl without its clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert set(line.pop("time")) == {"tiles_per_s", "data_wait"}
    return lines


def assert_same_state(one: Path, two: Path) -> None:
    """The newest checkpoints are equal to the bit."""
    a, b = load(find(one)), load(find(two))
    assert a.step == b.step and a.window.equal(b.window) and a.method.keys() == b.method.keys()
    for name, value in a.method.items():
        assert value == b.method[name] if name.endswith("_extra_state") else value.equal(b.method[name]), name
    for index, state in a.optimiser["state"].items():
        assert state["momentum_buffer"].equal(b.optimiser["state"][index]["momentum_buffer"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    run_tiny(run)
    return run


def test_a_run_leaves_settings_metrics_and_checkpoints(undisturbed):
    assert sorted(path.name for path in undisturbed.iterdir()) == [
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "tensorboard",
    ]
    assert from_toml((undisturbed / "config.toml").read_text(), "config.toml") == tiny()
    assert [step for step, _ in checkpoints(undisturbed)] == [4, 8, 10]
    lines = records(undisturbed)
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 10]  # every third step, and every checkpoint
    assert lines[0]["epoch"] == 1.0 and lines[0]["queue_filled"] == 12  # 24 tiles in 3 steps of 8
    for line in lines:
        parts = 0.8 * line["loss_global"] + 0.2 * line["loss_contour"] + 5 * line["loss_instances"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 < line["boxes_per_image"] <= 3 and 1 <= line["effective_rank"] <= 8 and line["feature_std"] > 0
    checkpoint = load(find(undisturbed))
    assert checkpoint.corpus["digest"] == CORPUS.digest and len(checkpoint.window) == 0
    assert checkpoint.versions["torch"] == torch.__version__


KILLED = """
import json, os, signal, sys
from pathlib import Path
from dic3l import trainer
from dic3l.writer import CheckpointWriter
from tests.dic3l.test_trainer import run_tiny

step, save, calls = trainer.training_step, CheckpointWriter.save, 0

def kill(*arguments):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

def save_now(writer, checkpoint):  # as on a disk so fast that no step passes meanwhile
    save(writer, checkpoint)
    writer.failed(wait=True)

trainer.training_step, CheckpointWriter.save = kill, save_now
run_tiny(Path(sys.argv[1]), **json.loads(sys.argv[3]))
"""


def run_killed(run: Path, at: int, **changes: object) -> None:
    """A session in a process of its own, which SIGKILL ends in its step number `at`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), str(at), json.dumps(changes)],
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_killed_and_resumed_is_never_killed_to_the_bit(undisturbed, tmp_path):
    run_killed(tmp_path / "run", at=3)  # before the first checkpoint
    assert not checkpoints(tmp_path / "run")
    run_killed(tmp_path / "run", at=8)  # from the start again; after a line, amid the steps of the next one
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [4]
    assert [line["step"] for line in records(tmp_path / "run")] == [3, 4, 6]
    outcome = run_tiny(tmp_path / "run")
    assert (outcome.start, outcome.steps) == (4, 10)
    assert records(tmp_path / "run") == records(undisturbed)
    assert_same_state(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(undisturbed, tmp_path, monkeypatch, name):
    step, calls = trainer.training_step, []

    def signalled(*arguments, **named):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), getattr(signal, name))
        return step(*arguments, **named)

    before = [signal.getsignal(number) for number in trainer.STOPPING]
    monkeypatch.setattr(trainer, "training_step", signalled)
    outcome = run_tiny(tmp_path)
    assert (outcome.steps, outcome.total, outcome.signal) == (5, 10, name)
    assert [number for number, _ in checkpoints(tmp_path)] == [4, 5]
    assert [signal.getsignal(number) for number in trainer.STOPPING] == before
    again = run_tiny(tmp_path)
    assert (again.start, again.steps, again.signal) == (5, 10, None)
    assert records(tmp_path) == records(undisturbed)
    assert_same_state(tmp_path, undisturbed)


def test_a_second_ctrl_c_interrupts_at_once(tmp_path, monkeypatch):
    def signalled(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "training_step", signalled)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path)


def test_a_finished_run_has_nothing_to_do_and_a_longer_one_goes_on(undisturbed, tmp_path):
    short = tmp_path / "short"
    assert run_tiny(short, train__steps=4).steps == 4
    again = run_tiny(short, train__steps=4)
    assert (again.start, again.steps, again.metrics) == (4, 4, {})
    settings = (short / "config.toml").read_text()
    run_tiny(short, train__steps=3)  # fewer steps than it has train nothing
    assert (short / "config.toml").read_text() == settings
    longer = run_tiny(short, train__steps=6)
    assert (longer.start, longer.steps) == (4, 6)
    assert [line["step"] for line in records(short)] == [3, 4, 6]
    branched = run_tiny(tmp_path / "new", resume=str(undisturbed / "checkpoints" / "step-00000008.pt"))
    assert (branched.start, branched.steps) == (8, 10)
    assert_same_state(tmp_path / "new", undisturbed)


def test_initial_weights_are_not_needed_to_go_on(tmp_path):
    weights = tmp_path / "initial.pt"
    run_tiny(tmp_path / "first", train__steps=2)
    state = load(find(tmp_path / "first")).method
    prefix = "query.encoder.backbone."
    torch.save({name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}, weights)
    run_tiny(tmp_path / "run", train__steps=1, method__weights=str(weights))
    weights.unlink()
    assert run_tiny(tmp_path / "run", train__steps=2, method__weights=str(weights)).steps == 2


def test_a_loss_that_is_no_number_stops_with_the_tiles_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    step, calls = trainer.training_step, []

    def diverging(*arguments, **named):
        calls.append(1)
        result = step(*arguments, **named)
        bad = result.losses.clone()
        bad[0] = float("nan")
        return replace(result, losses=bad) if len(calls) == 7 else result

    monkeypatch.setattr(trainer, "training_step", diverging)
    with pytest.raises(
        DivergenceError, match=r"step 6: the loss is nan, its gradient's length [\d.]+; tiles of the batch: tile-"
    ) as caught:
        run_tiny(tmp_path)
    assert "\n" not in str(caught.value)
    told = json.loads((tmp_path / "diverged.json").read_text())
    stream = trainer.Stream(FakeTiles(), tiny())
    assert told["tiles"] == [stream.tiles.keys[index] for index in stream.plan(6)[0]]
    assert [number for number, _ in checkpoints(tmp_path)] == [4]  # none with weights that are no numbers


@pytest.mark.parametrize("bad", [3, 9])
def test_weights_of_a_gradient_that_is_no_number_are_in_no_checkpoint(tmp_path, monkeypatch, bad):
    """Step 3 is the last before a checkpoint, step 9 the last of all: no later loss tells of either."""
    calls = []

    def overflow(gradient):
        calls.append(1)
        return gradient * float("inf") if len(calls) == bad + 1 else gradient

    networks = trainer.networks

    def hooked(*arguments):
        method, query, optimiser = networks(*arguments)
        method.query.global_head[0].weight.register_hook(overflow)
        return method, query, optimiser

    monkeypatch.setattr(trainer, "networks", hooked)
    with pytest.raises(DivergenceError, match=f"step {bad}: the loss is [\\d.]+, its gradient's length (inf|nan)"):
        run_tiny(tmp_path, train__steps=10, train__checkpoint_every=4)
    saved = [number for number, _ in checkpoints(tmp_path)]
    assert saved == [step for step in (4, 8) if step <= bad]
    for _, path in checkpoints(tmp_path):
        assert all(v.isfinite().all() for v in load(path).method.values() if isinstance(v, torch.Tensor))


def begin_apart(rank: int, folder: Path) -> None:
    """As of two machines whose --out is a folder of each one's own, of which one holds a checkpoint."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        run_tiny(folder / f"machine-{rank}", train__steps=8, train__checkpoint_every=4)
    except Dic3lError as error:
        (folder / f"told-{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_that_see_different_checkpoints_stop_with_a_sentence(tmp_path):
    run_tiny(tmp_path / "machine-0", train__steps=4, train__checkpoint_every=4)
    shutil.copytree(tmp_path / "machine-0", tmp_path / "machine-1")
    for path in (tmp_path / "machine-1" / "checkpoints").glob("*"):
        path.unlink()
    mp.spawn(begin_apart, (tmp_path,), nprocs=2)  # type: ignore[attr-defined]
    for rank in range(2):
        assert "processes see different checkpoints" in (tmp_path / f"told-{rank}.txt").read_text()


def refuse_on_one(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    out = folder / "run"
    if rank == 1:
        (folder / "file").write_text("")
        out = folder / "file"  # no folder: this process alone cannot begin
    try:
        run_tiny(out, train__steps=2)
    except Dic3lError as error:
        (folder / f"told-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_process_that_cannot_begin_stops_the_others(tmp_path):
    mp.spawn(refuse_on_one, (tmp_path,), nprocs=2)  # type: ignore[attr-defined]
    told = [(tmp_path / f"told-{rank}.txt").read_text() for rank in range(2)]
    assert told[0].startswith("JointError: process 1 of 2 cannot begin")
    assert told[1].startswith("CheckpointError") and "is a file" in told[1]


def test_bf16_and_fp64_train_too(tmp_path):
    for precision in ("bf16", "fp64"):
        outcome = run_tiny(tmp_path / precision, train__steps=2, train__precision=precision)
        assert np.isfinite(outcome.metrics["loss"])
    fp64 = load(find(tmp_path / "fp64"))
    assert fp64.method["query.encoder.backbone.conv1.weight"].dtype == torch.float64
    bf16 = load(find(tmp_path / "bf16"))
    assert bf16.method["query.encoder.backbone.conv1.weight"].dtype == torch.float32


def test_auto_is_written_down_as_what_it_was(tmp_path):
    run_tiny(tmp_path, train__steps=1, train__precision="auto")
    written = from_toml((tmp_path / "config.toml").read_text(), "config.toml").train.precision
    assert written == choose_precision("auto", CPU) and written in ("fp32", "bf16")
    assert choose_precision("fp64", CPU) == "fp64"


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx512_bf16 amx_bf16", "bf16"), ("fpu avx512_bf16", "fp32"), ("fpu avx2", "fp32")]
)
def test_auto_is_bf16_where_the_processor_has_it(monkeypatch, flags, expected):
    monkeypatch.setattr(trainer, "_cpu_flags", lambda: set(flags.split()))
    assert choose_precision("auto", CPU) == expected


def test_a_corpus_smaller_than_two_queues_is_warned_of(tmp_path, capsys):
    run_tiny(tmp_path, train__steps=1, method__queue_size=16)
    told = capsys.readouterr().err
    assert "warning: the queue holds 16 keys, more than half of the 24 train tiles" in told
    assert "note: the contrast starts near ln(K + 1) = 2.83 and rises while the queue fills" in told


@pytest.mark.slow
def test_a_run_made_to_collapse_raises_the_alarm_and_a_healthy_one_does_not(tmp_path, capsys):
    """Weights that decay to nothing: every tile becomes the same vector, while the losses stay numbers."""
    run_tiny(tmp_path / "healthy", train__log_every=1)
    assert "ALARM" not in capsys.readouterr().err
    run = tmp_path / "collapsing"
    run_tiny(run, train__steps=24, train__log_every=1, optim__lr=1.0, optim__weight_decay=20.0, optim__sgd_momentum=0.0)
    told = capsys.readouterr().err
    (alarm,) = re.findall(r"ALARM at step \d+: collapse: feature_std is (\S+) ", told)
    assert float(alarm) < 0.1
    last = records(run)[-1]
    assert last["feature_std"] < 0.1 and np.isfinite(last["loss"])
    assert any("collapse" in note for note in status(run).notes)
    assert not any("collapse" in note for note in status(tmp_path / "healthy").notes)


def test_the_probe_is_asked_at_checkpoints_and_changes_nothing_else(undisturbed, tmp_path):
    config = tiny(train__probe_tiles=12)
    probe = scene_probe(FakeTiles(18), [f"{n % 3}" for n in range(18)], config)
    train(FakeTiles(), CORPUS, config, tmp_path, "auto", CPU, probe)
    found = records(tmp_path)
    assert [line["step"] for line in found if "knn_scene" in line] == [4, 8, 10]
    for line in found:
        assert 0 <= line.pop("knn_scene", 0) <= 1
    assert found == records(undisturbed)
    assert_same_state(tmp_path, undisturbed)


def test_another_corpus_goes_on_only_where_it_is_meant(tmp_path):
    run_tiny(tmp_path, train__steps=4, method__queue_share=0.25)
    other = replace(CORPUS, digest="cd" * 32)
    arguments = (FakeTiles(40), other, tiny(train__steps=6, method__queue_share=0.25), tmp_path, "auto", CPU)
    with pytest.raises(CheckpointError, match="--allow-corpus-change to go on with the other one"):
        train(*arguments)
    outcome = train(*arguments, allow_corpus_change=True)
    assert (outcome.start, outcome.steps) == (4, 6)
    checkpoint = load(find(tmp_path))
    assert checkpoint.corpus["digest"] == other.digest
    assert len(checkpoint.method["queue_global.keys"]) == 6  # as long as it was, though a quarter of 40 is more


def test_a_disk_that_is_full_leaves_the_last_good_checkpoint_and_says_so(undisturbed, tmp_path, monkeypatch):
    save = torch.save

    def full(content, file, *more):
        if content["step"] == 8:
            file.write(b"half of a chec")
            raise OSError(28, "No space left on device")
        save(content, file, *more)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        run_tiny(tmp_path)
    told = str(caught.value)
    assert "step-00000008.pt: cannot be written" in told and "\n" not in told
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / 'step-00000004.pt'}: make room" in told
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["last.pt", "step-00000004.pt"]
    monkeypatch.setattr(torch, "save", save)
    assert run_tiny(tmp_path).start == 4
    assert records(tmp_path) == records(undisturbed)
    assert_same_state(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_batch_in_parts_trains_as_the_batch(tmp_path):
    for parts in (1, 2):
        train(FakeTiles(), CORPUS, gentle(train__accumulate=parts, train__steps=4), tmp_path / f"{parts}", "auto", CPU)
    one, two = (load(find(tmp_path / name)).method for name in ("1", "2"))
    for name, value in one.items():
        if not name.endswith("_extra_state"):
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-11, msg=name)
    # and a run may go on in other parts
    again = train(FakeTiles(), CORPUS, gentle(train__steps=6), tmp_path / "2", "auto", CPU)
    assert again.start == 4


@pytest.mark.parametrize("preset", ["paper", "sarsense"])
def test_presets_train_at_small_scale(tmp_path, preset):
    small = {name: settings.value_of(tiny(), name) for name in SMALL_SCALE}
    config = settings.resolve(preset, options=small | {"train.steps": 3})
    assert np.isfinite(train(BothTiles(), CORPUS, config, tmp_path, "auto", CPU).metrics["loss"])


SMALL_SCALE = (
    "method.arch method.weights method.hidden_dim method.embedding_dim method.bn_groups views.crop_size boxes.min_side "
    "boxes.count train.batch_size train.precision train.device"
).split()


@pytest.mark.slow
def test_killed_at_twenty_random_steps_and_resumed_is_never_killed_to_the_bit(tmp_path):
    """No step twice in the metrics, and no tile twice: the plan of tiles is a function of the step (test_stream)."""
    changes = {"train__steps": 60, "train__checkpoint_every": 3}
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_tiny(whole, **changes)
    rng, kills = np.random.default_rng(5), 0
    while kills < 20:
        left = 60 - (checkpoints(run)[-1][0] if checkpoints(run) else 0)
        run_killed(run, at=min(int(rng.integers(1, 8)), left), **changes)
        kills += 1
    run_tiny(run, **changes)
    assert (run / "metrics.jsonl").read_text().count("\n") == len(records(whole))
    assert records(run) == records(whole)
    assert_same_state(run, whole)


# --------------------------------------------------------------------------------------------------- two processes


def gentle(**changes: object) -> Config:
    """float64, larger views and groups: BatchNorm over four maps of 1 x 1 amplifies rounding a hundredfold a step."""
    fixed: dict[str, object] = {"train__precision": "fp64", "views__crop_size": 64, "train__batch_size": 16}
    return tiny(**fixed | {"optim__lr": 1e-3} | changes)


def train_rank(rank: int, run: Path, port: int, steps: int) -> None:
    """One of two processes; anything it warns of is an error."""
    import warnings

    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.process_group("cpu") as device:
        train(FakeTiles(), CORPUS, gentle(train__steps=steps), run, "auto", device)


def free_port() -> int:
    from pipelines.pretrain import _free_port

    return _free_port()


@pytest.mark.slow
def test_two_processes_and_a_change_to_one_are_one_process(tmp_path):
    mp.spawn(train_rank, (tmp_path / "two", free_port(), 4), nprocs=2)  # type: ignore[attr-defined]
    train(FakeTiles(), CORPUS, gentle(), tmp_path / "two", "auto", CPU)  # goes on alone from step 4
    train(FakeTiles(), CORPUS, gentle(train__steps=4), tmp_path / "one", "auto", CPU)
    train(FakeTiles(), CORPUS, gentle(), tmp_path / "one", "auto", CPU)
    for two, one in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        assert two == pytest.approx(one, rel=2e-7)  # written with seven digits
    a, b = load(find(tmp_path / "two")).method, load(find(tmp_path / "one")).method
    for name, value in a.items():
        if not name.endswith("_extra_state"):
            torch.testing.assert_close(value, b[name], rtol=0, atol=1e-10, msg=name)


def test_more_processes_than_groups_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(ConfigError, match="bn_groups: expected at least one for each of the 4 processes, found 2"):
        run_tiny(tmp_path)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compiled_networks_take_the_same_steps(tmp_path):
    """On a CPU it is no faster: here only that it is the same, in float64, where rounding does not grow over steps."""
    for name in ("off", "on"):
        run_tiny(tmp_path / name, train__compile=name, train__log_every=1, train__steps=4, train__precision="fp64")
    for plain, compiled in zip(records(tmp_path / "off"), records(tmp_path / "on"), strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-6)
        assert compiled["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"method__contour": "edges", "method__key_norm": "averaged"}])
def test_a_step_on_cuda_never_waits_for_the_device(changes):
    cuda = torch.device("cuda")
    config = tiny(train__device="cuda", **changes)
    method, query, optimiser = trainer.networks(config, None, cuda, 24)
    for step, batch in feed(Stream(BothTiles(), config), 0, 6, cuda):
        torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
        try:
            training_step(method, query, batch, optimiser, 1e-3, torch.bfloat16)
        finally:
            torch.cuda.set_sync_debug_mode("default")
