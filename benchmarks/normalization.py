"""The same ground seen by unlike sensors: are its codes the same? And what one absurd scene does to a group's range.

python -m benchmarks.normalization
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sarsense.codes import decode, encode
from sarsense.histogram import histogram_db
from sarsense.landscape import Cover
from sarsense.normalize import MeasuredBand, enl_bias_db, group_ranges
from sarsense.simulate import SIGNATURES, Truth, draw_truth, speckled
from sarsense.speckle import BlockStatistics, boxcar, estimate_enl

SIZE, SEED, SCENES = 1024, 11, 50


@dataclass(frozen=True)
class View:
    """One sensor's image of the ground, dB, and what was measured of it."""

    db: np.ndarray
    band: MeasuredBand


def see(truth: Truth, looks: float, seed: int, gain_db: float = 0.0) -> View:
    power = speckled(truth, seed, 0, "VV", looks) * np.float32(10 ** (gain_db / 10))
    return measured(np.where(power > 0, power, np.nan).astype(np.float32))


def measured(power: np.ndarray) -> View:
    statistics = BlockStatistics()
    statistics.add(power)
    enl = estimate_enl(statistics)
    band = MeasuredBand(histogram_db(10 * np.log10(boxcar(power))), None if enl is None else enl.looks)
    return View(10 * np.log10(power), band)


def fixed(views: dict[str, View]) -> dict[str, np.ndarray]:
    return {name: encode(view.db, -30.0, 5.0) for name, view in views.items()}


def per_scene(views: dict[str, View]) -> dict[str, np.ndarray]:
    return {name: encode(view.db, *np.nanpercentile(view.db, (1, 99))) for name, view in views.items()}


def by_group(views: dict[str, View]) -> dict[str, np.ndarray]:
    ranges = group_ranges({name: [view.band] for name, view in views.items()})
    return {
        name: encode(view.db - np.float32(enl_bias_db(view.band.enl, "sigma0")), ranges[name].lo_db, ranges[name].hi_db)
        for name, view in views.items()
    }


WAYS: dict[str, Callable[[dict[str, View]], dict[str, np.ndarray]]] = {
    "fixed -30..5 dB": fixed,
    "percentiles 1, 99 of each scene": per_scene,
    "group (SARSense)": by_group,
}


def invariance() -> None:
    truth = draw_truth(SEED, 0, SIZE)
    views = {f"L = {looks:g}": see(truth, looks, SEED + number) for number, looks in enumerate((1.0, 4.0, 16.0))}
    views["L = 4, 3 dB off"] = see(truth, 4.0, SEED + 9, 3.0)
    classes = [cover for cover in SIGNATURES if np.sum(truth.cover == cover) > 2000]
    print("\nMean code of each class (of 255), by sensor; spread: largest less smallest\n")
    print("| normalisation | sensor | " + " | ".join(Cover(c).name.lower() for c in classes) + " |")
    print("| --- | --- |" + " ---: |" * len(classes))
    for way, normalise in WAYS.items():
        codes = normalise(views)
        means = {name: [float(one[truth.cover == c].mean()) for c in classes] for name, one in codes.items()}
        for name, values in means.items():
            print(f"| {way} | {name} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
        spread = np.ptp(list(means.values()), axis=0)
        print(f"| **{way}** | **spread** | " + " | ".join(f"**{value:.1f}**" for value in spread) + " |")


def absurd() -> None:
    bands = [see(draw_truth(SEED, index, 256), 4.4, SEED + index).band for index in range(SCENES)]
    rng = np.random.default_rng(SEED)
    sea = rng.gamma(4.4, 1 / 4.4, (256, 256)) * 10**-2.7
    field = rng.gamma(4.4, 1 / 4.4, (256, 256)) * 10**-1.8
    field[8::16, 8::16] = 10**4.0
    print(f"\nWhat one absurd scene does to the range of {SCENES} simulated ones (256 x 256, L = 4.4), dB\n")
    print(
        "| added | lo | hi | lo of pooled percentiles | hi of pooled percentiles |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, power in {"nothing": None, "all sea, -27 dB": sea, "calibration targets": field}.items():
        all_bands = bands if power is None else [*bands, measured(power.astype(np.float32)).band]
        bounds = group_ranges({"a": all_bands})["a"]
        pooled = np.cumsum(np.sum([band.histogram for band in all_bands], axis=0))
        lo, hi = (np.searchsorted(pooled, share * pooled[-1]) * 0.05 - 150 for share in (0.001, 0.999))
        print(f"| {name} | {bounds.lo_db:.2f} | {bounds.hi_db:.2f} | {lo:.2f} | {hi:.2f} |")


def round_trip() -> None:
    db = np.random.default_rng(SEED).uniform(-30.0, 5.0, 10**7).astype(np.float32)
    codes = encode(db, -30.0, 5.0)
    error = np.abs(decode(codes, -30.0, 5.0) - db).max()
    print(f"\nRound trip of 10^7 values: largest error {error:.5f} dB, half a step {17.5 / 254:.5f} dB; ", end="")
    print(f"valid pixels that became 0: {int(np.sum(codes == 0))}")


if __name__ == "__main__":
    print(f"# benchmarks.normalization: Python {platform.python_version()}, numpy {np.__version__}, seed {SEED}")
    invariance()
    absurd()
    round_trip()
