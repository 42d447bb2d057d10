"""A contact sheet: tiles in rows, each with what is known of it. Drawn with Pillow: 64 tiles in a blink."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sarsense.errors import SettingError, ShardError
from sarsense.inspection.choice import Choice
from sarsense.inspection.picture import NO_DATA
from sarsense.inspection.source import Source
from sarsense.inspection.text import plain
from sarsense.inspection.tile import NEEDED, Tile, read_tile

MOST_TILES, MOST_COLUMNS = 400, 40
"""of a sheet: larger ones are too large a picture for most programs"""
_SIDE, _GAP, _LINE = 184, 14, 15
_INK, _GREY, _RED = (20, 24, 28), (105, 110, 116), (176, 40, 40)
_HEAD = 58


def check_size(count: int, columns: int) -> None:
    """SettingError for a sheet that is none, or too large a picture."""
    if not 1 <= count <= MOST_TILES or not 1 <= columns <= MOST_COLUMNS:
        raise SettingError(
            f"--count from 1 to {MOST_TILES} and --columns from 1 to {MOST_COLUMNS} expected, "
            f"{count} and {columns} found"
        )


def draw_sheet(source: Source, choice: Choice, columns: int, title: str) -> bytes:
    """A PNG of the chosen tiles. Grey: black is code 1, white code 255, what a network sees; no data is blue. Of a
    corpus of both contents, as seen and despeckled, side by side. A tile that cannot be read is a red word.

    Tiles are drawn 184 pixels wide: larger ones are averaged, smaller ones repeated.
    """
    pair = source.corpus is not None and len(source.corpus.contents) == 2
    width_of_one = (2 * _SIDE + 2) if pair else _SIDE
    captions = 3 if any(choice.notes) else 2
    columns = max(1, min(columns, len(choice.rows)))
    parts = _parts(choice)
    lines = sum(math.ceil(len(part) / columns) for _, part in parts)
    height_of_one = _SIDE + captions * _LINE + _GAP
    headed = bool(choice.heads)
    width = max(_GAP + columns * (width_of_one + _GAP), 280)
    height = _HEAD + lines * height_of_one + headed * len(parts) * 26 + 4
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = _font(14), _font(10)
    draw.text((_GAP, 10), _fitted(plain(title), large, width - 2 * _GAP), _INK, large)
    draw.text((_GAP, 31), _fitted(_told(source, choice, pair), small, width - 2 * _GAP), _GREY, small)
    top = _HEAD
    for name, part in parts:
        if headed:
            draw.text((_GAP, top), _fitted(plain(name), large, width - 2 * _GAP), _INK, large)
            top += 26
        for place, index in enumerate(part):
            line, column = divmod(place, columns)
            left, upper = _GAP + column * (width_of_one + _GAP), top + line * height_of_one
            row = choice.rows[index]
            lines_of_text = [*_caption(row), choice.notes[index]][:captions]
            _draw_tile(sheet, draw, source, row, left, upper, pair, small)
            for number, text in enumerate(lines_of_text):
                ink = _INK if number == 0 else _GREY
                at = (left, upper + _SIDE + 2 + number * _LINE)
                draw.text(at, _fitted(text, small, width_of_one), ink, small)
        top += math.ceil(len(part) / columns) * height_of_one
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _parts(choice: Choice) -> list[tuple[str, list[int]]]:
    if not choice.heads:
        return [("", list(range(len(choice.rows))))]
    return [(name, list(part)) for name, part in groupby(range(len(choice.rows)), key=lambda i: choice.heads[i])]


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    source: Source,
    row: Mapping[str, Any],
    left: int,
    top: int,
    pair: bool,
    font: Any,
) -> None:
    try:
        tile = read_tile(source, {name: row.get(name) for name in NEEDED})
    except ShardError as error:
        draw.rectangle((left, top, left + _SIDE, top + _SIDE), outline=_RED)
        words = str(error).removeprefix(str(row["shard"])).strip(": ")
        for number, line in enumerate(_wrapped(plain(words), font, _SIDE - 12)[:10]):
            draw.text((left + 6, top + 6 + number * _LINE), line, _RED, font)
        return
    for number, plane in enumerate(_planes(tile, pair)):
        sheet.paste(_picture(plane, tile.coded), (left + number * (_SIDE + 2), top))


def _planes(tile: Tile, pair: bool) -> list[np.ndarray]:
    """The first plane; of both contents, the speckled and the despeckled one of the first polarisation; of three 8-bit
    planes of another program's picture, all as colours."""
    grey = tile.grey()
    if not tile.coded and len(grey) == 3 and tile.pixels.dtype == np.uint8:
        return [np.moveaxis(tile.pixels, 0, -1)]
    return [grey[0], grey[len(grey) // 2]] if pair else [grey[0]]


def _picture(plane: np.ndarray, coded: bool) -> Image.Image:
    """Squeezed or repeated to fit a square of the sheet; no data blue."""
    height, width = plane.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    grey = Image.fromarray(plane).resize(size, how)
    colour = grey.convert("RGB")
    if coded and (plane == 0).any():
        empty = Image.fromarray(np.where(plane == 0, 255, 0).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        colour.paste(NO_DATA, (0, 0), empty)
    return colour


def _told(source: Source, choice: Choice, pair: bool) -> str:
    shown = f"{len(choice.rows):,} of {choice.of:,} tiles"
    if source.corpus is None:
        return f"{shown} of tars of another program; grey between percentiles where nothing says what values mean"
    channels, height, width = source.corpus.tile_shape
    both = ", as seen and despeckled" if pair else ""
    stacked = ", the first polarisation of each" if channels > len(source.corpus.contents) else ""
    return f"{shown} of {width} x {height} pixels{stacked}{both}; grey from code 1 to the last, no data blue"


def _caption(row: Mapping[str, Any]) -> tuple[str, str]:
    sensor = row.get("sensor")
    head = " ".join(str(one) for one in (sensor if sensor != "unknown" else None, row.get("polarisation")) if one)
    name = plain(str(row.get("scene") or row["key"]))
    level = [] if row.get("mean_db") is None else [f"{row['mean_db']:.1f} dB"]
    looks = [] if row.get("enl") is None else [f"ENL {row['enl']:.1f}"]
    date = [plain(str(row["datetime"]))[:10]] if row.get("datetime") else []
    return f"{plain(head)}  {name}".strip(), ", ".join([*date, *level, *looks, *filter(None, [row.get("split")])])


@lru_cache(maxsize=4)
def _font(size: int) -> Any:
    """DejaVu Sans, which has the letters of most languages; matplotlib brings it, and is not imported for that: a sheet
    would take half as long again."""
    found = find_spec("matplotlib")
    assert found is not None and found.origin is not None  # one of our own dependencies
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fitted(text: str, font: Any, width: float) -> str:
    """The text, its middle left out where it is too long: scenes differ at their ends."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(_shortened(text, keep)) > width:
        keep -= 1
    return _shortened(text, keep)


def _shortened(text: str, length: int) -> str:
    return f"{text[: length // 2]}…{text[len(text) - (length - length // 2 - 1) :]}"


def _wrapped(text: str, font: Any, width: float) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [_fitted(one, font, width) for one in [*lines, line] if one]


# -------------------------------------------------------------------------------------------------- terminals


def terminal_picture(png: bytes, environment: Mapping[str, str] = os.environ) -> str | None:
    """The escape sequences that show a PNG in this terminal: of kitty's graphics protocol (kitty, Ghostty) or iTerm2's
    inline images (iTerm2, WezTerm); None where the terminal says of itself that it is none of these."""
    if "TMUX" in environment or environment.get("TERM", "").startswith("screen"):
        return None
    data = base64.b64encode(png).decode()
    program = environment.get("TERM_PROGRAM", "")
    if "KITTY_WINDOW_ID" in environment or environment.get("TERM") == "xterm-ghostty":
        chunks = [data[at : at + 4096] for at in range(0, len(data), 4096)]
        last = len(chunks) - 1
        first = "a=T,f=100,"
        parts = [f"\x1b_G{first if n == 0 else ''}m={int(n < last)};{chunk}\x1b\\" for n, chunk in enumerate(chunks)]
        return "".join(parts) + "\n"
    if program in ("iTerm.app", "WezTerm"):
        return f"\x1b]1337;File=inline=1;size={len(png)}:{data}\a\n"
    return None
