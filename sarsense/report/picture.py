"""Figures to PNG through matplotlib's Agg canvas, without pyplot: no display and no global state are touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sarsense.corpus import Corpus
from sarsense.errors import CorpusError, SettingError
from sarsense.files import atomic_write
from sarsense.places import Place

DPI = 110


def check_picture(path: Place) -> None:
    """SettingError where a picture's name does not end in .png."""
    if path.suffix.lower() != ".png":
        raise SettingError(f"{path}: pictures are PNG; a name that ends in .png expected")


def require_tiles(rows: Sequence[Any], corpus: Corpus) -> None:
    if not rows:
        raise CorpusError(f"{corpus.root}: the corpus has no tiles: nothing to draw")


def save(figure: Figure, path: Place) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
