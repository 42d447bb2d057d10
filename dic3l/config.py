"""Every setting of a pre-training run, as frozen dataclasses. Standard library only, so that `--help` is instant.

A run is a `Config`: a preset, overridden by a TOML file, overridden by the command line. Unknown keys are
refused with the nearest known name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Precision = Literal["fp32", "bf16", "fp64"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ViewConfig:
    """How a tile becomes two views. Defaults: the published settings (DESIGN section 6)."""

    crop_size: int = 448
    """side of a view in pixels"""
    area: tuple[float, float] = (0.2, 1.0)
    """smallest and largest share of the tile's area that a crop covers"""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """smallest and largest width / height of a crop; drawn log-uniformly"""
    jitter_probability: float = 0.8
    brightness: float = 0.4
    """brightness factor is drawn from 1 -+ this"""
    contrast: float = 0.4
    """contrast factor is drawn from 1 -+ this"""
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """standard deviation of the Gaussian blur, in pixels of the view"""
    flip_probability: float = 0.5
    """left-right flip"""


@dataclass(frozen=True)
class BoxConfig:
    """Dynamic Instances: matched boxes in the overlap of two views."""

    count: int = 10
    """P: most boxes an image; fewer (masked) where the overlap is small"""
    min_side: float = 32.0
    """smallest side of a box in both views, in pixels of the view"""
    max_iou: float = 0.5
    """two kept boxes of an image overlap less than this"""
    candidates: int = 64
    """boxes drawn an image, from which at most `count` are kept"""


@dataclass(frozen=True)
class MethodConfig:
    """DIC3L: network, queues, losses."""

    arch: Arch = "resnet50"
    weights: str = "random"
    """initial backbone: 'random', 'imagenet' (through torchvision) or a path to a state dict"""
    embedding_dim: int = 128
    """D"""
    hidden_dim: int = 2048
    queue_size: int = 65536
    """K, for the global and for the contour queue"""
    momentum: float = 0.999
    """of the momentum encoder"""
    temperature: float = 0.2
    weight_global: float = 0.8
    weight_contour: float = 0.2
    weight_instances: float = 5.0
    contour_stage: int = 3
    """residual stage (1 to 4) whose pooled features the contour branch contrasts; published: 3"""
    bn_groups: int = 8
    """the batch is normalised in this many groups, whatever the number of processes; a multiple of it"""


@dataclass(frozen=True)
class OptimConfig:
    """SGD and its schedule (the published one: cosine to zero, no warm-up)."""

    lr: float = 0.03
    """at a global batch of 256; scaled linearly with the batch size"""
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, and what is written when."""

    epochs: float = 400.0
    steps: int | None = None
    """optimiser steps; overrides `epochs` where given"""
    batch_size: int = 256
    """global: over all processes"""
    seed: int = 0
    precision: Precision = "bf16"
    device: Device = "auto"
    log_every: int = 10
    """steps between two lines of metrics.jsonl"""
    checkpoint_every: int = 1000
    """steps between two checkpoints"""
    keep: int = 3
    """checkpoints kept beside `last`"""
    loader_threads: int = 2


@dataclass(frozen=True)
class Config:
    views: ViewConfig = field(default_factory=ViewConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


__all__ = ["BoxConfig", "Config", "MethodConfig", "OptimConfig", "Path", "TrainConfig", "ViewConfig"]
