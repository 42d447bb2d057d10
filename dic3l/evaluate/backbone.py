"""A network as a source of features at four scales, with BatchNorm statistics of the data at hand.

Torchvision's ResNets as in pre-training, and any network of timm with a feature pyramid (`dic3l.evaluate.pyramid`), so
that the weights of others can be put beside ours. Input as in pre-training: one channel of codes 0 to 255, divided by
255, copied to three channels where the stem has three, mean and standard deviation (ImageNet's) taken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from dic3l.checkpoint import find, load
from dic3l.config import Stem
from dic3l.encoder import imagenet_state, pixel_statistics, single_channel
from dic3l.errors import ConfigError
from dic3l.evaluate.pyramid import STRIDES, timm_imagenet_state, timm_naming, timm_pyramid
from dic3l.evaluate.weights import Naming, first_convolution, numbered_children, read_tensors, select
from dic3l.export import encoder_state

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
"""of torchvision; every other name is one of timm"""


class Backbone(nn.Module):
    """Stages 1 to 4 of a network. Made frozen: no gradient, running BatchNorm statistics (`set_trainable`)."""

    def __init__(self, arch: str, stem: Stem = "copies", output_stride: int = 32, trainable: bool = False) -> None:
        """`output_stride` 8 or 16: stages beyond it are dilated instead of strided ("à trous"), with the same weights:
        their features at more places. ConfigError where there is no such network, or it has no such form."""
        super().__init__()
        self.arch, self.output_stride = arch, output_stride
        self.stem: Stem = stem
        self.classifier: Sequence[str]
        """beginnings of names that a file of weights may have more"""
        if arch in RESNETS:
            self.network: nn.Module = _torchvision_resnet(arch, stem, output_stride)
            self.classifier = ("fc.",)
            self._take: tuple[int, ...] = ()
            planes = 512 if arch in ("resnet18", "resnet34") else 2048
            self.channels = (planes // 8, planes // 4, planes // 2, planes)
            """of the four stages"""
            self.stem_channels = 64
            """of the feature map of stride 2 before stage 1; 0 where a network has none"""
            self.strides = tuple(min(stride, output_stride) for stride in STRIDES)
            """input pixels a cell, of the four stages"""
            self.centres = (0.0, 0.0, 0.0, 0.0)
            """the pixel that cell 0 of each stage is centred on; cell i is strides pixels times i further"""
            self.multiple = 1
            """images whose sides are no multiples of it are filled up with code 0, below and on the right"""
        else:
            pyramid = timm_pyramid(arch, stem, output_stride)
            self.network, self.classifier, self._take = pyramid.network, pyramid.classifier, pyramid.take
            self.channels, self.stem_channels = pyramid.channels, pyramid.stem_channels
            self.strides, self.centres, self.multiple = pyramid.strides, pyramid.centres, STRIDES[-1]
        self.set_trainable(trainable)

    def set_trainable(self, trainable: bool) -> None:
        """Fine-tuned: weights take gradients, and `train()` lets BatchNorm use the batch. Else all stays as it is."""
        self.trainable = trainable
        self.requires_grad_(trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As nn.Module's, but a frozen backbone stays in evaluation mode."""
        return super().train(mode and self.trainable)

    def normalise(self, codes: Tensor) -> Tensor:
        """uint8 codes (N, H, W) -> network input float32 (N, 3 or 1, H, W), filled up to `multiple`."""
        mean, std = (part.to(codes.device) for part in pixel_statistics(1 if self.stem == "single" else 3))
        down, right = (-side % self.multiple for side in codes.shape[-2:])
        x = (F.pad(codes, (0, right, 0, down)).unsqueeze(1).float() / 255 - mean) / std
        return x.contiguous(memory_format=torch.channels_last)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps (N, C, h, w) of normalised input: that of the stem (of no channels where there is none), and
        those of the four stages."""
        if not isinstance(self.network, models.ResNet):
            found = cast(Any, self.network).forward_intermediates(x, indices=list(self._take), intermediates_only=True)
            return found if self.stem_channels else [x.new_zeros(len(x), 0, x.shape[2] // 2, x.shape[3] // 2), *found]
        net = self.network
        x = net.relu(net.bn1(net.conv1(x)))
        maps = [x]
        x = net.maxpool(x)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, codes: Tensor) -> list[Tensor]:
        """Feature maps (N, C, h, w) of the four stages, for uint8 codes (N, H, W)."""
        return self.pyramid(self.normalise(codes))[1:]

    def with_output_stride(self, output_stride: int) -> Backbone:
        """A copy, with the same weights, of another output stride."""
        with torch.random.fork_rng(devices=[]):  # weights that are overwritten are not drawn from the global generator
            copy = Backbone(self.arch, self.stem, output_stride, self.trainable)
        copy.network.load_state_dict(self.network.state_dict())
        parameter = next(self.parameters())
        return copy.to(parameter.device).train(self.training)


def _torchvision_resnet(arch: str, stem: Stem, output_stride: int) -> models.ResNet:
    network = cast(models.ResNet, models.get_model(arch, weights=None))
    network.fc = nn.Identity()  # type: ignore[assignment]
    if stem == "single":
        network.conv1 = single_channel(network.conv1)
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"output stride of {arch}: expected 8, 16 or 32, found {output_stride}")
    dilation = 1
    for layer, stride in zip((network.layer2, network.layer3, network.layer4), STRIDES[1:], strict=True):
        if stride > output_stride:
            dilation = _dilate(layer, dilation)
    return network


def _dilate(layer: nn.Module, dilation: int) -> int:
    """Take the stride of 2 out of a stage whose input is already `dilation` times as dense as its weights were made
    for; the density of its output. Every second (and so on) place of the output is that of the strided stage."""
    strided = False
    for name, conv in layer.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if conv.kernel_size == (3, 3):  # those of the strided convolution still see the denser input
            here = 2 * dilation if strided else dilation
            conv.dilation = conv.padding = (here, here)
        strided = strided or (conv.stride == (2, 2) and "downsample" not in name)
        conv.stride = (1, 1)
    return 2 * dilation


def random_backbone(arch: str, seed: int) -> Backbone:
    """The library's own initialisation, drawn from `seed` without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(arch)


def load_backbone(path: Path, arch: str) -> Backbone:
    """Weights of a file or of a run: a state dict by the names of torchvision or timm, with or without classifier, bare
    or wrapped or prefixed (`dic3l.evaluate.weights`), or the folder of a run, of which the newest checkpoint is taken.

    CheckpointError where a folder holds none; Dic3lError, naming the keys, where no part of the file is exactly the
    weights of `arch`. A stem of one channel is told by the file.
    """
    tensors = encoder_state(load(find(path))) if path.is_dir() else read_tensors(path)
    with torch.random.fork_rng(devices=[]):  # weights that are overwritten are not drawn from the global generator
        backbone = Backbone(arch)
        expected = backbone.network.state_dict()
        namings: list[Naming] = [dict, numbered_children if arch in RESNETS else timm_naming(backbone.network)]
        library = "torchvision" if arch in RESNETS else "timm"
        state = select(tensors, expected, backbone.classifier, namings, str(path), f"{library} {arch}")
        if state[first_convolution(expected)].shape[1] == 1:
            backbone = Backbone(arch, "single")
    backbone.network.load_state_dict(state, strict=False)  # complete but for counters of batches: `select` saw to it
    return backbone


def imagenet_backbone(arch: str) -> Backbone:
    """Default ImageNet weights of torchvision's ResNets or of timm, from its cache or the network."""
    backbone = Backbone(arch)
    if arch in RESNETS:
        state = {name: value for name, value in imagenet_state(arch).items() if not name.startswith("fc.")}
    else:
        state = timm_imagenet_state(arch, backbone.network)
    backbone.network.load_state_dict(state)
    return backbone


@torch.no_grad()
def estimate_batch_statistics(backbone: Backbone, batches: Iterable[Tensor]) -> int:
    """Set the running statistics of every BatchNorm to the mean over `batches` (uint8 (N, H, W)); images seen.

    Done to every backbone that is compared, so that it is weights that are compared: the statistics of a random
    network are mean 0 and variance 1 of nothing, those of a pre-trained one come from other images and augmented views.
    """
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean over batches
        norm.train()
    seen = 0
    for batch in batches:
        if norms:
            backbone(batch)
        seen += len(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    backbone.eval()
    return seen
