"""A fit, read from disk where all is there that is asked for, else computed and kept: result, model, maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import dic3l
from dic3l.errors import Dic3lError
from dic3l.evaluate.data import Georeference, LabelledPlace
from dic3l.evaluate.metrics import scores
from dic3l.evaluate.segmenter import load_segmenter, save_segmenter
from dic3l.evaluate.tables import finite
from pipelines.contenders import Contender
from pipelines.draw import DataSet, Fitted, Tested
from pipelines.maps import Legend
from pipelines.parts import Parts, file_names, key_of
from pipelines.pictures import mark, marked, read_map, unmark, write_map, write_picture
from pipelines.probes import Kind, Outcome, Setting, fits, run_probe, stepwise

PARTS_FORMAT = 1
"""raised when the same settings give another result"""
MAPS_SEED = 0
"""whose maps are drawn"""


@dataclass(frozen=True)
class Desk:
    """What all fits of an evaluation share, and where it is put."""

    data: DataSet
    setting: Setting
    legend: Legend
    arch: str
    parts: Parts
    save_models: Path | None
    """folder of segmenters"""
    maps: Path | None
    """folder of maps and pictures"""


def kept_fit(
    desk: Desk,
    kind: Kind,
    contender: Contender,
    features: str,
    fraction: float,
    seed: int,
    fitted: Fitted,
    tested: Tested,
) -> dict[str, Any]:
    """The result of one fit as plain values: `tally`, `knn`, `penalty`, `loss`, `features` of an `Outcome`.

    features: `identity` of the contender. The result is written last: what is in parts has its model and its maps.
    """
    of = _depends_on(desk, kind, features, seed, fitted, tested)
    key, known = key_of(of), desk.parts.load(of)
    facts = _facts(desk, kind, contender, fraction) | {"part": key}
    made = key_of({"part": key, "legend": desk.legend.to_json(), "places": _places(desk, tested)})
    model = maps = None
    if desk.save_models is not None and contender.backbone is not None and kind != "knn":
        model = desk.save_models / f"{contender.short}.{kind}-{fraction:g}.seed{seed}.pt"
    if desk.maps is not None and seed == MAPS_SEED and kind != "knn":
        maps = _map_folder(desk.maps, kind, fraction) / contender.short
    if known is not None and _is_model_of(model, facts) and (maps is None or marked(maps, made)):
        return known
    outcome = run_probe(kind, contender, fitted, tested, desk.setting, seed)
    if model is not None and outcome.segmenter is not None:
        save_segmenter(model, outcome.segmenter, facts | {"scores": _scores(outcome)})
    if maps is not None:
        unmark(maps)
        mark(maps, made, _write_maps(desk, maps, outcome, tested))
    found = {
        "tally": outcome.tally.to_json(),
        "knn": None if outcome.knn is None else outcome.knn.to_json(),
        "penalty": outcome.penalty,
        "loss": outcome.loss,
        "features": outcome.features,
    }
    desk.parts.save(of, found)
    return found


def draw_pictures(
    desk: Desk, kind: Kind, fraction: float, seed: int, rivals: Sequence[Contender], tested: Tested
) -> None:
    """A picture of each tested place, where maps are asked for: every contender's map beside truth."""
    if desk.maps is None or seed != MAPS_SEED or kind == "knn":
        return
    folder = _map_folder(desk.maps, kind, fraction)
    shown = [rival for rival in rivals if fits(kind, rival, desk.setting)]
    for (name, _), sample in zip(_places(desk, tested), tested.samples, strict=True):
        predictions = [(rival.name, read_map(folder / rival.short / f"{name}.tif", desk.legend)) for rival in shown]
        images = list(zip(_image_names(desk, len(sample.images)), sample.images, strict=True))
        write_picture(folder / f"{name}.png", images, sample.labels, predictions, desk.legend)


def _depends_on(desk: Desk, kind: Kind, features: str, seed: int, fitted: Fitted, tested: Tested) -> dict[str, Any]:
    setting = desk.setting
    return {
        "format": PARTS_FORMAT,
        "versions": [dic3l.__version__, torch.__version__, setting.device.type],
        "probe": kind,
        "features": features,
        "seed": seed,
        "fitted": fitted.digest,
        "tested": tested.digest,
        "classes": setting.classes,
        "fuse": setting.fuse,
        "tiles": setting.tiles,
        "balanced": setting.balanced,
        "fit": asdict(setting.fit) if stepwise(kind, setting) else None,
    }


def _is_model_of(path: Path | None, facts: Mapping[str, Any]) -> bool:
    """Whether no model is asked for, or the one that is there came of this result and says the same of itself."""
    if path is None:
        return True
    try:
        return path.is_file() and facts.items() <= load_segmenter(path)[1].items()
    except Dic3lError:
        return False


def _facts(desk: Desk, kind: Kind, contender: Contender, fraction: float) -> dict[str, Any]:
    """What `dic3l predict` has to know of a segmenter, but for its scores: plain values."""
    return {
        "classes": list(desk.data.classes),
        "values": list(desk.data.values),
        "kind": kind,
        "arch": desk.arch,
        "weights": contender.name,
        "fraction": fraction,
        "coding": desk.data.coding.to_json(),
        "polarisations": list(desk.data.polarisations),
        "dic3l": dic3l.__version__,
    }


def _scores(outcome: Outcome) -> dict[str, Any]:
    found = scores(outcome.tally.confusion)
    numbers = {"miou": found.miou, "accuracy": found.accuracy, "kappa": found.kappa, "iou": list(found.iou)}
    return finite(numbers)


def _places(desk: Desk, tested: Tested) -> list[tuple[str, Georeference]]:
    """Of each map: its name, and where it lies."""
    places = [desk.data.places[sample.index] for sample in tested.samples]
    where = [place.georeference if isinstance(place, LabelledPlace) else (None, None) for place in places]
    return list(zip(file_names([place.name for place in places]), where, strict=True))


def _write_maps(desk: Desk, folder: Path, outcome: Outcome, tested: Tested) -> list[str]:
    """Names of the files written."""
    places = _places(desk, tested)
    for (name, georeference), prediction in zip(places, outcome.maps, strict=True):
        write_map(folder / f"{name}.tif", prediction, desk.legend, georeference)
    return [f"{name}.tif" for name, _ in places]


def _image_names(desk: Desk, count: int) -> list[str]:
    known = desk.data.polarisations
    return list(known) if len(known) == count else [f"image {number}" for number in range(1, count + 1)]


def _map_folder(maps: Path, kind: Kind, fraction: float) -> Path:
    return maps / f"{kind}-{fraction:g}"
