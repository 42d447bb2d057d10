"""Speckle: looks found against looks simulated, filters against truth and Orfeo ToolBox, speed against the plain way.

python -m benchmarks.speckle
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import cv2
import numba
import numpy as np
from scipy.ndimage import sobel, uniform_filter
from skimage.restoration import denoise_wavelet

from benchmarks.timing import best_seconds
from sarsense.config import BuildConfig
from sarsense.errors import SceneError
from sarsense.measure import measure_scene
from sarsense.scene import describe_scene
from sarsense.simulate import draw_truth, speckled
from sarsense.speckle import (
    BlockStatistics,
    boxcar,
    estimate_enl,
    frost,
    gamma_map,
    kuan,
    lee,
    lee_sigma,
    nonlocal_means,
    refined_lee,
    wavelet,
)
from tests.oracles import otb_despeckle

SEED, SIZE = 3, 512
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = {
    "s1-repeat-pass/*.tif": "?",
    "bigearthnet-s1/*.tif": "4.4",
    "terramind-rtc/S1RTC/*.tif": "4.4",
    "sen1floods11/**/*S1Hand.tif": "4.4",
    "s1-rtc-db/*.tif": "> 4.4",
    "s1-grd-gcp/**/*.tiff": ">> 4.4",
    "gaofen3-quadpol/**/4_*.tiff": "?",
}
"""rasters and the looks of their product; ?: not stated, >: averaged further"""
FILTERS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "none": lambda power, looks: power,
    "boxcar 7": lambda power, looks: boxcar(power),
    "lee 7": lee,
    "kuan 7": kuan,
    "gamma_map 7": gamma_map,
    "frost 7": lambda power, looks: frost(power),
    "refined_lee 7": refined_lee,
    "lee_sigma 9": lee_sigma,
    "nonlocal_means": nonlocal_means,
    "wavelet": wavelet,
}


def fields(looks: float, seed: int) -> np.ndarray:
    """Power, float32: homogeneous fields of 84 pixels, a third of the image strongly textured."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.choice([0.01, 0.05, 0.2], (12, 12)), np.ones((84, 84)))
    ground[:, :336] *= rng.gamma(2.0, 0.5, (1008, 336))
    return (ground * rng.gamma(looks, 1 / looks, ground.shape)).astype(np.float32)


def looks_table() -> None:
    print("\nENL found / simulated: textured fields (1008 px), and landscapes of `sarsense simulate` (1024 px)\n")
    print("| L | scene | by CV | by log variance | ENL | disagreement | confidence |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    truths = {index: draw_truth(SEED, index, 1024) for index in (0, 1)}
    for looks in (1.0, 3.0, 4.4, 10.0, 50.0):
        scenes = {"fields": fields(looks, SEED)}
        scenes |= {f"landscape {index}": speckled(truth, SEED, index, "VV", looks) for index, truth in truths.items()}
        for name, power in scenes.items():
            statistics = BlockStatistics()
            statistics.add(power)
            found = estimate_enl(statistics)
            assert found is not None
            ratios = (found.by_cv / looks, found.by_log_variance / looks, found.looks / looks)
            told = " | ".join(f"{value:.3f}" for value in (*ratios, found.disagreement, found.confidence))
            print(f"| {looks:g} | {name} | {told} |")


def oracle_table() -> None:
    frozen = np.load(otb_despeckle.FROZEN)
    power, inner = frozen["power"], np.s_[3:-3, 3:-3]
    ours = {
        "lee": lee(power, 4.0),
        "kuan": kuan(power, 4.0),
        "gamma_map": gamma_map(power, 4.0),
        "frost": frost(power, damping=otb_despeckle.DAMPING),
    }
    print("\nLargest relative difference to Orfeo ToolBox 8.1.1, interior pixels (frozen arrays)\n")
    print("| filter | difference |\n| --- | ---: |")
    for name, image in ours.items():
        print(f"| {name} | {np.abs(image / frozen[name] - 1)[inner].max():.1e} |")


def quality_table() -> None:
    print("\nQuality on simulated truth (512 x 512 landscape, clutter only). PSNR of dB over 40 dB; ENL gain on flat")
    print("ground; edges: gradient of the filtered dB along that of the truth, at its strongest 3 % (1 is kept, 0 is")
    print("lost); ratio: mean of in / out (1: unbiased); structure: correlation of |ratio - 1| with the true gradient;")
    print("range: error of the 0.1 and 99.9 percentiles of dB\n")
    print("| L | filter | PSNR dB | ENL gain | edges | ratio | structure | range lo, hi dB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    truth = draw_truth(SEED, 0, SIZE)
    for looks in (1.0, 4.0, 16.0):
        rng = np.random.default_rng(SEED)
        clean = truth.clutter["VV"]
        power = (clean * rng.gamma(looks, 1 / looks, clean.shape)).astype(np.float32)
        flat = rng.gamma(looks, 1 / looks, (SIZE, SIZE)).astype(np.float32)
        for name, filtered in FILTERS.items():
            values = _quality(clean, power, filtered(power, looks)) | {"gain": _looks(filtered(flat, looks)) / looks}
            print(
                f"| {looks:g} | {name} | {values['psnr']:.2f} | {values['gain']:.1f} | {values['edges']:.2f} | "
                f"{values['ratio']:.3f} | {values['structure']:.3f} | {values['lo']:+.1f}, {values['hi']:+.1f} |"
            )


def _quality(clean: np.ndarray, power: np.ndarray, out: np.ndarray) -> dict[str, float]:
    true, found = 10 * np.log10(clean), 10 * np.log10(np.maximum(out, 1e-9))
    ratio = power / np.maximum(out, 1e-9)
    gradients = [np.stack((sobel(image, 0), sobel(image, 1))) for image in (true, found)]
    strength = np.hypot(*gradients[0])
    strong = strength > np.quantile(strength, 0.97)
    along = np.sum(gradients[0] * gradients[1], axis=0)[strong].sum() / (strength[strong] ** 2).sum()
    lo, hi = np.percentile(found, (0.1, 99.9)) - np.percentile(true, (0.1, 99.9))
    return {
        "psnr": 20 * np.log10(40.0 / np.sqrt(np.mean((found - true) ** 2))),
        "edges": float(along),
        "ratio": float(ratio.mean()),
        "structure": float(np.corrcoef(np.abs(ratio - 1).ravel(), strength.ravel())[0, 1]) if ratio.std() > 0 else 0.0,
        "lo": float(lo),
        "hi": float(hi),
    }


def real_table() -> None:
    """Looks found in rasters of ../shared/data, where it is there."""
    print("\nENL of real data\n\n| data | nominal | found | by CV | by log variance | confidence |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for path in sorted(REAL_DATA.glob("slc-complex-crop/*.npy")):
        real, imaginary = np.moveaxis(np.load(path), -1, 0)
        statistics = BlockStatistics()
        statistics.add((real**2 + imaginary**2).astype(np.float32))
        enl = estimate_enl(statistics)
        assert enl is not None
        print(
            f"| {path.parent.name}, single-look complex | 1 | {enl.looks:.2f} | {enl.by_cv:.2f} | "
            f"{enl.by_log_variance:.2f} | {enl.confidence:.2f} |"
        )
    for pattern, nominal in REAL.items():
        for path in sorted(REAL_DATA.glob(pattern)):
            try:
                scene = describe_scene(str(path), path.name, BuildConfig(tile_size=64, allow_unplaced=True))
                bands = measure_scene(scene).bands
            except SceneError as error:
                print(f"| {path.name}: {error} | | | | | |")
                continue
            for band, found in zip(scene.bands, bands, strict=True):
                print(
                    f"| {path.relative_to(REAL_DATA).parts[0]}/{path.stem[-20:]} {band.polarisation} | {nominal} | "
                    f"{found.enl:.2f} | {found.enl_by_cv:.2f} | {found.enl_by_log_variance:.2f} | "
                    f"{found.enl_confidence:.2f} |"
                )


def _looks(power: np.ndarray) -> float:
    inner = power[16:-16, 16:-16].astype(np.float64)
    return float(inner.mean() ** 2 / inner.var())


def scipy_lee(power: np.ndarray, looks: float) -> np.ndarray:
    """The Lee filter as a user writes it, with scipy."""
    mean = uniform_filter(power, 7)
    variance = np.maximum(uniform_filter(power * power, 7) - mean * mean, 0) * (49 / 48)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.clip(1 - mean * mean / (looks * variance), 0, 1)
    return mean + weight * (power - mean)


def speed_table() -> None:
    cv2.setNumThreads(1)
    power = np.random.default_rng(SEED).gamma(4, 0.25, (4096, 4096)).astype(np.float32)
    small, crop = power[:1024], power[:512, :512]
    ways: dict[str, tuple[np.ndarray, Callable[[np.ndarray], object]]] = {
        "lee 7": (power, lambda image: lee(image, 4.0)),
        "boxcar 7": (power, boxcar),
        "kuan 7": (power, lambda image: kuan(image, 4.0)),
        "gamma_map 7": (power, lambda image: gamma_map(image, 4.0)),
        "refined_lee 7": (power, lambda image: refined_lee(image, 4.0)),
        "lee_sigma 9": (small, lambda image: lee_sigma(image, 4.0)),
        "frost 7": (small, frost),
        "nonlocal_means": (crop, lambda image: nonlocal_means(image, 4.0)),
        "wavelet": (crop, lambda image: wavelet(image, 4.0)),
        "scipy: lee 7 with uniform_filter": (small, lambda image: scipy_lee(image, 4.0)),
        "scikit-image: denoise_wavelet of dB": (small, lambda image: denoise_wavelet(10 * np.log10(image))),
        "limit: copy": (power, np.copy),
    }
    for image, way in ways.values():
        way(image[:64])  # compiles
    seconds = best_seconds({name: lambda image=image, way=way: way(image) for name, (image, way) in ways.items()})
    rates = {name: image.size / seconds[name] / 1e6 for name, (image, _) in ways.items()}
    print("\nSpeed, one core, float32\n\n| way | Mpx/s | times scipy's lee | times scikit-image |")
    print("| --- | ---: | ---: | ---: |")
    plain, wave = rates["scipy: lee 7 with uniform_filter"], rates["scikit-image: denoise_wavelet of dB"]
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.1f} | {rate / plain:.2f} | {rate / wave:.2f} |")


if __name__ == "__main__":
    print(
        f"# benchmarks.speckle: Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}"
    )
    looks_table()
    real_table()
    oracle_table()
    quality_table()
    speed_table()
