"""DIC3L's losses against numpy in float64, and the order of a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from dic3l.base import StepBatch, StepResult, training_step
from dic3l.batchnorm import set_groups
from dic3l.config import MethodConfig, resolve
from dic3l.errors import ConfigError
from dic3l.groups import Division
from dic3l.method import DIC3L, Losses, Network

SMALL = MethodConfig(
    arch="resnet18", embedding_dim=16, hidden_dim=24, queue_size=20, momentum=0.9, contour_stage=2, bn_groups=2
)


def a_method(config: MethodConfig = SMALL, seed: int = 0, images: int = 8, parts: int = 1) -> DIC3L:
    return DIC3L(config, seed, Division(images, config.bn_groups, parts=parts))


def step_batch(count: int = 8, boxes: int = 3, size: int = 64, seed: int = 0, points: int = 0) -> StepBatch:
    """Random views, boxes and masks of `count` tiles; every image has at least one box.

    points: squares of the contour branch, some masked; 0: the whole view, as published.
    """
    rng = np.random.default_rng(seed)
    views = torch.from_numpy(rng.integers(0, 256, (2, count, 1, size, size), dtype=np.uint8))
    corners = np.sort(rng.uniform(0, size, (2, count, boxes, 2, 2)), axis=3).reshape(2, count, boxes, 4)
    rects = torch.from_numpy(corners.astype(np.float32))
    mask = torch.from_numpy(rng.random((count, boxes)) < 0.7)
    mask[:, 0] = True
    perm = torch.from_numpy(rng.permutation(count))
    whole = torch.tensor([0.0, 0, size, size]).expand(2, count, 1, 4)
    squares, point_mask = whole, torch.ones(count, 1, dtype=torch.bool)
    if points:
        start = torch.from_numpy(rng.uniform(0, size - 16, (2, count, points, 2)).astype(np.float32))
        squares, point_mask = torch.cat((start, start + 16), dim=3), torch.from_numpy(rng.random((count, points)) < 0.6)
    first = StepBatch(views[0], rects[0], mask, squares[0], point_mask, views[1][perm], rects[1][perm], mask[perm],
                      squares[1][perm], perm, rects[0][:, 0], rects[1][perm][:, 0])  # fmt: skip
    return first


def told(result: StepResult) -> Losses:
    return Losses(*result.losses)


def without_boxes(batch: StepBatch) -> StepBatch:
    none = torch.zeros_like(batch.query_mask)
    return replace(batch, query_mask=none, key_mask=none, point_mask=torch.zeros_like(batch.point_mask))


def all_losses(method: DIC3L, batch: StepBatch):
    """Of the batch, without a step; BatchNorm in the groups of a step."""
    set_groups(method.query, method.division.group_sizes(0, 0))
    with torch.no_grad():
        keys, queries = method.encode_keys(batch), method.query(*batch.queries(slice(None)))
        return keys, method.losses(queries, keys, batch.query_mask, batch.point_mask, method.counts(batch))


def sgd(method: DIC3L) -> torch.optim.SGD:
    return torch.optim.SGD(method.query.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)


def numpy_vectors(network: Network, views: torch.Tensor, boxes: torch.Tensor, mask: torch.Tensor, groups: int):
    """Global, contour and box vectors from the encoder's feature maps, the rest said in numpy."""

    def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
        return x @ layer.weight.numpy(force=True).T + layer.bias.numpy(force=True)

    def head(layers: torch.nn.Sequential, x: np.ndarray) -> np.ndarray:
        out = linear(layers[2], np.maximum(linear(layers[0], x), 0))  # type: ignore[arg-type]
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def box_head(layers, x: np.ndarray) -> np.ndarray:
        hidden = linear(layers.hidden, x)
        for part in np.split(np.arange(len(x)), groups):
            valid = hidden[part][mask[part].numpy()]
            hidden[part] = (hidden[part] - valid.mean(0)) / np.sqrt(valid.var(0) + 1e-5)
        hidden = hidden * layers.norm.weight.numpy(force=True) + layers.norm.bias.numpy(force=True)
        return linear(layers.out, np.maximum(hidden, 0))

    with torch.no_grad():
        stages = network.encoder(views)
        pooled = roi_align(stages[4], list(boxes.double()), 1, 1 / 32, sampling_ratio=0, aligned=True)
    box_vectors = box_head(network.box_head, pooled.reshape(*mask.shape, -1).numpy())
    if network.predictor is not None:
        box_vectors = box_head(network.predictor, box_vectors)
    means = {stage: features.mean((2, 3)).numpy() for stage, features in stages.items()}
    return head(network.global_head, means[4]), head(network.contour_head, means[2]), box_vectors


def test_the_losses_are_those_of_a_numpy_twin_in_float64():
    torch.manual_seed(0)
    method, batch = a_method(seed=1).double(), step_batch()
    set_groups(method.query, (4, 4))
    set_groups(method.key, (4, 4))
    for parameter in method.key.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape))  # so that the two networks differ
    keys = numpy_vectors(method.key, batch.key_views, batch.key_boxes, batch.key_mask, 2)
    back = np.argsort(batch.perm.numpy())
    keys = [rows[back] for rows in keys]
    queries = numpy_vectors(method.query, batch.query_views, batch.query_boxes, batch.query_mask, 2)

    def contrast(q: np.ndarray, k: np.ndarray, queue: torch.Tensor) -> float:
        positive, negatives = np.exp((q * k).sum(1) / 0.2), np.exp(q @ queue.numpy().T / 0.2)
        return float(-np.log(positive / (positive + negatives.sum(1))).mean())

    expected_global = contrast(queries[0], keys[0], method.queue_global.keys)
    expected_contour = contrast(queries[1], keys[1], method.queue_contour.keys)
    p, k = (rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (queries[2], keys[2]))
    expected_instances = float((2 - 2 * (p * k).sum(-1))[batch.query_mask.numpy()].mean())

    _, found = all_losses(method, batch)
    assert float(found.global_) == pytest.approx(expected_global, abs=1e-10)
    assert float(found.contour) == pytest.approx(expected_contour, abs=1e-10)
    assert float(found.instances) == pytest.approx(expected_instances, abs=1e-10)
    total = 0.8 * expected_global + 0.2 * expected_contour + 5.0 * expected_instances
    assert float(found.total) == pytest.approx(total, abs=1e-9)
    assert float(found.boxes_per_image) == pytest.approx(batch.query_mask.sum() / 8)


def test_in_float32_the_total_of_preset_paper_is_the_published_formula():
    """0.8 InfoNCE + 0.2 InfoNCE + 5 DI at T = 0.2, of the same weights and views in numpy and float64."""
    small = {"method.arch": "resnet18", "method.weights": "random", "method.hidden_dim": 64, "method.queue_size": 512}
    config = replace(resolve("paper", options=small).method, bn_groups=2, contour_stage=2)
    method, batch = a_method(config, seed=1), step_batch(size=96)
    for network in (method.query, method.key):
        set_groups(network, (4, 4))
    _, found = all_losses(method, batch)
    exact = a_method(config, seed=1).double()
    for network in (exact.query, exact.key):
        set_groups(network, (4, 4))
    back = np.argsort(batch.perm.numpy())
    queries = numpy_vectors(exact.query, batch.query_views, batch.query_boxes, batch.query_mask, 2)
    keys = numpy_vectors(exact.key, batch.key_views, batch.key_boxes, batch.key_mask, 2)
    total = 0.0
    for weight, q, k, queue in zip(
        (0.8, 0.2), queries, (x[back] for x in keys), (exact.queue_global, exact.queue_contour), strict=False
    ):
        positive, negatives = np.exp((q * k).sum(1) / 0.2), np.exp(q @ queue.keys.numpy().T / 0.2)
        total += weight * float(-np.log(positive / (positive + negatives.sum(1))).mean())
    p, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries[2], keys[2][back]))
    total += 5.0 * float((2 - 2 * (p * k).sum(-1))[batch.query_mask.numpy()].mean())
    assert float(found.total) == pytest.approx(total, rel=1e-5)


def test_a_step_moves_the_keys_first_and_the_queues_last():
    torch.manual_seed(0)
    method, batch = a_method(seed=1).double(), step_batch()
    for parameter in method.key.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape))
    learned = {name: value.detach().clone() for name, value in method.query.named_parameters()}
    moved = {name: 0.9 * value + 0.1 * learned[name] for name, value in method.key.named_parameters()}
    queue = method.queue_global.keys.clone()

    twin = a_method(seed=1).double()
    twin.load_state_dict(method.state_dict())
    twin.momentum_update()
    keys, losses = all_losses(twin, batch)

    result = training_step(method, method.query, batch, sgd(method), lr=0.1)
    for name, value in method.key.named_parameters():
        torch.testing.assert_close(value, moved[name], rtol=0, atol=1e-14)
    assert float(told(result).total) == float(losses.total)  # against the queue as it was
    torch.testing.assert_close(method.queue_global.keys[:8], keys.global_, rtol=0, atol=1e-14)
    torch.testing.assert_close(method.queue_contour.keys[:8], keys.contour[:, 0], rtol=0, atol=1e-14)
    assert method.queue_global.keys[8:].equal(queue[8:])
    assert method.queue_global.pointer == method.queue_contour.pointer == 8
    assert all(not value.equal(learned[name]) for name, value in method.query.named_parameters())
    assert result.queries.shape == result.keys.shape == (8, 16) and not result.queries.requires_grad
    assert method.steps == 1


def test_keys_come_back_in_the_order_of_the_tiles():
    method, batch = a_method(seed=1).eval(), step_batch()  # running statistics: no image depends on another
    back = torch.argsort(batch.perm)
    unshuffled = replace(
        batch,
        key_views=batch.key_views[back],
        key_boxes=batch.key_boxes[back],
        key_mask=batch.key_mask[back],
        key_points=batch.key_points[back],
        perm=torch.arange(8),
    )
    for shuffled, plain in zip(method.encode_keys(batch), method.encode_keys(unshuffled), strict=True):
        torch.testing.assert_close(shuffled, plain, rtol=1e-5, atol=1e-6)


def test_the_key_network_learns_nothing_itself_and_has_no_predictor():
    method = a_method()
    training_step(method, method.query, step_batch(), sgd(method), lr=0.1)
    assert all(not value.requires_grad and value.grad is None for value in method.key.parameters())
    keys, queries = dict(method.key.named_parameters()), dict(method.query.named_parameters())
    assert queries.keys() - keys.keys() == {name for name in queries if name.startswith("predictor.")}
    assert keys.keys() < queries.keys()


def test_a_batch_without_any_box_has_no_instances_loss_and_all_gradients():
    method = a_method()
    result = training_step(method, method.query, without_boxes(step_batch()), sgd(method), lr=0.1)
    assert float(told(result).instances) == 0 and float(told(result).boxes_per_image) == 0
    for parameter in method.query.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert all(value.isfinite().all() for value in method.state_dict().values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("weight", ["weight_global", "weight_contour", "weight_instances"])
def test_a_weight_of_zero_leaves_the_loss_measured_and_its_head_untrained(weight):
    method = a_method(replace(SMALL, **{weight: 0.0}))
    result = training_step(method, method.query, step_batch(), sgd(method), lr=0.1)
    part = {"weight_global": "global_", "weight_contour": "contour", "weight_instances": "instances"}[weight]
    assert float(getattr(told(result), part)) > 0
    head = {"global_": "global_head", "contour": "contour_head", "instances": "box_head"}[part]
    gradients = [value.grad for value in getattr(method.query, head).parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_initial_weights_and_queues_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = a_method(seed=3), a_method(seed=3), a_method(seed=4)
    assert torch.get_rng_state().equal(before)
    for name, value in one.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert value.equal(two.state_dict()[name]), name
    assert not one.query.encoder.state_dict()["backbone.conv1.weight"].equal(
        other.query.encoder.state_dict()["backbone.conv1.weight"]
    )
    assert not one.queue_global.keys.equal(one.queue_contour.keys)


def test_training_lowers_the_loss_of_a_fixed_batch():
    method, batch = a_method(replace(SMALL, queue_size=64)), step_batch()
    optimiser = sgd(method)
    totals = [float(training_step(method, method.query, batch, optimiser, lr=0.02).losses[0]) for _ in range(8)]
    assert min(totals[-2:]) < totals[0] - 1


def test_bf16_networks_give_float32_losses_near_those_of_float32():
    batch = step_batch()
    losses = []
    for dtype in (None, torch.bfloat16):
        method = a_method()
        losses.append(told(training_step(method, method.query, batch, sgd(method), lr=0.0, autocast=dtype)))
    assert all(value.dtype == torch.float32 for value in losses[1])
    assert float(losses[1].total) == pytest.approx(float(losses[0].total), rel=0.05)
    assert float(losses[1].total) != float(losses[0].total)


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigError, match="contour_stage: expected 1, 2, 3 or 4"):
        a_method(replace(SMALL, contour_stage=5))


@pytest.mark.parametrize("key_norm", ["shuffled", "averaged"])
@pytest.mark.parametrize(
    ("images", "groups", "parts"),
    [pytest.param(16, 4, 2, marks=pytest.mark.slow), pytest.param(16, 4, 4, marks=pytest.mark.slow), (19, 5, 3)],
)
def test_a_batch_in_parts_is_the_batch_in_one(key_norm, images, groups, parts):
    """Losses, weights, momentum weights, queues and running statistics: accumulation changes nothing."""
    config = replace(SMALL, bn_groups=groups, key_norm=key_norm, contour="edges")
    whole, split = (a_method(config, seed=2, images=images, parts=n).double() for n in (1, parts))
    optimisers = [sgd(method) for method in (whole, split)]
    for step in range(3):
        batch = step_batch(images, seed=step, points=2)
        if step == 1:  # parts without any box or point
            batch.query_mask[: images // 2] = False
            batch.point_mask[: images // 2] = False
        results = [
            training_step(method, method.query, batch, optimiser, lr=0.02)
            for method, optimiser in zip((whole, split), optimisers, strict=True)
        ]
        for one, two in zip(results[0].losses, results[1].losses, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    for name, value in whole.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(split.state_dict()[name], value, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize(("images", "queue"), [(8, 20), (11, 7), (9, 9), (10, 3)])
def test_no_size_of_batch_or_queue_has_to_divide_another(images, queue):
    method = a_method(replace(SMALL, queue_size=queue, bn_groups=3), images=images)
    twin: list[torch.Tensor] = list(method.queue_global.keys)
    optimiser = sgd(method)
    for step in range(3):
        place = method.queue_global.pointer
        result = training_step(method, method.query, step_batch(images, seed=step), optimiser, lr=0.01)
        assert result.losses.isfinite().all()
        for row in result.keys:  # one process: its keys are those of the batch
            twin[place] = row
            place = (place + 1) % queue
        assert torch.stack(twin).equal(method.queue_global.keys)


def test_averaged_keys_tell_nothing_of_the_other_images_of_their_batch():
    """What shuffled BatchNorm is for: of an image encoded with others, or alone, the key is the same."""
    method, batch = a_method(replace(SMALL, key_norm="averaged")), step_batch()
    training_step(method, method.query, batch, sgd(method), lr=0.01)
    assert method.query.training and not method.key.training and not method.train().key.training
    with torch.no_grad():
        together = method.key(*batch.keys(slice(None)))
        alone = method.key(*batch.keys(slice(2, 3)))
    for whole, one in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[2:3], one, rtol=1e-4, atol=1e-5)


def test_averaged_statistics_begin_with_those_of_the_first_step_and_then_follow_the_querys():
    config = replace(SMALL, key_norm="averaged", momentum=0.75)
    method, name = a_method(config).double(), "encoder.backbone.bn1.running_mean"
    optimiser, twin = sgd(method), method.key.state_dict()[name].clone()
    for step in range(6):
        queries = method.query.state_dict()[name].clone()
        twin += max(0.25, 1 / max(1, step)) * (queries - twin)
        if step == 1:
            torch.testing.assert_close(twin, queries, rtol=0, atol=0)  # whole, not half of them and half of none
        training_step(method, method.query, step_batch(seed=step), optimiser, lr=0.01)
        torch.testing.assert_close(method.key.state_dict()[name], twin, rtol=0, atol=1e-14)
    fresh, batch = a_method(config).double(), step_batch(seed=0)
    stem = fresh.query.encoder.state_dict()["backbone.conv1.weight"].clone()
    maps = torch.nn.functional.conv2d(fresh.query.encoder.normalise(batch.query_views), stem, stride=2, padding=3)
    training_step(fresh, fresh.query, batch, sgd(fresh), lr=0.0)
    torch.testing.assert_close(fresh.query.state_dict()[name], maps.mean((0, 2, 3)), rtol=0, atol=1e-12)


def test_the_contour_queue_takes_one_point_a_tile_and_masked_points_count_for_nothing():
    method, batch = a_method(replace(SMALL, contour="edges")), step_batch(points=3)
    _, losses = all_losses(method, batch)
    other = replace(batch, query_points=batch.query_points.clone())
    other.query_points[~batch.point_mask] = 0.0
    _, same = all_losses(method, other)
    assert float(losses.contour) == pytest.approx(float(same.contour), abs=1e-6)
    assert float(losses.points_per_image) == pytest.approx(float(batch.point_mask.sum()) / 8)
    keys, _ = all_losses(method, batch)
    training_step(method, method.query, batch, sgd(method), lr=0.0)
    torch.testing.assert_close(method.queue_contour.keys[:8], keys.contour[:, 0], rtol=0, atol=1e-5)
