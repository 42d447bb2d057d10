"""Values and tables as Markdown (GitHub Flavored, 0.29)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def plain(value: str) -> str:
    """A value as it may stand in a cell of a table."""
    return value.replace("|", "\\|").replace("\n", " ")


def code(value: str) -> str:
    return f"`{plain(value)}`"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False, left: int = 1) -> str:
    """A table; numbers: columns after the first `left` are set to the right."""
    rule = [":--" if not numbers or index < left else "--:" for index in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
