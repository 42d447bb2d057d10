"""Predicted maps of tested places for GIS and for eyes: a GeoTIFF for each contender, a picture of all beside truth.

DIR/<probe>-<per cent>/<contender>/<place>.tif    label values, colours, names of classes; CRS, transform of the image
DIR/<probe>-<per cent>/<contender>/made.json      which result they are of; written last
DIR/<probe>-<per cent>/<place>.png                images, truth, and every contender's map, with the classes' colours
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image, ImageDraw, ImageFont
from rasterio.errors import NotGeoreferencedWarning

from dic3l.evaluate.data import IGNORED, Georeference
from pipelines.maps import Legend, class_colours, class_map
from sarsense.files import atomic_write, read_json, write_json

_MARK = "made.json"
_UNKNOWN = (0, 0, 0)
_GAP, _LINE, _SIDE, _COLUMNS = 6, 16, 256, 6
"""pixels: between panels, of a line of text, of a panel at least; panels side by side"""


@dataclass(frozen=True)
class _Place:
    """As `sarsense.geometry.Placed`."""

    crs: str | None
    transform: tuple[float, ...] | None
    gcps: tuple[tuple[float, ...], ...] = ()


def legend_of(names: Sequence[str], values: Sequence[int]) -> Legend:
    """Of classes and what they are written as, each in 0..255; the largest value that is free means no data."""
    return Legend(tuple(names), tuple(values), max(set(range(256)) - set(values)))


def write_map(path: Path, classes: np.ndarray, legend: Legend, georeference: Georeference) -> None:
    """A map of class numbers, uint8 (H, W), as a GeoTIFF of label values. Dic3lError where it cannot be written."""
    with class_map(path, _Place(*georeference), classes.shape, legend, {}, overviews=False) as writer:
        writer.put(0, 0, np.asarray(legend.values, np.uint8)[classes][None])


def read_map(path: Path, legend: Legend) -> np.ndarray:
    """The class numbers, uint8 (H, W), of a map that `write_map` wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            values = dataset.read(1)
    numbers = np.full(256, IGNORED, np.uint8)
    numbers[list(legend.values)] = np.arange(len(legend.values), dtype=np.uint8)
    return numbers[values]


def unmark(folder: Path) -> None:
    """Say that maps in a folder are about to be made anew: until `mark`, they are of no result."""
    if known := _marked(folder):
        write_json(folder / _MARK, known | {"of": None})


def mark(folder: Path, key: str, names: Sequence[str]) -> None:
    """Say that the maps in a folder are whole: their files, and of which result they are. Those that an earlier mark
    names and this one does not are removed."""
    for name in {*_marked(folder).get("maps", ())} - {*names}:
        (folder / name).unlink(missing_ok=True)
    write_json(folder / _MARK, {"of": key, "maps": sorted(names)})


def marked(folder: Path, key: str) -> bool:
    """Whether the maps in a folder are whole, all there, and of this result."""
    known = _marked(folder)
    return known.get("of") == key and all((folder / name).is_file() for name in known.get("maps", ()))


def _marked(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / _MARK)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_picture(
    path: Path,
    images: Sequence[tuple[str, np.ndarray]],
    truth: np.ndarray,
    predictions: Sequence[tuple[str, np.ndarray]],
    legend: Legend,
) -> None:
    """A PNG: named images of a place, uint8 (H, W), the truth (IGNORED: black), named predictions, the legend."""
    panels = [(name, _grey(one)) for name, one in images]
    panels += [(name, _coloured(one, legend)) for name, one in [("truth", truth), *predictions]]
    height, width = truth.shape
    scale = max(1, -(-_SIDE // max(height, width)))
    wide, high = scale * width, scale * height
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    across = _GAP + columns * (wide + _GAP)
    font = ImageFont.load_default(12)
    entries = [*zip(legend.names, class_colours(legend.names), strict=True), ("no class", _UNKNOWN)]
    widths = [_LINE + 4 + int(font.getlength(name)) + 2 * _GAP for name, _ in entries]
    places, legend_lines = _legend_places(widths, across)
    top = lines * (high + _LINE + _GAP) + _GAP
    sheet = Image.new("RGB", (across, top + legend_lines * (_LINE + 2) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, panel) in enumerate(panels):
        line, column = divmod(number, columns)
        x, y = _GAP + column * (wide + _GAP), line * (high + _LINE + _GAP) + 2
        draw.text((x, y), _fitting(name, wide, font), fill="black", font=font)
        sheet.paste(Image.fromarray(panel).resize((wide, high), Image.Resampling.NEAREST), (x, y + _LINE))
    for (name, colour), (x, line) in zip(entries, places, strict=True):
        y = top + line * (_LINE + 2)
        draw.rectangle((x, y, x + _LINE - 3, y + _LINE - 3), fill=colour, outline="black")
        draw.text((x + _LINE + 2, y), name, fill="black", font=font)
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    with atomic_write(path) as file:
        file.write(data.getvalue())


def _legend_places(widths: Sequence[int], across: int) -> tuple[list[tuple[int, int]], int]:
    """Left edge and line of each entry, and the number of lines."""
    places, x, line = [], _GAP, 0
    for width in widths:
        if x > _GAP and x + width > across:
            x, line = _GAP, line + 1
        places.append((x, line))
        x += width
    return places, line + 1


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text that is too long: names of weights differ there."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=2)


def _coloured(classes: np.ndarray, legend: Legend) -> np.ndarray:
    table = np.full((256, 3), _UNKNOWN, np.uint8)
    table[: len(legend.names)] = class_colours(legend.names)
    return table[classes]
