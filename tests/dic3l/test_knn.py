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


def test_the_probe_takes_the_tiles_that_the_seed_says_and_only_scenes_that_its_bank_knows():
    val, names, config = FakeTiles(24), [*scenes(23, 3), "new"], settings(train__probe_tiles=18)
    probe, again = (scene_probe(val, names, config) for _ in range(2))
    assert probe is not None and again is not None
    assert np.array_equal(probe.bank_rows, again.bank_rows) and len(probe.bank_rows) == 12
    assert 0 < len(probe.query_rows) <= 6 and not set(probe.query_rows) & set(probe.bank_rows)
    told = {int(label): names[row] for label, row in zip(probe.bank_labels, probe.bank_rows, strict=True)}
    for label, row in zip(probe.query_labels, probe.query_rows, strict=True):
        assert told[int(label)] == names[row]
    assert 0 <= probe.chance < 1


def test_there_is_no_probe_without_val_tiles_or_with_one_scene_or_where_none_is_asked_for():
    assert scene_probe(FakeTiles(0), [], settings()) is None
    assert scene_probe(FakeTiles(9), ["one"] * 9, settings()) is None
    assert scene_probe(FakeTiles(24), scenes(24, 2), settings(train__probe_tiles=0)) is None
    assert scene_probe(FakeTiles(9), [str(n) for n in range(9)], settings()) is None  # each scene in one tile


class TwinTiles(FakeTiles):
    """Every tile is there twice."""

    def __init__(self) -> None:
        super().__init__(24)
        self._pixels = self._pixels[np.arange(24) // 2]


def test_the_probe_sees_the_middle_of_tiles_through_the_query_network_and_leaves_it_as_it_was():
    config = settings(train__probe_tiles=24)
    probe = scene_probe(TwinTiles(), [f"{n // 2}" for n in range(24)], config)  # a scene is a tile and its twin
    assert probe is not None
    method = DIC3L(config.method, 0, division(config))
    before = {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, torch.Tensor)}
    found = probe.accuracy(method, config, CPU, None)
    assert all(value.equal(method.state_dict()[name]) for name, value in before.items())
    assert all(module.training for module in method.modules())
    encoder = method.query.encoder.eval()
    with torch.no_grad():
        bank, queries = (
            encoder(torch.from_numpy(np.ascontiguousarray(TwinTiles().read(rows)[:, :, 8:40, 8:40])))[4].mean((2, 3))
            for rows in (probe.bank_rows, probe.query_rows)
        )
    votes = knn_vote(bank, torch.from_numpy(probe.bank_labels), queries, 12)
    assert found == pytest.approx((votes.numpy() == probe.query_labels).mean()) and found > probe.chance


def test_the_middle_of_a_tile_is_its_middle():
    tile = np.arange(36).reshape(1, 1, 6, 6)
    assert centre(tile, 2).ravel().tolist() == [14, 15, 20, 21]
    assert centre(tile, 10).shape == (1, 1, 6, 6)
