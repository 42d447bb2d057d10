"""A labelled data set, and what a seed draws of it for every contender alike: places, sampled pixels, folds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import IGNORED, LabelledImage, LabelledPlace, fold_places, parse_classes
from dic3l.evaluate.probe import sample_pixels
from pipelines.coding import Coding
from pipelines.labelled import CLASS_FOLDERS, labelled_data, labelled_images
from sarsense.corpus import Corpus

KNN_PIXELS = 10_000
"""test pixels that kNN is tested on, about"""
FOLDS = 3
"""of the cross-validation over train places that chooses the penalty"""

Place = LabelledPlace | LabelledImage
Pixels = tuple[np.ndarray, np.ndarray]
"""rows and columns, int64 (n,) each"""


@dataclass(frozen=True)
class DataSet:
    """Labelled places or tiles, and what is known of them."""

    places: Sequence[Place]
    classes: list[str]
    values: tuple[int, ...]
    """what each class is written as in maps: its first label value, or its number where these are no bytes"""
    normalisation: str
    coding: Coding
    polarisations: tuple[str, ...]
    dates: bool = False
    """whether the images of a place are two dates"""
    tiles: bool = False
    """whether it is tiles of one class each"""


@dataclass(frozen=True)
class Sample:
    """A place, or a tile of one class, as it was read; held in memory."""

    index: int
    """among all places"""
    images: np.ndarray
    """uint8 (K, H, W)"""
    labels: np.ndarray
    """uint8 (H, W); of a tile (1, 1)"""


@dataclass(frozen=True)
class Fitted:
    """What a probe is fitted to, in one seed and fraction."""

    samples: list[Sample]
    """of the train places that have labels"""
    pixels: list[Pixels]
    """those that are fitted, by sample: all, of tiles"""
    folds: np.ndarray
    """int64 (samples,): the fold of each for cross-validation; whole blocks"""
    digest: str
    """of all of it"""

    @property
    def images(self) -> list[np.ndarray]:
        return [sample.images for sample in self.samples]

    @property
    def labels(self) -> list[np.ndarray]:
        return [sample.labels for sample in self.samples]

    @property
    def pixel_labels(self) -> np.ndarray:
        """int64 (n,): classes of all fitted pixels, sample by sample"""
        parts = [sample.labels[at] for sample, at in zip(self.samples, self.pixels, strict=True)]
        return np.concatenate(parts).astype(np.int64)

    @property
    def pixel_folds(self) -> np.ndarray:
        """int64 (n,): their folds"""
        return np.repeat(self.folds, [len(rows) for rows, _ in self.pixels])


@dataclass(frozen=True)
class Tested:
    """What a probe is tested on, in one seed."""

    samples: list[Sample]
    pixels: list[Pixels]
    """those that kNN is tested on, by sample"""
    digest: str


def open_data(root: Path, layout: str, corpus: Corpus | None, classes: str | None) -> DataSet:
    """The data set in a folder, of a layout in `pipelines.labelled.LAYOUTS`. ConfigError, Dic3lError, SarsenseError."""
    if layout == CLASS_FOLDERS:
        if classes is not None:
            raise ConfigError(f"--classes: the folders of --layout {CLASS_FOLDERS} name them; the option is for maps")
        found = labelled_images(root, corpus)
        names, numbers = found.classes, tuple(range(len(found.classes)))
        return DataSet(found.images, names, numbers, found.normalisation, found.coding, found.polarisations, tiles=True)
    maps = labelled_data(root, layout, corpus, None if classes is None else parse_classes(classes))
    values = maps.values if all(0 <= value <= 255 for value in maps.values) else tuple(range(len(maps.classes)))
    return DataSet(
        maps.places, maps.classes, values, maps.normalisation, maps.coding, maps.polarisations, dates=maps.dates
    )


def draw_fitted(places: Sequence[Place], train: Sequence[int], seed: int, pixels: int) -> Fitted:
    """Read the train places, sample about `pixels` of their pixels, evenly by place, and deal them into folds."""
    samples = [sample for sample in _read(places, train) if (sample.labels != IGNORED).any()]
    if not samples:
        raise Dic3lError("no labelled pixel in the places to fit; --classes or the label rasters are wrong")
    share = -(-pixels // len(samples))
    sampled = [sample_pixels(one.labels, share, np.random.default_rng([seed, one.index])) for one in samples]
    folds = fold_places([places[sample.index] for sample in samples], seed, FOLDS)
    return Fitted(samples, sampled, folds, _digest(samples, sampled, folds))


def draw_tested(places: Sequence[Place], test: Sequence[int], seed: int) -> Tested:
    """Read the test places, and sample the pixels that kNN is tested on."""
    samples = _read(places, test)
    if not any((sample.labels != IGNORED).any() for sample in samples):
        raise Dic3lError(
            f"no labelled pixel in the {len(samples)} places to test of seed {seed}; --classes or the label rasters "
            "are wrong, or more places have to be tested (--test-share)"
        )
    share = -(-KNN_PIXELS // len(samples))
    voted = [sample_pixels(one.labels, share, np.random.default_rng([seed, one.index, 1])) for one in samples]
    return Tested(samples, voted, _digest(samples, voted, np.zeros(0, np.int64)))


def _read(places: Sequence[Place], indices: Sequence[int]) -> list[Sample]:
    samples = [_sample(places[index], index) for index in indices]
    for sample in samples:
        if len(sample.images) != len(samples[0].images):
            raise Dic3lError(
                f"place {places[sample.index].name}: {len(sample.images)} images, place {places[indices[0]].name} has "
                f"{len(samples[0].images)}; all places must have the same, since their features stand side by side"
            )
    return samples


def _sample(place: Place, index: int) -> Sample:
    if isinstance(place, LabelledImage):
        return Sample(index, place.read(), np.full((1, 1), place.label, np.uint8))
    return Sample(index, *place.read())


def _digest(samples: Sequence[Sample], pixels: Sequence[Pixels], folds: np.ndarray) -> str:
    found = hashlib.sha256()
    arrays = [array for one in samples for array in (one.images, one.labels)] + [a for at in pixels for a in at]
    for array in [*arrays, folds]:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
