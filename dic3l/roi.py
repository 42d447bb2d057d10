"""RoIAlign to one vector a box, as a matrix product.

With one output cell, the sampling points of RoIAlign (He et al., "Mask R-CNN", ICCV 2017) form a product grid and
bilinear interpolation is separable: the pooled value is sum over h, w of weight_y[h] * weight_x[w] * feature[h, w].
So no ragged lists of boxes, no atomic additions in the backward pass: the result is deterministic on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dic3l.precision import full_precision, without_autocast


def axis_weights(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Mean bilinear weights (..., size) of the sampling points of spans [low, high] along an axis of `size` cells.

    Coordinates in cells, edges; ceil(high - low) points a span, as torchvision's `sampling_ratio=0`. Spans lie within
    [0, size]; a longer one would be sampled at no more than size + 1 points.
    """
    length = high - low
    count = torch.ceil(length).clamp(1, size + 1)
    steps = torch.arange(size + 1, device=low.device)
    points = (low[..., None] - 0.5) + (steps + 0.5) * (length / count)[..., None]
    cells = torch.arange(size, device=low.device)
    weights = (1 - (points.clamp(0, size - 1)[..., None] - cells).abs()).clamp(min=0)
    used = (steps < count[..., None]) & (length > 0)[..., None]
    return (weights * used[..., None]).sum(-2) / count[..., None]


def pool_boxes(features: Tensor, boxes: Tensor, spatial_scale: float) -> Tensor:
    """One vector a box: torchvision's `roi_align(aligned=True, sampling_ratio=0)` to 1 x 1.

    features: (N, C, h, w); boxes: (N, P, 4) as x0, y0, x1, y1 in view pixels, inside the view; spatial_scale: cells a
    view pixel. Returns (N, P, C), float32 (float64 for float64 features) also under autocast; an empty box gives 0.
    """
    images, channels, height, width = features.shape
    with without_autocast(features):
        features = full_precision(features)
        cells = boxes.to(features.dtype) * spatial_scale
        x = axis_weights(cells[..., 0], cells[..., 2], width)
        y = axis_weights(cells[..., 1], cells[..., 3], height)
        weights = (y[..., :, None] * x[..., None, :]).reshape(images, -1, height * width)
        return weights @ features.permute(0, 2, 3, 1).reshape(images, height * width, channels)
