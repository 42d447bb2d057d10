"""Two processes compute what one computes, and a lost one is said in a sentence."""

from __future__ import annotations

import os
import shutil
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dic3l import distributed
from dic3l.config import MethodConfig
from dic3l.errors import ConfigError, Dic3lError
from dic3l.method import DIC3L, StepBatch, training_step

CONFIG = MethodConfig(
    arch="resnet18", embedding_dim=16, hidden_dim=24, queue_size=20, momentum=0.9, contour_stage=3, bn_groups=4
)
BATCH, STEPS = 16, 3


def whole_batch(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views uint8 (2, B, 1, 64, 64), boxes (2, B, P, 4), mask (B, P), permutation: of the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    views = torch.randint(0, 256, (2, BATCH, 1, 64, 64), dtype=torch.uint8, generator=generator)
    corners = torch.rand(2, BATCH, 4, 2, 2, generator=generator).sort(dim=3).values * 64
    mask = torch.rand(BATCH, 4, generator=generator) < 0.7
    if step == 1:
        mask[: BATCH // 2] = False  # the first of two ranks has queries without any box
    if step == 2:
        mask[:] = False
    return views, corners.flatten(3), mask, torch.randperm(BATCH, generator=generator)


def part_of(step: int, rank: int, world: int) -> StepBatch:
    views, boxes, mask, perm = whole_batch(step)
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    theirs = perm[mine]
    return StepBatch(views[0][mine], boxes[0][mine], mask[mine], views[1][theirs], boxes[1][theirs], mask[theirs], perm)


def train(rank: int, world: int, folder: Path) -> None:
    """A few steps in float64; leaves losses and state in `folder`."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    method = DIC3L(CONFIG, seed=7, ranks=world).double()
    query = distributed.wrap_ddp(method.query)
    optimiser = torch.optim.SGD(query.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(STEPS):
        result = training_step(method, query, part_of(step, rank, world), optimiser, lr=0.03)
        losses.append(distributed.all_reduce(torch.stack(list(result.losses))) / world)
    distributed.average_running_stats(method)
    torch.save({"losses": torch.stack(losses), "method": method.state_dict()}, folder / f"{rank}-of-{world}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("twins")
    mp.spawn(train, (2, folder), nprocs=2)  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    train(0, 1, folder)
    torch.set_num_threads(threads)
    states = {path.stem: torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))}
    shutil.rmtree(folder)
    return states


def test_two_processes_have_the_losses_weights_and_queues_of_one(runs):
    one, two = runs["0-of-1"], runs["0-of-2"]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=0, atol=1e-12)
    assert one["losses"].shape == (STEPS, 7)
    for name, value in one["method"].items():
        if name.endswith("_extra_state"):
            assert two["method"][name] == value
        elif "running" not in name:
            torch.testing.assert_close(two["method"][name], value, rtol=0, atol=1e-12, msg=name)


def test_averaged_running_statistics_are_those_of_one_process(runs):
    one, two = runs["0-of-1"]["method"], runs["0-of-2"]["method"]
    # those of box heads differ where a group without boxes left its rank's own statistics as they were
    names = [name for name in one if "running" in name and "encoder" in name]
    assert names
    for name in names:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-12, msg=name)


def test_both_processes_hold_the_same_state(runs):
    first, second = runs["0-of-2"]["method"], runs["1-of-2"]["method"]
    for name, value in first.items():
        assert second[name] == value if name.endswith("_extra_state") else second[name].equal(value), name


def test_a_batch_without_boxes_anywhere_has_no_instances_loss(runs):
    instances = runs["0-of-2"]["losses"][:, 3]
    assert (instances > 0).tolist() == [True, True, False]


def lose_a_peer(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distributed.all_reduce(torch.ones(1))
    if rank == 1:
        os._exit(0)
    try:
        for _ in range(100):
            distributed.all_gather(torch.ones(1000))
    except Dic3lError as error:
        (folder / "told.txt").write_text(str(error))
    os._exit(0)  # gloo's threads, whose peer is gone, may abort at the end of the interpreter


def test_a_peer_that_is_gone_is_said_in_a_sentence(tmp_path):
    mp.spawn(lose_a_peer, (tmp_path,), nprocs=2)  # type: ignore[attr-defined]
    told = (tmp_path / "told.txt").read_text()
    assert told.startswith("rank 0 of 2: lost contact with another process") and "\n" not in told


def test_errors_that_are_not_of_peers_pass():
    with pytest.raises(RuntimeError, match="shapes differ"), distributed.peer_failures():
        raise RuntimeError("shapes differ")


def test_alone_everything_is_the_identity(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu") and not dist.is_initialized()
        assert (distributed.rank(), distributed.world()) == (0, 1)
        x, module = torch.randn(3, 2), nn.BatchNorm1d(2)
        assert distributed.all_gather(x).equal(x) and distributed.all_reduce(x).equal(x)
        assert distributed.wrap_ddp(module) is module
        distributed.average_running_stats(module)


def test_the_group_of_torchrun_is_joined_and_left(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with distributed.process_group("cpu"):
        assert dist.is_initialized() and distributed.world() == 1
    assert not dist.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused():
    assert distributed.choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device 'cuda'.*found none"):
        distributed.choose_device("cuda")


def test_more_processes_than_bn_groups_allow_are_refused():
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        DIC3L(replace(CONFIG, bn_groups=4), seed=0, ranks=3)
