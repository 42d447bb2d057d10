"""A table of tiles in six panels: whose tiles, when, their levels, looks, texture and valid shares; and of a corpus the
dB of its pixels below."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from sarsense.inspection.query import columns_of, select
from sarsense.inspection.source import Source
from sarsense.inspection.text import plain
from sarsense.places import Place
from sarsense.report.histograms import code_histograms, draw_histograms
from sarsense.report.picture import DPI, check_picture, save
from sarsense.report.regions import UNKNOWN

PALETTE = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")
"""of values in the order of their counts (Observable 10, which tells nine apart)"""
OTHER = "#9498a0"
_READ = 100
"""tiles of a group whose pixels are counted"""
_LONGEST = 26


def overview_figure(
    source: Source, told: dict[str, Any], out_png: Place, where: str | None = None, read: int = _READ
) -> None:
    """`told`: of `statistics`, by its default columns or by others: those are drawn as bars too. `read`: tiles of each
    group whose pixels are counted; 0: none."""
    check_picture(out_png)
    wanted = ("sensor", "polarisation", "mean_db", "std_db", "enl", "valid_fraction")
    known = [name for name in wanted if name in columns_of(source)]
    table = select(source, known, where)
    # pixels are those of the whole corpus: a part of its tiles is told by its table
    whole = read and _is_whole(source, where)
    pixels = code_histograms(source.corpus, read) if whole and source.corpus else []
    lines = math.ceil(len(pixels) / 3)
    figure = Figure(figsize=(13.5, 7.6 + 2.5 * lines), dpi=DPI, layout="constrained", facecolor="white")
    version = "" if told["version"] is None else f" {plain(str(told['version']), 40)}"
    only = "" if where is None else f" where {plain(where, 80)}"
    title = f"{plain(source.name, 60)}{version}: {told['tiles']:,} tiles{only}"
    figure.suptitle(title, size=12, weight="bold", parse_math=False)
    parts: Any = figure.subfigures(2, 1, height_ratios=(6.8, 2.4 * lines)) if lines else [figure]
    panels = list(parts[0].subplots(2, 3).flat)
    by = told["by"]
    first = "sensor" if "sensor" in by else next(iter(by), None)
    _bars(panels[0], first, by.get(first, []) if first else [])
    if "month" in by:
        _months(panels[1], by["month"])
    else:
        _bars(panels[1], "split", [{"split": name, "tiles": n} for name, n in told["splits"].items()])
    kind = _kinds(table)
    _distributions(panels[2], table, "mean_db", kind, "mean dB of a tile")
    _distributions(panels[3], table, "enl", kind, "looks (ENL)", logarithmic=True)
    _distributions(panels[4], table, "std_db", kind, "deviation of dB in a tile")
    _distributions(panels[5], table, "valid_fraction", kind, "valid share of a tile", counts=True)
    if lines:
        axes = list(parts[1].subplots(lines, 3, squeeze=False).flat)
        for spare in axes[len(pixels) :]:
            spare.set_axis_off()
        assert source.corpus is not None
        draw_histograms(axes[: len(pixels)], pixels, source.corpus)
    save(figure, out_png)


def _is_whole(source: Source, where: str | None) -> bool:
    return source.corpus is not None and source.shards is None and where is None


def _kinds(table: pa.Table) -> tuple[list[str], np.ndarray]:
    """Sensor and polarisation of the tiles: names, the most frequent first, and which each tile is of (int, (n,))."""
    parts = [table[name].fill_null(UNKNOWN) for name in ("sensor", "polarisation") if name in table.column_names]
    if not parts:
        return ["tiles"], np.zeros(len(table), np.int64)
    encoded = [part.combine_chunks().dictionary_encode() for part in parts]
    code = np.zeros(len(table), np.int64)
    for one in encoded:
        code = code * len(one.dictionary) + one.indices.to_numpy()
    found, index, counts = np.unique(code, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = []
    for value in found[order].tolist():
        words = []
        for one in reversed(encoded):
            value, rest = divmod(value, len(one.dictionary))
            words.append(one.dictionary[rest].as_py())
        names.append(plain(" ".join(reversed(words)), _LONGEST))
    return names, np.argsort(order)[index]


def _bars(axes: Any, name: str | None, rows: list[dict[str, Any]]) -> None:
    """Tiles by value, up to ten."""
    if not name or not rows:
        return _nothing(axes, "nothing is known to count tiles by")
    shown = rows[:9]
    labels = [plain(" ".join(str(row[part]) for part in name.split(",")), _LONGEST) for row in shown]
    counts = [row["tiles"] for row in shown]
    if rest := rows[9:]:
        labels.append(f"{len(rest)} others")
        counts.append(sum(row["tiles"] for row in rest))
    axes.barh(range(len(counts)), counts, color=PALETTE[0], height=0.66)
    axes.set_yticks(range(len(counts)), labels, parse_math=False)
    axes.invert_yaxis()
    for line, number in enumerate(counts):
        axes.annotate(f"{number:,}", (number, line), xytext=(4, 0), textcoords="offset points", va="center", size=7.5)
    axes.set_xlim(0, 1.18 * max(counts))
    _dress(axes, f"tiles by {name.replace(',', ', ')}")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _months(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Tiles by month, along time."""
    dated = [row for row in rows if row["month"] not in (None, UNKNOWN)]
    unknown = sum(row["tiles"] for row in rows) - sum(row["tiles"] for row in dated)
    if not dated:
        return _nothing(axes, "no tile has a date")
    month = np.array([12 * int(row["month"][:4]) + int(row["month"][5:7]) - 1 for row in dated])
    axes.bar(month, [row["tiles"] for row in dated], width=0.85, color=PALETTE[0])
    low, high = int(month.min()), int(month.max())
    step = next((step for step in (1, 2, 3, 6, 12, 24, 60) if (high - low) / step <= 7), 120)
    ticks = [m for m in range(low, high + 1) if m % step == 0 or high - low < 2]
    axes.set_xticks(ticks, [f"{m // 12}-{m % 12 + 1:02d}" if step < 12 else f"{m // 12}" for m in ticks])
    axes.set_xlim(low - 1, high + 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _dress(axes, "tiles by month" + (f", {unknown:,} without a date" if unknown else ""))


def _distributions(
    axes: Any,
    table: pa.Table,
    column: str,
    kind: tuple[list[str], np.ndarray],
    title: str,
    logarithmic: bool = False,
    counts: bool = False,
) -> None:
    """A curve of the values of each kind of tile, to equal areas, up to eight; or counts of all."""
    if column not in table.column_names or table[column].null_count == len(table):
        return _nothing(axes, f"{title}: unknown")
    names, which = kind
    values = table[column].to_numpy().astype(np.float64)
    valid = np.isfinite(values) & ((values > 0) | (not logarithmic))
    if not valid.any():
        return _nothing(axes, f"{title}: unknown")
    scaled = np.log10(values, where=valid, out=np.zeros_like(values)) if logarithmic else values
    low, high = np.percentile(scaled[valid], (0, 100) if counts else (0.05, 99.95))
    edges = np.linspace(low - 1e-9, max(high, low + 1e-3) + 1e-9, 50 if counts else 80)
    middles = (edges[1:] + edges[:-1]) / 2
    x = 10**middles if logarithmic else middles
    if counts:
        axes.bar(x, np.histogram(scaled[valid], edges)[0], width=edges[1] - edges[0], color=PALETTE[0])
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
        axes.minorticks_off()
        return _dress(axes, f"{title}, tiles (logarithmic)")
    for number, name in enumerate(names[:8]):
        mine = scaled[valid & (which == number)]
        if mine.size:
            share = 100 * np.histogram(mine, edges)[0] / mine.size
            axes.fill_between(x, share, step="mid", color=PALETTE[number], alpha=0.13, lw=0)
            axes.plot(x, share, drawstyle="steps-mid", color=PALETTE[number], lw=1.3, label=name)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if edges[-1] - edges[0] < 1.3:
            axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
            axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_ylim(0, None)
    missing = int((~valid).sum())
    more = f"; {len(names) - 8} kinds more" if len(names) > 8 else ""
    _dress(axes, title + more + (f"; of {missing:,} tiles unknown" if missing else ""))
    axes.set_ylabel("per cent of its tiles", size=8)
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(handles, labels, fontsize=7, frameon=False, loc="best")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _nothing(axes: Any, words: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center", size=9, color="0.45", transform=axes.transAxes)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, size=9.5, loc="left", parse_math=False)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
