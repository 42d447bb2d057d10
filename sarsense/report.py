"""A corpus to look at: counts by group, a contact sheet of tiles, histograms of dB, a map of the footprints.

Knows how a corpus is read and how a picture is drawn; prints nothing. Figures go to PNG through matplotlib's Agg
canvas, without pyplot, so that no display and no global state are touched.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sarsense.corpus import Corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.files import atomic_write
from sarsense.normalize import CODES, decode
from sarsense.shards import TileReader

_DPI = 110
_TILE_INCHES = 1.75
_CAPTION_INCHES = 0.36
_MAX_COUNT, _MAX_COLUMNS = 400, 40
"""of a sheet: larger ones are too large a picture for most programs"""
_SAMPLE_TILES = 400
_SPLIT_COLOURS = {"train": "#2b6ca3", "val": "#d1622b"}
_EDGE = "#8a3d16"


def corpus_statistics(corpus: Corpus) -> dict[str, Any]:
    """Counts, levels and looks of a corpus and of each of its groups: plain values, for a table or JSON."""
    columns = ["group", "split", "scene", "channels", "valid_fraction"]
    rows = corpus.tiles(columns=columns).to_pylist()
    by_group: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_group[row["group"]].append(row)
    groups = []
    for name in sorted(by_group):
        members, bounds = by_group[name], [corpus.manifest["groups"][channel] for channel in name.split("+")]
        channels = [[row["channels"][number] for row in members] for number in range(len(bounds))]
        groups.append(
            {
                "group": name,
                "tiles": len(members),
                "train": sum(row["split"] == "train" for row in members),
                "val": sum(row["split"] == "val" for row in members),
                "scenes": len({row["scene"] for row in members}),
                "mean_db": _of_channels([round(float(np.mean([c["mean_db"] for c in one])), 2) for one in channels]),
                "lo_db": _of_channels([bound["lo_db"] for bound in bounds]),
                "hi_db": _of_channels([bound["hi_db"] for bound in bounds]),
                "step_db": _of_channels([round((b["hi_db"] - b["lo_db"]) / CODES, 4) for b in bounds]),
                "median_enl": _of_channels(
                    [_median([c["enl"] for c in one if c["enl"] is not None]) for one in channels]
                ),
                "valid": round(float(np.mean([row["valid_fraction"] for row in members])), 4),
            }
        )
    return {
        "name": corpus.name,
        "version": corpus.manifest["version"],
        "digest": corpus.digest,
        "tile_shape": list(corpus.tile_shape),
        "tiles": len(rows),
        "shards": len(corpus.shards),
        "bytes": sum(shard.bytes for shard in corpus.shards),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "groups": groups,
    }


def _of_channels(values: list[Any]) -> Any:
    """The value of a single channel, or those of all."""
    return values[0] if len(values) == 1 else values


def _median(values: list[float]) -> float | None:
    return round(sorted(values)[len(values) // 2], 2) if values else None


def contact_sheet(corpus: Corpus, out_png: Path, count: int = 24, columns: int = 6, seed: int = 0) -> None:
    """A sheet of `count` tiles spread evenly over groups, and inside a group over scenes, drawn by `seed`.

    Grey: black is the group's lower end, white its upper end, what a network sees; no data is blue. Each caption says
    sensor and polarisation, date, mean dB, looks and split. Raises SettingError and CorpusError.
    """
    if not 1 <= count <= _MAX_COUNT or not 1 <= columns <= _MAX_COLUMNS:
        raise SettingError(
            f"--count from 1 to {_MAX_COUNT} and --columns from 1 to {_MAX_COLUMNS} expected, "
            f"{count} and {columns} found"
        )
    check_picture(out_png)
    table = corpus.tiles()
    rows = table.drop_columns(["footprint", "transform"]).to_pylist()
    _require_tiles(rows, corpus)
    chosen = spread_choice([(row["group"], row["scene"]) for row in rows], count, seed)
    tiles = TileReader(corpus).read(np.array(chosen))
    columns = min(columns, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    gap, head = 0.12, 0.5
    width = columns * (_TILE_INCHES + gap) + gap
    cell = _TILE_INCHES + _CAPTION_INCHES + gap
    height = head + lines * cell
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    first = "" if corpus.tile_shape[0] == 1 else ", the first channel of each"
    shown = f"{len(chosen)} of {len(rows)} tiles of {corpus.tile_shape[2]} x {corpus.tile_shape[1]} pixels{first}"
    figure.text(gap / width, 1 - 0.2 / height, f"{corpus.name} {corpus.manifest['version']}", size=11, weight="bold")
    figure.text(gap / width, 1 - 0.37 / height, f"{shown}; grey from code 1 to 255, no data blue", size=8, color="0.35")
    for place, (index, tile) in enumerate(zip(chosen, tiles, strict=True)):
        line, column = divmod(place, columns)
        left = gap + column * (_TILE_INCHES + gap)
        bottom = height - head - line * cell - _TILE_INCHES
        axes = figure.add_axes(
            (left / width, bottom / height, _TILE_INCHES / width, _TILE_INCHES / height), frameon=False
        )
        axes.imshow(_grey(tile[0]), interpolation="antialiased")
        axes.set_axis_off()
        first, second = _caption(rows[index])
        figure.text(left / width, (bottom - 0.14) / height, first, size=6.6)
        figure.text(left / width, (bottom - 0.27) / height, second, size=6.2, color="0.35")
    _save(figure, out_png)


def histogram_figure(corpus: Corpus, out_png: Path) -> None:
    """Histograms of dB by group, out of up to 400 tiles of each, with the range that becomes codes 1 to 255.

    dB are decoded from the codes, with the scenes' speckle bias taken off as in the codes: so the groups' ends pile
    up at the range, and what was clipped there is stated.
    """
    check_picture(out_png)
    table = corpus.tiles(columns=["group", "scene"])
    groups: list[str] = table["group"].to_pylist()
    _require_tiles(groups, corpus)
    names = [(name, number) for name in sorted(set(groups)) for number in range(len(name.split("+")))]
    reader = TileReader(corpus)
    columns = min(2, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(5.2 * columns, 2.6 * lines + 0.45), dpi=_DPI, layout="constrained")
    figure.suptitle(f"{corpus.name} {corpus.manifest['version']}: backscatter by group", size=11, weight="bold", x=0.5)
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes, (name, number) in zip(panels.flat, names, strict=False):
        members = np.flatnonzero(np.array(groups) == name)
        step = max(1, -(-len(members) // _SAMPLE_TILES))
        channel = name.split("+")[number]
        _draw_histogram(axes, _code_counts(reader, members[::step], number), corpus.manifest["groups"][channel])
        axes.set_title(f"{channel}   ({len(members)} tiles)", size=8.5, loc="left")
    for axes in list(panels.flat)[len(names) :]:
        axes.set_axis_off()
    _save(figure, out_png)


def footprint_map(corpus: Corpus, out_png: Path) -> None:
    """Footprints by split on a graticule; a corpus of many far places also gets a panel for each cluster of them.

    The overview marks each cluster; up to six clusters, the largest first, are drawn true to shape beside it.
    Raises CorpusError where no tile is placed.
    """
    check_picture(out_png)
    table = corpus.tiles(columns=["footprint"])
    placed = [(w, s) for w, s in zip(table["footprint"].to_pylist(), table["split"].to_pylist(), strict=True) if w]
    if not placed:
        raise CorpusError(f"{corpus.root}: no tile has a footprint (a corpus of unplaced scenes): nothing to map")
    polygons = shapely.from_wkb([wkb for wkb, _ in placed])
    splits = np.array([split for _, split in placed])
    clusters = _clusters(polygons)
    shown = clusters[:6] if len(clusters) > 1 else []
    figure = Figure(figsize=(11, 6.2) if shown else (7.2, 6.6), dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(1.15, 1)) if shown else figure.add_gridspec(1, 1)
    main = figure.add_subplot(grid[0])
    _draw_footprints(main, polygons, splits, _frame(shapely.total_bounds(polygons)))
    for number, members in enumerate(clusters if shown else [], 1):
        west, south, east, north = shapely.total_bounds(polygons[members])
        middle = (west + east) / 2, (south + north) / 2
        # a ring about each place, since a tile is hardly a pixel on a map of a continent
        main.plot(*middle, "o", ms=11, mfc="none", mec="0.45", mew=0.8)
        if number <= len(shown):
            above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
            main.annotate(str(number), middle, size=9, weight="bold", **above)
    if shown:
        columns = 1 if len(shown) <= 3 else 2
        panels = grid[1].subgridspec(math.ceil(len(shown) / columns), columns)
        for number, members in enumerate(shown, 1):
            axes = figure.add_subplot(panels[divmod(number - 1, columns)])
            _draw_footprints(axes, polygons[members], splits[members], _frame(shapely.total_bounds(polygons[members])))
            axes.set_title(f"{number}: {len(members)} tiles", size=8, loc="left")
            axes.tick_params(labelsize=6)
    unplaced = len(table) - len(placed)
    count = ", ".join(f"{number} {split}" for split, number in sorted(Counter(splits.tolist()).items()))
    rest = f", {unplaced} without a place" if unplaced else ""
    more = f"; {len(shown)} of {len(clusters)} places enlarged" if len(clusters) > len(shown) > 0 else ""
    figure.suptitle(f"{corpus.name} {corpus.manifest['version']}: {count} tiles{rest}{more}", size=10.5, weight="bold")
    handles = [Line2D([], [], color=_SPLIT_COLOURS[s], lw=5, alpha=0.6, label=s) for s in sorted(set(splits.tolist()))]
    main.legend(handles=handles, loc="best", fontsize=8, framealpha=0.9)
    _save(figure, out_png)


# ------------------------------------------------------------------------------------------------- choice, tiles


def spread_choice(labels: Sequence[tuple[str, str]], count: int, seed: int) -> list[int]:
    """Up to `count` indices of tiles labelled (group, scene): groups in turn, in a group scenes in turn.

    Random, by `seed`, are the order of the scenes and the tiles of a scene. Returned by group and scene.
    """
    rng = np.random.default_rng(seed)
    queues: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in rng.permutation(len(labels)):
        group, scene = labels[index]
        queues[group][scene].append(int(index))
    turns = [_in_turn(list(queues[group].values())) for group in sorted(queues)]
    chosen = _in_turn(turns)[:count]
    return sorted(chosen, key=lambda index: (*labels[index], index))


def _in_turn(lists: Sequence[Sequence[int]]) -> list[int]:
    """One of each list, then another of each, until all are used."""
    longest = max((len(one) for one in lists), default=0)
    return [one[turn] for turn in range(longest) for one in lists if turn < len(one)]


def _grey(codes: np.ndarray) -> np.ndarray:
    """RGB of codes: equal steps of dB are equal steps of grey, no data is a blue that no grey has."""
    rgb = np.repeat(codes[..., None], 3, axis=2)
    rgb[codes == 0] = (40, 70, 130)
    return rgb


def _caption(row: dict[str, Any]) -> tuple[str, str]:
    date = (row["datetime"] or "no date")[:10]
    looks = "" if row["enl"] is None else f", ENL {row['enl']:.1f}"
    sensor = "" if row["sensor"] == "unknown" else f"{row['sensor']} "
    return (
        f"{sensor}{row['polarisation']}  {_shortened(row['scene'], 28 - len(sensor))}",
        f"{date}, {row['mean_db']:.1f} dB{looks}, {row['split']}",
    )


def _shortened(name: str, length: int) -> str:
    """The name, its middle left out where it is too long: scenes differ at their ends."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[len(name) - (length - length // 2 - 1) :]}"


# --------------------------------------------------------------------------------------------------- histograms


def _code_counts(reader: TileReader, indices: np.ndarray, channel: int) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    for start in range(0, len(indices), 16):
        counts += np.bincount(reader.read(indices[start : start + 16])[:, channel].ravel(), minlength=256)
    return counts


def _draw_histogram(axes: Any, counts: np.ndarray, bounds: dict[str, Any]) -> None:
    lo, hi = bounds["lo_db"], bounds["hi_db"]
    limits = lo - 0.22 * (hi - lo), hi + 0.22 * (hi - lo)
    levels = decode(np.arange(1, 256, dtype=np.uint8), lo, hi)
    share = 100 * counts[1:] / max(int(counts[1:].sum()), 1) / ((hi - lo) / CODES)
    axes.fill_between(levels, share, step="mid", color="0.55", lw=0)
    axes.plot(levels, share, drawstyle="steps-mid", color="0.2", lw=0.8)
    axes.axvspan(limits[0], lo, color="#d1622b", alpha=0.10, lw=0)
    axes.axvspan(hi, limits[1], color="#d1622b", alpha=0.10, lw=0)
    total = max(int(counts[1:].sum()), 1)
    for edge, code, side in ((lo, 1, "right"), (hi, 255, "left")):
        axes.axvline(edge, color="#d1622b", lw=1)
        outside = {"xytext": (4 if side == "left" else -4, 0), "textcoords": "offset points", "ha": side}
        text = f"{edge:.1f} dB\n{100 * counts[code] / total:.2f} %\nclipped"
        axes.annotate(text, (edge, 0.96), xycoords=("data", "axes fraction"), va="top", size=7, color=_EDGE, **outside)
    # the ends hold all that was clipped; the axis is for what lies between
    axes.set_ylim(0, 1.25 * max(float(share[1:-1].max()), 1e-6))
    axes.set_xlim(*limits)
    axes.set_xlabel("dB, speckle bias taken off", size=8)
    axes.set_ylabel("per cent a dB", size=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------------------------------------------------- map


def _clusters(polygons: np.ndarray) -> list[np.ndarray]:
    """Groups of footprints less than a quarter of a degree apart, the largest first; one group where all are near."""
    west, south, east, north = shapely.total_bounds(polygons)
    if max(east - west, north - south) < 1.5:
        return [np.arange(len(polygons))]
    merged = shapely.union_all(shapely.buffer(shapely.envelope(polygons), 0.125, quad_segs=2))
    parts = shapely.get_parts(merged)
    part, member = shapely.STRtree(shapely.centroid(polygons)).query(parts, predicate="intersects")
    groups = [member[part == number] for number in range(len(parts))]
    return sorted((group for group in groups if group.size), key=lambda group: (-len(group), group[0]))


def _frame(bounds: np.ndarray) -> tuple[float, float, float, float]:
    """West, south, east, north with a margin; a long strip becomes a map of at least 3 : 4 on the ground."""
    west, south, east, north = bounds
    x, y = (west + east) / 2, (south + north) / 2
    shrink = max(math.cos(math.radians(y)), 0.05)
    wide, high = (east - west) * shrink, north - south
    margin = max(0.08 * max(wide, high), 0.005)
    wide, high = max(wide, 0.75 * high) / 2 + margin, max(high, 0.75 * wide) / 2 + margin
    return x - wide / shrink, y - high, x + wide / shrink, y + high


def _draw_footprints(
    axes: Any, polygons: np.ndarray, splits: np.ndarray, frame: tuple[float, float, float, float]
) -> None:
    west, south, east, north = frame
    for split, colour in _SPLIT_COLOURS.items():
        rings = [shapely.get_coordinates(polygon) for polygon in polygons[splits == split]]
        axes.add_collection(PolyCollection(rings, facecolors=colour, edgecolors=colour, alpha=0.45, linewidths=0.6))
    axes.set_xlim(west, east)
    axes.set_ylim(south, north)
    # a degree of longitude is shorter than one of latitude: true to shape at the middle of the map
    axes.set_aspect(1 / max(math.cos(math.radians((south + north) / 2)), 0.05), adjustable="box")
    axes.grid(color="0.85", lw=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees(value, "E", "W"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "N", "S"))
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=8)


def _degrees(value: float, positive: str, negative: str) -> str:
    value = (value + 180) % 360 - 180 if positive == "E" else value
    return f"{abs(value):.6g}°{positive if value > 0 else negative if value < 0 else ''}"


def check_picture(path: Path) -> None:
    """SettingError where a picture's name does not end in .png."""
    if path.suffix.lower() != ".png":
        raise SettingError(f"{path}: pictures are PNG; a name that ends in .png expected")


def _require_tiles(rows: Sequence[Any], corpus: Corpus) -> None:
    if not rows:
        raise CorpusError(f"{corpus.root}: the corpus has no tiles: nothing to draw")


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
