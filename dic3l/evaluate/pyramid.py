"""Networks of timm as four stages of features: which of a network's features, at what strides, centred where.

Any network that takes images of any size and has features of strides 4, 8, 16 and 32: ConvNeXt, RegNet, EfficientNet,
DenseNet, HRNet, PVT and more; not those of one scale (ViT) or of one image size (Swin).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dic3l.config import Stem
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.weights import Naming

STRIDES = (4, 8, 16, 32)
"""input pixels a cell of the feature maps of stages 1 to 4, of a network that is not dilated"""

_SIDE = 64
"""pixels a side of the image that is shown to a network to see what it gives"""


@dataclass(frozen=True)
class Pyramid:
    """A network of timm without what comes after its last stage; attributes as those of `Backbone`."""

    network: nn.Module
    classifier: Sequence[str]
    """names of the weights that were left out"""
    take: tuple[int, ...]
    """which of the network's intermediate features are the pyramid: the stem's, if there is one, and four stages"""
    channels: tuple[int, ...]
    stem_channels: int
    strides: tuple[int, ...]
    centres: tuple[float, ...]


def timm_pyramid(arch: str, stem: Stem, output_stride: int) -> Pyramid:
    """The pyramid of a network with random weights. ConfigError where timm has no such network, or it has no pyramid,
    or cannot be dilated to `output_stride`."""
    network = _create(arch, stem, output_stride)
    names = list(network.state_dict())
    places = _places(arch, network if output_stride == STRIDES[-1] else _create(arch, stem, STRIDES[-1]))
    indices = [places[stride] for stride in (2, *STRIDES) if stride in places]
    take = tuple(network.prune_intermediate_layers(indices, prune_norm=True, prune_head=True))
    x = torch.zeros(1, 1 if stem == "single" else 3, _SIDE, _SIDE)
    try:
        maps, centres = _look(network, x, take)
    except (AssertionError, RuntimeError) as error:  # of a network for one size of image
        raise ConfigError(
            f"arch '{arch}': a network that takes images of any size expected; timm says: {error}; give another, such "
            "as resnet50 or convnext_base"
        ) from error
    left = network.state_dict().keys()
    return Pyramid(
        network=network,
        classifier=[name for name in names if name not in left],
        take=take,
        channels=tuple(one.shape[1] for one in maps[-4:]),
        stem_channels=maps[0].shape[1] if 2 in places else 0,
        strides=tuple(_SIDE // one.shape[2] for one in maps[-4:]),
        centres=centres[-4:],
    )


def timm_naming(network: nn.Module) -> Naming:
    """Names of the original code of a network (ConvNeXt's of Meta) as timm's, where timm knows of a difference."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)

    def naming(state: dict[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            return state if convert is None else convert(dict(state), network)
        except (KeyError, RuntimeError, AttributeError, IndexError):  # a state of something else
            return state

    return naming


def timm_imagenet_state(arch: str, network: nn.Module) -> dict[str, Tensor]:
    """Timm's default weights, from its cache or the network, of the layers that `network` has. Dic3lError where they
    cannot be had."""
    import timm

    try:
        state = timm.create_model(arch, pretrained=True).state_dict()
    except Exception as error:  # of the hub's client, of many kinds
        raise Dic3lError(
            f"weights 'imagenet': could not fetch the weights of {arch} ({error}); download them elsewhere and "
            "give the path of the file instead"
        ) from error
    return {name: state[name] for name in network.state_dict()}


def _create(arch: str, stem: Stem, output_stride: int) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"arch '{arch}': resnet18, 34, 50 or 101, or a network of timm, which is not installed"
        ) from error
    expected = (
        "resnet18, resnet34, resnet50, resnet101 or a network of timm with a feature pyramid (convnext_base) expected"
    )
    if not timm.is_model(arch):
        raise ConfigError(f"arch: {expected}, '{arch}' found")
    dilated: dict[str, Any] = {} if output_stride == STRIDES[-1] else {"output_stride": output_stride}
    try:
        network: Any = timm.create_model(arch, pretrained=False, in_chans=1 if stem == "single" else 3, **dilated)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"arch '{arch}': timm cannot make it with an output stride of {output_stride} ({error}); the segmenters "
            "segment-linear, unet, upernet and farseg take it as it is"
        ) from error
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "prune_intermediate_layers"):
        raise ConfigError(f"arch: {expected}, found '{arch}', of which timm gives no intermediate features")
    return network.eval()


def _places(arch: str, network: Any) -> dict[int, int]:
    """Stride -> index of the last intermediate feature of this stride, of a network that is not dilated."""
    places = {entry["reduction"]: index for index, entry in enumerate(network.feature_info)}
    if not set(STRIDES) <= places.keys():
        raise ConfigError(
            f"arch '{arch}': features of strides 4, 8, 16 and 32 expected, {', '.join(map(str, sorted(places)))} "
            "found; give a network with a feature pyramid, such as resnet50 or convnext_base"
        )
    return places


@torch.no_grad()
def _look(network: Any, x: Tensor, take: Sequence[int]) -> tuple[list[Tensor], tuple[float, ...]]:
    """Intermediate features of `x`, and the input pixel that cell 0 of each is centred on.

    A layer of kernel k, stride s and padding p on cells that are j pixels apart moves the centre of cell 0 by
    ((k - 1) / 2 - p) j pixels; of parallel layers (a shortcut's) the first counts. Where cells get further apart
    without a layer of this kind (merged patches), a cell is taken to be centred on those it is made of.
    """
    moves: dict[int, tuple[int, float]] = {}  # pixels from cell to cell after a layer -> before it, its shift
    hooks = []

    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        kernel, stride, padding = (_first(getattr(module, name, None)) for name in ("kernel_size", "stride", "padding"))
        apart = x.shape[-1] // args[0].shape[-1]
        if isinstance(kernel, int) and isinstance(padding, int) and (stride == 2 or (stride == 4 and apart == 1)):
            moves.setdefault(apart * stride, (apart, ((kernel - 1) / 2 - padding) * apart))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            hooks.append(module.register_forward_hook(see))
    maps = network.forward_intermediates(x, indices=list(take), intermediates_only=True)
    for hook in hooks:
        hook.remove()
    centres = []
    for one in maps:
        centre, apart = 0.0, x.shape[-1] // one.shape[-1]
        while apart > 1:
            apart, shift = moves.get(apart, (apart // 2, apart / 4))
            centre += shift
        centres.append(centre)
    return maps, tuple(centres)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
