"""Text that anybody may have written (keys, paths, JSON), fit for a terminal: one line, without commands."""

from __future__ import annotations

_LONGEST = 200


def plain(text: str, longest: int = _LONGEST) -> str:
    """The text without characters that move the cursor, colour or turn the line round; the middle left out where it is
    longer than `longest`."""
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[len(text) - (longest - longest // 2 - 1) :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return (
        character.encode("unicode_escape").decode() if ord(character) < 0xD800 or ord(character) > 0xDFFF else "\ufffd"
    )
