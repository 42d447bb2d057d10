"""Checkpoints: whole or absent, kept on a policy, and of this run or refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dic3l.checkpoint import (
    Checkpoint,
    CorpusFacts,
    atomic_write,
    checkpoints,
    find,
    load,
    open_run,
    restore_optimiser,
    save,
    versions,
    write_config,
)
from dic3l.config import Config, resolve, to_toml
from dic3l.errors import CheckpointError, Dic3lError
from dic3l.optim import make_optimiser

CONFIG = resolve("smoke")
CORPUS = CorpusFacts("demo", "1.0.0", "ab" * 32, {"S1": {"lo_db": -30.0, "hi_db": 5.0}})


def checkpoint(step: int, config: Config = CONFIG) -> Checkpoint:
    return Checkpoint(
        step=step,
        config=to_toml(config),
        corpus=dict(vars(CORPUS)),
        method={"weight": torch.arange(6.0).view(2, 3), "queue._extra_state": {"pointer": 3, "enqueued": 9}},
        optimiser={"state": {}, "param_groups": []},
        window=torch.rand(4, 10),
        versions=versions(),
    )


def assert_same(one: Checkpoint, two: Checkpoint) -> None:
    assert (one.step, one.config, one.corpus, one.versions) == (two.step, two.config, two.corpus, two.versions)
    assert one.method["weight"].equal(two.method["weight"]) and one.window.equal(two.window)
    assert one.method["queue._extra_state"] == two.method["queue._extra_state"]


def test_a_checkpoint_reads_back_whole(tmp_path):
    written = checkpoint(7)
    path = save(tmp_path, written, keep=3)
    assert path == tmp_path / "checkpoints" / "step-00000007.pt"
    assert_same(load(path), written)


def test_the_newest_stay_in_order_of_steps(tmp_path):
    for step in (9, 10, 100, 1000):
        save(tmp_path, checkpoint(step), keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [100, 1000]
    assert find(tmp_path).name == "step-00001000.pt"
    assert (tmp_path / "checkpoints" / "last.pt").readlink() == Path("step-00001000.pt")
    assert load(find(tmp_path / "checkpoints" / "last.pt")).step == 1000


def test_milestones_stay_beside_the_newest(tmp_path):
    for step in range(100, 1100, 100):
        save(tmp_path, checkpoint(step), keep=2, keep_every=400)
    assert [step for step, _ in checkpoints(tmp_path)] == [400, 800, 900, 1000]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes_with_the_next(tmp_path):
    save(tmp_path, checkpoint(5), keep=3)
    left = tmp_path / "checkpoints" / ".step-00000009.pt.123.tmp"
    left.write_bytes(b"half")
    assert [step for step, _ in checkpoints(tmp_path)] == [5]
    save(tmp_path, checkpoint(6), keep=3)
    assert not left.exists()


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = save(tmp_path, checkpoint(5), keep=3)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"step-00000005\.pt: damaged or not a checkpoint .* delete it") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such checkpoint"):
        load(tmp_path / "absent.pt")


def test_other_files_of_torch_and_other_formats_are_refused(tmp_path):
    path = tmp_path / "step-00000001.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="expected a checkpoint of `dic3l pretrain`"):
        load(path)
    torch.save({"format": 99, "method": {}}, path)
    with pytest.raises(CheckpointError, match="checkpoint format 99, this dic3l reads 3"):
        load(path)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    buffer = io.BytesIO()
    torch.save({"format": 2, "method": Path("x")}, buffer)  # any class beyond tensors and plain types
    path = tmp_path / "step-00000001.pt"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        load(path)


# ------------------------------------------------------------------------------------------------------ resuming


def test_a_new_folder_begins_and_a_run_goes_on(tmp_path):
    run = tmp_path / "run"
    assert open_run(run, CONFIG, CORPUS) is None
    assert not run.exists()
    save(run, checkpoint(3), keep=3)
    save(run, written := checkpoint(6), keep=3)
    resumed = open_run(run, CONFIG, CORPUS)
    assert resumed is not None
    assert_same(resumed, written)


def test_how_long_and_where_may_change_what_it_learns_may_not(tmp_path):
    save(tmp_path, checkpoint(3), keep=3)
    free = resolve(
        "smoke",
        options={"train.steps": 999, "train.device": "cpu", "train.precision": "fp32", "train.log_every": 1},
        assignments=["train.keep=1", "train.checkpoint_every=5", "train.loader_threads=1"],
    )
    assert open_run(tmp_path, free, CORPUS) is not None
    with pytest.raises(
        CheckpointError, match=r"the run in this folder has other settings: method\.arch = resnet18"
    ) as told:
        open_run(tmp_path, resolve("smoke", options={"method.arch": "resnet34", "train.seed": 5}), CORPUS)
    assert "(now resnet34), train.seed = 0 (now 5); give the same settings" in str(told.value)


def test_a_run_stopped_before_its_first_checkpoint_still_has_settings(tmp_path):
    write_config(tmp_path, CONFIG, CORPUS)
    assert open_run(tmp_path, CONFIG, CORPUS) is None
    with pytest.raises(CheckpointError, match=r"config\.toml: the run in this folder has other settings: optim\.lr"):
        open_run(tmp_path, resolve("smoke", options={"optim.lr": 1.0}), CORPUS)


def test_another_corpus_is_refused(tmp_path):
    save(tmp_path, checkpoint(3), keep=3)
    with pytest.raises(CheckpointError, match=r"trained on corpus demo \(abababababab\), found demo \(cdcdcdcdcdcd\)"):
        open_run(tmp_path, CONFIG, replace(CORPUS, digest="cd" * 32))
    resumed = open_run(tmp_path, CONFIG, replace(CORPUS, digest="cd" * 32), allow_corpus_change=True)
    assert resumed is not None and resumed.step == 3


def test_never_refuses_a_folder_that_has_steps(tmp_path):
    assert open_run(tmp_path, CONFIG, CORPUS, "never") is None
    save(tmp_path, checkpoint(3), keep=3)
    with pytest.raises(CheckpointError, match="already holds a run of 3 steps; --resume auto goes on"):
        open_run(tmp_path, CONFIG, CORPUS, "never")


def test_a_path_starts_a_new_folder_from_another_run(tmp_path):
    path = save(tmp_path / "old", checkpoint(3), keep=3)
    for place in (path, tmp_path / "old"):
        resumed = open_run(tmp_path / "new", CONFIG, CORPUS, str(place))
        assert resumed is not None and resumed.step == 3
    save(tmp_path / "new", checkpoint(8), keep=3)
    with pytest.raises(CheckpointError, match=r"already holds later steps \(8\)"):
        open_run(tmp_path / "new", CONFIG, CORPUS, str(path))
    with pytest.raises(CheckpointError, match="absent: no such file or folder"):
        open_run(tmp_path / "new", CONFIG, CORPUS, str(tmp_path / "absent"))


def test_folders_that_are_something_else_are_refused(tmp_path):
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not empty and not a run"):
        open_run(tmp_path, CONFIG, CORPUS)
    with pytest.raises(CheckpointError, match="is a file; --out names the folder of a run"):
        open_run(tmp_path / "corpus.json", CONFIG, CORPUS)


def test_a_place_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Dic3lError, match="cannot be written: Not a directory; choose another --out"):
        write_config(tmp_path / "file" / "run", CONFIG, CORPUS)


def test_an_optimiser_takes_its_momentum_back_and_keeps_its_own_settings():
    torch.manual_seed(0)
    networks = [torch.nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    one, two = (make_optimiser(network, CONFIG.optim) for network in networks)
    networks[0](torch.ones(4, 3)).sum().backward()
    one.step()
    state = one.state_dict()
    for group in state["param_groups"]:
        group["weight_decay"] = 123.0
    restore_optimiser(two, state)
    for mine, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert one.state[mine]["momentum_buffer"].equal(two.state[theirs]["momentum_buffer"])
    assert [group["weight_decay"] for group in two.param_groups] == [CONFIG.optim.weight_decay] * 2
