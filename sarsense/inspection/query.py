"""Ask the table of tiles in SQL, with DuckDB: quick on half a million rows, since it reads the columns that it needs.

What a user writes runs in a database of its own, in memory, that can read the corpus' tables and no other file, and
whose settings cannot be changed; it is one SELECT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from sarsense.corpus import TABLES, Corpus, tile_schema
from sarsense.errors import CorpusError, SettingError
from sarsense.inspection.source import Source
from sarsense.places import local_copy

NUMBERED = "numbered"
_MEMORY = "400MB"


@contextmanager
def database(source: Source) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the view `tiles`, in the order of the shards; of a corpus `scenes` and `duplicates`, too, and
    NUMBERED, tiles with the number of their row in the table, `file_row_number`.

    CorpusError where a table is missing or cannot be read.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(duckdb.connect(config={"memory_limit": _MEMORY, "threads": 2}))
        if source.corpus is None:
            files: dict[str, Path] = {}
            connection.register("tiles", source.scanned)
        else:
            files = {name: stack.enter_context(_table(source.corpus, name)) for name in TABLES}
            allowed = ", ".join(literal(str(path)) for path in files.values())
            connection.execute(f"SET allowed_paths=[{allowed}]")
        connection.execute("SET enable_external_access=false")
        connection.execute("SET enable_progress_bar=false")
        for name, path in files.items():
            connection.execute(_view(source, name.removesuffix(".parquet"), path))
            if name == "tiles.parquet":
                connection.execute(_view(source, "tiles", path, NUMBERED))
        connection.execute("SET lock_configuration=true")
        yield connection


def select(
    source: Source,
    columns: Sequence[str] = (),
    where: str | None = None,
    sort: str | None = None,
    limit: int = 0,
    offset: int = 0,
) -> pa.Table:
    """Rows of tiles. `where`: a condition of SQL; `sort`: columns, or -column for the largest first, or what SQL's
    ORDER BY takes; equal ones stay in the order of the shards. `limit` 0: all. `columns`: none: all.

    SettingError where the condition or the order is no SQL, or names a column that is not there.
    """
    with database(source) as connection:
        return run(connection, _query(connection, columns, where, sort, limit, offset), source)


def count(source: Source, where: str | None = None) -> int:
    """Rows of tiles for which `where` holds. SettingError."""
    with database(source) as connection:
        return run(connection, f"SELECT count(*) AS n FROM tiles{condition(where)}", source)["n"][0].as_py()


def columns_of(source: Source) -> list[str]:
    """Names of the columns of tiles."""
    with database(source) as connection:
        return _names(connection)


def run(connection: duckdb.DuckDBPyConnection, query: str, source: Source) -> pa.Table:
    """The rows of one SELECT. SettingError where it is none, or DuckDB cannot carry it out."""
    with _told(connection, source):
        return _one_select(connection, query).to_arrow_table()


def batches(connection: duckdb.DuckDBPyConnection, query: str, rows: int, source: Source) -> Iterator[pa.RecordBatch]:
    """The same, part by part: what DuckDB cannot carry out may come to light in any of them."""
    with _told(connection, source):
        yield from _one_select(connection, query).to_arrow_reader(rows)


def _one_select(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.DuckDBPyRelation:
    statements = connection.extract_statements(query)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise SettingError("--where and --sort: expected one condition and one order of SQL, found more statements")
    return connection.sql(query)


@contextmanager
def _told(connection: duckdb.DuckDBPyConnection, source: Source) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, OSError) as error:  # in the middle of a stream an OSError without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SettingError(f"--where or --sort: {_reason(error, connection, source)}") from error


def _query(
    connection: duckdb.DuckDBPyConnection,
    columns: Sequence[str],
    where: str | None,
    sort: str | None,
    limit: int,
    offset: int,
) -> str:
    known = _names(connection)
    wanted = ", ".join(_name(column) for column in (columns or known) if column in known)
    order = "" if sort is None else f" ORDER BY {ordering(sort, known)}"
    page = (f" LIMIT {int(limit)}" if limit else "") + (f" OFFSET {int(offset)}" if offset else "")
    return f"SELECT {wanted} FROM tiles{condition(where)}{order}{page}"


def condition(where: str | None) -> str:
    """The WHERE of a condition that a user wrote, with a space before; nothing of an empty one."""
    # the line break ends a comment of theirs, which would else take our bracket with it
    return "" if where is None or not where.strip() else f" WHERE ({where}\n)"


def ordering(sort: str, known: Sequence[str]) -> str:
    """What follows ORDER BY: of `select`'s `sort`."""
    parts = [part.strip() for part in sort.split(",")]
    if all(part.removeprefix("-") in known for part in parts):
        down = [
            f"{_name(part.removeprefix('-'))} {'DESC' if part.startswith('-') else 'ASC'} NULLS LAST" for part in parts
        ]
        return ", ".join([*down, *(['"key"'] if "key" in known else [])])
    return f"{sort}\n"


def _names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [row[0] for row in connection.execute("DESCRIBE tiles").fetchall()]


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


@contextmanager
def _table(corpus: Corpus, name: str) -> Iterator[Path]:
    path = corpus.root / name
    try:
        with local_copy(path) as local:
            pq.read_schema(local)  # a damaged file is told in our words
            yield local.absolute()
    except FileNotFoundError as error:
        raise CorpusError(f"{path}: missing; a corpus has it, so it was removed: restore it or build again") from error
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path}: cannot be read ({reason}); restore it or build the corpus again") from error


def _view(source: Source, name: str, path: Path, numbered: str = "") -> str:
    """Columns that an older format lacks are null. numbered: name of the view that has the numbers of rows, too."""
    assert source.corpus is not None
    lacking = ""
    if name == "tiles":
        there = set(pq.read_schema(path).names)
        missing = [field.name for field in tile_schema(source.corpus.labelled) if field.name not in there]
        lacking = "".join(f", NULL AS {_name(column)}" for column in missing)
    narrowed = ""
    if name == "tiles" and source.shards is not None:
        narrowed = f" WHERE shard IN ({', '.join(map(literal, source.shards))})"
    read = f"read_parquet({literal(str(path))}{', file_row_number=true' if numbered else ''})"
    return f"CREATE VIEW {numbered or name} AS SELECT *{lacking} FROM {read}{narrowed}"


def _reason(error: Exception, connection: duckdb.DuckDBPyConnection, source: Source) -> str:
    """DuckDB's first line, and what there is to choose from."""
    first = re.sub(r"\s+", " ", str(error).split("\nLINE")[0]).strip()
    if isinstance(error, duckdb.BinderException):
        lacking = f"; of these tars nothing says {', '.join(source.unknown)}" if source.unknown else ""
        return f"{first}; columns: {', '.join(_names(connection))}{lacking}"
    return first
