"""ReSim: windows slide over the overlap of two views; each finds itself in the other view among all of the batch.

    loss = InfoNCE(global, queue) + InfoNCE(windows of stage 3) + InfoNCE(windows of stage 2)

Xiao et al., "Region similarity representation learning", ICCV 2021. As in the published code (ReSim-FPN), the three
losses count alike, negatives of a window are the key network's means of 3 x 3 cells at all places of all key views, its
own image's too, and the temperature is that of the global contrast. Not as there: maps are 1 x 1 convolutions of both
stages, without a feature pyramid; windows are `GRID` x `GRID`, evenly over the overlap, three cells wide in the view
that shows less detail; pooled by RoIAlign, where the publication has precise RoI pooling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l import distributed
from dic3l.base import StepBatch
from dic3l.baselines.skeleton import Baseline, Part, pooled
from dic3l.config import MethodConfig
from dic3l.encoder import STAGE_STRIDE, Encoder, projection_head
from dic3l.groups import Division
from dic3l.losses.contrast import info_nce
from dic3l.precision import full_precision, unit
from dic3l.queue import KeyQueue
from dic3l.roi import pool_boxes

GRID = 4
"""windows a side of the overlap"""
CELLS = 3
"""cells a side of a window"""
STAGES = (3, 2)


class RegionNetwork(nn.Module):
    """Encoder, a head of the mean over stage 4, and one of the cells of each of two shallower stages."""

    def __init__(self, encoder: Encoder, config: MethodConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.global_head = projection_head(encoder.channels[4], config.hidden_dim, config.embedding_dim)
        self.heads = nn.ModuleList(nn.Conv2d(encoder.channels[stage], config.embedding_dim, 1) for stage in STAGES)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """uint8 (n, 1, h, w) -> unit vectors (n, D), then maps (n, D, h, w) of both stages."""
        stages = self.encoder(views)
        maps = [head(stages[stage]) for head, stage in zip(self.heads, STAGES, strict=True)]
        return unit(self.global_head(pooled(stages[4]))), *(full_precision(value) for value in maps)


def windows(first: Tensor, second: Tensor, crop: int, side: float) -> tuple[Tensor, Tensor]:
    """Windows over the overlap, in pixels of both views: (n, GRID * GRID, 4) each.

    first, second: frames (n, 4); crop: pixels a side of a view; side: of a window, in pixels of the view that shows
    less detail. Where the overlap is smaller than a window, windows are as large as it; without any they are empty.
    """
    corners = [
        torch.cat((torch.minimum(f[:, :2], f[:, 2:]), torch.maximum(f[:, :2], f[:, 2:])), 1) for f in (first, second)
    ]
    low, high = torch.maximum(corners[0][:, :2], corners[1][:, :2]), torch.minimum(corners[0][:, 2:], corners[1][:, 2:])
    high = torch.maximum(low, high)
    scale = torch.maximum(*(c[:, 2:] - c[:, :2] for c in corners)) / crop  # tile pixels a pixel of the view
    size = torch.minimum(side * scale, high - low)
    steps = torch.linspace(0, 1, GRID, device=first.device, dtype=first.dtype)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 2)
    start = low[:, None] + (high - low - size)[:, None] * grid
    box = torch.cat((start, start + size[:, None]), 2)
    return _in_view(box, first, crop), _in_view(box, second, crop)


def _in_view(boxes: Tensor, frames: Tensor, crop: int) -> Tensor:
    """Boxes (n, P, 4) of the tile in pixels of its view."""
    origin, extent = frames[:, None, :2], (frames[:, 2:] - frames[:, :2])[:, None]
    a, b = ((part - origin) / extent * crop for part in (boxes[..., :2], boxes[..., 2:]))
    return torch.cat((torch.minimum(a, b), torch.maximum(a, b)), 2).clamp(0, crop)


class ReSim(Baseline):
    averaged_norm = True
    columns = ("loss", "loss_global", "loss_windows", "loss_fine_windows", "top1_global")
    coupled = True

    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__(config, seed, division)
        self.queue_global = KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + 1)
        self._keys: Tensor | None = None

    def network(self, encoder: Encoder, config: MethodConfig) -> RegionNetwork:
        return RegionNetwork(encoder, config)

    def part(self, query: nn.Module, views: tuple[Tensor, Tensor], batch: StepBatch, rows: slice) -> Part:
        first, *maps = query(views[0])
        second, *key_maps = self.targets(views[1])
        whole = info_nce(first, second, self.queue_global.keys, self.config.temperature)
        losses = [self.mean(whole.loss)]
        for stage, own, other in zip(STAGES, maps, key_maps, strict=True):
            stride, crop = STAGE_STRIDE[stage], views[0].shape[-1]
            places = windows(batch.query_frames[rows], batch.key_frames[rows], crop, float(CELLS * stride))
            found, target = (unit(pool_boxes(m, p, 1 / stride)) for m, p in zip((own, other), places, strict=True))
            there = ((places[0][..., 2:] - places[0][..., :2]).amin(2) > 0).to(first.dtype)  # no overlap, no window
            contrast = info_nce(
                found.flatten(0, 1), target.flatten(0, 1), self._negatives(other), self.config.temperature
            )
            by_tile = (contrast.loss.view(len(first), -1) * there).mean(1)
            losses.append(self.mean(by_tile))
        self._keys = second
        return Part(torch.stack([sum(losses[1:], losses[0]), *losses, self.mean(whole.top1)]), first, second)

    def _negatives(self, maps: Tensor) -> Tensor:
        """Means of windows at all places of all key views: unit vectors (M, D)."""
        means = F.avg_pool2d(maps, min(CELLS, *maps.shape[2:]), stride=1)
        places = unit(means.permute(0, 2, 3, 1).flatten(1, 2))  # (n, places, D)
        return distributed.all_gather(places, self.division.counts()).flatten(0, 1)

    def remember(self) -> None:
        if self._keys is not None:
            self.queue_global.enqueue(distributed.all_gather(self._keys, self.division.counts()))

    def held(self) -> dict[str, nn.Module]:
        return {"queue_global": self.queue_global, **super().held()}
