"""The two losses of DIC3L, in float32 (float64 for float64 inputs) also under autocast.

info_nce: van den Oord et al., "Representation learning with contrastive predictive coding", 2018, with the queue of
He et al., "Momentum contrast", CVPR 2020. cosine_regression: Grill et al., "Bootstrap your own latent", NeurIPS 2020,
on matched boxes as in Roh et al., "Spatially consistent representation learning", CVPR 2021.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dic3l.precision import full_precision, without_autocast


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean over N of -log(e^(q.k/T) / (e^(q.k/T) + sum over the queue of e^(q.key/T))), and how often q finds k.

    q, k: unit rows (N, D), k without gradient; queue: unit rows (K, D), not copied: leave it as it is until the
    backward pass is over. Returns two scalars: the loss, and the share of rows whose own key beats the whole queue.
    Independent unit vectors give about ln(K + 1).
    """
    with without_autocast(q):
        q, k, queue = full_precision(q), full_precision(k), full_precision(queue)
        positive = (q * k).sum(1) / temperature
        negatives = q @ queue.T / temperature
        loss = F.softplus(negatives.logsumexp(1) - positive).mean()  # = log(e^p + e^n) - p
        top1 = (positive.detach() > negatives.detach().amax(1)).to(loss.dtype).mean()
    return loss, top1


def cosine_regression(p: Tensor, k: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over valid boxes of 2 - 2 cos(p, k), and their number, two scalars; the caller divides, over all ranks.

    p, k: (N, P, D), of any length, k without gradient; mask: bool (N, P).
    """
    with without_autocast(p):
        p, k = F.normalize(full_precision(p), dim=-1), F.normalize(full_precision(k), dim=-1)
        distance = 2 - 2 * (p * k).sum(-1)
        return (distance * mask).sum(), mask.sum().to(distance.dtype)
