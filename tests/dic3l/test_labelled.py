"""Places are split whole, and odd folders are refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import (
    BLOCK_IDS,
    IGNORED,
    LabelledPlace,
    fold_places,
    map_labels,
    ombria_places,
    paired_files,
    parse_classes,
    split_places,
)


def _places(blocks: int, each: int, seen: tuple[int, ...] = ()) -> list[LabelledPlace]:
    def read() -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("a split reads nothing")

    return [
        LabelledPlace(f"{block}-{i}", str(block), read, seen=block in seen)
        for block in range(blocks)
        for i in range(each)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_block_is_fitted_or_tested_as_a_whole(seed: int) -> None:
    places = _places(20, 7)
    train, test = split_places(places, seed, 0.3)
    assert sorted(train + test) == list(range(140))
    assert {places[i].block for i in train}.isdisjoint({places[i].block for i in test})
    assert len(test) == 42


def test_splits_follow_the_seed_and_not_the_order_of_places() -> None:
    places = _places(20, 3)
    names = {places[i].name for i in split_places(places, 0, 0.3)[1]}
    backwards = places[::-1]
    assert {backwards[i].name for i in split_places(backwards, 0, 0.3)[1]} == names
    assert {places[i].name for i in split_places(places, 1, 0.3)[1]} != names


def test_ground_that_pretraining_did_not_see_is_tested_first() -> None:
    places = _places(10, 2, seen=(0, 1, 2, 3, 4, 5, 6))
    for seed in range(4):
        _, test = split_places(places, seed, 0.3)
        assert {places[i].block for i in test} == {"7", "8", "9"}


def test_two_places_are_the_least() -> None:
    train, test = split_places(_places(2, 1), 0, 0.9)
    assert len(train) == len(test) == 1
    with pytest.raises(Dic3lError, match="two places"):
        split_places(_places(1, 5), 0, 0.3)


def test_folds_hold_whole_blocks_of_even_number() -> None:
    places = _places(9, 4)
    folds = fold_places(places, 0, 3)
    by_block = {place.block: {folds[i] for i, p in enumerate(places) if p.block == place.block} for place in places}
    assert all(len(found) == 1 for found in by_block.values())
    assert np.bincount(folds).tolist() == [12, 12, 12]


def test_classes_are_parsed_and_values_mapped() -> None:
    classes = parse_classes("water=1, dry land=2+3")
    assert classes == {"water": (1,), "dry land": (2, 3)}
    values = np.array([[0, 1, 2], [3, 4, 1]])
    assert map_labels(values, classes).tolist() == [[IGNORED, 0, 1], [1, IGNORED, 0]]


@pytest.mark.parametrize("text", ["water", "water=1", "water=1,land=1+2", "=1,b=2", "water=x,land=2"])
def test_odd_classes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--classes"):
        parse_classes(text)


def _grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def test_ombria_pools_train_and_test_in_blocks_of_ids(tmp_path: Path) -> None:
    for number in (3, 18, 25, 41):
        folder = tmp_path / ("test" if number == 18 else "train")
        _grey(folder / "BEFORE" / f"S1_before_{number:04d}.png", 10)
        _grey(folder / "AFTER" / f"S1_after_{number:04d}.png", 20)
        _grey(folder / "MASK" / f"S1_mask_{number:04d}.png", 255 if number == 25 else 0)
    places = ombria_places(tmp_path)
    assert [place.name for place in places] == ["0003", "0018", "0025", "0041"]
    assert len({place.block for place in places}) == 3 and places[0].block == places[1].block
    images, labels = places[2].read()
    assert images[:, 0, 0].tolist() == [10, 20] and labels.dtype == np.uint8 and (labels == 1).all()
    (tmp_path / "train/MASK/S1_mask_0041.png").unlink()
    with pytest.raises(Dic3lError, match=r"S1_mask_0041\.png: missing"):
        ombria_places(tmp_path)
    with pytest.raises(Dic3lError, match="no OMBRIA data"):
        ombria_places(tmp_path / "nowhere")


def test_real_ombria_has_482_places(real_data: Path) -> None:
    places = ombria_places(real_data / "ombria-flood")
    assert len(places) == 482
    assert {int(place.name) // BLOCK_IDS for place in places} == {int(place.block) for place in places}


def test_images_and_labels_must_pair(tmp_path: Path) -> None:
    with pytest.raises(Dic3lError, match="scenes and labels"):
        paired_files(tmp_path)
    _grey(tmp_path / "images/a.png", 1)
    _grey(tmp_path / "masks/a.png", 1)
    assert paired_files(tmp_path) == [(tmp_path / "images/a.png", tmp_path / "masks/a.png")]
    _grey(tmp_path / "images/b.png", 1)
    with pytest.raises(Dic3lError, match=r"b\.png: nothing of this name in masks"):
        paired_files(tmp_path)
