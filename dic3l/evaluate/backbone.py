"""A frozen torchvision ResNet as a source of features, with BatchNorm statistics of the data at hand.

Input as in pre-training: one channel of codes 0 to 255, divided by 255, copied to three channels where the stem has
three, mean and standard deviation (ImageNet's) taken off.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torchvision import models

from dic3l.checkpoint import find, load
from dic3l.config import Stem
from dic3l.encoder import imagenet_state, pixel_statistics, read_state, single_channel
from dic3l.errors import ConfigError, Dic3lError
from dic3l.export import encoder_state

STRIDES = (4, 8, 16, 32)
"""input pixels a step of the feature maps of stages 1 to 4"""


class Backbone(nn.Module):
    """Stages 1 to 4 of a torchvision ResNet. Frozen: no gradient, running BatchNorm statistics."""

    def __init__(self, arch: str, stem: Stem = "copies") -> None:
        super().__init__()
        if arch not in models.list_models(include=["resnet18", "resnet34", "resnet50", "resnet101"]):
            raise ConfigError(f"arch: resnet18, resnet34, resnet50 or resnet101 expected, '{arch}' found")
        self.network = cast(models.ResNet, models.get_model(arch, weights=None))
        self.network.fc = nn.Identity()  # type: ignore[assignment]
        if stem == "single":
            self.network.conv1 = single_channel(self.network.conv1)
        self.eval().requires_grad_(False)

    def forward(self, codes: Tensor) -> list[Tensor]:
        """Feature maps (N, C, h, w) of the four stages, for uint8 codes (N, H, W)."""
        net = self.network
        mean, std = (part.to(codes.device) for part in pixel_statistics(net.conv1.in_channels))
        x = (codes.unsqueeze(1).float() / 255 - mean) / std
        x = net.maxpool(net.relu(net.bn1(net.conv1(x.contiguous(memory_format=torch.channels_last)))))
        stages = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def random_backbone(arch: str, seed: int) -> Backbone:
    """Torchvision's own initialisation, drawn from `seed` without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(arch)


def load_backbone(path: Path, arch: str) -> Backbone:
    """Weights of a file or of a run: a torchvision state dict, with or without `fc` (.pt, .pth, .safetensors), or the
    folder of a run, of which the newest checkpoint is taken.

    CheckpointError where a folder holds none; Dic3lError, naming the keys, where they are not exactly the weights
    of `arch`.
    """
    found = encoder_state(load(find(path))) if path.is_dir() else read_state(path)
    state = {name: value for name, value in found.items() if not name.startswith("fc.")}
    first = state.get("conv1.weight")
    backbone = Backbone(arch, "single" if first is not None and first.ndim == 4 and first.shape[1] == 1 else "copies")
    expected = backbone.network.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    # older exports have no batch counters, and inference has no use for them
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    shapes = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unexpected or shapes:
        wrong = [
            f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
            if names
        ]
        raise Dic3lError(
            f"{path}: not the weights of a torchvision {arch}: {'; '.join(wrong)}; give the right --arch, "
            "or export a run with `dic3l export`"
        )
    backbone.network.load_state_dict(state, strict=False)
    return backbone


def imagenet_backbone(arch: str) -> Backbone:
    """Torchvision's default ImageNet weights, from its cache or the network."""
    backbone = Backbone(arch)
    backbone.network.load_state_dict({k: v for k, v in imagenet_state(arch).items() if not k.startswith("fc.")})
    return backbone


@torch.no_grad()
def estimate_batch_statistics(backbone: Backbone, batches: Iterable[Tensor]) -> int:
    """Set the running statistics of every BatchNorm to the mean over `batches` (uint8 (N, H, W)); images seen.

    Done to every backbone that is compared, so that it is weights that are compared: the statistics of a random
    network are mean 0 and variance 1 of nothing, those of a pre-trained one come from other images and augmented views.
    """
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean over batches
        norm.train()
    seen = 0
    for batch in batches:
        backbone(batch)
        seen += len(batch)
    backbone.eval()
    return seen
