"""A fitted segmenter and scenes -> maps: a GeoTIFF of label values for each scene, on its grid.

The order of things: open the model; code a scene as the model's training data were coded; segment it by windows
(`dic3l.evaluate.windows`); write the map from top to bottom (`pipelines.maps`). Memory is bounded by the windows and by
some rows of the scene, not by its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

import dic3l
from dic3l.config import Device
from dic3l.distributed import choose_device
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.segmenter import Segmenter, load_segmenter
from dic3l.evaluate.windows import Block, Plan, plan_windows, segment_windows
from pipelines.coding import CodedScene, Coding, coded_scene
from pipelines.maps import NO_PROBABILITY, PROBABILITY_STEPS, Legend, class_map, probability_map
from sarsense.catalogue import Stated
from sarsense.config import StatedUnit
from sarsense.errors import SarsenseError
from sarsense.radiometry import POLARISATIONS
from sarsense.raster import pixel_window, strips

NODATA = 255
_ROWS = 64
"""of logits that become labels at once"""
T = TypeVar("T")


@dataclass(frozen=True)
class PredictConfig:
    """What is written, and how it is computed."""

    window: int | None = None
    """largest side of a window in pixels; None: as the network needs, and memory allows"""
    nodata: int = NODATA
    """value of pixels without data in any image"""
    probabilities: bool = False
    """also NAME.probabilities.tif: a band a class"""
    overviews: bool = False
    """reduced copies inside the files, for viewers"""
    unit: StatedUnit | None = None
    """how values of the scenes are stored; None: told from the file"""
    device: Device = "auto"


@dataclass(frozen=True)
class Model:
    """What `save_segmenter` wrote, ready for use."""

    path: Path
    segmenter: Segmenter
    facts: Mapping[str, Any]
    legend: Legend
    coding: Coding
    polarisations: tuple[str, ...]
    """one an image that it takes"""


@dataclass(frozen=True)
class Prediction:
    """What became of a scene."""

    scene: Path
    result: Path
    probabilities: Path | None
    height: int
    width: int
    windows: int
    """computed; those without data are not"""
    overhead: float
    """share of the pixels of its windows that are margin or overlap"""
    seconds: float

    def told(self) -> str:
        """a.tif: 10000 x 10000 pixels in 600 s, 0.17 Mpx/s; 121 windows, 0.2/s, 62% of their pixels margin"""
        pace = self.height * self.width / self.seconds / 1e6
        return (
            f"{self.scene.name}: {self.height} x {self.width} pixels in {self.seconds:.1f} s, {pace:.2g} Mpx/s; "
            f"{self.windows} windows, {self.windows / self.seconds:.2g}/s, {self.overhead:.0%} of their pixels margin"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "scene": str(self.scene),
            "result": str(self.result),
            "probabilities": None if self.probabilities is None else str(self.probabilities),
            "height": self.height,
            "width": self.width,
            "windows": self.windows,
            "overhead": round(self.overhead, 4),
            "seconds": round(self.seconds, 3),
            "pixels_per_s": round(self.height * self.width / self.seconds),
        }


class Progress(Protocol):
    """As of `pipelines.progress`."""

    def say(self, line: str) -> None: ...
    def stage(self, name: str, total: int, cost: float = 0.0, *, things: str) -> None: ...
    def advance(self, cost: float = 0.0) -> None: ...


def predict(
    model: Path, scenes: Sequence[Path], out: Path, config: PredictConfig, progress: Progress
) -> tuple[list[Prediction], dict[Path, str]]:
    """Segment each of `scenes` with a file of `save_segmenter`; what was made, and why the other scenes were not.

    out: a folder, where each result has the name of its scene; or, for one scene, a file (.tif, .tiff). A result is
    there whole or not at all; one that is there is replaced. Of a scene that fails one line is told, and the next is
    taken. Raises ConfigError where the call makes no sense, Dic3lError where the model is none.
    """
    results = result_paths(scenes, out, config.probabilities)
    device = choose_device(config.device)
    opened = open_model(model, config.nodata, device)
    stated = None if config.unit is None else Stated(unit=config.unit, explicit=True)
    made: list[Prediction] = []
    failed: dict[Path, str] = {}
    for scene, result in zip(scenes, results, strict=True):
        try:
            coded = coded_scene(scene, opened.coding, stated, opened.polarisations)
            made.append(predict_scene(opened, scene, coded, result, config, device, progress))
        except (Dic3lError, SarsenseError, OSError) as error:
            failed[scene] = str(error) if str(scene) in str(error) else f"{scene}: {error}"
            progress.say(f"dic3l: error: {failed[scene]}")
    return made, failed


def result_paths(scenes: Sequence[Path], out: Path, with_probabilities: bool = False) -> list[Path]:
    """The file of each scene's map. ConfigError where two files would be one, or one would replace a scene."""
    if out.suffix.lower() in (".tif", ".tiff") and not out.is_dir():
        if len(scenes) != 1:
            raise ConfigError(f"--out {out}: a folder expected for {len(scenes)} scenes, the name of a file found")
        results = [out]
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: a folder, or a file that ends in .tif, expected; another file found")
    else:
        results = [out / f"{scene.stem}.tif" for scene in scenes]
    inputs = {scene.resolve() for scene in scenes}
    taken: dict[Path, Path] = {}
    for scene, result in zip(scenes, results, strict=True):
        for path in (result, probabilities_path(result))[: 1 + with_probabilities]:
            if path.resolve() in inputs:
                raise ConfigError(f"--out {out}: {path.name} of {scene} would replace a scene; give another folder")
            if path in taken:
                raise ConfigError(f"{taken[path]} and {scene}: both would become {path}; give them one by one")
            taken[path] = scene
    return results


def probabilities_path(result: Path) -> Path:
    """The file of the probabilities beside a map."""
    return result.with_name(f"{result.stem}.probabilities.tif")


def open_model(path: Path, nodata: int, device: torch.device) -> Model:
    """Dic3lError where `path` is no segmenter, or its facts do not make a map of 8 bits; ConfigError where `nodata` is
    a class."""
    segmenter, facts = load_segmenter(path)
    names = _fact(path, facts, "classes", lambda value: tuple(str(name) for name in value))
    values = _fact(path, facts, "values", lambda value: tuple(int(number) for number in value))
    polarisations = _fact(path, facts, "polarisations", lambda value: tuple(str(name) for name in value))
    coding = _fact(path, facts, "coding", Coding.from_json)
    if len(names) != len(values) or len(set(values)) != len(values) or not all(0 <= value <= 255 for value in values):
        raise Dic3lError(
            f"{path}: classes {', '.join(names)}, with label values {values}; a value of its own, from 0 to 255, "
            "expected for each; fit the model to 8-bit labels"
        )
    if not 0 <= nodata <= 255:
        raise ConfigError(f"--nodata: from 0 to 255 expected, {nodata} found")
    if nodata in values:
        raise ConfigError(
            f"--nodata {nodata}: the value of class '{names[values.index(nodata)]}' of {path}; "
            f"{max(set(range(256)) - set(values), default='none')} is free"
        )
    if len(polarisations) != segmenter.images:  # images that are told apart otherwise: before and after
        polarisations = tuple(f"b{number}" for number in range(1, segmenter.images + 1))
    segmenter = segmenter.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(path, segmenter, facts, Legend(names, values, nodata), coding, polarisations)


def _fact(path: Path, facts: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> T:
    try:
        return read(facts[name])
    except (KeyError, TypeError, ValueError) as error:
        raise Dic3lError(
            f"{path}: it says nothing, or nothing that can be read, of its {name} ({error}), which a map needs; fit it "
            "with `dic3l evaluate --save-models`"
        ) from error


# --------------------------------------------------------------------------------------------------- one scene


def predict_scene(
    model: Model,
    scene: Path,
    coded: CodedScene,
    result: Path,
    config: PredictConfig,
    device: torch.device,
    progress: Progress,
) -> Prediction:
    """Write the map of one scene to `result`. Raises ConfigError, Dic3lError, SceneError."""
    started = time.monotonic()
    _, height, width = coded.shape
    bands = choose_bands(scene, coded.polarisations, model.polarisations)
    segmenter = model.segmenter
    aligned = max(*segmenter.backbone.strides, segmenter.multiple)  # powers of two: a multiple of all
    plan = plan_windows(height, width, len(bands), aligned, segmenter.reach, config.window)
    network = _Network(segmenter, scene, plan)

    def read(first: int, last: int) -> np.ndarray:
        return coded.read(pixel_window(0, first, width, last - first))[bands]

    def advance() -> None:
        progress.advance(height * width / plan.windows)

    tags = {
        "SCENE": scene.name,
        "MODEL": f"{model.path.name}: {model.facts.get('kind', '')} on {model.facts.get('arch', '')}",
        "TIFFTAG_SOFTWARE": f"dic3l {dic3l.__version__}",
    }
    likely = probabilities_path(result) if config.probabilities else None
    progress.stage(scene.name, plan.windows, height * width, things="windows")
    with ExitStack() as files:
        about = (coded, (height, width), model.legend, tags, config.overviews)
        labels = files.enter_context(class_map(result, *about))
        shares = None if likely is None else files.enter_context(probability_map(likely, *about))
        blocks = files.enter_context(closing(segment_windows(network, plan, read, device, advance=advance)))
        for block in blocks:
            labels.put(block.row, block.column, label_values(block, model.legend))
            if shares is not None:
                shares.put(block.row, block.column, probabilities(block, len(model.legend.names)))
    seconds = time.monotonic() - started
    return Prediction(scene, result, likely, height, width, network.windows, plan.overhead, seconds)


def choose_bands(scene: Path, found: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Which bands of a scene are the images of a model, by polarisation; in their order, where either does not say
    which they are. Dic3lError where it has not got them."""
    if len(set(found)) == len(found) and len(set(wanted)) == len(wanted) and set(wanted) <= set(found):
        return [list(found).index(name) for name in wanted]
    told = set(found) <= set(POLARISATIONS) and set(wanted) <= set(POLARISATIONS)
    if len(found) == len(wanted) and (tuple(found) == tuple(wanted) or not told):
        return list(range(len(found)))
    raise Dic3lError(
        f"{scene}: bands {', '.join(found)}; the model takes {', '.join(wanted)}: give a scene that has them"
    )


def label_values(block: Block, legend: Legend) -> np.ndarray:
    """The label value of the most probable class, the first of equals, uint8 (1, h, w); no data where nothing is."""
    values = np.full((1, *block.valid.shape), legend.nodata, np.uint8)
    if block.logits is not None:
        table = np.array(legend.values, np.uint8)
        for top, bottom in strips(len(block.valid), _ROWS):
            classes = block.logits[:, top:bottom].argmax(dim=0).numpy()
            valid = block.valid[top:bottom]
            values[0, top:bottom][valid] = table[classes[valid]]
    return values


def probabilities(block: Block, classes: int) -> np.ndarray:
    """Softmax of the logits in steps of 1 / PROBABILITY_STEPS, uint8 (classes, h, w); NO_PROBABILITY where nothing
    is."""
    values = np.full((classes, *block.valid.shape), NO_PROBABILITY, np.uint8)
    if block.logits is not None:
        for top, bottom in strips(len(block.valid), _ROWS):
            steps = (block.logits[:, top:bottom].softmax(dim=0) * PROBABILITY_STEPS).round().to(torch.uint8).numpy()
            valid = block.valid[top:bottom]
            values[:, top:bottom][:, valid] = steps[:, valid]
    return values


class _Network:
    """The segmenter, counting its windows. What the device has no memory for is said in one line."""

    def __init__(self, segmenter: Segmenter, scene: Path, plan: Plan) -> None:
        self._segmenter, self._scene, self._plan = segmenter, scene, plan
        self.windows = 0

    def __call__(self, codes: Tensor) -> Tensor:
        self.windows += len(codes)
        try:
            return self._segmenter(codes)
        except torch.cuda.OutOfMemoryError as error:
            height, width = self._plan.shape
            raise Dic3lError(
                f"{self._scene}: the device has no memory for {len(codes)} windows of {height} x {width} pixels; give "
                "a smaller --window, or --device cpu"
            ) from error
