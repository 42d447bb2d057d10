"""A backbone and a decoder as one network: the codes of a place -> logits of the classes of its pixels.

The K images of a place are encoded each by itself; at every scale their features are fused as in the linear probe
(`dic3l.evaluate.probe`), and a decoder (`dic3l.evaluate.decoders`) makes logits on one or more grids of cells. Between
the pixels that these are centred on, logits are interpolated.

Any size of image: it is filled up with code 0, "no data", below and on the right, to a multiple of 32 pixels (for
segment-linear, only where the backbone needs it), and the logits are cut to the image. So cells lie on the same pixels
in an image and in windows of it that start at multiples of `stride`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l.checkpoint import atomic_write
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.backbone import Backbone
from dic3l.evaluate.decoders import OUTPUT_STRIDE, Decoder, Scales, make_decoder
from dic3l.evaluate.probe import Fuse, Probe, interpolation

FORMAT = 1
"""of the files of `save_segmenter`"""

_MULTIPLE = 32
"""pixels: sides of images that every decoder can halve and double"""

_STRIP = 2048
"""pixels: length of the strip on which the reach is measured; what reaches to its ends is taken for the whole image"""


class Segmenter(nn.Module):
    """Codes uint8 (N, K, H, W) -> logits float32 (N, classes, H, W)."""

    def __init__(self, kind: str, backbone: Backbone, decoder: Decoder, images: int, fuse: Fuse, classes: int) -> None:
        super().__init__()
        self.kind = kind
        self.backbone = backbone
        self.decoder = decoder
        self.images = images
        """K"""
        self.fuse: Fuse = fuse
        self.classes = classes
        self.stride = max(backbone.strides)
        """pixels: windows that start at multiples of it have the same cells as the whole image"""
        self.multiple = backbone.multiple if kind == "segment-linear" else _MULTIPLE

    def forward(self, codes: Tensor) -> Tensor:
        if codes.ndim != 4 or codes.shape[1] != self.images or codes.dtype != torch.uint8:
            raise ConfigError(
                f"segmenter: uint8 codes of {self.images} images a place, (N, {self.images}, H, W), expected, "
                f"{codes.dtype} {tuple(codes.shape)} found"
            )
        height, width = codes.shape[-2:]
        codes = F.pad(codes, (0, -width % self.multiple, 0, -height % self.multiple))
        grids = self.cells(self.backbone.normalise(codes.flatten(0, 1)))
        parts = [
            to_pixels(grid, stride, centre, height, width)
            for grid, (stride, centre) in zip(grids, self.decoder.placements, strict=True)
        ]
        return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]

    def cells(self, x: Tensor) -> list[Tensor]:
        """The decoder's grids of logits, for normalised images float32 (N K, 3 or 1, H, W)."""
        maps = list(self.backbone.pyramid(x))
        # one by one, so that both forms of a map are there of one stage alone: of a large window it is a third of all
        return self.decoder([fuse_images(maps.pop(0), self.images, self.fuse) for _ in range(len(maps))])

    @cached_property
    def reach(self) -> int | None:
        """Pixels: the logits of a pixel depend on no input further away along either axis; None: on the whole image.

        Measured: a block of NaN in a strip, and how far it is carried; up to 31 pixels more than the exact number.
        """
        was = self.training
        self.eval()
        channels, device = 1 if self.backbone.stem == "single" else 3, next(self.parameters()).device
        x = torch.zeros(self.images, channels, _MULTIPLE, _STRIP, device=device)
        first, last = _STRIP // 2, _STRIP // 2 + _MULTIPLE - 1
        x[..., first : last + 1] = torch.nan
        with torch.no_grad():
            grids = self.cells(x.contiguous(memory_format=torch.channels_last))
        self.train(was)
        reach = 0
        for grid, (stride, centre) in zip(grids, self.decoder.placements, strict=True):
            touched = torch.nonzero(grid.isnan().any(dim=2).any(dim=1)[0]).flatten()
            low, high = int(touched[0]), int(touched[-1])
            if low == 0 or high == grid.shape[-1] - 1:
                return None
            beside = 0 if stride == 1 else 1  # pixels between a touched cell and the next take from both
            reach = max(reach, last - (centre + (low - beside) * stride), centre + (high + beside) * stride - first)
        return int(np.ceil(reach))


def fuse_images(features: Tensor, images: int, fuse: Fuse) -> Tensor:
    """Features (N K, C, h, w) of K images of N places -> (N, K C, h, w), or (N, 3 C, h, w) with |first - second|."""
    separate = features.unflatten(0, (-1, images))
    if fuse == "change":
        first, second = separate.unbind(1)
        return torch.cat([first, second, (first - second).abs()], dim=1)
    return torch.cat(separate.unbind(1), dim=1)  # unlike flatten, keeps channels_last


def to_pixels(cells: Tensor, stride: int, centre: float, height: int, width: int) -> Tensor:
    """Values (N, C, h, w) of cells that are centred on pixels centre + stride i, interpolated bilinearly at the pixels
    of an image, (N, C, height, width); constant beyond the outer cells."""
    if stride == 1 and centre == 0:
        return cells[..., :height, :width]
    down, right = (
        torch.from_numpy(interpolation(np.arange(pixels) - centre, steps, stride)).to(cells.device)
        for pixels, steps in zip((height, width), cells.shape[-2:], strict=True)
    )
    return down @ cells @ right.T


def make_segmenter(kind: str, backbone: Backbone, images: int, fuse: Fuse, classes: int, seed: int) -> Segmenter:
    """A segmenter with a copy of `backbone` (dilated where the decoder was published so) and a decoder that is drawn
    from `seed` without touching the global generator. BatchNorm statistics of the backbone are taken over: estimate
    them before. ConfigError where there is no such decoder, or the backbone does not go with it."""
    if fuse not in get_args(Fuse) or (fuse == "change" and images != 2):
        raise ConfigError(f"fuse: 'concat', or 'change' for a pair of images, expected, '{fuse}' of {images} found")
    own = copy.deepcopy(backbone)
    output_stride = OUTPUT_STRIDE.get(kind, 32)
    if own.output_stride != output_stride:
        own = own.with_output_stride(output_stride)
    times = 3 if fuse == "change" else images
    channels = tuple(times * count for count in (own.stem_channels, *own.channels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = make_decoder(kind, Scales(channels, own.strides, own.centres), classes)
    segmenter = Segmenter(kind, own, decoder, images, fuse, classes)
    return segmenter.to(next(backbone.parameters()).device).eval()


def linear_segmenter(backbone: Backbone, fuse: Fuse, probe: Probe) -> Segmenter:
    """A fitted probe on the features of `backbone` as a segmenter: its logits are those of which `Probe.predict` takes
    the greatest. ConfigError where the probe has weights of another number of features."""
    features = probe.weight.shape[1]
    times, rest = divmod(features, sum(backbone.channels))
    if rest or (fuse == "change" and times != 3):
        raise ConfigError(
            f"probe: weights of {sum(backbone.channels)} features for each image expected, of {features} found"
        )
    images = 2 if fuse == "change" else times
    segmenter = make_segmenter("segment-linear", backbone, images, fuse, len(probe.weight), 0)
    parts = probe.weight.split([times * count for count in backbone.channels], dim=1)
    state = {f"projections.{stage}.weight": part[:, :, None, None] for stage, part in enumerate(parts)}
    segmenter.decoder.load_state_dict({**state, "projections.0.bias": probe.bias})
    return segmenter


@torch.no_grad()
def segment(segmenter: Segmenter, images: np.ndarray, device: torch.device) -> np.ndarray:
    """The most probable class of each pixel, uint8 (H, W), of a place of images uint8 (K, H, W)."""
    codes = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return segmenter.eval()(codes[None])[0].argmax(dim=0).to(torch.uint8).cpu().numpy()


# --------------------------------------------------------------------------------------------------------- files


def save_segmenter(path: Path, segmenter: Segmenter, facts: Mapping[str, Any]) -> None:
    """Write weights, how to build the network, and `facts` (plain values that a user needs), atomically. Dic3lError
    where it cannot be written."""
    backbone = segmenter.backbone
    network = {
        "kind": segmenter.kind,
        "arch": backbone.arch,
        "stem": backbone.stem,
        "images": segmenter.images,
        "fuse": segmenter.fuse,
        "classes": segmenter.classes,
    }
    state = {name: value.cpu() for name, value in segmenter.state_dict().items()}
    try:
        with atomic_write(path) as file:
            torch.save({"segmenter": FORMAT, "network": network, "state": state, "facts": dict(facts)}, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise Dic3lError(f"{path}: cannot be written: {error}; choose another place") from error


def load_segmenter(path: Path) -> tuple[Segmenter, dict[str, Any]]:
    """A segmenter of `save_segmenter`, on the CPU, in evaluation mode, and its facts. Dic3lError where it is none."""
    advice = "expected a file of `save_segmenter` (`dic3l evaluate`)"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Dic3lError(f"{path}: no such file; {advice}") from error
    except Exception as error:  # pickle and zip raise many kinds
        raise Dic3lError(f"{path}: damaged or no segmenter ({type(error).__name__}); {advice}") from error
    if not isinstance(content, dict) or "segmenter" not in content:
        raise Dic3lError(f"{path}: no segmenter; {advice}; encoders are given as weights")
    if content["segmenter"] != FORMAT:
        raise Dic3lError(f"{path}: segmenter of format {content['segmenter']}, this dic3l reads {FORMAT}")
    network = content["network"]
    with torch.random.fork_rng(devices=[]):  # weights that are overwritten are not drawn from the global generator
        backbone = Backbone(network["arch"], network["stem"])
        segmenter = make_segmenter(network["kind"], backbone, network["images"], network["fuse"], network["classes"], 0)
    try:
        segmenter.load_state_dict(content["state"])
    except RuntimeError as error:
        raise Dic3lError(
            f"{path}: its weights are not those of {network['kind']} on {network['arch']} as this machine's "
            f"libraries (torchvision, timm, segmentation-models-pytorch) make it ({str(error).splitlines()[0]}); use "
            "their versions at the time of fitting"
        ) from error
    return segmenter, content["facts"]
