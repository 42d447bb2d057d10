"""Dynamic Instances (DI): the query's prediction of the key's vector of the same box.

    loss = sum over valid boxes of 2 - 2 cos(p, k)

Grill et al., "Bootstrap your own latent", NeurIPS 2020, eq. 2, on matched boxes as in Roh et al., "Spatially consistent
representation learning", CVPR 2021.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dic3l.precision import full_precision, without_autocast


def cosine_regression(p: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Sum over valid boxes, a scalar; without any, 0 with gradients defined.

    p, k: (N, P, D), of any length, k without gradient; mask: bool (N, P).
    """
    with without_autocast(p):
        p, k = F.normalize(full_precision(p), dim=-1), F.normalize(full_precision(k), dim=-1)
        distance = 2 - 2 * (p * k).sum(-1)
        return (distance * mask).sum()
