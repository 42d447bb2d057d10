"""Baselines: their losses against formulas of the papers in numpy, their geometry against brute force, their steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dic3l.base import StepBatch, training_step
from dic3l.baselines.densecl import DENSE_WEIGHT, DenseCL, matches
from dic3l.baselines.instance import BYOL, BarlowTwins, SimCLR, SimSiam
from dic3l.baselines.pixpro import NEAR, PixPro, Propagation, pairs
from dic3l.baselines.resim import GRID, ReSim, windows
from dic3l.batchnorm import set_groups
from dic3l.config import METHODS, Config, MethodConfig, override
from dic3l.errors import ConfigError
from dic3l.groups import Division
from dic3l.methods import make_method

BASELINES = [name for name in METHODS if name != "dic3l"]
COUNT, SIDE = 8, 64


def config_of(name: str) -> MethodConfig:
    config = override(Config(), [("", {"method.name": name})]).method
    return replace(
        config,
        arch="resnet18",
        embedding_dim=16,
        hidden_dim=24,
        queue_size=20,
        momentum=0.9,
        bn_groups=2,
        stem="single",
    )


def method_of(name: str, parts: int = 1):
    return make_method(config_of(name), 3, Division(COUNT, 2, parts=parts))


def a_batch(seed: int = 0) -> StepBatch:
    """Noise, its views anywhere on tiles of 100 pixels."""
    rng = np.random.default_rng(seed)
    views = torch.from_numpy(rng.integers(0, 256, (2, COUNT, 1, SIDE, SIDE), dtype=np.uint8))
    rects = torch.from_numpy(frames(rng, 2 * COUNT).reshape(2, COUNT, 4))
    mask, whole = torch.ones(COUNT, 1, dtype=torch.bool), torch.tensor([0.0, 0, SIDE, SIDE]).expand(COUNT, 1, 4)
    return StepBatch(views[0], whole, mask, whole, mask, views[1], whole, mask, whole, torch.arange(COUNT), *rects)


def frames(rng: np.random.Generator, count: int) -> np.ndarray:
    """Frames float32 (count, 4), some of them mirrored."""
    low, size = rng.uniform(0, 40, (count, 2)), rng.uniform(30, 60, (count, 2))
    corners = np.stack((low, low + size), 1)
    for axis in range(2):
        flipped = rng.random(count) < 0.5
        corners[flipped, :, axis] = corners[flipped, ::-1, axis]
    return corners.reshape(count, 4).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def outputs(method, batch: StepBatch) -> list[np.ndarray]:
    """Of the query network in training, as a step has them, without leaving a trace."""
    set_groups(method.query, method.division.group_sizes(0, 0))
    with torch.no_grad():
        return [x.double().numpy() for x in method.query(batch.query_views, batch.key_views)]


def targets(method, batch: StepBatch) -> list[np.ndarray]:
    set_groups(method.key, method.division.group_sizes(0, 0))
    with torch.no_grad():
        return [x.double().numpy() for x in method.key(batch.query_views, batch.key_views)]


def loss_of(method, batch: StepBatch) -> float:
    return float(method.backward(method.query, batch, None).losses[0])


@pytest.mark.parametrize("name", BASELINES)
def test_a_few_steps_lower_the_loss_of_one_batch_and_move_the_encoder(name):
    method, batch = method_of(name), a_batch()
    optimiser = torch.optim.SGD([v for v in method.query.parameters() if v.requires_grad], lr=0.0, momentum=0.9)
    before = method.encoder.backbone["conv1"].weight.clone()
    losses = [training_step(method, method.query, batch, optimiser, 0.01).losses for _ in range(8)]
    assert losses[0].shape == (len(method.columns),) and method.columns[0] == "loss" and method.steps == 8
    # against the same negatives it falls; queues fill with this very batch, and their losses rise at first
    if "queue_global" not in method.held():
        assert losses[-1][0] < losses[0][0]
    assert not method.encoder.backbone["conv1"].weight.equal(before)
    assert all(value.isfinite().all() for value in method.state_dict().values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("name", BASELINES)
def test_each_weight_has_a_gradient(name):
    """What has none makes processes wait for one another; MoCo's other heads have one of 0."""
    method = method_of(name)
    method.backward(method.query, a_batch(), None)
    assert [n for n, v in method.query.named_parameters() if v.requires_grad and v.grad is None] == []


@pytest.mark.parametrize("name", BASELINES)
def test_same_seed_same_weights_and_step(name):
    one, other = method_of(name), method_of(name)
    assert loss_of(one, a_batch()) == loss_of(other, a_batch())
    pairs_of = zip(one.query.named_parameters(), other.query.named_parameters(), strict=True)
    assert all(a.equal(b) and (a.grad is None or a.grad.equal(b.grad)) for (_, a), (_, b) in pairs_of)


@pytest.mark.parametrize("name", ["byol", "densecl", "pixpro", "moco_v1", "simsiam"])
def test_a_batch_in_two_parts_gives_the_same_gradient(name):
    whole, parted = method_of(name).double(), method_of(name, parts=2).double()
    for method in (whole, parted):
        method.backward(method.query, a_batch(), None)
    for (name_, a), (_, b) in zip(whole.query.named_parameters(), parted.query.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12, msg=name_)


@pytest.mark.parametrize("name", ["simclr", "barlow_twins", "resim"])
def test_what_compares_all_tiles_takes_no_batch_in_parts(name):
    with pytest.raises(ConfigError, match=r"train.accumulate: expected 1, found 2: .*compares all tiles"):
        method_of(name, parts=2)


def test_simclr_is_nt_xent():
    """Chen et al. 2020, eq. 1, view by view."""
    method, batch = method_of("simclr"), a_batch()
    assert isinstance(method, SimCLR)
    z = unit(np.concatenate(outputs(method, batch)))
    likeness = np.exp(z @ z.T / method.config.temperature)
    expected = 0.0
    for i in range(2 * COUNT):
        j = (i + COUNT) % (2 * COUNT)
        expected -= np.log(likeness[i, j] / (likeness[i].sum() - likeness[i, i])) / (2 * COUNT)
    assert loss_of(method, batch) == pytest.approx(expected, rel=1e-5)


def test_barlow_twins_is_its_equation_1():
    method, batch = method_of("barlow_twins"), a_batch()
    assert isinstance(method, BarlowTwins)
    a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in outputs(method, batch))
    c = a.T @ b / COUNT
    off = (c**2).sum() - (np.diag(c) ** 2).sum()
    assert loss_of(method, batch) == pytest.approx(((1 - np.diag(c)) ** 2).sum() + 0.005 * off, rel=1e-4)


def test_byol_is_its_equation_2_both_ways():
    method, batch = method_of("byol"), a_batch()
    assert isinstance(method, BYOL)
    *_, first, second = map(unit, outputs(method, batch))
    one, two = map(unit, targets(method, batch))
    expected = (2 - 2 * (first * two).sum(1)).mean() + (2 - 2 * (second * one).sum(1)).mean()
    assert loss_of(method, batch) == pytest.approx(expected, rel=1e-5)


def test_simsiam_is_its_equation_2_and_stops_gradients():
    method, batch = method_of("simsiam"), a_batch()
    assert isinstance(method, SimSiam) and method.key is None
    z1, z2, p1, p2 = map(unit, outputs(method, batch))
    assert loss_of(method, batch) == pytest.approx(-((p1 * z2).sum(1) + (p2 * z1).sum(1)).mean() / 2, rel=1e-5)
    stepped = [value.grad.clone() for value in method.query.parameters() if value.grad is not None]
    # the same with targets that are constants
    method.query.zero_grad()
    predictions = method.query(batch.query_views, batch.key_views)[2:]
    constants = [torch.from_numpy(z).float() for z in (z2, z1)]
    nearness = [
        torch.nn.functional.cosine_similarity(*pair).mean() for pair in zip(predictions, constants, strict=True)
    ]
    (-(nearness[0] + nearness[1]) / 2).backward()
    expected = [value.grad for value in method.query.parameters() if value.grad is not None]
    torch.testing.assert_close(stepped, expected, rtol=1e-3, atol=1e-6)


def test_densecl_is_its_equations_2_to_4():
    method, batch = method_of("densecl"), a_batch()
    assert isinstance(method, DenseCL)
    set_groups(method.query, method.division.group_sizes(0, 0))
    with torch.no_grad():
        q, cells, features = (x.double().numpy() for x in method.query(batch.query_views))
        k, key_cells, key_features = (x.double().numpy() for x in method.key(batch.key_views))
    t = method.config.temperature

    def contrast(a: np.ndarray, b: np.ndarray, queue: np.ndarray) -> float:
        positive = np.exp(a @ b / t)
        return -np.log(positive / (positive + np.exp(queue @ a / t).sum()))

    queues = method.queue_global.keys.double().numpy(), method.queue_dense.keys.double().numpy()
    whole = np.mean([contrast(a, b, queues[0]) for a, b in zip(q, k, strict=True)])
    dense = []
    for image in range(COUNT):
        for cell, feature in zip(cells[image], features[image], strict=True):
            best = max(range(len(key_cells[image])), key=lambda j, i=image, f=feature: f @ key_features[i][j])
            dense.append(contrast(cell, key_cells[image][best], queues[1]))
    expected = (1 - DENSE_WEIGHT) * whole + DENSE_WEIGHT * np.mean(dense)
    before = method.queue_dense.keys.clone()
    assert loss_of(method, batch) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(method.queue_dense.keys[:COUNT], unit(key_cells.mean(1)), atol=1e-6)
    assert method.queue_dense.keys[COUNT:].equal(before[COUNT:]) and method.queue_dense.pointer == COUNT


def test_cells_that_are_alike_match():
    x = torch.nn.functional.normalize(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)), dim=2)
    order = torch.tensor([[3, 1, 0, 4, 2], [0, 4, 2, 3, 1]])
    shuffled = torch.stack([x[i][order[i]] for i in range(2)])
    assert matches(shuffled, x).equal(order)


def test_pixpro_is_its_equations_3_to_5():
    method, batch = method_of("pixpro"), a_batch()
    assert isinstance(method, PixPro)
    first, second = outputs(method, batch)
    one, two = targets(method, batch)
    boxes, others = batch.query_frames.double().numpy(), batch.key_frames.double().numpy()
    side = round(first.shape[1] ** 0.5)
    expected, counted = 0.0, 0
    for image in range(COUNT):
        near = brute_pairs(boxes[image], others[image], side)
        counted += len(near)
        for i, j in near:
            told = 2 - 2 * first[image, i] @ two[image, j] + 2 - 2 * second[image, j] @ one[image, i]
            expected += told / len(near) / COUNT
    found = method.backward(method.query, batch, None).losses
    assert float(found[0]) == pytest.approx(expected, rel=1e-5) and float(found[1]) == pytest.approx(counted / COUNT)
    assert counted > 10


def brute_pairs(first: np.ndarray, second: np.ndarray, side: int) -> list[tuple[int, int]]:
    def centre(frame: np.ndarray, cell: int) -> np.ndarray:
        share = (np.array([cell % side, cell // side]) + 0.5) / side
        return frame[:2] + (frame[2:] - frame[:2]) * share

    size = max(np.linalg.norm(frame[2:] - frame[:2]) / side for frame in (first, second))
    cells = range(side * side)
    return [(i, j) for i in cells for j in cells if np.linalg.norm(centre(first, i) - centre(second, j)) < NEAR * size]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(1, 4))
def test_pairs_of_cells_are_those_of_brute_force(seed, side):
    first, second = frames(np.random.default_rng(seed), 2)
    found = pairs(torch.from_numpy(first)[None].double(), torch.from_numpy(second)[None].double(), side)[0].nonzero()
    assert [tuple(pair) for pair in found.tolist()] == brute_pairs(first.astype(float), second.astype(float), side)


def test_equal_cells_propagate_to_themselves():
    """Of a map whose cells are all alike, each y is g(x), normalised."""
    module = Propagation(6).double()
    cell = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = module(cell.expand(1, 9, 6))
    expected = torch.nn.functional.normalize(module.transform(cell), dim=0)
    torch.testing.assert_close(found, expected.expand(1, 9, 6))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_windows_of_both_views_cover_the_same_ground(seed):
    first, second = (torch.from_numpy(x)[None].double() for x in frames(np.random.default_rng(seed), 2))
    crop, side = 64, 12.0
    places = windows(first, second, crop, side)
    edges = [torch.stack((f[0, :2], f[0, 2:])).aminmax(dim=0) for f in (first, second)]
    if (torch.maximum(edges[0].min, edges[1].min) >= torch.minimum(edges[0].max, edges[1].max)).any():
        assert all(((boxes[..., 2:] - boxes[..., :2]).amin(2) <= 1e-9).all() for boxes in places)  # no ground in common
        return
    grounds = []
    for frame, boxes in zip((first[0], second[0]), places, strict=True):
        assert boxes.shape == (1, GRID * GRID, 4) and boxes.min() >= 0 and boxes.max() <= crop
        assert (boxes[..., 2:] >= boxes[..., :2]).all()
        corners = [frame[:2] + (frame[2:] - frame[:2]) * part / crop for part in (boxes[0, :, :2], boxes[0, :, 2:])]
        grounds.append(torch.cat((torch.minimum(*corners), torch.maximum(*corners)), 1))
    torch.testing.assert_close(*grounds, rtol=0, atol=1e-9)
    longest = max(float((boxes[..., 2:] - boxes[..., :2]).max()) for boxes in places)
    assert longest > 0


def test_resim_finds_each_window_among_all_places_of_the_batch():
    method, batch = method_of("resim"), a_batch()
    assert isinstance(method, ReSim)
    found = dict(zip(method.columns, method.backward(method.query, batch, None).losses.tolist(), strict=True))
    parts = found["loss_global"], found["loss_windows"], found["loss_fine_windows"]
    assert found["loss"] == pytest.approx(sum(parts), rel=1e-5)
    negatives = method._negatives(torch.randn(COUNT, 16, 4, 4))
    assert negatives.shape == (COUNT * 4, 16) and np.allclose(negatives.norm(dim=1), 1)
    # of random vectors: about ln(1 + negatives), whatever the window
    assert found["loss_windows"] < np.log(1 + COUNT * 4) + 1 / method.config.temperature
    assert method.queue_global.enqueued == COUNT


def test_moco_v1_and_v2_are_dic3l_without_its_other_losses():
    for name, layers in (("moco_v1", 1), ("moco_v2", 3)):
        method = method_of(name)
        found = dict(zip(method.columns, method.backward(method.query, a_batch(), None).losses.tolist(), strict=True))
        assert found["loss"] == found["loss_global"]
        assert len(method.query.global_head) == layers


def test_methods_set_what_is_theirs_and_the_user_has_the_last_word():
    config = override(Config(), [("preset", {"method.weight_instances": 5.0}), ("cli", {"method.name": "moco_v1"})])
    assert config.method.weight_instances == 0 and config.method.temperature == 0.07
    config = override(Config(), [("cli", {"method.name": "moco_v1", "method.temperature": 0.3})])
    assert config.method.temperature == 0.3
