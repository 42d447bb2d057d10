"""The losses against numpy in float64 and against torch's cross entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dic3l.losses import cosine_regression, info_nce


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    ).to(dtype)


def test_info_nce_is_the_formula():
    q, k, queue = unit(6, 8), unit(6, 8, seed=1), unit(20, 8, seed=2)
    loss, top1 = info_nce(q, k, queue, 0.2)
    positive, negative = (q * k).sum(1).numpy() / 0.2, (q @ queue.T).numpy() / 0.2
    expected = -np.log(np.exp(positive) / (np.exp(positive) + np.exp(negative).sum(1)))
    assert loss.item() == pytest.approx(expected.mean(), abs=1e-13)
    assert top1.item() == pytest.approx((positive > negative.max(1)).mean())


def test_info_nce_and_its_gradient_are_those_of_cross_entropy():
    ours, theirs = unit(6, 8).requires_grad_(), unit(6, 8).requires_grad_()
    k, queue = unit(6, 8, seed=1), unit(20, 8, seed=2)
    loss, _ = info_nce(ours, k, queue, 0.07)
    logits = torch.cat(((theirs * k).sum(1, keepdim=True), theirs @ queue.T), dim=1) / 0.07
    reference = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_info_nce_of_unrelated_vectors_is_near_the_logarithm_of_the_choices():
    loss, top1 = info_nce(unit(64, 128), unit(64, 128, seed=1), unit(4096, 128, seed=2), 0.2)
    assert loss.item() == pytest.approx(math.log(4097) + 1 / (2 * 128 * 0.2**2), abs=0.1)
    assert top1.item() < 0.1


def test_a_query_at_its_key_is_found():
    q = unit(16, 64)
    loss, top1 = info_nce(q, q, unit(100, 64, seed=1), 0.07)
    assert top1.item() == 1 and loss.item() < 0.05


def test_sharp_temperatures_stay_finite():
    q = unit(4, 8, dtype=torch.float32).requires_grad_()
    loss, _ = info_nce(q, -q.detach(), unit(10, 8, seed=1, dtype=torch.float32), 1e-3)
    loss.backward()
    assert loss.isfinite() and q.grad is not None and q.grad.isfinite().all()


def test_losses_are_computed_in_float32_under_autocast():
    q, k, queue = (unit(n, 8, seed=n, dtype=torch.float32) for n in (6, 6, 20))
    expected, _ = info_nce(q, k, queue, 0.2)
    mask = torch.ones(2, 3, dtype=torch.bool)
    regression, _ = cosine_regression(q.view(2, 3, 8), k.view(2, 3, 8), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = info_nce(q, k, queue, 0.2)
        total, _ = cosine_regression(q.view(2, 3, 8), k.view(2, 3, 8), mask)
    assert loss.dtype == total.dtype == torch.float32
    assert loss.item() == expected.item() and total.item() == regression.item()


def test_cosine_regression_is_the_squared_distance_of_unit_vectors_over_valid_boxes():
    rng = np.random.default_rng(0)
    p, k, mask = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4, 5)), rng.random((3, 4)) < 0.6
    total, count = cosine_regression(torch.from_numpy(p), torch.from_numpy(k), torch.from_numpy(mask))
    p, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (p, k))
    assert total.item() == pytest.approx((((p - k) ** 2).sum(-1) * mask).sum(), abs=1e-12)
    assert count.item() == mask.sum()


def test_masked_boxes_have_no_gradient_even_where_they_are_zero():
    p = torch.randn(2, 3, 4)
    p[0, 1] = 0
    p.requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False]])
    total, count = cosine_regression(p, torch.zeros(2, 3, 4).index_fill(1, torch.tensor([0, 2]), 1.0), mask)
    total.backward()
    assert p.grad is not None and p.grad.isfinite().all() and not p.grad[~mask].any() and p.grad[mask].any()
    assert count.item() == 2
