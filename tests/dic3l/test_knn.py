"""kNN against scikit-learn, and the online probe of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dic3l.groups import division
from dic3l.knn import centre, knn_vote, scene_probe
from dic3l.method import DIC3L
from tests.dic3l.test_stream import FakeTiles, settings

CPU = torch.device("cpu")


@pytest.mark.parametrize("neighbours", [1, 5, 20, 100])
def test_votes_are_those_of_scikit_learn(neighbours):
    rng = np.random.default_rng(0)
    bank, queries, labels = rng.normal(size=(60, 8)), rng.normal(size=(40, 8)), rng.integers(0, 4, 60)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]
    reference = KNeighborsClassifier(
        min(neighbours, 60), weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute"
    ).fit(unit[0], labels)
    found = knn_vote(*(torch.from_numpy(x) for x in (bank, labels, queries)), 4, neighbours)
    assert found.tolist() == reference.predict(unit[1]).tolist()


def scenes(count: int, kinds: int) -> list[str]:
    return [f"scene-{index * kinds // count}" for index in range(count)]


def test_the_probe_takes_the_tiles_that_the_seed_says_and_only_scenes_that_the_bank_knows():
    train, val, config = FakeTiles(24), FakeTiles(10), settings(train__probe_tiles=12)
    probe, again = (scene_probe(train, scenes(24, 3), val, [*scenes(8, 3), "new", "new"], config) for _ in range(2))
    assert probe is not None and again is not None
    assert np.array_equal(probe.bank_rows, again.bank_rows) and len(probe.bank_rows) == 12
    assert len(probe.query_rows) == 6 and probe.query_rows.max() < 8
    names = {int(label): scenes(24, 3)[row] for label, row in zip(probe.bank_labels, probe.bank_rows, strict=True)}
    for label, row in zip(probe.query_labels, probe.query_rows, strict=True):
        assert names[int(label)] == scenes(8, 3)[row]
    assert 0 < probe.chance < 1


def test_there_is_no_probe_without_val_tiles_or_with_one_scene_or_where_none_is_asked_for():
    train, val = FakeTiles(24), FakeTiles(8)
    assert scene_probe(train, scenes(24, 2), FakeTiles(0), [], settings()) is None
    assert scene_probe(train, ["one"] * 24, val, ["one"] * 8, settings()) is None
    assert scene_probe(train, scenes(24, 2), val, ["other"] * 8, settings()) is None
    assert scene_probe(train, scenes(24, 2), val, scenes(8, 2), settings(train__probe_tiles=0)) is None


def test_a_network_finds_the_tile_it_has_seen_and_goes_on_training_as_it_was():
    tiles, config = FakeTiles(12), settings(train__probe_tiles=12)
    probe = scene_probe(tiles, tiles.keys, tiles, tiles.keys, config)  # each tile a scene of its own
    assert probe is not None
    method = DIC3L(config.method, 0, division(config))
    before = {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, torch.Tensor)}
    assert probe.accuracy(method, config, CPU, None) == 1.0
    assert all(value.equal(method.state_dict()[name]) for name, value in before.items())
    assert all(module.training for module in method.modules())


def test_the_middle_of_a_tile_is_its_middle():
    tile = np.arange(36).reshape(1, 1, 6, 6)
    assert centre(tile, 2).ravel().tolist() == [14, 15, 20, 21]
    assert centre(tile, 10).shape == (1, 1, 6, 6)
