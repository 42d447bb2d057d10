"""The parts of the networks: a torchvision ResNet without its classifier, its initial weights, and the heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from dic3l.batchnorm import GroupedBatchNorm1d, convert
from dic3l.config import Arch, Stem
from dic3l.errors import ConfigError, Dic3lError

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
"""of ImageNet, as published: taken off each of the three copies of the channel, after division by 255"""
GREY_MEAN = (0.449,)
GREY_STD = (0.226,)
"""of a single channel: the mean of ImageNet's three"""
STAGE_STRIDE = {1: 4, 2: 8, 3: 16, 4: 32}
"""view pixels a cell of the feature maps"""
_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_ARCHS = ("resnet18", "resnet34", "resnet50", "resnet101")


class Encoder(nn.Module):
    """A torchvision ResNet up to stage 4, its layers named as in torchvision under `backbone.`.

    An export is therefore the removal of that prefix.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, arch: Arch, weights: str = "random", stem: Stem = "copies") -> None:
        """weights: 'random' (torchvision's initialisation, from the global generator), 'imagenet', or a path.

        stem: what the first convolution sees: three copies of the channel, or the channel (`single`), with kernels
        that are the sums over colours: of equal copies, both make the same.
        """
        super().__init__()
        if arch not in _ARCHS:
            raise ConfigError(f"arch: expected one of {', '.join(_ARCHS)}, found '{arch}'")
        network = cast(models.ResNet, models.get_model(arch, weights=None))
        network.load_state_dict(_initial_state(network, arch, weights))
        if stem == "single":
            network.conv1 = single_channel(network.conv1)
        self.channels = {stage: _out_channels(getattr(network, f"layer{stage}")) for stage in STAGE_STRIDE}
        """of each stage"""
        children = {name: child for name, child in network.named_children() if name in _CHILDREN}
        self.backbone = convert(nn.ModuleDict(children))
        mean, std = pixel_statistics(network.conv1.in_channels)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def normalise(self, views: Tensor) -> Tensor:
        """Codes uint8 (N, 1, h, w) -> network input (N, 3 or 1, h, w) in the dtype of the weights' statistics."""
        if views.ndim != 4 or views.shape[1] != 1 or views.dtype != torch.uint8:
            raise ConfigError(
                f"views: expected uint8 codes of one channel, (N, 1, h, w), found {views.dtype} {tuple(views.shape)}; "
                "build the corpus with --bands single"
            )
        return (views.to(self.pixel_mean.dtype) / 255 - self.pixel_mean) / self.pixel_std

    def forward(self, views: Tensor) -> dict[int, Tensor]:
        """Codes uint8 (N, 1, h, w) -> feature maps (N, C, h / stride, w / stride) of stages 1 to 4, by stage."""
        layers = cast(nn.ModuleDict, self.backbone)
        x = self.normalise(views)
        for name in ("conv1", "bn1", "relu", "maxpool"):
            x = layers[name](x)
        stages = {}
        for stage in STAGE_STRIDE:
            x = stages[stage] = layers[f"layer{stage}"](x)
        return stages


def pixel_statistics(channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (1, channels, 1, 1), that the input of a stem of 3 or 1 channels is freed of."""
    mean, std = (PIXEL_MEAN, PIXEL_STD) if channels == 3 else (GREY_MEAN, GREY_STD)
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def single_channel(stem: nn.Conv2d) -> nn.Conv2d:
    """A stem of three channels as one of one channel: its kernels summed over colours."""
    # made on the meta device: initial weights that are overwritten would draw from the global generator
    single = nn.Conv2d(1, stem.out_channels, 7, stride=2, padding=3, bias=False, device="meta").to_empty(device="cpu")
    single.weight.data.copy_(stem.weight.data.sum(1, keepdim=True))
    return single


def projection_head(inputs: int, hidden: int, dim: int, layers: int = 2) -> nn.Sequential:
    """Linear-ReLU-Linear, or a Linear alone, (..., inputs) -> (..., dim): before either contrast."""
    if layers == 1:
        return nn.Sequential(nn.Linear(inputs, dim))
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


class BoxHead(nn.Module):
    """Linear-BN-ReLU-Linear of box vectors: the box projector, and on the query side the predictor after it."""

    def __init__(self, inputs: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.norm = GroupedBatchNorm1d(hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, boxes: Tensor, mask: Tensor) -> Tensor:
        """(N, P, inputs) -> (N, P, dim); mask: bool (N, P), masked boxes do not enter the statistics of the batch."""
        rows = self.norm(self.hidden(boxes.flatten(0, 1)), mask.flatten())
        return self.out(F.relu(rows)).unflatten(0, mask.shape)


def _out_channels(layer: nn.Module) -> int:
    """Channels that a torchvision residual stage gives: those of its last convolution."""
    return [module.out_channels for module in layer.modules() if isinstance(module, nn.Conv2d)][-1]


def _initial_state(network: nn.Module, arch: Arch, weights: str) -> Mapping[str, Any]:
    own = network.state_dict()
    if weights == "random":
        return own
    found = imagenet_state(arch) if weights == "imagenet" else three_channels(read_state(Path(weights)))
    # the classifier is not used, and counters of batches are absent from old files: neither has to be there
    optional = {name for name in own if name.startswith("fc.") or name.endswith("num_batches_tracked")}
    faults = {
        "missing": own.keys() - optional - found.keys(),
        "unexpected": {name for name in found.keys() - own.keys() if not name.startswith("fc.")},
        "of another shape": {
            name for name in (found.keys() & own.keys()) - optional if found[name].shape != own[name].shape
        },
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names)
        raise Dic3lError(
            f"weights {weights}: not the weights of a torchvision {arch}: {told}; give the arch that the file is of, "
            "or a file written by `dic3l export`"
        )
    return {name: found[name] if name in found and not name.startswith("fc.") else own[name] for name in own}


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def imagenet_state(arch: str) -> Mapping[str, Tensor]:
    """Torchvision's default ImageNet weights, from its cache or the network; Dic3lError where neither has them."""
    try:
        return models.get_model_weights(arch)["DEFAULT"].get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a download that was cut short
        raise Dic3lError(
            f"weights 'imagenet': could not fetch the weights of {arch} ({error}); "
            "download them elsewhere and give the path of the file instead"
        ) from error


def three_channels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with a single-channel stem as those with three, which make the same of three equal copies."""
    stem = state.get("conv1.weight")
    if stem is None or stem.ndim != 4 or stem.shape[1] != 1:
        return state
    return {**state, "conv1.weight": stem.repeat(1, 3, 1, 1) / 3}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, .safetensors or torch.save, by name. Dic3lError if the file is not one."""
    if not path.is_file():
        raise Dic3lError(f"weights {path}: expected 'random', 'imagenet' or the path of a file, found no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise many kinds
        # torch explains at length how to switch its safety off; --debug shows it
        kind = type(error).__name__
        raise Dic3lError(
            f"weights {path}: expected a state dict (.pt, .pth, .safetensors), found a file that is none ({kind}): "
            "damaged, or of objects other than tensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Dic3lError(
            f"weights {path}: expected a state dict of tensors by name, found {type(state).__name__} of other things; "
            "for a checkpoint of a run, use `dic3l export` first"
        )
    return dict(state)
