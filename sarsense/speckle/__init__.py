"""Speckle: its statistics, the looks of a scene, and filters that take it away."""

from sarsense.speckle.denoise import nonlocal_means, wavelet
from sarsense.speckle.edges import REFINED_LEE_RADIUS, refined_lee
from sarsense.speckle.enl import BLOCK, BLOCK_BINS, STRIP, BlockStatistics, Enl, estimate_enl
from sarsense.speckle.filters import SIZE, boxcar, frost, gamma_map, kuan, lee
from sarsense.speckle.levels import HALO, LevelHistogram
from sarsense.speckle.sigma import lee_sigma, sigma_range
from sarsense.speckle.statistics import DB, amplitude_cv, log_bias_db, log_std_db

__all__ = [
    "BLOCK",
    "BLOCK_BINS",
    "DB",
    "HALO",
    "REFINED_LEE_RADIUS",
    "SIZE",
    "STRIP",
    "BlockStatistics",
    "Enl",
    "LevelHistogram",
    "amplitude_cv",
    "boxcar",
    "estimate_enl",
    "frost",
    "gamma_map",
    "kuan",
    "lee",
    "lee_sigma",
    "log_bias_db",
    "log_std_db",
    "nonlocal_means",
    "refined_lee",
    "sigma_range",
    "wavelet",
]
