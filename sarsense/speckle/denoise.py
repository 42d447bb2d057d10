"""Speckle filters for those who pay for quality: denoisers of scikit-image, where speckle is additive and Gaussian.

The logarithm stabilises the variance of speckle: ln s has variance psi1(L) whatever the backscatter, and the mean
psi(L) - ln L, which is taken off. What the denoiser then does to the level of textured ground is mended by the ratio of
local means of power before and after. Masked pixels are filled from their neighbours first, and masked again at the
end. scikit-image comes with `pip install 'sarsense[quality]'`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import distance_transform_edt

from sarsense.errors import SettingError
from sarsense.speckle.filters import boxcar, checked_looks
from sarsense.speckle.statistics import DB, log_bias_db, log_std_db
from sarsense.speckle.windows import check_filter

_LEVEL_SIZE = 25
"""side of the window in which the mean power is kept"""


def nonlocal_means(power: np.ndarray, looks: float, size: int = 7) -> np.ndarray:
    """Non-local means (Buades, Coll & Morel, 2005, CVPR) of ln I, with windows of 7 and a search 21 pixels wide.

    power: float32 H x W, NaN where not valid; float32 of the same shape is returned. `size`: side of the patches.
    """
    check_filter(power, size)
    sigma = log_std_db(checked_looks(looks)) / DB

    def denoise(log: np.ndarray) -> np.ndarray:
        return _restoration().denoise_nl_means(
            log, patch_size=size, patch_distance=10, h=0.8 * sigma, sigma=sigma, fast_mode=True
        )

    return _in_logarithm(power, looks, denoise)


def wavelet(power: np.ndarray, looks: float, size: int = 7) -> np.ndarray:
    """Wavelet shrinkage of ln I: BayesShrink (Chang, Yu & Vetterli, 2000, IEEE TIP 9), 9 cyclic shifts averaged.

    power: float32 H x W, NaN where not valid; float32 of the same shape is returned. `size` is not used: it is there so
    that all filters are called alike.
    """
    check_filter(power, size)
    sigma = log_std_db(checked_looks(looks)) / DB
    restoration = _restoration()

    def denoise(log: np.ndarray) -> np.ndarray:
        total = np.zeros_like(log)
        for shift in np.ndindex(3, 3):
            moved = np.roll(log, shift, (0, 1))
            clean = restoration.denoise_wavelet(
                moved, sigma=sigma, wavelet="db4", mode="soft", method="BayesShrink", rescale_sigma=False
            )
            total += np.roll(clean, (-shift[0], -shift[1]), (0, 1))
        return total / 9

    return _in_logarithm(power, looks, denoise)


def _in_logarithm(power: np.ndarray, looks: float, denoise: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    power = power.astype(np.float32, copy=False)
    valid = np.isfinite(power) & (power > 0)
    out = np.full(power.shape, np.nan, np.float32)
    if not valid.any():
        return out
    nearest = distance_transform_edt(~valid, return_distances=False, return_indices=True) if not valid.all() else None
    filled = power if nearest is None else power[tuple(nearest)]
    log = np.log(filled.astype(np.float64)) - log_bias_db(looks) / DB
    smooth = np.exp(denoise(log)).astype(np.float32)
    level = boxcar(filled, _LEVEL_SIZE) / boxcar(smooth, _LEVEL_SIZE)
    out[valid] = (smooth * level)[valid]
    return out


def _restoration():
    try:
        from skimage import restoration
    except ImportError as error:
        raise SettingError("this speckle filter needs scikit-image: pip install 'sarsense[quality]'") from error
    return restoration
