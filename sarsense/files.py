"""Atomic writes: a file is whole under its name, or it is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sarsense.places import Place, scratch


@contextmanager
def atomic_write(path: Place) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success fsync it and rename it to `path`, else remove it. Of a remote
    one, a local file, which is sent.

    The temporary name holds the process number, so that two processes never write into one file. An OSError names
    `path`, not the temporary.
    """
    if not isinstance(path, Path):
        with scratch(path) as folder:
            with (folder / path.name).open("wb") as file:
                yield file
            path.put(folder / path.name)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    created = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            created = True
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if created:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_json(path: Place, value: Any) -> None:
    """Write `value` as JSON with sorted keys and a final newline: same value, same bytes."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Place) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
