"""What the documents name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dic3l import config

ROOT = Path(__file__).resolve().parents[1]


def test_every_defect_has_a_test_that_exists_or_a_sentence():
    rows = [line.split("|") for line in (ROOT / "docs/defects.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert [int(row[1]) for row in rows] == list(range(1, 31))
    known: dict[str, set[str]] = {}
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[4])
        assert named or "a sentence" in row[4], row[1]
        for file, name in named:
            if file not in known:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                known[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in known[file], f"{file}::{name}"


@pytest.mark.parametrize("name", ["method.md", "defects.md"])
def test_settings_and_files_that_are_named_exist(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    settings = re.findall(r"`((?:views|speckle|boxes|edges|method|optim|train)\.[a-z_]+)`", text)
    assert not [one for one in settings if one not in config.names()]
    files = re.findall(r"`((?:dic3l|pipelines|sarsense|benchmarks|docs)/[\w/]+\.\w+)`", text)
    assert not [one for one in files if not (ROOT / one).exists()]
