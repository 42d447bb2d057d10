"""Tars that another program wrote, or a shard away from its corpus: a row a sample, of what can be known from it.

Members of one key (all up to the first dot of the file name, as webdataset has it) are a sample. A JSON member that has
columns of a corpus in it gives them; of pixels nothing is known until they are looked at.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from sarsense.corpus import TILE_SCHEMA
from sarsense.errors import ShardError
from sarsense.places import Place, local_copy

PIXELS = ("npy", "png", "tif", "tiff", "jpg", "jpeg")
"""endings of members that can be shown, the best first; behind another ending (`key.vv.npy`) they are second to all"""
_OWN = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("members", pa.list_(pa.string())),
        ("pixels", pa.string()),
    ]
)
"""of any tar: `offset` and `bytes` are those of the member that can be shown, which `pixels` names"""
_SAID = tuple(
    field for field in TILE_SCHEMA if field.name not in _OWN.names and field.name not in ("footprint", "split")
)
_LONGEST_JSON = 2**20
_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$", re.DOTALL)


def scan_tars(tars: Sequence[Place]) -> tuple[pa.Table, tuple[str, ...]]:
    """The table of all samples, in the order of the tars; and the columns of a corpus of which no sample says anything.

    ShardError names a tar that is none, or ends too early.
    """
    rows = [row for tar in tars for row in _samples(tar)]
    fields = [*_OWN, *_SAID]
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in fields]
    table = pa.table(columns, schema=pa.schema(fields))
    unknown = tuple(field.name for field in _SAID if table[field.name].null_count == len(rows))
    return table.drop_columns(list(unknown)), (*unknown, "split", "footprint")


def _samples(tar: Place) -> Iterator[dict[str, Any]]:
    try:
        with local_copy(tar) as path, tarfile.open(path, "r:") as opened:
            sample: dict[str, Any] | None = None
            for member in opened:
                if member.size < 0:  # tarfile would go back by as much, for ever
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                # names of another encoding stay names
                named = _NAME.match(member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
                if not member.isfile() or named is None:
                    continue
                key, ending = named.groups()
                if sample is None or sample["key"] != key:
                    if sample is not None:
                        yield sample
                    sample = {"key": key, "shard": str(tar), "members": []}
                _add(sample, opened, member, ending.lower())
            if sample is not None:
                yield sample
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(
            f"{tar}: expected a whole, uncompressed tar, found one that cannot be read: {error}"
        ) from error
    except OSError as error:
        raise ShardError(f"{tar}: cannot be read: {error.strerror or error}") from error


def _add(sample: dict[str, Any], opened: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> None:
    sample["members"].append(ending)
    if _rank(ending) < _rank(sample.get("pixels", "")):
        sample |= {"pixels": ending, "offset": member.offset_data, "bytes": member.size}
    if ending == "json" and member.size <= _LONGEST_JSON:
        file = opened.extractfile(member)
        try:
            said = json.loads(b"" if file is None else file.read())
        except (ValueError, RecursionError):
            return
        if isinstance(said, dict):
            sample |= {field.name: said[field.name] for field in _SAID if said.get(field.name) is not None}
            _add_normalization(sample, said.get("normalization"))


def _rank(ending: str) -> tuple[bool, int]:
    """The lower, the better to show; of what cannot be shown the highest."""
    before, _, kind = ending.rpartition(".")
    return (bool(before), PIXELS.index(kind)) if kind in PIXELS else (True, len(PIXELS))


def _add_normalization(sample: dict[str, Any], said: Any) -> None:
    first = said[0] if isinstance(said, list) and said else said
    if isinstance(first, dict):
        sample |= {name: first[name] for name in ("lo_db", "hi_db", "enl_bias_db") if first.get(name) is not None}


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """As a column of a corpus; what another program means by the name and is of another type is null."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError):
        return pa.array([_fitting(value, kind) for value in values], kind)


def _fitting(value: Any, kind: pa.DataType) -> Any:
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError):
        return None
