"""Two processes compute what one computes, and a lost one is said in a sentence."""

from __future__ import annotations

import os
import shutil
import socket
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from dic3l import distributed
from dic3l.base import Method, StepBatch, training_step
from dic3l.config import METHODS, Config, MethodConfig, override
from dic3l.errors import ConfigError, Dic3lError
from dic3l.groups import Division
from dic3l.methods import make_method

CONFIG = MethodConfig(
    arch="resnet18", embedding_dim=16, hidden_dim=24, queue_size=20, momentum=0.9, contour_stage=3, bn_groups=4
)
OURS = replace(CONFIG, stem="single", key_norm="averaged", contour="edges", contour_stage=2)
BATCH, SIDE = 18, 64
"""18 images in 4 groups: four or five a group, so that processes hold unequal shares"""


RATE = 3e-4
"""BatchNorm over maps of 2 x 2 amplifies rounding a hundredfold a step at published rates"""


def whole_batch(step: int, points: int) -> tuple[Tensor, ...]:
    """Views uint8 (2, B, 1, h, w), boxes (2, B, P, 4), mask (B, P), points (2, B, Q, 4), mask (B, Q), permutation:
    of the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    views = torch.randint(0, 256, (2, BATCH, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    corners = torch.rand(2, BATCH, 4, 2, 2, generator=generator).sort(dim=3).values * SIDE
    mask = torch.rand(BATCH, 4, generator=generator) < 0.7
    squares = torch.rand(2, BATCH, points, 2, 2, generator=generator).sort(dim=3).values * SIDE
    point_mask = torch.rand(BATCH, points, generator=generator) < 0.7
    if step == 1:
        mask[: BATCH // 2] = point_mask[: BATCH // 2] = False  # the first of two ranks has no box and no point
    if step == 2:
        mask[:] = point_mask[:] = False
    return views, corners.flatten(3), mask, squares.flatten(3), point_mask, torch.randperm(BATCH, generator=generator)


def part_of(step: int, rank: int, method: Method) -> StepBatch:
    averaged = method.config.key_norm == "averaged"
    views, boxes, mask, points, point_mask, perm = whole_batch(step, 3 if averaged else 1)
    perm = perm if method.config.shuffles else torch.arange(BATCH)
    mine = method.division.rows(rank)
    theirs = perm[mine]
    frames = 64.0 * boxes[:, :, 0] / boxes[:, :, 0].amax()
    return StepBatch(views[0][mine], boxes[0][mine], mask[mine], points[0][mine], point_mask[mine], views[1][theirs],
                     boxes[1][theirs], mask[theirs], points[1][theirs], perm, frames[0][mine],
                     frames[1][theirs])  # fmt: skip


def train(rank: int, world: int, folder: Path, config: MethodConfig, steps: int) -> None:
    """Some steps in float64; leaves losses and state in `folder`."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    method = make_method(config, 7, Division(BATCH, config.bn_groups, world)).double()
    query = distributed.wrap_ddp(method.query)
    optimiser = torch.optim.SGD(query.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(steps):
        result = training_step(method, query, part_of(step, rank, method), optimiser, lr=RATE)
        losses.append(distributed.all_reduce(result.losses) / world)
    torch.save({"losses": torch.stack(losses), "method": method.state_dict()}, folder / f"{rank}-of-{world}.pt")
    if world > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("steps", "worlds"), [(3, (2,)), pytest.param(20, (2, 4), marks=pytest.mark.slow)], ids=["3 steps", "20 steps"]
)
@pytest.mark.parametrize("config", [pytest.param(CONFIG, marks=pytest.mark.slow), OURS], ids=["published", "sarsense"])
def test_one_two_and_four_processes_have_the_same_losses_weights_queues_and_statistics(tmp_path, config, steps, worlds):
    for world in worlds:
        mp.spawn(train, (world, tmp_path, config, steps), nprocs=world)  # type: ignore[attr-defined]
        (tmp_path / "store").unlink(missing_ok=True)
    threads = torch.get_num_threads()
    train(0, 1, tmp_path, config, steps)
    torch.set_num_threads(threads)
    runs = {path.stem: torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt"))}
    shutil.rmtree(tmp_path)
    one = runs["0-of-1"]
    assert one["losses"].shape == (steps, 9)
    for kind in (2, 3):  # contour, instances: none in the step without boxes and points
        assert (one["losses"][:3, kind] > 0).tolist() == [True, True, False]
    hold_the_same(runs, worlds)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "densecl" else pytest.mark.slow)
        for name in METHODS
        if name not in ("dic3l", "moco_v2")
    ],
)
def test_baselines_of_two_processes_are_those_of_one(tmp_path, name):
    """Also losses that compare all tiles with one another, though each process holds a part of them."""
    config = override(Config(), [("", {"method.name": name})]).method
    config = replace(config, arch="resnet18", embedding_dim=16, hidden_dim=24, queue_size=20, momentum=0.9, bn_groups=4)
    mp.spawn(train, (2, tmp_path, config, 2), nprocs=2)  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    train(0, 1, tmp_path, config, 2)
    torch.set_num_threads(threads)
    runs = {path.stem: torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("*.pt"))}
    shutil.rmtree(tmp_path)
    hold_the_same(runs, (2,))


def hold_the_same(runs: dict[str, dict[str, Any]], worlds: Sequence[int]) -> None:
    one = runs["0-of-1"]
    for world in worlds:
        first = runs[f"0-of-{world}"]
        torch.testing.assert_close(first["losses"], one["losses"], rtol=0, atol=1e-11)
        for name, value in one["method"].items():
            if name.endswith("_extra_state"):
                assert first["method"][name] == value
            else:  # statistics of activations are larger numbers than weights
                tolerance = 1e-10 if "running" in name else 1e-12
                torch.testing.assert_close(first["method"][name], value, rtol=0, atol=tolerance)
        for rank in range(1, world):
            for name, value in runs[f"{rank}-of-{world}"]["method"].items():
                same = first["method"][name]
                assert same == value if name.endswith("_extra_state") else same.equal(value), name


def lose_a_peer(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distributed.all_reduce(torch.ones(1))
    if rank == 1:
        os._exit(0)
    try:
        for _ in range(100):
            distributed.all_gather(torch.ones(1000), [1000, 1000])
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
        assert distributed.all_gather(x, [3]).equal(x) and distributed.all_reduce(x).equal(x)
        assert distributed.wrap_ddp(module) is module and not distributed.differs(x)


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


def tell_apart(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    same, other = torch.arange(5.0), torch.arange(5.0) + (1e-6 if rank else 0.0)
    found = [distributed.differs(same), distributed.differs(other), distributed.differs(same + float("nan"))]
    uneven = distributed.all_gather(torch.full((1 + rank, 2), float(rank)), [1, 2])
    torch.save((found, uneven), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_states_that_differ_are_told_apart_and_uneven_rows_are_gathered(tmp_path):
    mp.spawn(tell_apart, (tmp_path,), nprocs=2)  # type: ignore[attr-defined]
    for rank in range(2):
        found, uneven = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == [False, True, True]
        assert uneven.tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
