"""What is compared: weights, given by file, run or name, and the baselines that the reader would ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dic3l.checkpoint import find, load
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.backbone import (
    RESNETS,
    Backbone,
    estimate_batch_statistics,
    imagenet_backbone,
    load_backbone,
    random_backbone,
)
from dic3l.evaluate.pyramid import STRIDES
from pipelines.coding import Coding, bounds_of, of_pictures
from pipelines.parts import file_names
from sarsense.files import read_json

MEAN_WINDOWS = (1, 5, 9, 17)
"""sides of the windows of the stronger baseline without a network: what despeckling alone brings"""
STATISTICS_IMAGES = 128
"""images of the train places, at most, from which BatchNorm statistics are taken"""
_STATISTICS_BATCH = 16
SEED = "{seed}"
"""in the path of weights: where runs of several seeds are told apart"""

Weights = str | Path | tuple[str, str | Path]
"""a file, a folder of a run, 'imagenet' or 'random', with SEED for the number of each seed; or (label, one of these)"""


@dataclass(frozen=True)
class Contender:
    """One row of the table, the same for every probe, fraction and seed."""

    name: str
    short: str
    """what its files are called"""
    backbone: Callable[[int], Backbone] | None
    """seed -> a network of its own, on the CPU; None: pixel values"""
    windows: tuple[int, ...] = ()
    """without a network: sides of the windows whose means are the features"""
    random: bool = False
    """the zero of the column 'over random'"""


def contenders(weights: Sequence[Weights], arch: str) -> list[Contender]:
    """The baselines, then each of `weights` once; nothing is opened yet. ConfigError where two have one name."""
    means = f"pixel values and means ({', '.join(str(side) for side in MEAN_WINDOWS[1:])})"
    rows: list[tuple[str, Callable[[int], Backbone] | None, tuple[int, ...]]] = [
        ("pixel values", None, (1,)),
        (means, None, MEAN_WINDOWS),
        (f"{arch}, random", lambda seed: random_backbone(arch, seed), ()),
    ]
    rows += [(label, _maker(source, arch), ()) for label, source in _given(weights, arch)]
    names = [name for name, _, _ in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"weights: a name for each row of the table expected, '{twice[0]}' found twice")
    named = file_names(names)
    return [
        Contender(name, short, make, windows, random=number == 2)
        for number, ((name, make, windows), short) in enumerate(zip(rows, named, strict=True))
    ]


def coded_otherwise(weights: Sequence[Weights], arch: str, seeds: int, coding: Coding) -> list[str]:
    """A note for each of `weights` that is known to be trained on a corpus of other dB ranges than images are coded by
    here: it sees codes that mean something else to it."""
    notes = []
    for label, source in _given(weights, arch):
        for path in dict.fromkeys(Path(source.replace(SEED, str(seed))) for seed in range(seeds)):
            known = _trained_on(path)
            if known is not None and _differ(coding, known["groups"]):
                notes.append(
                    f"{label}: trained on corpus {known['name']} ({known['digest'][:12]}), whose dB ranges are not "
                    "those of the input here; --corpus takes them"
                )
                break
    return notes


def _differ(coding: Coding, groups: Mapping[str, Any]) -> bool:
    """Whether codes mean other values than to an encoder of a corpus of these groups."""
    if coding.normalization == "none":
        return of_pictures(groups)
    return not bounds_of(coding.groups).items() <= bounds_of(groups).items()


def _given(weights: Sequence[Weights], arch: str) -> list[tuple[str, str]]:
    """Name and source of each of `weights` once, but for the random network."""
    named = [one if isinstance(one, tuple) else (f"{arch}, {one}", one) for one in dict.fromkeys(weights)]
    return [(label, str(source)) for label, source in named if str(source) != "random"]


def _trained_on(path: Path) -> dict[str, Any] | None:
    """`CorpusFacts` of a run, or of what `dic3l export` wrote beside a file; None: not known."""
    if path.is_dir():
        return load(find(path)).corpus
    try:
        known = read_json(path.with_suffix(".json"))["corpus"]
        return known if {"name", "digest", "groups"} <= known.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def identity(contender: Contender, seed: int) -> str:
    """What its features depend on: the sha256 of its weights (of timm, and its name: names of weights do not tell its
    networks apart), or the windows. Raises where weights cannot be read."""
    if contender.backbone is None:
        return f"means of {contender.windows}"
    backbone = contender.backbone(seed)
    found = hashlib.sha256(b"" if backbone.arch in RESNETS else backbone.arch.encode())
    for name, value in backbone.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def ready_backbone(
    make: Callable[[int], Backbone], images: Sequence[np.ndarray], seed: int, device: torch.device
) -> Backbone:
    """A network on the device, with BatchNorm statistics of images of the train places (uint8 (K, H, W) each)."""
    backbone = make(seed).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    estimate_batch_statistics(backbone, _statistics_batches(images, seed, device))
    return backbone


def _maker(source: str, arch: str) -> Callable[[int], Backbone]:
    if source == "imagenet":
        return lambda seed: imagenet_backbone(arch)
    return lambda seed: load_backbone(Path(source.replace(SEED, str(seed))), arch)


def _statistics_batches(images: Sequence[np.ndarray], seed: int, device: torch.device) -> list[torch.Tensor]:
    """Batches of single images (uint8 (n, H, W)), drawn evenly from the train places; sizes may differ by place.

    One image alone whose last stage is a single cell has no variance: it is left out, if anything else is there.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(images))
    chosen = [image for index in order for image in images[index]][:STATISTICS_IMAGES]
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in chosen:
        by_shape.setdefault(image.shape, []).append(image)
    batches = [
        np.stack(same[start : start + _STATISTICS_BATCH])
        for same in by_shape.values()
        for start in range(0, len(same), _STATISTICS_BATCH)
    ]
    enough = [batch for batch in batches if len(batch) > 1 or max(batch.shape[1:]) > STRIDES[-1]]
    if not enough:
        raise Dic3lError(
            f"the places to fit are of {len(batches)} sizes, none above {STRIDES[-1]} x {STRIDES[-1]} pixels: too "
            "little for BatchNorm statistics; two places of a size, or a larger one, expected"
        )
    return [torch.from_numpy(batch).to(device) for batch in enough]
