"""The command lines without a process of their own."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from cli import run_dic3l, run_sarsense

PROGRAMS = {"sarsense": run_sarsense, "dic3l": run_dic3l}


def call(program: str, *arguments: object, code: int = 0) -> str:
    """Run a command in this process; its standard output, and its standard error where it ends with another `code` than
    0. A process of its own takes seconds to start."""
    out, err, found = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.delenv("WORLD_SIZE", raising=False)
        try:
            PROGRAMS[program]()
        except SystemExit as ended:
            found = ended.code or 0
    assert found == code, err.getvalue()
    return out.getvalue() + err.getvalue() if code else out.getvalue()
