"""Decoders: fused features of a place at several scales -> logits of its classes.

Those of the second table of arXiv 2511.07808, from torchvision and segmentation-models-pytorch where they have them:

    fcn            Long et al., CVPR 2015            torchvision FCNHead on stage 4 at stride 8
    pspnet         Zhao et al., CVPR 2017            smp PSPDecoder on stage 4 at stride 8
    deeplabv3plus  Chen et al., ECCV 2018            smp DeepLabV3PlusDecoder, stage 4 at stride 16
    upernet        Xiao et al., ECCV 2018            smp UPerNetDecoder
    unet           Ronneberger et al., MICCAI 2015   smp UnetDecoder
    danet          Fu et al., CVPR 2019              here, stage 4 at stride 8
    farseg         Zheng et al., CVPR 2020           here, on torchvision's FeaturePyramidNetwork
    segment-linear a linear layer on interpolated stages, as `dic3l.evaluate.probe`

Deep supervision and losses of their own (auxiliary heads of FCN, PSPNet and DANet, the annealed loss of FarSeg) are
left out: all are trained alike (`dic3l.evaluate.fit`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork

from dic3l.errors import ConfigError

Kind = Literal["segment-linear", "fcn", "upernet", "unet", "pspnet", "deeplabv3plus", "danet", "farseg"]
KINDS: tuple[str, ...] = get_args(Kind)

OUTPUT_STRIDE = {"fcn": 8, "pspnet": 8, "danet": 8, "deeplabv3plus": 16}
"""pixels a cell of stage 4 of the dilated backbone that a decoder was published with; of others it stays 32"""


@dataclass(frozen=True)
class Scales:
    """What a decoder is given: feature maps of strides 2 (the stem) and `strides` (four stages)."""

    channels: tuple[int, ...]
    """of the stem (0: there is none) and of the four stages, after fusion"""
    strides: tuple[int, ...]
    """of the four stages"""
    centres: tuple[float, ...]
    """pixel that cell 0 of each of the four stages is centred on"""


class Decoder(nn.Module):
    """[stem, stage 1, ..., stage 4], each (N, C, h, w) -> logits (N, classes, h, w) on one or more grids, whose
    interpolations to pixels add up (`placements`)."""

    placements: list[tuple[int, float]]
    """of each grid: pixels a cell, and the pixel that cell 0 is centred on"""

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError


def make_decoder(kind: str, scales: Scales, classes: int) -> Decoder:
    """A decoder with weights from the global generator. ConfigError where there is none of this name."""
    if kind not in KINDS:
        raise ConfigError(f"probe: one of {', '.join(KINDS)} expected, '{kind}' found")
    makers = {"segment-linear": Linear, "fcn": Fcn, "danet": DaNet, "farseg": FarSeg}
    if kind in makers:
        return makers[kind](scales, classes)
    return Smp(kind, scales, classes)


class Linear(Decoder):
    """A 1 x 1 convolution of each stage to the classes. Interpolation and linear layers commute: so this is the linear
    layer on features that are interpolated at each pixel."""

    def __init__(self, scales: Scales, classes: int) -> None:
        super().__init__()
        stages = scales.channels[1:]
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, classes, 1, bias=stage == 0) for stage, channels in enumerate(stages)
        )
        self.placements = list(zip(scales.strides, scales.centres, strict=True))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [project(stage) for project, stage in zip(self.projections, features[1:], strict=True)]


class Fcn(Decoder):
    """Torchvision's FCN head: 3 x 3 to a quarter of the channels, BatchNorm, ReLU, dropout, 1 x 1 to the classes."""

    def __init__(self, scales: Scales, classes: int) -> None:
        super().__init__()
        self.head = FCNHead(scales.channels[-1], classes)
        self.placements = [(scales.strides[-1], scales.centres[-1])]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [self.head(features[-1])]


class Smp(Decoder):
    """PSPNet, DeepLabV3+, UPerNet and U-Net of segmentation-models-pytorch, each with the head that it has there.

    U-Net has the stem as skip of stride 2 where the backbone has one. The others' logits are on the grid of their
    finest features; where deep features are brought there, the library places them as cells, half a cell beside where
    those of a ResNet are centred.
    """

    def __init__(self, kind: str, scales: Scales, classes: int) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
            from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
            from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
            from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
            from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
        except ImportError as error:
            raise ConfigError(f"probe {kind}: needs segmentation-models-pytorch: pip install it") from error
        channels = [1, *scales.channels]  # as the library counts: input, stride 2, 4, ...
        finest = (scales.strides[0], scales.centres[0])
        if kind == "pspnet":
            self.decoder: nn.Module = PSPDecoder(channels)
            self.head = nn.Conv2d(512, classes, 3, padding=1)
            self.placements = [(scales.strides[-1], scales.centres[-1])]
        elif kind == "deeplabv3plus":
            self.decoder = DeepLabV3PlusDecoder(channels, 5, 256, (12, 24, 36), 16, True, 0.5)
            self.head = nn.Conv2d(256, classes, 1)
            self.placements = [finest]
        elif kind == "upernet":
            self.decoder = UPerNetDecoder(channels)
            self.head = nn.Conv2d(256, classes, 1)
            self.placements = [finest]
        else:
            self.decoder = UnetDecoder(channels, (256, 128, 64, 32, 16))
            self.head = nn.Conv2d(16, classes, 3, padding=1)
            self.placements = [(1, 0.0)]
        initialize_decoder(self.decoder)
        initialize_head(self.head)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        stem = features[0]
        # in place of the input, of which the library only asks the size
        image = stem.new_empty(len(stem), 0, 2 * stem.shape[2], 2 * stem.shape[3])
        return [self.head(self.decoder([image, *features]))]


# --------------------------------------------------------------------------------------------------------- DANet


class PositionAttention(nn.Module):
    """E = gamma D S + A: each place takes up the values of all places that look alike (DANet, equations 1 and 2).

    S = softmax over i of B_i . C_j, with B, C of an eighth of the channels and D 1 x 1 convolutions of A; gamma starts
    at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, max(channels // 8, 1), 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, a: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        query, key, value = (conv(a).flatten(2).mT for conv in (self.query, self.key, self.value))
        taken = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.gamma * taken.mT.reshape(a.shape) + a


class ChannelAttention(nn.Module):
    """E = beta X A + A: each channel takes up other channels (DANet, equations 3 and 4); beta starts at 0.

    X = softmax over i of (max over i of A_i . A_j) - A_i . A_j, as in the published code and its descendants; equation
    3 of the paper has A_i . A_j itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, a: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        rows = a.flatten(2)
        energy = rows @ rows.mT
        attention = torch.softmax(energy.amax(dim=2, keepdim=True) - energy, dim=2)
        return self.beta * (attention @ rows).reshape(a.shape) + a


class DaNet(Decoder):
    """Position and channel attention on a quarter of the channels of stage 4, summed (DANet, figure 2)."""

    def __init__(self, scales: Scales, classes: int) -> None:
        super().__init__()
        inner = scales.channels[-1] // 4
        self.position = nn.Sequential(
            _block(scales.channels[-1], inner), PositionAttention(inner), _block(inner, inner)
        )
        self.channel = nn.Sequential(_block(scales.channels[-1], inner), ChannelAttention(), _block(inner, inner))
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(inner, classes, 1))
        self.placements = [(scales.strides[-1], scales.centres[-1])]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [self.head(self.position(features[-1]) + self.channel(features[-1]))]


def _block(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


# -------------------------------------------------------------------------------------------------------- FarSeg


class ForegroundScene(nn.Module):
    """Relation of each place to the scene (FarSeg, equations 2 to 4): z = sigmoid(u . psi(v)) kappa(v).

    u = eta(mean of stage 4), by two 1 x 1 convolutions for each level; psi, kappa: 1 x 1 convolution, BatchNorm, ReLU.
    """

    def __init__(self, scene: int, channels: int, levels: int) -> None:
        super().__init__()
        self.scene = nn.ModuleList(
            nn.Sequential(nn.Conv2d(scene, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1))
            for _ in range(levels)
        )
        self.content, self.again = (
            nn.ModuleList(_block(channels, channels, 1) for _ in range(levels)) for _ in range(2)
        )

    def forward(self, scene: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """(N, scene, 1, 1) and a map (N, C, h, w) of each level -> a map of each level."""
        levels = zip(self.scene, self.content, self.again, maps, strict=True)
        return [
            torch.sigmoid((embed(scene) * psi(v)).sum(dim=1, keepdim=True)) * kappa(v)
            for embed, psi, kappa, v in levels
        ]


class FarSeg(Decoder):
    """Feature pyramid of 256 channels, foreground-scene relation, light decoder of 128 channels: each level is doubled
    in size by convolution and bilinear interpolation up to stride 4, and the mean of the levels is classified."""

    def __init__(self, scales: Scales, classes: int) -> None:
        super().__init__()
        stages = list(scales.channels[1:])
        self.pyramid = FeaturePyramidNetwork(stages, 256)
        self.relation = ForegroundScene(stages[-1], 256, len(stages))
        steps = [max(level, 1) for level in range(len(stages))]
        self.levels = nn.ModuleList(
            nn.ModuleList(_block(256 if step == 0 else 128, 128) for step in range(count)) for count in steps
        )
        self.head = nn.Conv2d(128, classes, 1)
        self.placements = [(scales.strides[0], scales.centres[0])]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        stages = features[1:]
        maps = list(self.pyramid(OrderedDict((str(level), stage) for level, stage in enumerate(stages))).values())
        related = self.relation(stages[-1].mean(dim=(2, 3), keepdim=True), maps)
        total = torch.zeros(())
        for level, (blocks, x) in enumerate(zip(self.levels, related, strict=True)):
            for step, block in enumerate(blocks):  # type: ignore[arg-type]
                x = block(x)
                if level:
                    size = related[level - step - 1].shape[2:]
                    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            total = x if level == 0 else total + x
        return [self.head(total / len(related))]
