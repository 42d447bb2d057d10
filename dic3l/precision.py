"""What is computed in full precision, whatever autocast says: statistics, pooling, losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(x: Tensor) -> Tensor:
    """float64 stays, anything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension, of length 1, in full precision."""
    return F.normalize(full_precision(x), dim=-1)


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which operations on x's device keep the dtype of their inputs."""
    return torch.autocast(x.device.type, enabled=False)
