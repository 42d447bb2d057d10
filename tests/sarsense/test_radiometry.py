import numpy as np
import pytest

from sarsense.radiometry import to_db, to_power


def test_the_four_units_of_one_measurement_give_one_power():
    power = np.array([1e-4, 0.1, 1.0, 50.0])
    stored = {
        "power": power,
        "amplitude": np.sqrt(power),
        "db": 10 * np.log10(power),
        "complex": np.sqrt(power) * np.exp(1j * np.array([0.1, 2.0, -3.0, 1.0])),
    }
    for unit, values in stored.items():
        np.testing.assert_allclose(to_power(values, unit), power, rtol=2e-6, err_msg=unit)


def test_scaled_db_is_unscaled_before_it_is_exponentiated():
    np.testing.assert_allclose(to_power(np.array([-1234.0]), "db", scale_factor=100.0), [10**-1.234], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_what_is_no_positive_power_has_no_decibel(value):
    assert np.isnan(to_db(np.array([value], np.float32))[0])


def test_power_is_float32_whatever_is_stored():
    for values in (np.array([7], np.uint16), np.array([0.5]), np.array([1 + 1j])):
        assert to_power(values, "complex" if np.iscomplexobj(values) else "amplitude").dtype == np.float32
