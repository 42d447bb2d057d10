"""InfoNCE with a queue of negatives.

    loss = -log( e^(q.k/T) / (e^(q.k/T) + sum over the queue of e^(q.key/T)) )

van den Oord et al., "Representation learning with contrastive predictive coding", 2018, with the queue of He et al.,
"Momentum contrast for unsupervised visual representation learning", CVPR 2020, eq. 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dic3l.precision import full_precision, without_autocast

TOP = 5


class Contrast(NamedTuple):
    """Of each of N rows; the last two without gradient."""

    loss: Tensor
    """(N,)"""
    top1: Tensor
    """(N,): 1 where the row's own key is nearer than the whole queue"""
    top5: Tensor
    """(N,): 1 where fewer than five of the queue are nearer"""


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Contrast:
    """The contrast of each row.

    q, k: unit rows (N, D), k without gradient; queue: unit rows (K, D), not copied: leave it as it is until the
    backward pass is over. Independent unit vectors give about ln(K + 1).
    """
    with without_autocast(q):
        q, k, queue = full_precision(q), full_precision(k), full_precision(queue)
        positive = (q * k).sum(1) / temperature
        negatives = q @ queue.T / temperature
        loss = F.softplus(negatives.logsumexp(1) - positive)  # = log(e^p + e^n) - p
        with torch.no_grad():
            nearer = (negatives >= positive[:, None]).sum(1)
    return Contrast(loss, (nearer == 0).to(loss.dtype), (nearer < TOP).to(loss.dtype))
