"""Weights of others: which tensors of a file are those of a network.

A published file seldom is a bare state dict: it is wrapped ({'state_dict': ...}, {'model': ...}, {'teacher': ...}), its
names have prefixes (`module.`, `backbone.`, `module.encoder_q.`), its layers may be numbered (`encoder_q.4.0.conv1`, as
nn.Sequential of a ResNet's children has them: SeCo), and heads, queues and momentum networks lie beside. Here a file is
a flat table of dotted names, and a part of it is taken when, and only when, all names and shapes below one prefix are
those of the network: no weight is ever left at random because a name differed.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dic3l.errors import Dic3lError

Naming = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""tensors by the names of a file -> by the names of the network"""

PREFERRED = ("encoder_q", "query", "online", "teacher", "model_ema", "state_dict_ema")
"""of several networks in one file: the part that is meant to be used, the first of these names that is in its prefix"""

_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def numbered_children(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of nn.Sequential(*resnet.children()) as those of a torchvision ResNet: '4.0.conv1' -> 'layer1.0.conv1'."""
    parts = [(name.partition("."), value) for name, value in state.items()]
    return {_CHILDREN.get(first, first) + dot + rest: value for (first, dot, rest), value in parts}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors or torch.save file by dotted name; nested mappings are joined by dots.

    Classes of other programs (settings, callbacks) inside a torch.save file are neither imported nor run: inert
    objects stand for them. Dic3lError where the file is missing, damaged, or holds no tensors by name.
    """
    if not path.is_file():
        raise Dic3lError(f"weights {path}: expected 'random', 'imagenet' or the path of a file, found no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = _torch_load(path)
    except Exception as error:  # pickle, zip and safetensors raise many kinds
        raise Dic3lError(
            f"weights {path}: expected a state dict (.pt, .pth, .safetensors), found a file that is none "
            f"({type(error).__name__}): damaged, or of another format"
        ) from error
    found = dict(_flat(content, ""))
    if not found:
        raise Dic3lError(
            f"weights {path}: expected a state dict of tensors by name, found {type(content).__name__} without any"
        )
    return found


def _flat(content: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content.detach()
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}{name}.")


# ------------------------------------------------------------------------------------------------------- selection


@dataclass(frozen=True)
class _Candidate:
    """The tensors below a prefix, by the network's names, and what speaks against them."""

    prefix: str
    state: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: tuple[str, ...]

    @property
    def lacking(self) -> int:
        """Weights of the network that are not there."""
        return len(self.missing) + len(self.shapes)


def select(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    classifier: Collection[str],
    namings: Sequence[Naming],
    source: str,
    network: str,
) -> dict[str, Tensor]:
    """The tensors of a network out of those of a file, by the network's names.

    `expected`: its own state dict; the first convolution may have 1 or 3 input channels. `classifier`: beginnings of
    names that a file may have more, and that are left out. Counters of batches may be missing: older files have none,
    and inference has no use for them. Dic3lError, naming missing and unexpected keys, where no part of the file is
    exactly the network, or where several are and it cannot be told which is meant (`PREFERRED`).
    """
    fitting: list[_Candidate] = []
    nearest = _candidate("", tensors, expected, classifier)
    for prefix, part in _parts(tensors, at_least=len(expected) // 2):
        for naming in namings:
            candidate = _candidate(prefix, naming(part), expected, classifier)
            if candidate.lacking < nearest.lacking:
                nearest = candidate
            if not candidate.lacking and not candidate.unexpected:
                fitting.append(candidate)
                break
    if not fitting:
        raise Dic3lError(
            f"{source}: not the weights of a {network}: {_told(nearest)}; give the right --arch, or export a run with "
            "`dic3l export`"
        )
    for name in PREFERRED:
        preferred = [one for one in fitting if name in one.prefix.split(".")]
        if len(fitting) > 1 and len(preferred) == 1:
            return preferred[0].state
    if len(fitting) > 1:
        told = ", ".join(one.prefix or "no prefix" for one in fitting)
        raise Dic3lError(
            f"{source}: holds {len(fitting)} networks that are a {network} ({told}); save the one that is meant as a "
            "state dict of its own"
        )
    return fitting[0].state


def _parts(tensors: Mapping[str, Tensor], at_least: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each prefix that `at_least` tensors share, from none on, and these tensors by their names below it."""
    counts = Counter(name[: match.end()] for name in tensors for match in re.finditer(r"\.", name))
    for prefix in ["", *sorted(prefix for prefix, count in counts.items() if count >= at_least)]:
        yield prefix, {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _candidate(
    prefix: str, named: Mapping[str, Tensor], expected: Mapping[str, Tensor], classifier: Collection[str]
) -> _Candidate:
    state = {name: value for name, value in named.items() if not name.startswith(tuple(classifier))}
    stem = first_convolution(expected)
    missing = [name for name in expected.keys() - state.keys() if not name.endswith("num_batches_tracked")]
    shapes = []
    for name in expected.keys() & state.keys():
        found, wanted = state[name].shape, expected[name].shape
        grey = name == stem and len(found) == 4 and found[1] == 1 and (found[0], *found[2:]) == (wanted[0], *wanted[2:])
        if found != wanted and not grey:
            shapes.append(name)
    unexpected = state.keys() - expected.keys()
    return _Candidate(prefix, state, tuple(sorted(missing)), tuple(sorted(unexpected)), tuple(sorted(shapes)))


def first_convolution(state: Mapping[str, Tensor]) -> str:
    """The name of the weights of the first convolution: the first of four axes in a state dict of a network."""
    return next(name for name, value in state.items() if value.ndim == 4)


def _told(candidate: _Candidate) -> str:
    faults = {"missing": candidate.missing, "unexpected": candidate.unexpected, "of another shape": candidate.shapes}
    told = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in faults.items()
        if names
    ]
    return "; ".join(told) + (f" below {candidate.prefix}" if candidate.prefix else "")


# ----------------------------------------------------------------------------- files with objects of other programs


class _Inert:
    """In place of an object of a class that is not loaded: takes whatever pickle gives it, and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None: ...

    def extend(self, values: object) -> None: ...

    def add(self, value: object) -> None: ...


_LOADED = {("collections", "OrderedDict"), ("torch", "Size"), ("torch", "device")}
_LOADED |= {("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")}
"""what a file is allowed to call; storages are torch.load's own matter"""


class _TensorsOnly(pickle.Unpickler):
    """Loads tensors and plain containers; whatever else a file names is an inert object."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        dtype = getattr(torch, global_name, None) if module_name == "torch" else None
        if (module_name, global_name) in _LOADED or isinstance(dtype, torch.dtype):
            return super().find_class(module_name, global_name)
        return _Inert


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        module = SimpleNamespace(
            __name__="pickle", Unpickler=_TensorsOnly, load=lambda file, **kwargs: _TensorsOnly(file, **kwargs).load()
        )
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
