"""The encoder of a run as others load it: a torchvision state dict without classifier, and a note of what it is.

    model = torchvision.models.resnet18()
    model.load_state_dict(torch.load("encoder.pt"), strict=False)      # misses fc.weight and fc.bias alone

A network with a single-channel stem (preset `sarsense`) wants timm's `in_chans=1`, or before loading
`model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)`. The note (`encoder.json` beside `encoder.pt`) says which
network it is, on what it was trained, and how its input was made: codes of one channel 0..255, divided by 255, copied
to three channels where the stem has three, less the mean, over the deviation.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dic3l.checkpoint import Checkpoint, atomic_write, find, load, versions, write_text
from dic3l.config import from_toml
from dic3l.encoder import pixel_statistics
from dic3l.errors import CheckpointError, ConfigError, Dic3lError

PREFIX = "query.encoder.backbone."
"""of the encoder's weights in the state of the method: the network that learns, as published"""
SUFFIXES = (".pt", ".pth", ".safetensors")


def export(place: Path, out: Path) -> dict[str, Any]:
    """Write the encoder of a run folder (its newest checkpoint) or of a checkpoint file to `out`; its note.

    `out`: .pt, .pth (torch.save) or .safetensors. Raises CheckpointError, ConfigError, Dic3lError.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: expected a file name that ends in {', '.join(SUFFIXES)}")
    path = find(place)
    checkpoint = load(path)
    state = encoder_state(checkpoint)
    description = describe(checkpoint, path)
    try:
        with atomic_write(out) as file:
            if out.suffix == ".safetensors":
                from safetensors.torch import save

                file.write(save(state, metadata={"arch": description["arch"], "format": "pt"}))
            else:
                torch.save(state, file)
    except OSError as error:
        raise Dic3lError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    write_text(out.with_suffix(".json"), json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return description


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


def describe(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """What a user of the weights has to know, as plain values."""
    config = from_toml(checkpoint.config, str(path))
    channels = 1 if config.method.stem == "single" else 3
    mean, std = (part.flatten().tolist() for part in pixel_statistics(channels))
    copied = "" if channels == 1 else "copied to three channels, "
    return {
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
