"""Histograms of dB by group: of the tiles as they were coded, and of the ground that the ranges were measured on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from sarsense.codes import decode
from sarsense.corpus import Corpus
from sarsense.errors import CorpusError
from sarsense.places import Place
from sarsense.report.counts import group_statistics
from sarsense.report.picture import DPI, check_picture, require_tiles, save, words
from sarsense.shards import TileReader

_SAMPLE_TILES = 400
_EDGE = "#8a3d16"
_AXIS = {
    "group": "dB, speckle bias taken off",
    "scene": "dB, speckle bias taken off; the widest of the scenes' ranges",
    "fixed": "dB",
}
"""by normalisation"""
_VALID = np.arange(1, 256, dtype=np.uint8)


def histogram_figure(corpus: Corpus, out_png: Place) -> None:
    """Histograms of dB by group and channel, out of up to 400 tiles of each, with the range that becomes the codes.

    dB are decoded from the codes, with the scenes' speckle bias taken off where the codes have it off: so the ends pile
    up at the range, and what was clipped there is stated.
    """
    check_picture(out_png)
    found = code_histograms(corpus)
    figure, panels = _panels(corpus, "backscatter by group", len(found))
    draw_histograms(panels, found, corpus)
    save(figure, out_png)


@dataclass(frozen=True)
class CodeHistogram:
    """Of one channel of a group."""

    title: str
    tiles: int
    """of the group, of which a part was read"""
    counts: dict[tuple[float, float], np.ndarray]
    """range in dB -> counts (int64, 256) of the 8-bit codes that stand for it"""


def code_histograms(corpus: Corpus, most: int = _SAMPLE_TILES) -> list[CodeHistogram]:
    """By group and channel, out of up to `most` tiles of each group. CorpusError where there are no tiles, or
    the table says other channels than tiles have."""
    group = corpus.tiles(columns=["group"])["group"]
    require_tiles(group, corpus)
    if group.null_count:
        raise CorpusError(
            f"{corpus.root / 'tiles.parquet'}: a group of each tile expected, found empty cells: the table was "
            "changed; `sarsense shards verify` tells where, restore it"
        )
    encoded = group.combine_chunks().dictionary_encode()
    number, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    members = {name: np.flatnonzero(number == index) for index, name in enumerate(names)}
    read = {name: tiles[:: max(1, -(-len(tiles) // most))] for name, tiles in members.items()}
    wanted = np.concatenate([read[name] for name in sorted(read)])
    channels = iter(corpus.tiles(columns=["channels"])["channels"].take(pa.array(wanted)).to_pylist())
    reader = TileReader(corpus, eight_bit=True)
    found = []
    for name in sorted(read):
        said = [next(channels) for _ in read[name]]
        if not all(mine and len(mine) == corpus.tile_shape[0] for mine in said):
            raise CorpusError(
                f"{corpus.root / 'tiles.parquet'}: {corpus.tile_shape[0]} channels of each tile of group {name} "
                "expected, found others: the table was changed; `sarsense shards verify` tells where, restore it"
            )
        counts = [defaultdict(lambda: np.zeros(256, np.int64)) for _ in said[0]]
        for index, mine in zip(read[name], said, strict=True):
            tile = reader.read(np.array([index]))[0]
            for plane, channel, count in zip(tile, mine, counts, strict=True):
                count[channel["lo_db"], channel["hi_db"]] += np.bincount(plane.ravel(), minlength=256)
        for channel, count in zip(said[0], counts, strict=True):
            content = "" if channel["content"] == "speckled" else f", {channel['content']}"
            found.append(CodeHistogram(f"{channel['group']}{content}", len(members[name]), dict(count)))
    return found


def draw_histograms(panels: Sequence[Any], found: Sequence[CodeHistogram], corpus: Corpus) -> None:
    """Each into one of the axes."""
    for axes, one in zip(panels, found, strict=True):
        _draw_codes(axes, one.counts)
        _label(axes, _AXIS[corpus.manifest["config"]["normalization"]])
        axes.set_title(f"{words(one.title, 60)}   ({one.tiles:,} tiles)", size=8.5, loc="left")


def statistics_figure(corpus: Corpus, out_png: Place) -> None:
    """The despeckled dB that the range of each group was measured on, and that range: from the ground's percentiles
    to the range's ends is what speckle was given."""
    check_picture(out_png)
    groups = group_statistics(corpus)
    figure, panels = _panels(corpus, "the ground, despeckled, and the range of the codes", len(groups))
    for axes, row in zip(panels, groups, strict=True):
        kept = corpus.manifest["statistics"][row["group"]]
        counts = np.array(kept["counts"])
        levels = kept["first_db"] + kept["bin_db"] * (np.arange(len(counts)) + 0.5)
        share = 100 * counts / counts.sum() / kept["bin_db"]
        axes.fill_between(levels, share, step="mid", color="0.55", lw=0)
        for name in ("db_0.1", "db_50", "db_99.9"):
            axes.axvline(row[name], color="0.25", lw=0.8, ls=":")
        lo, hi = row["lo_db"], row["hi_db"]
        low, high = (row["db_0.1"], row["db_99.9"]) if lo is None else (lo, hi)
        span = high - low
        axes.set_xlim(low - 0.22 * span, high + 0.22 * span)
        axes.set_ylim(0, 1.25 * float(share.max()))
        if lo is not None:
            _draw_range(axes, lo, hi, (f"{lo:.1f} dB", f"{hi:.1f} dB"))
        looks = "looks unknown" if row["enl"] is None else f"ENL {row['enl'][1]:.3g}"
        axes.set_title(
            f"{words(row['group'], 50)}   ({row['scenes']} scene{'s' * (row['scenes'] > 1)}, {looks})",
            size=8.5,
            loc="left",
        )
        _label(axes, "dB, despeckled; dotted: 0.1, 50 and 99.9 %")
    save(figure, out_png)


def _panels(corpus: Corpus, title: str, count: int) -> tuple[Figure, list[Any]]:
    """A figure of `count` axes, two a line."""
    columns = min(2, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 2.6 * lines + 0.45), dpi=DPI, layout="constrained")
    figure.suptitle(words(f"{corpus.name} {corpus.manifest['version']}: {title}", 120), size=11, weight="bold", x=0.5)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _draw_codes(axes: Any, counts: dict[tuple[float, float], np.ndarray]) -> None:
    """`counts`: of each 8-bit code, by the range that the codes stand for; one range but for corpora by scene."""
    lo, hi = min(lo for lo, _ in counts), max(hi for _, hi in counts)
    # of many ranges, whose codes fall between one another's, coarser bins
    edges = lo + (hi - lo) * (np.arange(256 if len(counts) == 1 else 65) - 0.5) / (254 if len(counts) == 1 else 63)
    share = np.zeros(len(edges) - 1)
    for bounds, found in counts.items():
        share += np.histogram(decode(_VALID, *bounds), edges, weights=found[1:])[0]
    total = max(float(share.sum()), 1.0)
    low, high = (100 * sum(int(found[code]) for found in counts.values()) / total for code in (1, 255))
    share *= 100 / total / (edges[1] - edges[0])
    middles = (edges[1:] + edges[:-1]) / 2
    axes.fill_between(middles, share, step="mid", color="0.55", lw=0)
    axes.plot(middles, share, drawstyle="steps-mid", color="0.2", lw=0.8)
    # the ends hold all that was clipped; the axis is for what lies between
    axes.set_ylim(0, 1.25 * max(float(share[1:-1].max()), 1e-6))
    axes.set_xlim(lo - 0.22 * (hi - lo), hi + 0.22 * (hi - lo))
    _draw_range(axes, lo, hi, (f"{lo:.1f} dB\n{low:.2f} %\nclipped", f"{hi:.1f} dB\n{high:.2f} %\nclipped"))


def _draw_range(axes: Any, lo: float, hi: float, texts: tuple[str, str]) -> None:
    left, right = axes.get_xlim()
    axes.axvspan(left, lo, color="#d1622b", alpha=0.10, lw=0)
    axes.axvspan(hi, right, color="#d1622b", alpha=0.10, lw=0)
    for edge, text, side in ((lo, texts[0], "right"), (hi, texts[1], "left")):
        axes.axvline(edge, color="#d1622b", lw=1)
        outside = {"xytext": (4 if side == "left" else -4, 0), "textcoords": "offset points", "ha": side}
        axes.annotate(text, (edge, 0.96), xycoords=("data", "axes fraction"), va="top", size=7, color=_EDGE, **outside)


def _label(axes: Any, x: str) -> None:
    axes.set_xlabel(x, size=8)
    axes.set_ylabel("per cent a dB", size=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
