import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sarsense.normalize import (
    BIN_DB,
    MeasuredBand,
    decode,
    encode,
    enl_bias_db,
    group_range,
    histogram_db,
    percentile_db,
)
from sarsense.speckle import log_bias_db, log_std_db
from tests.conftest import speckled_power

finite_db = arrays(np.float32, (50,), elements=st.floats(-40, 10, width=32))


@given(db=finite_db, lo=st.floats(-60, -5), span=st.floats(3, 90))
def test_round_trip_is_within_half_a_step_inside_the_range(db, lo, span):
    inside = np.clip(db, lo, lo + span).astype(np.float32)
    back = decode(encode(inside, lo, lo + span), lo, lo + span)
    assert np.abs(back - inside).max() <= 0.5 * span / 254 + 2e-5


@given(db=arrays(np.float32, (50,), elements=st.floats(-300, 300, width=32) | st.just(float("nan"))))
def test_code_zero_is_no_data_and_nothing_else(db):
    codes = encode(db, -30.0, 5.0)
    np.testing.assert_array_equal(codes == 0, np.isnan(db))
    np.testing.assert_array_equal(np.isnan(decode(codes, -30.0, 5.0)), np.isnan(db))


@given(parts=st.lists(finite_db, min_size=1, max_size=5))
def test_histograms_of_parts_add_up_to_that_of_the_whole(parts):
    whole = histogram_db(np.concatenate(parts))
    np.testing.assert_array_equal(whole, np.sum([histogram_db(part) for part in parts], axis=0))


def test_percentiles_agree_with_numpy_within_a_bin():
    db = np.random.default_rng(0).normal(-12, 5, 200_000).astype(np.float32)
    for percent in (0.1, 1, 50, 99, 99.9):
        assert abs(percentile_db(histogram_db(db), percent) - np.percentile(db, percent)) < 2 * BIN_DB


def _band(mean_db: float, looks: float, seed: int) -> MeasuredBand:
    db = np.random.default_rng(seed).normal(mean_db, 3, 50_000).astype(np.float32)
    return MeasuredBand(histogram_db(db), looks)


def test_range_of_a_group_does_not_depend_on_the_order_of_its_scenes():
    bands = [_band(mean, looks, seed) for seed, (mean, looks) in enumerate([(-8, 4.4), (-20, 1.1), (-12, 9.7)])]
    assert group_range(bands) == group_range(bands[::-1]) == group_range([bands[1], bands[2], bands[0]])


def test_range_is_widened_by_speckle_so_that_speckle_is_not_clipped():
    looks = 1.0
    power = speckled_power((400, 400), looks, seed=4, mean_db=-12.0)
    despeckled = np.full(power.shape, -12.0, np.float32)
    bounds = group_range([MeasuredBand(histogram_db(despeckled), looks)])
    assert abs((bounds.hi_db - bounds.lo_db) - 4 * log_std_db(looks) - 3.0) < 0.1
    codes = encode(10 * np.log10(power) - np.float32(enl_bias_db(looks, "sigma0")), bounds.lo_db, bounds.hi_db)
    assert np.mean((codes == 1) | (codes == 255)) < 0.05


def test_scenes_of_unlike_looks_get_like_codes():
    means = []
    for looks in (1.0, 4.0, 16.0):
        db = 10 * np.log10(speckled_power((500, 500), looks, seed=7))
        means.append(encode(db - np.float32(enl_bias_db(looks, "sigma0")), -35.0, 10.0).mean())
    assert np.ptp(means) < 0.5  # codes; without the bias it is 2.4 dB or 13 codes


def test_bias_is_not_taken_off_pictures():
    assert enl_bias_db(1.0, "display") == 0.0
    assert enl_bias_db(None, "sigma0") == 0.0
    assert enl_bias_db(1.0, "sigma0") == round(log_bias_db(1.0), 4)
