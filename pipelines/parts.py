"""Results of single fits on disk, so that an evaluation that was stopped goes on where it was.

OUT/parts/<first 16 hex digits of the key>.json    {"of": what it depends on, "found": what came out}

A key is the hash of all that a result depends on: data, weights, probe, settings, seed, versions. So a part that is
there needs no further question, and one whose settings changed is not looked at again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sarsense.files import read_json, write_json

_DIGITS = 16
_NAME_LETTERS = 60


@dataclass(frozen=True)
class Parts:
    """The results in a folder."""

    folder: Path

    def load(self, of: dict[str, Any]) -> dict[str, Any] | None:
        """What was found for exactly this, or None: also where the file is damaged, since it can be made again."""
        try:
            part = read_json(self._path(of))
            return part["found"] if part["of"] == json.loads(json.dumps(of)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, of: dict[str, Any], found: dict[str, Any]) -> None:
        """Keep a result: whole under its name, or not at all."""
        write_json(self._path(of), {"of": of, "found": found})

    def _path(self, of: dict[str, Any]) -> Path:
        return self.folder / f"{key_of(of)}.json"


def key_of(of: dict[str, Any]) -> str:
    """A short name of what a result depends on, plain JSON values."""
    text = json.dumps(of, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def file_names(names: Sequence[str]) -> list[str]:
    """What files of these names may be called, each another: the ends, where they are long."""
    found: list[str] = []
    for number, name in enumerate(names):
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-_NAME_LETTERS:].strip("-") or "unnamed"
        other = plain
        while other in found:
            other, number = f"{plain}-{number}", number + len(names)
        found.append(other)
    return found
