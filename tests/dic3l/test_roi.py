"""Pooling by matrix product is torchvision's RoIAlign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from dic3l.roi import pool_boxes


def random_boxes(rng: np.random.Generator, images: int, count: int, height: float, width: float) -> torch.Tensor:
    x, y = np.sort(rng.uniform(0, width, (images, count, 2))), np.sort(rng.uniform(0, height, (images, count, 2)))
    return torch.from_numpy(np.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), -1))


def by_torchvision(features: torch.Tensor, boxes: torch.Tensor, scale: float) -> torch.Tensor:
    pooled = roi_align(features, list(boxes), 1, spatial_scale=scale, sampling_ratio=0, aligned=True)
    return pooled.reshape(*boxes.shape[:2], -1)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32), height=st.integers(1, 15), width=st.integers(1, 15),
    scale=st.sampled_from([1 / 32, 1 / 16, 1 / 4, 1.0]),
)  # fmt: skip
def test_pooled_vectors_are_those_of_torchvision(seed, height, width, scale):
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(2, 3, height, width)))
    boxes = random_boxes(rng, 2, 6, height / scale, width / scale)
    torch.testing.assert_close(
        pool_boxes(features, boxes, scale), by_torchvision(features, boxes, scale), rtol=0, atol=1e-12
    )


def test_boxes_at_the_rim_and_of_the_whole_view_are_those_of_torchvision():
    features = torch.randn(1, 4, 14, 14, dtype=torch.float64)
    boxes = torch.tensor([[[0, 0, 448, 448], [0, 0, 32, 32], [416, 400, 448, 448], [10, 0, 11, 448]]]).double()
    torch.testing.assert_close(
        pool_boxes(features, boxes, 1 / 32), by_torchvision(features, boxes, 1 / 32), atol=1e-12, rtol=0
    )


def test_gradients_are_those_of_torchvision():
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 2, 5, 224, 224)
    ours = torch.from_numpy(rng.normal(size=(2, 3, 7, 7))).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    pool_boxes(ours, boxes, 1 / 32).square().sum().backward()
    by_torchvision(theirs, boxes, 1 / 32).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


def test_an_empty_box_gives_zero_and_no_gradient():
    features = torch.randn(1, 2, 7, 7, requires_grad=True)
    pooled = pool_boxes(features, torch.zeros(1, 3, 4), 1 / 32)
    assert pooled.shape == (1, 3, 2) and not pooled.any()
    pooled.sum().backward()
    assert features.grad is not None and not features.grad.any()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_half_precision_features_are_pooled_in_float32_also_under_autocast(memory):
    features = torch.randn(2, 8, 7, 7).to(torch.bfloat16).contiguous(memory_format=memory)
    boxes = random_boxes(np.random.default_rng(1), 2, 5, 224, 224).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool_boxes(features, boxes, 1 / 32)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, by_torchvision(features.float(), boxes, 1 / 32), rtol=1e-5, atol=1e-5)
