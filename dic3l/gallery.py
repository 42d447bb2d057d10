"""A picture of what the network is shown: pairs of views with their matched boxes, as a person checks first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dic3l.config import Config
from dic3l.errors import ConfigError
from dic3l.picture import DPI, check_picture, save
from dic3l.stream import Stream, Tiles

_MAX_COUNT = 60
_INCHES, _CAPTION_INCHES, _HEAD_INCHES = 1.9, 0.2, 0.34
_KEY_LETTERS = 48
_COLOURS = (
    "#e41a1c",
    "#377eb8",
    "#4daf4a",
    "#ff7f00",
    "#984ea3",
    "#00b8b8",
    "#ffd92f",
    "#f781bf",
    "#a65628",
    "#9acd32",
)


def gallery(tiles: Tiles, config: Config, out_png: Path, count: int = 12) -> None:
    """Write both views of the first `count` tiles of a run with `config`, as its network gets them, to a PNG.

    Boxes of one number and colour are matched: they show the same ground, as do points of one letter. Raises
    ConfigError and Dic3lError.
    """
    check_picture(out_png)
    if not 1 <= count <= _MAX_COUNT:
        raise ConfigError(f"--count: expected from 1 to {_MAX_COUNT}, found {count}")
    shown = pairs(tiles, config, count)
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    width, height = 2 * columns * _INCHES, lines * (_INCHES + _CAPTION_INCHES) + _HEAD_INCHES
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    crop = config.views.crop_size
    edges = ", a letter a point on an edge" if config.method.contour == "edges" else ""
    head = f"first and second views of {len(shown)} tiles, {crop} x {crop}; a number is one place on the ground{edges}"
    figure.text(0.06 / width, 1 - 0.2 / height, head, size=8.5, weight="bold")
    for number, pair in enumerate(shown):
        line, column = divmod(number, columns)
        bottom = height - _HEAD_INCHES - (line + 1) * (_INCHES + _CAPTION_INCHES)
        for side, view in enumerate((pair.first, pair.second)):
            left = (2 * column + side) * _INCHES + (0.02 if side else 0.06)
            axes = figure.add_axes((left / width, bottom / height, (_INCHES - 0.08) / width, (_INCHES - 0.08) / height))
            axes.imshow(view, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            axes.set_axis_off()
            _draw_boxes(axes, pair.boxes[side], crop)
            _draw_points(axes, pair.points[side])
        place = (2 * column * _INCHES + 0.06) / width, (bottom + _INCHES) / height
        figure.text(*place, f"{_shortened(pair.key)}, {len(pair.boxes[0])} boxes", size=6.5)
    save(figure, out_png)


@dataclass(frozen=True)
class Pair:
    """Both views of a tile."""

    key: str
    first: np.ndarray
    """uint8 (h, w)"""
    second: np.ndarray
    boxes: tuple[np.ndarray, np.ndarray]
    """float (n, 4): x0, y0, x1, y1 of the matched boxes, in pixels of the first view and of the second"""
    points: tuple[np.ndarray, np.ndarray]
    """float (m, 4): likewise, the squares about matched points on edges; none where the whole view is contrasted"""


def pairs(tiles: Tiles, config: Config, count: int) -> list[Pair]:
    """Both views of the first tiles of a run; fewer where the corpus has fewer.

    They do not depend on the batch: a view is a function of seed, epoch and tile.
    """
    size = min(max(count, 2), len(tiles))
    train, method = replace(config.train, batch_size=size, accumulate=1), replace(config.method, bn_groups=1)
    stream = Stream(tiles, replace(config, train=train, method=method))
    batch = stream.batch(0)
    back = np.argsort(batch.perm.numpy())  # from the order of the key network to that of the tiles
    found = []
    for row, index in enumerate(stream.plan(0)[0][:count]):
        here = batch.query_mask[row].numpy()
        boxes = batch.query_boxes[row].numpy()[here], batch.key_boxes[back[row]].numpy()[here]
        first, second = batch.query_views[row, 0].numpy(), batch.key_views[back[row], 0].numpy()
        on_edges = batch.point_mask[row].numpy() & (config.method.contour == "edges")
        points = batch.query_points[row].numpy()[on_edges], batch.key_points[back[row]].numpy()[on_edges]
        found.append(Pair(tiles.keys[int(index)], first, second, boxes, points))
    return found


def _draw_boxes(axes: Axes, boxes: np.ndarray, crop: int) -> None:
    """Edges of boxes lie between pixels, those of the picture half a pixel before its first."""
    for number, (x0, y0, x1, y1) in enumerate(boxes - 0.5):
        colour = _COLOURS[number % len(_COLOURS)]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=1.1))
        label = {"color": colour, "size": 7, "weight": "bold", "va": "top", "ha": "left"}
        axes.text(x0 + 0.01 * crop, y0 + 0.01 * crop, str(number + 1), **label)


def _draw_points(axes: Axes, squares: np.ndarray) -> None:
    for number, (x0, y0, x1, y1) in enumerate(squares - 0.5):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", lw=0.7, ls=":"))
        label = {"color": "white", "size": 5, "va": "center", "ha": "center"}
        axes.text((x0 + x1) / 2, (y0 + y1) / 2, chr(ord("a") + number % 26), **label)


def _shortened(key: str) -> str:
    return key if len(key) <= _KEY_LETTERS else f"{key[: _KEY_LETTERS // 2]}…{key[-_KEY_LETTERS // 2 :]}"
