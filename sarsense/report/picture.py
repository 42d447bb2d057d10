"""Figures to PNG through matplotlib's Agg canvas, without pyplot: no display and no global state are touched."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sarsense.corpus import Corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.files import atomic_write
from sarsense.inspection.text import plain
from sarsense.places import Place

DPI = 110


def check_picture(path: Place) -> None:
    """SettingError where a picture's name does not end in .png."""
    if path.suffix.lower() != ".png":
        raise SettingError(f"{path}: pictures are PNG; a name that ends in .png expected")


def require_tiles(rows: Sequence[Any], corpus: Corpus) -> None:
    if not rows:
        raise CorpusError(f"{corpus.root}: the corpus has no tiles: nothing to draw")


def words(text: str, longest: int = 80) -> str:
    """A text that others wrote, as it may stand in a figure: short, in a line, and no formula."""
    return plain(text, longest).replace("$", "\\$")


def save(figure: Figure, path: Place) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as file, warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes: no reason to speak of it
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
