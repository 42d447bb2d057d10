"""What speckle of L looks does to intensity, amplitude and decibel.

Fully developed speckle on intensity: I = R s, with s ~ Gamma(L, 1/L), so E[s] = 1 and Var[s] = 1/L
(Oliver & Quegan, Understanding Synthetic Aperture Radar Images, 2004, ch. 4). L need not be whole.
"""

from __future__ import annotations

import math

from scipy.special import digamma, gammaln, polygamma

DB = 10.0 / math.log(10.0)
"""decibel of a neper of power"""


def log_bias_db(looks: float) -> float:
    """b(L): mean of 10 log10(s), in dB: psi(L) - ln L nepers (negative; -2.507 at L = 1)."""
    return float(DB * (digamma(looks) - math.log(looks)))


def log_std_db(looks: float) -> float:
    """s(L): standard deviation of 10 log10(s), in dB: sqrt(psi1(L)) nepers (5.570 at L = 1)."""
    return float(DB * math.sqrt(polygamma(1, looks)))


def amplitude_cv(looks: float) -> float:
    """C_A: standard deviation over mean of sqrt(s) (0.5227 at L = 1). Of intensity it is 1 / sqrt(L)."""
    mean = math.exp(float(gammaln(looks + 0.5) - gammaln(looks))) / math.sqrt(looks)
    return math.sqrt(1.0 - mean * mean) / mean
