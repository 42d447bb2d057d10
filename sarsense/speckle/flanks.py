"""Where the left flank of pure speckle lies, for the estimate of looks (`sarsense.speckle.enl`).

For each of LOOKS, two shares of blocks of pure speckle, 3 and 15 per cent, have less than so many times the true value
of a statistic. Their distributions have no closed form: drawn by `sarsense.speckle.enl.draw_flanks`, which
tests/sarsense/test_speckle.py runs again, and kept here, since each process would need half a second.
"""

from __future__ import annotations

import numpy as np

LOOKS = np.geomspace(0.3, 1000.0, 25)
FLANKS_OF_CV = np.array(
    [
        (0.502885, 0.636625),
        (0.528219, 0.663611),
        (0.553562, 0.690465),
        (0.574534, 0.708801),
        (0.597169, 0.732515),
        (0.608432, 0.742630),
        (0.612941, 0.752172),
        (0.625306, 0.760437),
        (0.629237, 0.764646),
        (0.633897, 0.771889),
        (0.632187, 0.775495),
        (0.639295, 0.777109),
        (0.640828, 0.780557),
        (0.643893, 0.780516),
        (0.645963, 0.782007),
        (0.647185, 0.783179),
        (0.645253, 0.783440),
        (0.643605, 0.780700),
        (0.646664, 0.784013),
        (0.642080, 0.781672),
        (0.647030, 0.784421),
        (0.647001, 0.784012),
        (0.648670, 0.782952),
        (0.647592, 0.784137),
        (0.649439, 0.784261),
    ]
)
"""(25, 2), of the squared coefficient of variation of intensity, 1 / L"""
FLANKS_OF_LOG = np.array(
    [
        (0.474248, 0.646694),
        (0.488922, 0.656157),
        (0.516165, 0.676313),
        (0.537231, 0.697953),
        (0.567418, 0.714171),
        (0.583328, 0.732545),
        (0.600813, 0.747597),
        (0.616971, 0.757178),
        (0.621601, 0.764015),
        (0.631043, 0.770897),
        (0.627528, 0.776640),
        (0.635918, 0.776098),
        (0.636258, 0.779573),
        (0.639750, 0.780581),
        (0.646329, 0.781981),
        (0.644436, 0.783109),
        (0.643188, 0.785642),
        (0.640348, 0.780636),
        (0.645709, 0.784746),
        (0.640965, 0.781649),
        (0.649400, 0.785005),
        (0.646155, 0.784688),
        (0.646835, 0.783147),
        (0.646974, 0.784771),
        (0.648245, 0.785191),
    ]
)
"""(25, 2), of the variance of ln I, psi1(L)"""
