"""An encoder as an ONNX graph: codes in, features out, any batch and any size.

The graph makes its input itself (scale, mean, deviation), so that no program has to know how. Same weights, same
versions of torch and onnxscript: same bytes; names of files of the machine that wrote it are taken out.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dic3l.errors import ConfigError

_NEEDED = ("onnx", "onnxscript")
_SIDE = 64
"""pixels of the example that the graph is traced with"""
_AXES = ("batch", "height", "width")


def onnx_bytes(encoder: nn.Module, outputs: Sequence[str], facts: Mapping[str, str]) -> bytes:
    """The ONNX file of `encoder`: input `codes`, uint8 (N, 1, H, W), a tuple of tensors named `outputs`.

    facts: kept in the file as metadata. ConfigError where onnx or onnxscript are not installed.
    """
    if absent := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--out *.onnx: needs {' and '.join(absent)}, not found here: pip install {' '.join(absent)}")
    codes = torch.zeros(2, 1, _SIDE, _SIDE, dtype=torch.uint8)
    batch, height, width = (torch.export.Dim(name, min=1, max=2**20) for name in _AXES)
    with _quiet():
        program = torch.onnx.export(
            encoder,
            (codes,),
            input_names=["codes"],
            output_names=list(outputs),
            dynamic_shapes={"codes": {0: batch, 2: height, 3: width}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _forget_the_machine(model)
    for name, value in sorted(facts.items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value
    return model.SerializeToString(deterministic=True)


def _forget_the_machine(model: Any) -> None:
    """Take out stack traces, which name files of who exported."""
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: versions of operators, deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
