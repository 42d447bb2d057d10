"""The encoder of a run as others load it: weights by torchvision's names, a note and a card of what they are.

    model = torchvision.models.resnet18()
    model.load_state_dict(torch.load("encoder.pt"), strict=False)      # misses fc.weight and fc.bias alone

A network with a single-channel stem (preset `sarsense`) wants timm's `in_chans=1`, or before loading
`model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)`. The note (`encoder.json` beside `encoder.pt`) says which
network it is, on what it was trained, and how its input was made: codes of one channel 0..255, divided by 255, copied
to three channels where the stem has three, less the mean, over the deviation. The card (`encoder.md`) says it to people
(`dic3l.model_card`). docs/weights.md loads the files in other programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import models

from dic3l.checkpoint import Checkpoint, atomic_write, find, load, versions, write_text
from dic3l.config import from_toml
from dic3l.encoder import pixel_statistics, read_state
from dic3l.errors import CheckpointError, ConfigError, Dic3lError
from dic3l.model_card import model_card, read_scores

PREFIX = "query.encoder.backbone."
"""of the encoder's weights in the state of the method: the network that learns, as published"""
SUFFIXES = (".pt", ".pth", ".safetensors", ".onnx")
_OUTPUTS = ("pooled", "stage1", "stage2", "stage3", "stage4")
_ARCHS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50", (True, 23): "resnet101"}
"""(blocks have a third convolution, blocks of stage 3) -> network"""


class CodesEncoder(nn.Module):
    """A torchvision ResNet that takes codes: what the exported weights are for, with the input made as in training."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: models.ResNet) -> None:
        super().__init__()
        self.network = network
        mean, std = pixel_statistics(network.conv1.in_channels)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Codes 0..255, uint8 or float (N, 1, H, W) -> pooled stage-4 features (N, D), and the feature maps
        (N, C, H / stride, W / stride) of stages 1 to 4; float32."""
        net = self.network
        x = (codes.float() / 255 - self.mean) / self.std
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        stages = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            stages.append(x)
        return (x.mean((2, 3)), *stages)


def export(place: Path, out: Path, scores: Path | None = None) -> dict[str, Any]:
    """Write the encoder of a run folder (its newest checkpoint) or of a checkpoint file to `out`; its note.

    `out`: .pt, .pth (torch.save), .safetensors, or .onnx (codes -> features). `scores`: evaluation.json of
    `dic3l evaluate`, with a row of this run, for the card. Raises CheckpointError, ConfigError, Dic3lError.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: expected a file name that ends in {', '.join(SUFFIXES)}")
    path = find(place)
    checkpoint = load(path)
    state = encoder_state(checkpoint)
    description = describe(checkpoint, path)
    network = network_of(state, description["arch"], str(path))
    description["features"] = feature_count(network)
    description["digest"] = state_digest(state)
    if out.suffix == ".onnx":
        description["weights"] = f"ONNX: codes uint8 (N, 1, H, W) -> {', '.join(_OUTPUTS)}; it makes its input itself"
    evaluated = [place, path, *(out.with_suffix(suffix) for suffix in SUFFIXES)]
    table = None if scores is None else read_scores(scores, evaluated)
    content = _content(out.suffix, state, network, description)
    try:
        with atomic_write(out) as file:
            if content is None:
                torch.save(state, file)
            else:
                file.write(content)
    except OSError as error:
        raise Dic3lError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    write_text(out.with_suffix(".json"), json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    write_text(out.with_suffix(".md"), model_card(description, out.name, parameters, checkpoint.config, table))
    return description


def _content(
    suffix: str, state: dict[str, Tensor], network: models.ResNet, description: dict[str, Any]
) -> bytes | None:
    """The bytes of the file; None for those that torch.save writes itself."""
    facts = {name: description[name] for name in ("arch", "digest")}
    if suffix == ".safetensors":
        from safetensors.torch import save

        return save(state, metadata={**facts, "format": "pt"})
    if suffix == ".onnx":
        from dic3l.onnx_export import onnx_bytes

        return onnx_bytes(CodesEncoder(network), _OUTPUTS, facts)
    return None


def encoder_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The query encoder's weights by torchvision's names, float32 and contiguous."""
    state = {
        name.removeprefix(PREFIX): value.float().contiguous() if value.is_floating_point() else value
        for name, value in checkpoint.method.items()
        if name.startswith(PREFIX)
    }
    if not state:
        raise CheckpointError(f"checkpoint of step {checkpoint.step}: holds no encoder ({PREFIX}*)")
    return state


def read_encoder(place: Path) -> dict[str, Tensor]:
    """The weights, without `fc`, of a file of `export` or of torchvision, or of a run's newest checkpoint. Raises
    CheckpointError, Dic3lError."""
    state = encoder_state(load(find(place))) if place.is_dir() else read_state(place)
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def arch_of(state: Mapping[str, Tensor], source: str) -> str:
    """The torchvision ResNet whose weights these are, told by their names; Dic3lError where it is none of ours.

    Other networks may have the same names: `network_of` tells them by their shapes.
    """
    blocks = {name.split(".")[1] for name in state if name.startswith("layer3.")}
    arch = _ARCHS.get(("layer1.0.conv3.weight" in state, len(blocks)))
    if arch is None or "conv1.weight" not in state:
        raise Dic3lError(
            f"{source}: weights of a torchvision {', '.join(_ARCHS.values())} expected, others found "
            f"({', '.join(sorted(state)[:3])}, ...); `dic3l export` writes such files"
        )
    return arch


def network_of(state: Mapping[str, Tensor], arch: str, source: str) -> models.ResNet:
    """The network of weights without `fc`, for inference: torchvision's, its classifier an identity, its stem of one or
    three channels as theirs. Dic3lError where they are not exactly the weights of `arch`."""
    channels = state["conv1.weight"].shape[1] if "conv1.weight" in state else 3
    with torch.device("meta"):  # no initial weights are drawn, and none are overwritten
        network = cast(models.ResNet, models.get_model(arch, weights=None))
        network.fc = nn.Identity()  # type: ignore[assignment]
        if channels == 1:
            network.conv1 = nn.Conv2d(1, network.conv1.out_channels, 7, stride=2, padding=3, bias=False)
    # files of older torch have no counters of batches, for which inference has no use
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counters, **state}, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1].split())
        raise Dic3lError(
            f"{source}: not the weights of a torchvision {arch}: {reason[:200]}{'...' if len(reason) > 200 else ''} "
            f"give weights of a {arch}, or name the network that they are of"
        ) from error
    return network.float().eval().requires_grad_(False)


def feature_count(network: models.ResNet) -> int:
    """D: pooled features of stage 4."""
    return int([module for module in network.layer4.modules() if isinstance(module, nn.BatchNorm2d)][-1].num_features)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values (float32) of weights: the same in whatever file they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if value.is_floating_point():
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """What a user of the weights has to know, as plain values."""
    config = from_toml(checkpoint.config, str(path))
    channels = 1 if config.method.stem == "single" else 3
    mean, std = (part.flatten().tolist() for part in pixel_statistics(channels))
    copied = "" if channels == 1 else "copied to three channels, "
    return {
        "method": config.method.name,
        "arch": config.method.arch,
        "weights": "torchvision state dict without fc",
        "input": f"one channel of codes 0..255 / 255, {copied}minus mean, over std",
        "channels": channels,
        "mean": [round(value, 6) for value in mean],
        "std": [round(value, 6) for value in std],
        "crop_size": config.views.crop_size,
        "steps": checkpoint.step,
        "tiles_seen": checkpoint.step * config.train.batch_size,
        "initial_weights": config.method.weights,
        "corpus": checkpoint.corpus,
        "settings": asdict(config),
        "checkpoint": str(path),
        "trained_with": checkpoint.versions,
        "exported_with": versions(),
    }
