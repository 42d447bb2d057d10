"""Weights and labelled data -> a table of scores, against baselines that the reader would ask for.

The order of things: list the labelled places; for each seed split them by place, and give every contender the same
places, the same sampled pixels and the same probe; pool each test set into one confusion matrix; write the table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import dic3l
from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.backbone import (
    Backbone,
    estimate_batch_statistics,
    imagenet_backbone,
    load_backbone,
    random_backbone,
)
from dic3l.evaluate.data import IGNORED, LabelledPlace, fold_places, ombria_places, parse_classes, split_places
from dic3l.evaluate.metrics import Scores, confusion, scores
from dic3l.evaluate.probe import (
    PENALTIES,
    Extractor,
    Fuse,
    backbone_features,
    features_at,
    fit_probe,
    pixel_features,
    sample_pixels,
)
from dic3l.knn import NEIGHBOURS, knn_vote
from pipelines.labelled import LabelledData, folder_data
from sarsense.corpus import open_corpus
from sarsense.files import atomic_write, write_json

Layout = Literal["folder", "ombria"]
MEAN_WINDOWS = (1, 5, 9, 17)
"""sides of the windows of the stronger baseline without a network: what despeckling alone brings"""
STATISTICS_IMAGES = 128
"""images of the train places, at most, from which BatchNorm statistics are taken"""
_STATISTICS_BATCH = 16
_RANDOM_ROW = 3
"""place in the table of the randomly initialised network, the zero of the column 'over random'"""
SEED = "{seed}"
"""in the path of weights: where runs of several seeds are told apart"""
_CAPTION = (
    "Per cent, mean ± standard deviation over seeds. Seeds differ in their split, so scores of one seed hang together: "
    "judge features by 'over random', the difference in mIoU to the random network, seed by seed."
)
_KNN_BANK, _KNN_PIXELS = 5_000, 10_000
"""fitted pixels that vote, and test pixels that are voted on, at most"""
_FOLDS = 3
"""of the cross-validation over train places that chooses the penalty"""


@dataclass(frozen=True)
class _Contender:
    """One row of the table: makes its features anew for each seed."""

    name: str
    extractor: Callable[[int, Sequence[np.ndarray]], Extractor]
    """(seed, images of the train places) -> extractor"""


@dataclass
class _Row:
    name: str
    matrices: list[np.ndarray] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)
    knn: list[np.ndarray] = field(default_factory=list)
    features: int = 0


def evaluate(
    weights: Sequence[str | Path],
    data: Path,
    out: Path,
    layout: Layout,
    arch: str = "resnet18",
    seeds: int = 3,
    *,
    corpus: Path | None = None,
    classes: str | None = None,
    pixels: int = 20_000,
    test_share: float = 0.3,
    balanced: bool = False,
    device: str = "auto",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Probe `weights` and the baselines on labelled data; write evaluation.json and evaluation.md to `out`.

    `weights`: files (torchvision state dicts, as `dic3l export` writes) or folders of runs, '{seed}' in whose path is
    replaced by the number of each seed, or 'imagenet'; random initialisation is always a row. `corpus`: whose dB
    ranges turn GeoTIFF scenes into codes, and whose ground is marked as seen.
    `classes`: 'name=value,name=value+value', what label values mean; default: what the labels say. `pixels`: sampled
    for the fit. Returns what evaluation.json holds. Raises ConfigError, Dic3lError, SarsenseError.
    """
    _check(seeds, pixels, test_share)
    on = _device(device)
    labelled = _labelled(data, layout, corpus, classes)
    fuse: Fuse = "change" if layout == "ombria" else "concat"
    contenders = _contenders([str(w) for w in weights], arch, fuse, on)
    rows = [_Row("majority class"), *(_Row(contender.name) for contender in contenders)]
    splits: list[dict[str, Any]] = []
    _require_writable(out)  # before the first hour, not after it
    for seed in range(seeds):
        train, test = split_places(labelled.places, seed, test_share)
        progress(f"seed {seed}: {len(train)} places to fit, {len(test)} to test")
        split = _prepare(labelled.places, train, test, seed, pixels, on)
        splits.append(
            {
                "train": len(train),
                "test": len(test),
                "test_seen": _seen(labelled.places, test),
                "folds": len(torch.unique(split.folds)),
                "absent": _absent(split, labelled.classes),
            }
        )
        rows[0].matrices.append(_majority(split, len(labelled.classes)))
        for contender, row in zip(contenders, rows[1:], strict=True):
            _score(split, contender.extractor(seed, split.fit_images), row, len(labelled.classes), balanced)
            progress(f"  {row.name}: mIoU {100 * scores(row.matrices[-1]).miou:.2f}")
    result = {
        "protocol": _protocol(layout, labelled, arch, splits, pixels, test_share, balanced, corpus),
        "splits": splits,
        "classes": labelled.classes,
        "rows": [_summary(row, labelled.classes, rows[_RANDOM_ROW]) for row in rows],
        "versions": {"dic3l": dic3l.__version__, "torch": torch.__version__},
    }
    result = _finite(result)
    write_json(out / "evaluation.json", result)
    with atomic_write(out / "evaluation.md") as file:
        file.write(markdown(result).encode())
    return result


def markdown(result: dict[str, Any]) -> str:
    """The table of a result, best read by eye; mean and standard deviation over seeds, in per cent."""
    classes = result["classes"]
    # with two classes the second is the one that matters: its IoU and F1 say more than means
    pair = len(classes) == 2
    named = [("iou", classes[1]), ("f1", classes[1])] if pair else [("iou", name) for name in classes]
    means = {"miou": "mIoU", "gain": "over random", "knn_miou": "kNN mIoU", "accuracy": "OA", "kappa": "kappa"}
    if not pair:
        means["mean_f1"] = "mean F1"
    heads = ["features", *means.values(), *(f"{'IoU' if key == 'iou' else 'F1'} {name}" for key, name in named)]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" + " ---: |" * (len(heads) - 1)]
    for row in result["rows"]:
        cells = [row["name"], *(_cell(row[key]) for key in means)]
        cells += [_cell(row["classes"][name][key]) for key, name in named]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {text}" for text in result["protocol"]["notes"]]
    return "\n".join([*lines, "", _CAPTION, "", *notes, ""])


# --------------------------------------------------------------------------------------------------- one seed


@dataclass(frozen=True)
class _Split:
    """What every contender gets in a seed. Images and labels are held in memory."""

    fit_images: list[np.ndarray]
    """uint8 (K, H, W) of each train place that has labels"""
    sampled: list[tuple[np.ndarray, np.ndarray]]
    """rows and columns of the pixels fitted, by train place"""
    labels: torch.Tensor
    """int64 (n,): classes of those pixels"""
    folds: torch.Tensor
    """int64 (n,): the cross-validation fold of each of those pixels"""
    test: list[tuple[np.ndarray, np.ndarray]]
    """images and labels of each test place"""
    voted: list[tuple[np.ndarray, np.ndarray]]
    """rows and columns of the pixels that kNN is tested on, by test place"""


def _prepare(
    places: Sequence[LabelledPlace], train: list[int], test: list[int], seed: int, pixels: int, device: torch.device
) -> _Split:
    data = [(index, *places[index].read()) for index in train]
    data = [(index, images, labels) for index, images, labels in data if (labels != IGNORED).any()]
    if not data:
        raise Dic3lError("no labelled pixel in the places to fit; --classes or the label rasters are wrong")
    share = -(-pixels // len(data))
    sampled = [sample_pixels(labels, share, np.random.default_rng([seed, index])) for index, _, labels in data]
    classes = [labels[at] for (_, _, labels), at in zip(data, sampled, strict=True)]
    folds = fold_places([places[index] for index, _, _ in data], seed, _FOLDS)
    tested = [places[index].read() for index in test]
    each = -(-_KNN_PIXELS // len(tested))
    voted = [
        sample_pixels(truth, each, np.random.default_rng([seed, index, 1]))
        for index, (_, truth) in zip(test, tested, strict=True)
    ]
    return _Split(
        fit_images=[images for _, images, _ in data],
        sampled=sampled,
        labels=torch.from_numpy(np.concatenate(classes).astype(np.int64)).to(device),
        folds=torch.from_numpy(np.repeat(folds, [len(part) for part in classes])).to(device),
        test=tested,
        voted=voted,
    )


def _score(split: _Split, extract: Extractor, row: _Row, count: int, balanced: bool) -> None:
    """Fit the probe on the features of one contender, test it, and add what came out to its row."""
    parts = [features_at(extract(images), *at) for images, at in zip(split.fit_images, split.sampled, strict=True)]
    features = torch.cat(parts)
    probe = fit_probe(features, split.labels, split.folds, count, balanced, PENALTIES)
    matrix, voted = np.zeros((count, count), np.int64), np.zeros((count, count), np.int64)
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    some = slice(None, None, -(-len(features) // _KNN_BANK))
    bank, bank_labels = (features[some] - mean) / std, split.labels[some]
    for (images, truth), at in zip(split.test, split.voted, strict=True):
        maps = extract(images)
        matrix += confusion(truth, probe.predict(maps, *truth.shape), count, IGNORED)
        if len(at[0]):
            classes = knn_vote(bank, bank_labels, (features_at(maps, *at) - mean) / std, count)
            voted += confusion(truth[at], classes.cpu().numpy(), count, IGNORED)
    row.matrices.append(matrix)
    row.knn.append(voted)
    row.penalties.append(probe.penalty)
    row.features = features.shape[1]


def _majority(split: _Split, count: int) -> np.ndarray:
    """The confusion matrix of always saying the most frequent class of the fitted pixels."""
    most = int(torch.bincount(split.labels, minlength=count).argmax())
    truth = np.concatenate([labels.ravel() for _, labels in split.test])
    return confusion(truth, np.full_like(truth, most), count, IGNORED)


def _contenders(weights: Sequence[str], arch: str, fuse: Fuse, device: torch.device) -> list[_Contender]:
    def of_backbone(make: Callable[[int], Backbone]) -> Callable[[int, Sequence[np.ndarray]], Extractor]:
        def extractor(seed: int, images: Sequence[np.ndarray]) -> Extractor:
            backbone = make(seed).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            estimate_batch_statistics(backbone, _statistics_batches(images, seed, device))
            return backbone_features(backbone, fuse, device)

        return extractor

    random_backbone(arch, 0)  # a wrong arch, as a wrong file below, is refused before the first hour
    means = f"pixel values and means ({', '.join(str(side) for side in MEAN_WINDOWS[1:])})"
    found = [
        _Contender("pixel values", lambda seed, images: pixel_features((1,), fuse, device)),
        _Contender(means, lambda seed, images: pixel_features(MEAN_WINDOWS, fuse, device)),
        _Contender(f"{arch}, random", of_backbone(lambda seed: random_backbone(arch, seed))),
    ]
    for name in dict.fromkeys(weights):
        if name == "random":
            continue
        make = _maker(name, arch)
        make(0)
        found.append(_Contender(f"{arch}, {name}", of_backbone(make)))
    return found


def _maker(name: str, arch: str) -> Callable[[int], Backbone]:
    if name == "imagenet":
        return lambda seed: imagenet_backbone(arch)
    return lambda seed: load_backbone(Path(name.replace(SEED, str(seed))), arch)


def _statistics_batches(images: Sequence[np.ndarray], seed: int, device: torch.device) -> list[torch.Tensor]:
    """Batches of single images (uint8 (n, H, W)), drawn evenly from the train places; sizes may differ by place."""
    order = np.random.default_rng([seed, 1]).permutation(len(images))
    chosen = [image for index in order for image in images[index]][:STATISTICS_IMAGES]
    by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in chosen:
        by_shape.setdefault(image.shape, []).append(image)
    return [
        torch.from_numpy(np.stack(same[start : start + _STATISTICS_BATCH])).to(device)
        for same in by_shape.values()
        for start in range(0, len(same), _STATISTICS_BATCH)
    ]


# --------------------------------------------------------------------------------------- data and description


def _labelled(data: Path, layout: Layout, corpus: Path | None, classes: str | None) -> LabelledData:
    if layout == "ombria":
        if classes is not None:
            raise ConfigError("--classes: OMBRIA has its own (other, flood); the option is for --layout folder")
        return LabelledData(ombria_places(data), ["other", "flood"], "8-bit values as they are, / 255")
    codes = None if classes is None else parse_classes(classes)
    return folder_data(data, None if corpus is None else open_corpus(corpus), codes)


def _seen(places: Sequence[LabelledPlace], test: Sequence[int]) -> int | None:
    known = [places[index].seen for index in test]
    return None if None in known else sum(bool(value) for value in known)


def _protocol(
    layout: Layout,
    labelled: LabelledData,
    arch: str,
    splits: Sequence[dict[str, Any]],
    pixels: int,
    test_share: float,
    balanced: bool,
    corpus: Path | None,
) -> dict[str, Any]:
    blocks = len({place.block for place in labelled.places})
    pair = layout == "ombria"
    images = "both images and their absolute difference" if pair else "all images of a place side by side"
    notes = [
        f"{len(labelled.places)} places in {blocks} blocks; about {test_share:.0%} of the places, whole blocks, are "
        "tested; a seed draws another split, other sampled pixels and another random network, the same for all rows",
        "probe: L2-penalised multinomial logistic regression on frozen features of stages 1 to 4, interpolated to each "
        f"pixel, of {images}; {pixels} pixels fitted; {_choice_of_penalty(splits)}",
        f"kNN: {NEIGHBOURS} nearest of at most {_KNN_BANK} fitted pixels vote on {_KNN_PIXELS} test pixels, features "
        "standardised, cosine (Wu et al., 2018); nothing is fitted",
        f"class weights: {'balanced' if balanced else 'none'}",
        "BatchNorm statistics of every network, the random ones too, are taken anew from train images",
        "scores: all test pixels in one confusion matrix; means unweighted over the classes that the test truth has; "
        "pixels of no class ignored",
        f"input: {labelled.normalisation}",
    ]
    notes += [
        f"seed {seed}: the tested places have no {', '.join(split['absent'])}: no scores, no part in the means"
        for seed, split in enumerate(splits)
        if split["absent"]
    ]
    return {
        "layout": layout,
        "arch": arch,
        "seeds": len(splits),
        "pixels": pixels,
        "test_share": test_share,
        "balanced": balanced,
        "corpus": None if corpus is None else open_corpus(corpus).digest,
        "places": len(labelled.places),
        "blocks": blocks,
        "notes": notes,
    }


def _choice_of_penalty(splits: Sequence[dict[str, Any]]) -> str:
    folds = sorted({split["folds"] for split in splits})
    if folds == [1]:
        return f"penalty {PENALTIES[0]:g}, the strongest: one train block leaves nothing to choose it by"
    told = "- or ".join(map(str, folds))
    return f"penalty chosen by {told}-fold cross-validation over train blocks (best mIoU)"


def _absent(split: _Split, classes: Sequence[str]) -> list[str]:
    """Classes that no test place has."""
    present = {int(value) for _, labels in split.test for value in np.unique(labels)}
    return [name for number, name in enumerate(classes) if number not in present]


def _require_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Dic3lError(f"--out {out}: cannot be made: {error.strerror}; choose another") from error
    if not os.access(out, os.W_OK):
        raise Dic3lError(f"--out {out}: cannot be written; choose another")


def _summary(row: _Row, classes: Sequence[str], random: _Row) -> dict[str, Any]:
    of_seeds = [scores(matrix) for matrix in row.matrices]
    gains = [a.miou - scores(b).miou for a, b in zip(of_seeds, random.matrices, strict=True)]

    def spread(value: Callable[[Scores], float]) -> dict[str, Any]:
        return _spread([value(one) for one in of_seeds])

    return {
        "name": row.name,
        "features": row.features,
        "miou": spread(lambda s: s.miou),
        "gain": _spread(gains),
        "accuracy": spread(lambda s: s.accuracy),
        "kappa": spread(lambda s: s.kappa),
        "knn_miou": _spread([scores(matrix).miou for matrix in row.knn]),
        "mean_f1": spread(lambda s: s.mean_f1),
        "classes": {
            name: {
                "iou": spread(lambda s, i=index: s.iou[i]),
                "f1": spread(lambda s, i=index: s.f1[i]),
                "precision": spread(lambda s, i=index: s.precision[i]),
                "recall": spread(lambda s, i=index: s.recall[i]),
            }
            for index, name in enumerate(classes)
        },
        "penalties": row.penalties,
        "confusion": [matrix.tolist() for matrix in row.matrices],
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (over n - 1) of the values that are numbers; None where there are too few."""
    known = np.array([value for value in values if math.isfinite(value)])
    return {
        "mean": float(known.mean()) if known.size else None,
        "std": float(known.std(ddof=1)) if known.size > 1 else None,
        "values": list(values),
    }


def _cell(value: dict[str, Any]) -> str:
    if value["mean"] is None:
        return "-"
    return f"{100 * value['mean']:.2f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.2f}")


def _finite(value: Any) -> Any:
    """NaN as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device: auto, cpu or cuda expected, '{name}' found")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; leave it out or say cpu")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def _check(seeds: int, pixels: int, test_share: float) -> None:
    if seeds < 1:
        raise ConfigError(f"--seeds: 1 or more expected, {seeds} found")
    if pixels < 100:
        raise ConfigError(f"--pixels: 100 or more expected, {pixels} found")
    if not 0 < test_share < 1:
        raise ConfigError(f"--test-share: above 0, below 1 expected, {test_share:g} found")
