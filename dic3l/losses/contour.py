"""Contour Consistency (CC): the contrast of matched points of a shallow stage.

    loss = sum over valid points of InfoNCE(q_point, k_point, queue)

The published branch is the case of one point, the mean of the whole map (arXiv 2511.07808); with points on edges it
is a dense contrast at matched places, as in Wang et al., "Dense contrastive learning", CVPR 2021, with correspondence
known from the geometry of the views instead of guessed from features.
"""

from __future__ import annotations

from torch import Tensor

from dic3l.losses.contrast import Contrast, info_nce


def contour_contrast(q: Tensor, k: Tensor, mask: Tensor, queue: Tensor, temperature: float) -> Contrast:
    """Sums over valid points, a scalar each.

    q, k: unit vectors (N, Q, D), k without gradient; mask: bool (N, Q); queue: (K, D). No valid point: zeros, with
    gradients defined.
    """
    found = info_nce(q.flatten(0, 1), k.flatten(0, 1), queue, temperature)
    valid = mask.flatten().to(found.loss.dtype)
    return Contrast(*((rows * valid).sum() for rows in found))
