"""Figures to PNG through matplotlib's Agg canvas, without pyplot: no display and no global state are touched."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dic3l.checkpoint import atomic_write
from dic3l.errors import ConfigError, Dic3lError

DPI = 110


def check_picture(out_png: Path) -> None:
    """ConfigError where a picture's name does not end in .png."""
    if out_png.suffix.lower() != ".png":
        raise ConfigError(f"--out {out_png}: pictures are PNG; a name that ends in .png expected")


def save(figure: Figure, out_png: Path) -> None:
    """Write a figure atomically; Dic3lError where the place does not allow it."""
    FigureCanvasAgg(figure)
    try:
        with atomic_write(out_png) as file:
            figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    except OSError as error:
        raise Dic3lError(f"--out {out_png}: cannot be written: {error.strerror or error}") from error
