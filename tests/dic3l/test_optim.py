"""The learning rate as a function of the step, and what SGD is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dic3l.config import OptimConfig, resolve
from dic3l.optim import key_momentum, learning_rate, make_optimiser, peak_rate, queue_length, total_steps


def test_without_warm_up_it_is_the_published_cosine_taken_at_every_step():
    rates = [learning_rate(step, 1000, 0.03) for step in range(1000)]
    expected = 0.03 * 0.5 * (1 + np.cos(np.pi * np.arange(1000) / 1000))
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-15)
    assert learning_rate(1000, 1000, 0.03) == pytest.approx(0, abs=1e-18)


def test_warm_up_rises_linearly_to_the_peak_and_the_cosine_begins_there():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0 and (np.diff(rates[10:]) < 0).all()


def test_warm_up_takes_no_more_than_a_tenth_of_the_run():
    rates = [learning_rate(step, 30, 1.0, 1000) for step in range(30)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1]) and (np.diff(rates[3:]) < 0).all()
    assert learning_rate(0, 4, 1.0, 10) == 1.0


def test_small_corpora_and_short_runs_get_a_shorter_queue_and_a_faster_key_network_where_asked_for():
    paper, ours = resolve("paper"), resolve("sarsense")
    assert (queue_length(paper, 1000), queue_length(ours, 1000)) == (1000, 250)  # never more keys than tiles
    assert queue_length(paper, 460_532) == queue_length(ours, 460_532) == 65536
    assert [key_momentum(config, 200) for config in (paper, ours)] == [0.999, 0.99]
    assert [key_momentum(ours, steps) for steps in (700_000, 1000, 60)] == [0.999, 0.998, 0.99]


def test_lars_is_the_papers_algorithm_on_matrices_and_sgd_on_vectors():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    optimiser = make_optimiser(network, OptimConfig(optimiser="lars", weight_decay=0.1, decay_vectors=False))
    learned = dict(network.named_parameters())
    twin = {name: value.detach().numpy().copy() for name, value in learned.items()}
    speed = dict.fromkeys(twin, 0.0)
    for step in range(3):
        optimiser.zero_grad()
        network(torch.randn(5, 3, dtype=torch.float64)).square().sum().backward()
        lr = 0.5 * (step + 1)
        for name, value in learned.items():
            assert value.grad is not None
            w, g, c = twin[name], value.grad.numpy(), 0.1 if value.ndim > 1 else 0.0
            local = 1.0
            if value.ndim > 1:
                local = 0.001 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(w))
            speed[name] = 0.9 * speed[name] + lr * local * (g + c * w)
            twin[name] = w - speed[name]
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.step()
    for name, value in learned.items():
        np.testing.assert_allclose(value.detach().numpy(), twin[name], rtol=1e-6, err_msg=name)


def test_lars_leaves_a_matrix_without_gradient_or_length_finite():
    network = nn.Linear(3, 2)
    nn.init.zeros_(network.weight)
    optimiser = make_optimiser(network, OptimConfig(optimiser="lars"))
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    network(torch.zeros(4, 3)).sum().backward()
    optimiser.step()
    assert network.weight.isfinite().all() and network.bias.isfinite().all() and network.bias.any()


def test_the_peak_scales_with_the_batch():
    assert peak_rate(resolve("paper")) == 0.03
    assert peak_rate(resolve("paper", options={"train.batch_size": 1024})) == pytest.approx(0.12)


def test_steps_show_every_tile_as_often_as_epochs_say():
    config = resolve("smoke", options={"train.epochs": 2.5, "train.batch_size": 64})
    assert total_steps(config, 1000) == 40  # 2500 tiles in 64s, the last one filled up
    assert total_steps(resolve("smoke", options={"train.steps": 7}), 1000) == 7


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_a_step_is_that_of_sgd_written_out(decay_vectors):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    network[2].requires_grad_(False)
    optimiser = make_optimiser(network, OptimConfig(weight_decay=0.1, sgd_momentum=0.9, decay_vectors=decay_vectors))
    learned = {name: value for name, value in network.named_parameters() if value.requires_grad}
    twin = {name: value.detach().numpy().copy() for name, value in learned.items()}
    speed = dict.fromkeys(twin, 0.0)
    for step in range(3):
        optimiser.zero_grad()
        network(torch.randn(5, 3, dtype=torch.float64)).square().sum().backward()
        for name, value in learned.items():
            assert value.grad is not None
            decay = 0.1 if decay_vectors or value.ndim > 1 else 0.0
            speed[name] = 0.9 * speed[name] + value.grad.numpy() + decay * twin[name]
            twin[name] = twin[name] - 0.05 * (step + 1) * speed[name]
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (step + 1)
        optimiser.step()
    for name, value in learned.items():
        np.testing.assert_allclose(value.detach().numpy(), twin[name], rtol=1e-12, err_msg=name)
