"""A contact sheet: tiles spread over groups and scenes, each with what is known of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sarsense.corpus import Corpus
from sarsense.errors import SettingError
from sarsense.places import Place
from sarsense.report.picture import DPI, check_picture, require_tiles, save
from sarsense.shards import TileReader

_TILE_INCHES = 1.75
_CAPTION_INCHES = 0.36
_MAX_COUNT, _MAX_COLUMNS = 400, 40
"""of a sheet: larger ones are too large a picture for most programs"""


def contact_sheet(corpus: Corpus, out_png: Place, count: int = 24, columns: int = 6, seed: int = 0) -> None:
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
    require_tiles(rows, corpus)
    contents = len(corpus.contents)
    chosen = spread_choice([(row["group"], row["scene"]) for row in rows], max(1, count // contents), seed)
    tiles = TileReader(corpus, eight_bit=True).read(np.array(chosen))
    # of both contents, the speckled and the filtered channel side by side
    shown = [(row, plane) for row, tile in zip(chosen, tiles, strict=True) for plane in tile[:: len(tile) // contents]]
    columns = min(columns, len(shown))
    lines = math.ceil(len(shown) / columns)
    gap, head = 0.12, 0.5
    width = columns * (_TILE_INCHES + gap) + gap
    cell = _TILE_INCHES + _CAPTION_INCHES + gap
    height = head + lines * cell
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    stacked = "" if corpus.tile_shape[0] == contents else ", the first polarisation of each"
    both = ", as seen and despeckled" if contents == 2 else ""
    of = f"{len(chosen)} of {len(rows)} tiles of {corpus.tile_shape[2]} x {corpus.tile_shape[1]} pixels{stacked}{both}"
    figure.text(gap / width, 1 - 0.2 / height, f"{corpus.name} {corpus.manifest['version']}", size=11, weight="bold")
    figure.text(gap / width, 1 - 0.37 / height, f"{of}; grey from code 1 to 255, no data blue", size=8, color="0.35")
    for place, (index, plane) in enumerate(shown):
        line, column = divmod(place, columns)
        left = gap + column * (_TILE_INCHES + gap)
        bottom = height - head - line * cell - _TILE_INCHES
        axes = figure.add_axes(
            (left / width, bottom / height, _TILE_INCHES / width, _TILE_INCHES / height), frameon=False
        )
        axes.imshow(_grey(plane), interpolation="antialiased")
        axes.set_axis_off()
        first, second = _caption(rows[index])
        figure.text(left / width, (bottom - 0.14) / height, first, size=6.6)
        figure.text(left / width, (bottom - 0.27) / height, second, size=6.2, color="0.35")
    save(figure, out_png)


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
