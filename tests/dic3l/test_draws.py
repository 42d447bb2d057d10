"""Draws are pure functions, and Philox is the published Philox."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dic3l.draws import permutation, philox, tile_uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that the authors distribute with Random123 (kat_vectors)
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    a, b, c, d = (np.array([int(word, 16)], np.uint64) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    words = philox((a, b, c, d), (k0, k1))
    assert [f"{int(word):08x}" for word in words[0]] == expected.split()


def test_a_tile_draws_the_same_whatever_batch_it_is_in_and_however_many_numbers_are_asked_for():
    ids = np.array([3, 2**64 - 1, 7, 2**40], np.uint64)
    epochs = np.array([0, 1, 2, 2])
    together = tile_uniforms(5, epochs, ids, 37)
    for row in range(4):
        alone = tile_uniforms(5, epochs[row : row + 1], ids[row : row + 1], 10)
        np.testing.assert_array_equal(alone[0], together[row, :10])


def test_seed_epoch_and_every_bit_of_the_identity_matter():
    one = np.array([1], np.uint64)
    base = tile_uniforms(0, np.array([0]), one, 8)
    others = [
        tile_uniforms(1, np.array([0]), one, 8),
        tile_uniforms(-1, np.array([0]), one, 8),
        tile_uniforms(0, np.array([1]), one, 8),
        *(tile_uniforms(0, np.array([0]), one ^ np.uint64(1 << bit), 8) for bit in range(64)),
    ]
    rows = {tuple(row[0]) for row in [base, *others]}
    assert len(rows) == len(others) + 1


def test_draws_are_uniform_and_independent_between_neighbouring_tiles():
    u = tile_uniforms(0, np.zeros(5000, int), np.arange(5000, dtype=np.uint64), 20)
    assert u.dtype == np.float64 and u.min() >= 0 and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.05
    assert np.abs(np.corrcoef(u.T) - np.eye(20)).max() < 0.07


@settings(deadline=None)
@given(n=st.integers(0, 300), index=st.integers(0, 2**31), seed=st.integers(-(2**31), 2**63))
def test_a_permutation_holds_every_number_once_and_is_repeatable(n, index, seed):
    order = permutation(seed, "epoch", index, n)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order, permutation(seed, "epoch", index, n))


def test_permutations_of_other_streams_indices_and_seeds_differ():
    orders = [permutation(*key, 50) for key in [(0, "epoch", 0), (0, "shuffle", 0), (0, "epoch", 1), (1, "epoch", 0)]]
    assert len({tuple(order) for order in orders}) == 4


def test_every_place_is_equally_likely_for_the_first_element():
    places = [int(np.flatnonzero(permutation(0, "epoch", index, 8) == 0)[0]) for index in range(2000)]
    assert stats.chisquare(np.bincount(places, minlength=8)).pvalue > 1e-3
