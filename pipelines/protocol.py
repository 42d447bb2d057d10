"""How an evaluation was made, in words that stand below its tables, and in the numbers that they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dic3l.evaluate.data import IGNORED
from dic3l.evaluate.probe import PENALTIES
from dic3l.knn import NEIGHBOURS
from pipelines.draw import KNN_PIXELS, DataSet, Fitted, Tested
from pipelines.probes import KNN_BANK, Kind, Setting, stepwise


def protocol(
    layout: str,
    data: DataSet,
    arch: str,
    kinds: Sequence[Kind],
    setting: Setting,
    fractions: Sequence[float],
    pixels: int,
    test_share: float | None,
    corpus: str | None,
    splits: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The settings of an evaluation, and the notes of its tables.

    test_share: None where the split is the data's own. corpus: its digest. splits: of `describe_split`, by seed.
    """
    blocks = len({place.block for place in data.places})
    notes = [
        *_data_notes(data, blocks, test_share),
        *_fraction_note(fractions, splits),
        *_probe_notes(kinds, setting, pixels, splits, data.dates),
        f"input: {data.normalisation}",
        *_split_notes(splits),
    ]
    return {
        "layout": layout,
        "task": "classification" if setting.tiles else "segmentation",
        "arch": arch,
        "probes": list(kinds),
        "finetune": setting.finetune,
        "fractions": list(fractions),
        "fit": asdict(setting.fit) if any(stepwise(kind, setting) for kind in kinds) else None,
        "seeds": len(splits),
        "pixels": pixels,
        "test_share": test_share,
        "official_split": test_share is None,
        "balanced": setting.balanced,
        "corpus": corpus,
        "places": len(data.places),
        "blocks": blocks,
        "notes": notes,
    }


def describe_split(data: DataSet, train: Sequence[int], test: Sequence[int], tested: Tested) -> dict[str, Any]:
    """The numbers of a seed's split; `describe_fitted` adds those of each fraction."""
    known = [data.places[index].seen for index in test]
    return {
        "train": len(train),
        "test": len(test),
        "test_seen": None if None in known else sum(bool(value) for value in known),
        "absent": _lacking(data.classes, [sample.labels for sample in tested.samples]),
        "fitted": {},
        "folds": {},
        "unfitted": {},
    }


def describe_fitted(split: dict[str, Any], fraction: float, fitted: Fitted, classes: Sequence[str]) -> None:
    """Add how many places a fraction fits, in how many folds, and which classes they lack."""
    split["fitted"][f"{fraction:g}"] = len(fitted.samples)
    split["folds"][f"{fraction:g}"] = len(np.unique(fitted.folds))
    split["unfitted"][f"{fraction:g}"] = _lacking(classes, fitted.labels)


def _lacking(classes: Sequence[str], labels: Sequence[np.ndarray]) -> list[str]:
    present = {int(value) for one in labels for value in np.unique(one)}
    return [name for number, name in enumerate(classes) if number not in present]


def _data_notes(data: DataSet, blocks: int, test_share: float | None) -> list[str]:
    """Which places are tested, and what classes there are."""
    count, things = len(data.places), "tiles" if data.tiles else "places"
    if test_share is None:
        split = f"{count} {things}; the data's own split: fitted to its train part, tested on its test part (val where "
        split += "it has none); a seed draws other sampled pixels, fractions, decoders and another random network, the "
        split += "same for all rows"
    else:
        split = (
            f"{count} {things} in {blocks} blocks; about {test_share:.0%} of the {things}, whole blocks, are tested; "
        )
        split += "a seed draws another split, other sampled pixels and another random network, the same for all rows"
    named = ", ".join(f"{name} ({value})" for name, value in zip(data.classes, data.values, strict=True))
    if data.tiles:
        return [split, f"classes: {', '.join(data.classes)}; none ignored"]
    return [split, f"classes (first label value of each): {named}; ignored: label values of no class, index {IGNORED}"]


def _probe_notes(
    kinds: Sequence[Kind], setting: Setting, pixels: int, splits: Sequence[dict[str, Any]], pair: bool
) -> list[str]:
    """What is fitted, by probe, and how scores are made of it."""
    images = "both images and their absolute difference" if pair else "all images of a place side by side"
    choice = _choice_of_penalty(splits)
    notes = []
    for kind in kinds:
        if stepwise(kind, setting):
            notes.append(_of_decoder(kind, setting))
        elif kind == "segment-linear":
            notes.append(
                "probe segment-linear: L2-penalised multinomial logistic regression on frozen features of stages 1 to "
                f"4, interpolated to each pixel, of {images}; {pixels} pixels fitted; {choice}"
            )
        elif kind == "linear":
            notes.append(
                "probe linear: L2-penalised multinomial logistic regression on frozen features of stage 4, mean over a "
                f"tile, of {images}; {choice}"
            )
        elif setting.tiles:
            notes.append(
                f"probe knn: {NEIGHBOURS} nearest of all fitted tiles vote on each test tile, mean features of stage "
                "4, standardised, cosine (Wu et al., 2018); nothing is fitted"
            )
    if not setting.tiles and ("knn" in kinds or ("segment-linear" in kinds and not setting.finetune)):
        notes.append(
            f"kNN: {NEIGHBOURS} nearest of at most {KNN_BANK} fitted pixels vote on {KNN_PIXELS} test pixels, features "
            "standardised, cosine (Wu et al., 2018); nothing is fitted"
        )
    if setting.tiles:
        notes.append("pixel values: mean code of each image, and the standard deviation of its window means")
    counted = "tiles" if setting.tiles else "pixels"
    return [
        *notes,
        f"class weights: {'balanced' if setting.balanced else 'none'}",
        "BatchNorm statistics of every network, the random ones too, are taken anew from train images",
        f"averaging: all test {counted} of a seed in one confusion matrix (in the JSON; rows are the truth); means "
        f"unweighted over the classes that the test truth has; {counted} of no class ignored",
    ]


def _split_notes(splits: Sequence[dict[str, Any]]) -> list[str]:
    """What some seeds lack."""
    notes = [
        f"seed {seed}: the tested places have no {', '.join(split['absent'])}: no scores, no part in the means"
        for seed, split in enumerate(splits)
        if split["absent"]
    ]
    return notes + [
        f"seed {seed}, {fraction} % of the labels: the fitted places have no {', '.join(names)}"
        for seed, split in enumerate(splits)
        for fraction, names in split["unfitted"].items()
        if names
    ]


def _fraction_note(fractions: Sequence[float], splits: Sequence[dict[str, Any]]) -> list[str]:
    """How many places the fractions are."""
    if list(fractions) == [100.0]:
        return []
    counts = [
        f"{fraction:g} %: {' / '.join(str(split['fitted'][f'{fraction:g}']) for split in splits)}"
        for fraction in fractions
    ]
    return [f"labels: a share of the train places, at least one; places fitted, by seed: {', '.join(counts)}"]


def _of_decoder(kind: Kind, setting: Setting) -> str:
    fit = setting.fit
    backbone = "fine-tuned along" if setting.finetune else "frozen"
    return (
        f"probe {kind}: decoder trained for {fit.steps} steps of {fit.batch_size} crops of {fit.crop} px, learning "
        f"rate {fit.lr:g}, weight decay {fit.weight_decay:g}, backbone {backbone}; the same budget for all rows"
    )


def _choice_of_penalty(splits: Sequence[dict[str, Any]]) -> str:
    folds = sorted({count for split in splits for count in split["folds"].values()})
    alone = f"penalty {PENALTIES[0]:g}, the strongest: one train block leaves nothing to choose it by"
    if folds == [1]:
        return alone
    told = "- or ".join(str(count) for count in folds if count > 1)
    chosen = f"penalty chosen by {told}-fold cross-validation over train blocks (best mIoU)"
    return f"{chosen}; where one train block leaves nothing to choose it by, {PENALTIES[0]:g}" if 1 in folds else chosen
