"""How commands print: JSON, tables, lines; and how a signal ends them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import typer

_LONGEST_LINE = 4000


def print_json(value: Any) -> None:
    """For machines, which also take it in a terminal: what commands one is escaped. What JSON does not know is text, as
    paths and times, or null, as numbers that are none."""
    import json

    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    if not text.replace("\n", "").isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    typer.echo(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def safe(text: str) -> str:
    """What may hold words of others (names, keys, JSON), without anything that commands a terminal."""
    from sarsense.inspection.text import plain

    return "\n".join(plain(line, _LONGEST_LINE) for line in text.split("\n"))


def cell(value: Any) -> str:
    """A value as a table shows it: a dash for none, six digits of a number."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    return str(value)


def print_table(columns: Sequence[str], rows: list[list[str]]) -> None:
    """A table without lines, as wide as the terminal; without `columns`, without a head."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sarsense.inspection.text import plain

    # away from a terminal nothing is cut: a line is as long as it needs to be
    console = Console() if sys.stdout.isatty() else Console(width=1000)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(columns))
    for column in columns:
        table.add_column(Text(plain(column)), overflow="fold")
    for row in rows:  # as Text: what stands in brackets is no markup
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)


def print_counts(names: Sequence[str], rows: list[dict[str, Any]], tiles: int, most: int) -> None:
    """Rows of `sarsense.inspection.statistics`, the first `most` of them (0: all) and what is left in one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sarsense.inspection.text import plain

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for name in "tiles,share,,scenes,MiB,mean dB,spread,ENL,valid,repeats left out".split(","):
        table.add_column(name, justify="left" if name in ("", "repeats left out") else "right")
    shown = rows[:most] if most and len(rows) > most + 1 else rows
    for row in shown:
        share, size = row["tiles"] / max(tiles, 1), None if row["bytes"] is None else row["bytes"] / 2**20
        measured = [(row["mean_db"], ".2f"), (row["spread_db"], ".2f"), (row["median_enl"], ".2f")]
        cells = [
            *("-" if row[name] is None else plain(cell(row[name]), 60) for name in names),
            f"{row['tiles']:,}",
            f"{share:.1%}",
            "\u2588" * round(12 * share) or "\u258f",
            f"{row['scenes']:,}" if row["scenes"] else "-",
            "-" if size is None else f"{size:,.1f}",
            *("-" if value is None else f"{value:{form}}" for value, form in measured),
            "-" if row["valid"] is None else f"{row['valid']:.1%}",
            ", ".join(f"{kind} {number:,}" for kind, number in sorted(row["duplicates"].items())),
        ]
        table.add_row(*map(Text, cells))
    if rest := rows[len(shown) :]:
        count = sum(row["tiles"] for row in rest)
        cells = [f"{len(rest)} others", *[""] * (len(names) - 1), f"{count:,}", f"{count / max(tiles, 1):.1%}"]
        table.add_row(*map(Text, cells))
    (Console() if sys.stdout.isatty() else Console(width=1000)).print(table)


def say(lines: Iterable[str]) -> None:
    """A line each."""
    for line in lines:
        typer.echo(safe(line))


@contextmanager
def stoppable() -> Iterator[None]:
    """A signal to stop ends the command with one line, and with 128 + its number."""
    from pipelines.signals import Stopped, stop_signals

    try:
        with stop_signals():
            yield
    except Stopped as stop:
        with suppress(OSError):  # of SIGHUP: the terminal is gone
            typer.echo(f"stopped by {stop}; the same command goes on from here", err=True)
        raise typer.Exit(128 + stop.number) from None
