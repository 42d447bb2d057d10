"""The losses against numpy in float64 and against torch's cross entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dic3l.losses.contour import contour_contrast
from dic3l.losses.contrast import info_nce
from dic3l.losses.instances import cosine_regression


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    ).to(dtype)


def test_info_nce_is_the_formula():
    q, k, queue = unit(6, 8), unit(6, 8, seed=1), unit(20, 8, seed=2)
    found = info_nce(q, k, queue, 0.2)
    positive, negative = (q * k).sum(1).numpy() / 0.2, (q @ queue.T).numpy() / 0.2
    expected = -np.log(np.exp(positive) / (np.exp(positive) + np.exp(negative).sum(1)))
    np.testing.assert_allclose(found.loss, expected, rtol=0, atol=1e-13)
    rank = (negative > positive[:, None]).sum(1)
    np.testing.assert_array_equal(found.top1, rank < 1)
    np.testing.assert_array_equal(found.top5, rank < 5)
    assert 0 < found.top5.sum() < 6


def test_in_float32_it_is_within_1e_5_of_float64():
    q, k, queue = unit(64, 128), unit(64, 128, seed=1), unit(4096, 128, seed=2)
    exact, single = info_nce(q, k, queue, 0.2), info_nce(q.float(), k.float(), queue.float(), 0.2)
    torch.testing.assert_close(single.loss.double(), exact.loss, rtol=0, atol=1e-5)
    boxes = [x.view(8, 8, 128) for x in (q, k)]
    mask = torch.ones(8, 8, dtype=torch.bool)
    single_boxes = cosine_regression(boxes[0].float(), boxes[1].float(), mask) / 64
    torch.testing.assert_close(single_boxes.double(), cosine_regression(*boxes, mask) / 64, rtol=0, atol=1e-5)


def test_info_nce_and_its_gradient_are_those_of_cross_entropy():
    ours, theirs = unit(6, 8).requires_grad_(), unit(6, 8).requires_grad_()
    k, queue = unit(6, 8, seed=1), unit(20, 8, seed=2)
    loss = info_nce(ours, k, queue, 0.07).loss.mean()
    logits = torch.cat(((theirs * k).sum(1, keepdim=True), theirs @ queue.T), dim=1) / 0.07
    reference = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_info_nce_of_unrelated_vectors_is_near_the_logarithm_of_the_choices():
    found = info_nce(unit(64, 128), unit(64, 128, seed=1), unit(4096, 128, seed=2), 0.2)
    assert found.loss.mean().item() == pytest.approx(math.log(4097) + 1 / (2 * 128 * 0.2**2), abs=0.1)
    assert found.top1.mean().item() < 0.1


def test_a_query_at_its_key_is_found():
    q = unit(16, 64)
    found = info_nce(q, q, unit(100, 64, seed=1), 0.07)
    assert found.top1.all() and found.loss.max().item() < 0.05


def test_sharp_temperatures_stay_finite():
    q = unit(4, 8, dtype=torch.float32).requires_grad_()
    loss = info_nce(q, -q.detach(), unit(10, 8, seed=1, dtype=torch.float32), 1e-3).loss.mean()
    loss.backward()
    assert loss.isfinite() and q.grad is not None and q.grad.isfinite().all()


def test_losses_are_computed_in_float32_under_autocast():
    q, k, queue = (unit(n, 8, seed=n, dtype=torch.float32) for n in (6, 6, 20))
    mask = torch.ones(2, 3, dtype=torch.bool)
    boxes = q.view(2, 3, 8), k.view(2, 3, 8)
    expected = info_nce(q, k, queue, 0.2).loss, cosine_regression(*boxes, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = info_nce(q, k, queue, 0.2).loss, cosine_regression(*boxes, mask)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32 and mine.equal(theirs)


def test_the_contour_contrast_of_one_point_is_info_nce_and_of_many_its_sum_over_valid_ones():
    q, k, queue = unit(4, 3, 8), unit(4, 3, 8, seed=1), unit(20, 8, seed=2)
    one = contour_contrast(q[:, :1], k[:, :1], torch.ones(4, 1, dtype=torch.bool), queue, 0.2)
    rows = info_nce(q[:, 0], k[:, 0], queue, 0.2)
    torch.testing.assert_close(one.loss, rows.loss.sum())
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]]).bool()
    many = contour_contrast(q, k, mask, queue, 0.2)
    rows = info_nce(q[mask], k[mask], queue, 0.2)
    for found, expected in zip(many, rows, strict=True):
        torch.testing.assert_close(found, expected.sum())


def test_without_points_the_contour_contrast_is_zero_with_gradients():
    q = unit(4, 3, 8).requires_grad_()
    loss = contour_contrast(q, unit(4, 3, 8, seed=1), torch.zeros(4, 3, dtype=torch.bool), unit(9, 8), 0.2).loss
    loss.backward()
    assert loss.item() == 0 and q.grad is not None and not q.grad.any()


def test_cosine_regression_is_the_squared_distance_of_unit_vectors_over_valid_boxes():
    rng = np.random.default_rng(0)
    p, k, mask = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 4, 5)), rng.random((3, 4)) < 0.6
    total = cosine_regression(torch.from_numpy(p), torch.from_numpy(k), torch.from_numpy(mask))
    p, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (p, k))
    assert total.item() == pytest.approx((((p - k) ** 2).sum(-1) * mask).sum(), abs=1e-12)


def test_masked_boxes_have_no_gradient_even_where_they_are_zero():
    p = torch.randn(2, 3, 4)
    p[0, 1] = 0
    p.requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, False]])
    total = cosine_regression(p, torch.zeros(2, 3, 4).index_fill(1, torch.tensor([0, 2]), 1.0), mask)
    total.backward()
    assert p.grad is not None and p.grad.isfinite().all() and not p.grad[~mask].any() and p.grad[mask].any()
