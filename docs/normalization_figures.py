"""The figures of docs/normalization.md, from simulated ground: python -m docs.normalization_figures [FOLDER]"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.normalization import SEED, WAYS, View, see
from dic3l.speckle import AS_SEEN, MIXED, RESPECKLED, SpeckleParams, speckle_view
from sarsense.codes import code_steps, encode
from sarsense.histogram import BIN_DB, BINS, LOWEST_DB
from sarsense.normalize import enl_bias_db, group_ranges
from sarsense.report.picture import save
from sarsense.shards import TileSpeckle
from sarsense.simulate import draw_truth
from sarsense.speckle import log_bias_db, log_std_db, refined_lee

SENSORS = {"L = 1": (1.0, 0.0), "L = 4, 3 dB off": (4.0, 3.0), "L = 16": (16.0, 0.0)}
COLOURS = ("#2b6ca3", "#d1622b", "#4f8a4b")
WINDOW = np.s_[300:520, 240:460]
RANGE_DB = 38.0
"""about that of a co-polarised group"""


def same_ground(views: dict[str, View]) -> Figure:
    """The same ground from three sensors, in the codes of three ways, and the histogram of the codes."""
    figure = Figure(figsize=(8.6, 6.2), layout="constrained")
    panels = figure.subplots(3, 4, width_ratios=(1, 1, 1, 1.15))
    for line, (way, normalise) in zip(panels, WAYS.items(), strict=True):
        codes = normalise(views)
        for axes, (sensor, image), colour in zip(line, codes.items(), COLOURS, strict=False):
            axes.imshow(image[WINDOW], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{sensor}, mean {image[image > 0].mean():.0f}", size=8)
            counts = np.bincount(image.ravel(), minlength=256)[1:]
            line[3].plot(np.arange(1, 256), 100 * counts / counts.sum(), color=colour, lw=1, label=sensor)
        line[0].set_ylabel(way, size=8.5)
        line[3].set_ylim(bottom=0)
        _tidy(line[3], "code", "per cent")
        line[3].legend(fontsize=6.5, frameon=False)
    return figure


def histograms(views: dict[str, View]) -> Figure:
    """dB as seen and despeckled, and the range that the despeckled ones give."""
    ranges = group_ranges({name: [view.band] for name, view in views.items()})
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    levels = LOWEST_DB + BIN_DB * (np.arange(BINS) + 0.5)
    for axes, (name, view), colour in zip(figure.subplots(1, 3, sharey=True), views.items(), COLOURS, strict=True):
        db = view.db[np.isfinite(view.db)] - enl_bias_db(view.band.enl, "sigma0")
        seen, edges = np.histogram(db, 300, (-45, 25), density=True)
        axes.fill_between((edges[1:] + edges[:-1]) / 2, 100 * seen, color="0.8", lw=0, label="as seen,\nless b(L)")
        share = view.band.histogram / view.band.histogram.sum() / BIN_DB
        axes.plot(levels, 100 * share, color=colour, lw=1, label="despeckled")
        bounds = ranges[name]
        for edge in (bounds.lo_db, bounds.hi_db):
            axes.axvline(edge, color="0.2", lw=1)
        clipped = np.mean((db < bounds.lo_db) | (db > bounds.hi_db))
        axes.set_title(f"{name}: {bounds.lo_db:.1f} to {bounds.hi_db:.1f} dB, {clipped:.2%} clipped", size=8)
        axes.set_xlim(-42, 27)
        _tidy(axes, "dB", "per cent a dB")
        axes.legend(fontsize=6.5, frameon=False, loc="center right")
    return figure


def effect_of_looks() -> Figure:
    """Mean and spread of log-speckle, by formula and by drawn speckle."""
    looks = np.geomspace(1, 100, 60)
    rng = np.random.default_rng(SEED)
    figure = Figure(figsize=(8.6, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, formula, measure in ((left, log_bias_db, np.mean), (right, log_std_db, np.std)):
        axes.plot(looks, [formula(value) for value in looks], color="0.2", lw=1, label="formula")
        for some in (1, 3, 4.4, 10, 50):
            drawn = 10 * np.log10(rng.gamma(some, 1 / some, 10**6))
            axes.plot(some, measure(drawn), "o", color=COLOURS[1], ms=4, label="drawn" if some == 1 else None)
        axes.set_xscale("log")
        _tidy(axes, "looks L", "dB")
        axes.legend(fontsize=7, frameon=False)
    left.set_title("mean of log-speckle, b(L): taken off before coding", size=8.5, loc="left")
    right.set_title("its standard deviation, s(L): twice it widens the range", size=8.5, loc="left")
    return figure


def quantisation() -> Figure:
    """The error of a code, a step's standard deviation, against that of speckle."""
    looks = np.geomspace(1, 1000, 60)
    figure = Figure(figsize=(5.4, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(looks, [log_std_db(value) for value in looks], color="0.2", lw=1.2, label="speckle, s(L)")
    for bits, colour in zip((8, 16), COLOURS, strict=False):
        error = RANGE_DB / code_steps(bits) / np.sqrt(12)
        axes.axhline(error, color=colour, lw=1, label=f"{bits} bits over {RANGE_DB:g} dB: {error:.2g} dB")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _tidy(axes, "looks L", "standard deviation, dB")
    axes.legend(fontsize=7, frameon=False)
    return figure


def views_of_speckle(view: View) -> Figure:
    """What the trainer may make of one tile of both contents."""
    enl = view.band.enl
    assert enl is not None
    bounds, bias = group_ranges({"": [view.band]})[""], enl_bias_db(enl, "sigma0")
    filtered = 10 * np.log10(refined_lee((10 ** (view.db / 10)).astype(np.float32), enl))
    both = (view.db - np.float32(bias), filtered)
    tile = np.stack([encode(db, bounds.lo_db, bounds.hi_db)[WINDOW] for db in both])
    step = (bounds.hi_db - bounds.lo_db) / code_steps(8)
    known = TileSpeckle(np.array([step]), np.array([enl]), np.array([bias]), np.array([True]))
    ways = {
        f"as seen, L = {enl:.1f}": (AS_SEEN, 0.0, 1.0, 0.0),
        "half filtered": (MIXED, 0.5, 1.0, 0.0),
        "filtered": (MIXED, 1.0, 1.0, 0.0),
        "other speckle, L = 4": (RESPECKLED, 0.0, 4.0, 0.0),
        "other speckle, L = 1": (RESPECKLED, 0.0, 1.0, 0.0),
        "3 dB brighter": (AS_SEEN, 0.0, 1.0, 3.0),
    }
    figure = Figure(figsize=(8.6, 1.8), layout="constrained")
    for axes, (name, (kind, share, looks, gain)) in zip(figure.subplots(1, len(ways)), ways.items(), strict=True):
        numbers = [np.array([value]) for value in (kind, share, looks, gain)]
        seen = np.empty(tile.shape[1:], np.uint8)
        speckle_view(tile, known, 0, SpeckleParams(*numbers, seed=np.array([SEED], np.uint64)), 0, seen)
        axes.imshow(seen, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(f"{name}\nmean {seen.mean():.0f}", size=7.5)
        axes.set_axis_off()
    return figure


def _tidy(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, size=8)
    axes.set_ylabel(y, size=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def main(folder: Path) -> None:
    truth = draw_truth(SEED, 0, 1024)
    views = {
        name: see(truth, looks, SEED + number, gain) for number, (name, (looks, gain)) in enumerate(SENSORS.items())
    }
    figures = {
        "same-ground": same_ground(views),
        "histograms": histograms(views),
        "looks": effect_of_looks(),
        "quantisation": quantisation(),
        "views": views_of_speckle(views["L = 4, 3 dB off"]),
    }
    for name, figure in figures.items():
        save(figure, folder / f"normalization-{name}.png")
        print(folder / f"normalization-{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "figures")
