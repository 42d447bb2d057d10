"""Views that know speckle, against the closed forms of speckle and a slow twin in floating point."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import digamma, polygamma

from dic3l.config import SpeckleConfig
from dic3l.draws import tile_uniforms
from dic3l.speckle import (
    AS_SEEN,
    DRAWS_PER_VIEW,
    FEWER_LOOKS,
    MIXED,
    RESPECKLED,
    SpeckleParams,
    draw_speckle,
    mixed_bias_db,
    speckle_db,
    speckle_view,
)
from sarsense.shards import TileSpeckle

DB = 10 / np.log(10)
STEP, ENL, GROUND = 0.15, 4.0, 133 * 0.15
"""dB a code, looks, and dB of the ground above the lowest code"""


def bias_db(looks: float) -> float:
    return DB * float(digamma(looks) - np.log(looks))


def std_db(looks: float) -> float:
    return DB * float(np.sqrt(polygamma(1, looks)))


def encode(db: np.ndarray) -> np.ndarray:
    return np.clip(1 + np.rint(db / STEP), 1, 255).astype(np.uint8)


def a_tile(side: int = 400) -> np.ndarray:
    """Homogeneous ground with a hole: speckle of ENL looks coded without its bias, and the ground itself."""
    speckle = np.random.default_rng(0).gamma(ENL, 1 / ENL, (side, side))
    tile = np.stack((encode(GROUND + DB * np.log(speckle) - bias_db(ENL)), encode(np.full((side, side), GROUND))))
    tile[:, :10] = 0
    return tile


def known(enl: float = ENL, filtered: bool = True) -> TileSpeckle:
    return TileSpeckle(np.array([STEP]), np.array([enl]), np.array([bias_db(ENL)]), np.array([filtered]))


def params(kind: int, share: float = 0.0, looks: float = 1.0, gain_db: float = 0.0, seed: int = 7) -> SpeckleParams:
    return SpeckleParams(
        kind=np.array([kind]),
        share=np.array([share]),
        looks=np.array([looks]),
        looks_step=np.zeros(1, np.int64),
        gain_db=np.array([gain_db]),
        seed=np.array([seed], np.uint64),
    )


def view(tile: np.ndarray, what: SpeckleParams, facts: TileSpeckle | None = None) -> np.ndarray:
    out = np.empty(tile.shape[1:], np.uint8)
    speckle_view(tile, facts or known(), 0, what, 0, out)
    return out


def to_db(codes: np.ndarray) -> np.ndarray:
    return (codes[codes > 0] - 1.0) * STEP


WAYS = {
    "as seen": params(AS_SEEN),
    "mixed": params(MIXED, share=0.6),
    "speckled": params(MIXED, share=0.0),
    "filtered": params(MIXED, share=1.0),
    "one look": params(RESPECKLED, looks=1.0),
    "ten looks": params(RESPECKLED, looks=10.0),
    "fewer looks": params(FEWER_LOOKS, looks=3.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_homogeneous_ground_keeps_its_mean_code_and_no_data_stays_no_data(way):
    tile = a_tile()
    found = view(tile, WAYS[way])
    np.testing.assert_array_equal(found == 0, tile[0] == 0)
    assert abs(to_db(found).mean() - GROUND) < 0.12  # of speckle of one look, 0.5 per cent is clipped at the lower end


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("one look", std_db(1.0)),
        ("ten looks", std_db(10.0)),
        ("fewer looks", float(np.hypot(std_db(ENL), std_db(3.0)))),
        ("speckled", std_db(ENL)),
        ("filtered", 0.0),
    ],
)
def test_speckle_has_the_spread_of_its_looks(way, expected):
    assert abs(to_db(view(a_tile(), WAYS[way])).std() - expected) < 0.02 * expected + 0.05


@pytest.mark.parametrize("looks", [1.0, 2.7, 16.0])
def test_speckle_is_gamma_of_unit_mean(looks):
    power = np.exp((speckle_db(looks) + bias_db(looks)) / DB)
    assert abs(power.mean() - 1) < 2e-3 and abs(speckle_db(looks).mean()) < 1e-9
    assert stats.kstest(power, stats.gamma(looks, scale=1 / looks).cdf).statistic < 2e-3
    tile = a_tile()
    codes = view(tile, params(RESPECKLED, looks=looks))[tile[0] > 0]
    between = np.random.default_rng(2).uniform(-0.5, 0.5, codes.shape)  # spread over a step: codes are not continuous
    drawn = np.exp(((codes - 1.0 + between) * STEP - GROUND + bias_db(looks)) / DB)
    assert stats.kstest(drawn, stats.gamma(looks, scale=1 / looks).cdf).statistic < 0.01


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_mixing_is_a_weighted_mean_of_power(share):
    tile = a_tile()
    rng = np.random.default_rng(1)
    bias = (DB * np.log((1 - share) * rng.gamma(ENL, 1 / ENL, 2_000_000) + share)).mean()
    assert abs(mixed_bias_db(ENL, share) - bias) < 0.01
    speckled, filtered = ((plane - 1.0) * STEP for plane in tile)
    power = (1 - share) * 10 ** ((speckled + bias_db(ENL)) / 10) + share * 10 ** (filtered / 10)
    place = 1 + (10 * np.log10(power) - bias + 1.5) / STEP
    found = view(tile, params(MIXED, share=share, gain_db=1.5))
    assert np.abs(found - np.clip(place, 1, 255))[tile[0] > 0].max() < 0.6


def test_gain_moves_the_level_and_nothing_else():
    tile = a_tile()
    for kind in (AS_SEEN, RESPECKLED, FEWER_LOOKS):
        moved = view(tile, params(kind, looks=4.0, gain_db=3.0)).astype(int) - view(tile, params(kind, looks=4.0))
        assert abs(moved[tile[0] > 0].mean() - 3.0 / STEP) < 0.1 and not moved[:10].any()


def test_what_is_not_known_is_left_alone():
    tile = a_tile()
    for kind in (MIXED, RESPECKLED, FEWER_LOOKS):
        np.testing.assert_array_equal(view(tile, params(kind, share=0.5), known(enl=np.nan)), tile[0])
    np.testing.assert_array_equal(view(tile, params(MIXED, share=0.5), known(filtered=False)), tile[0])


def test_pixels_are_those_of_the_seed_and_unlike_their_neighbours():
    tile = a_tile()
    one, same, other = (view(tile, params(RESPECKLED, seed=seed)).astype(float)[10:] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    for first, second in ((one, other), (one[:, :-1], one[:, 1:]), (one[:-1], one[1:]), (one[:, :-4], one[:, 4:])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_draws_have_the_shares_and_ranges_of_the_settings():
    config = SpeckleConfig(0.3, 0.2, 0.1, looks=(2.0, 8.0), gain_db=2.0)
    ids = np.arange(40_000, dtype=np.uint64)
    drawn = draw_speckle(tile_uniforms(0, np.zeros(len(ids), int), ids, DRAWS_PER_VIEW), config)
    shares = np.bincount(drawn.kind, minlength=4) / len(ids)
    np.testing.assert_allclose(shares[[MIXED, RESPECKLED, FEWER_LOOKS, AS_SEEN]], [0.3, 0.2, 0.1, 0.4], atol=0.01)
    assert drawn.looks.min() == 2.0 and drawn.looks.max() == pytest.approx(8.0)
    assert np.median(drawn.looks) == pytest.approx(4.0, rel=0.05)
    assert -2.0 <= drawn.gain_db.min() < -1.99 and 1.99 < drawn.gain_db.max() <= 2.0
    assert len(np.unique(drawn.seed)) == len(ids)
    nothing = draw_speckle(tile_uniforms(0, np.zeros(9, int), ids[:9], DRAWS_PER_VIEW), SpeckleConfig())
    assert not nothing.kind.any() and not nothing.gain_db.any()
