"""Places are split whole, and odd folders are refused by name."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import (
    IGNORED,
    LabelledImage,
    LabelledPlace,
    Split,
    decode_colours,
    fold_places,
    map_labels,
    official_split,
    paired_files,
    parse_classes,
    split_places,
    take_fraction,
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


@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=40), seed=st.integers(0, 99), share=st.floats(0.05, 0.9))
def test_no_split_and_no_fold_cuts_a_block(sizes: list[int], seed: int, share: float) -> None:
    places = [place for block, size in enumerate(sizes) for place in _places(block + 1, size)[-size:]]
    train, test = split_places(places, seed, share)
    assert train and test and sorted(train + test) == list(range(len(places)))
    assert {places[i].block for i in train}.isdisjoint({places[i].block for i in test})
    folds = fold_places(places, seed, 3)
    assert all(
        len({folds[i] for i, p in enumerate(places) if p.block == block}) == 1 for block in {p.block for p in places}
    )


def _labelled(classes: list[set[int]], each: int = 1) -> list[LabelledPlace]:
    """Places whose labels hold these classes, `each` of them to a block."""

    def reader(held: set[int]) -> np.ndarray:
        return np.array([[*held, IGNORED]], np.uint8)

    return [
        LabelledPlace(f"place {n}", f"block {n // each}", _unread, read_labels=lambda held=held: reader(held))
        for n, held in enumerate(classes)
    ]


def _unread() -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("labels alone are enough")


_CLASSES = st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=120)


@given(classes=_CLASSES, each=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_fractions_are_nested_and_show_every_class(
    classes: list[set[int]], each: int, seed: int, data: st.DataObject
) -> None:
    places = _labelled(classes, each)
    train = sorted(data.draw(st.sets(st.sampled_from(range(len(places))), min_size=1)))
    shares = (0.01, 0.1, 0.5, 1.0)
    taken = [set(take_fraction(places, train, share, seed)) for share in shares]
    for smaller, larger in pairwise(taken):
        assert smaller <= larger
    assert taken[-1] == set(train) and len(taken[0]) >= 1
    there = set().union(*(classes[i] for i in train))
    assert all(set().union(*(classes[i] for i in some)) == there for some in taken)
    assert take_fraction(places, train[::-1], 0.1, seed) == sorted(taken[1])


def test_fractions_are_of_places_where_blocks_are_few_and_of_whole_blocks_where_they_are_many() -> None:
    few = _labelled([{0, 1}] * 1000, each=50)
    assert [len(take_fraction(few, range(1000), share, 0)) for share in (0.01, 0.1)] == [10, 100]
    assert take_fraction(few, range(1000), 0.1, 0) != take_fraction(few, range(1000), 0.1, 1)
    many = _labelled([{0, 1}] * 1000, each=5)
    taken = take_fraction(many, range(1000), 0.1, 0)
    assert len(taken) == 100
    assert all(sum(many[i].block == block for i in taken) == 5 for block in {many[i].block for i in taken})
    rare = _labelled([{0}] * 99 + [{1}])
    assert 99 in take_fraction(rare, range(100), 0.01, 0)
    with pytest.raises(ConfigError, match="share of the labels"):
        take_fraction(few, range(1000), 0.0, 0)


def test_fractions_are_of_images_too() -> None:
    images = [LabelledImage(f"{n}", f"{n}", lambda: np.zeros((1, 8, 8), np.uint8), n % 3) for n in range(60)]
    taken = take_fraction(images, range(60), 0.1, 0)
    assert len(taken) == 6 and {images[i].label for i in taken} == {0, 1, 2}


def test_the_official_split_is_taken_where_there_is_one() -> None:
    def with_splits(*splits: Split | None) -> list[LabelledPlace]:
        return [LabelledPlace(f"{n}", f"{n}", _unread, split=split) for n, split in enumerate(splits)]

    assert official_split(with_splits("train", "val", None, "test", "train")) == ([0, 4], [3])
    assert official_split(with_splits("val", "train")) == ([1], [0])
    with pytest.raises(Dic3lError, match="0 train, 0 val, 1 test found"):
        official_split(with_splits(None, "test"))


_COLOURS = {(0, 0, 0): -1, (255, 0, 0): 0, (0, 255, 0): 1, (0, 0, 255): 2, (255, 255, 0): 3}


@given(st.lists(st.lists(st.sampled_from(sorted(_COLOURS)), min_size=5, max_size=5), min_size=1, max_size=6))
def test_colours_are_decoded_exactly(rows: list[list[tuple[int, int, int]]]) -> None:
    pixels = np.array(rows, np.uint8)
    expected = [[_COLOURS[colour] for colour in row] for row in rows]
    assert decode_colours(pixels, _COLOURS, Path("x.png")).tolist() == expected
    classes = {"building": (0,), "vegetation": (1,), "water": (2,), "road": (3,)}
    labels = map_labels(decode_colours(pixels, _COLOURS, Path("x.png")), classes)
    assert labels.tolist() == [[value if value >= 0 else IGNORED for value in row] for row in expected]


@pytest.mark.parametrize("colour", [(255, 0, 1), (254, 255, 0), (0, 0, 1), (255, 255, 255)])
def test_a_colour_of_no_class_is_told_with_file_and_pixel(colour: tuple[int, int, int]) -> None:
    pixels = np.zeros((7, 9, 3), np.uint8)
    pixels[4, 6] = pixels[5, 0] = colour
    told = ", ".join(map(str, colour))
    with pytest.raises(Dic3lError, match=rf"some/gt\.png: colour \({told}\) at row 4, column 6 is of no class"):
        decode_colours(pixels, _COLOURS, Path("some/gt.png"))


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


@pytest.mark.parametrize("text", ["water", "water=1", "water=1,land=1+2", "=1,b=2", "water=x,land=2", "a=1,b=2,a=3"])
def test_odd_classes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--classes"):
        parse_classes(text)


def _grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def test_images_and_labels_must_pair(tmp_path: Path) -> None:
    with pytest.raises(Dic3lError, match="scenes and labels"):
        paired_files(tmp_path)
    _grey(tmp_path / "images/a.png", 1)
    _grey(tmp_path / "masks/a.png", 1)
    assert paired_files(tmp_path) == [(tmp_path / "images/a.png", tmp_path / "masks/a.png")]
    _grey(tmp_path / "images/b.png", 1)
    with pytest.raises(Dic3lError, match=r"b\.png: nothing of this name in masks"):
        paired_files(tmp_path)
    _grey(tmp_path / "masks/b.jpg", 1)
    with pytest.raises(Dic3lError, match=r"b\.jpg: JPEG changes label values"):
        paired_files(tmp_path)
    _grey(tmp_path / "masks/b.png", 1)
    with pytest.raises(Dic3lError, match=r"b\.png: b\.jpg is there too"):
        paired_files(tmp_path)
