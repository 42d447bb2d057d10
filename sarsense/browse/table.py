"""The table of tiles behind the page: pages of a filter, one row, counts of facets. Safe for many threads.

A tile goes by the number of its row in the table, which is short and says nothing, whatever its key looks like. What
a person writes as a condition runs in the locked-down database of `sarsense.inspection.query`, and is interrupted where
it takes too long.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from sarsense.errors import SettingError
from sarsense.inspection.query import NUMBERED, condition, database, ordering, run
from sarsense.inspection.source import Source
from sarsense.inspection.tile import NEEDED

NUMBER = "file_row_number"
FACETS = ("split", "sensor", "mode", "polarisation", "content", "orbit_direction", "flat", "near_evaluation")
"""columns of few values, to choose from"""
SECONDS = 10.0
"""after which a question is given up"""
PAGE = 60
LARGEST_PAGE = 240
_SHOWN = (
    "key scene source split sensor mode polarisation content datetime lon lat mean_db std_db enl valid_fraction".split()
)
_LAST_SECONDS = 3.0
"""that the end waits for what was interrupted"""
_KEPT_ROWS = 4096
_OUR_BRACKET = 'Parser Error: syntax error at or near ")"'
_FACET_VALUES = 40
_PLACES = 4000


@dataclass(frozen=True)
class Question:
    """Which tiles, in which order."""

    where: str = ""
    """a condition of SQL"""
    sort: str = ""
    """as of `sarsense shards ls`"""
    facets: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """column among FACETS -> values that it may have"""
    per_scene: bool = False
    """only the first tile of each scene"""
    keys: Sequence[str] | None = None
    """only tiles whose key, scene or source is one of these"""


class TileTable:
    """Open until `close`. SettingError with a sentence for the page where SQL says no, or takes too long."""

    def __init__(self, source: Source, seconds: float = SECONDS) -> None:
        self.source, self._seconds = source, seconds
        self._stack = ExitStack()
        self._connection = self._stack.enter_context(database(source))
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._closed = False
        self._running: set[duckdb.DuckDBPyConnection] = set()
        self._rows: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._order: tuple[str, np.ndarray] | None = None
        described = self.ask("SELECT column_name, column_type FROM (DESCRIBE tiles)").to_pylist()
        self.types = {row["column_name"]: row["column_type"] for row in described}
        self.columns = list(self.types)
        self.total = self.count(Question())

    def close(self) -> None:
        """What is being asked is interrupted, and waited for: a database that is closed under a query takes the process
        with it."""
        with self._idle:
            self._closed = True
            deadline = time.monotonic() + _LAST_SECONDS
            while self._running and time.monotonic() < deadline:
                for cursor in self._running:
                    with suppress(duckdb.Error):
                        cursor.interrupt()
                self._idle.wait(0.05)  # one may just begin what was not there to be interrupted
            left = bool(self._running)
        if not left:
            self._stack.close()

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._lock:
            if self._closed:
                raise SettingError("the server is about to end")
            cursor = self._connection.cursor()
            self._running.add(cursor)
        try:
            if self.source.scanned is not None:  # what is registered is of one cursor
                cursor.register("tiles", self.source.scanned)
                cursor.execute(
                    f"CREATE TEMP VIEW {NUMBERED} AS SELECT *, row_number() OVER () - 1 AS {NUMBER} FROM tiles"
                )
            yield cursor
        finally:
            cursor.close()
            with self._idle:
                self._running.discard(cursor)
                self._idle.notify_all()

    def ask(self, query: str) -> pa.Table:
        """The rows of one SELECT. SettingError."""
        with self._cursor() as cursor:
            late = threading.Event()

            def interrupt() -> None:
                late.set()
                with suppress(duckdb.Error):  # it ended just now
                    cursor.interrupt()

            timer = threading.Timer(self._seconds, interrupt)
            timer.daemon = True
            timer.start()
            try:
                return run(cursor, query, self.source)
            except SettingError as error:
                if late.is_set():
                    told = f"the condition takes longer than {self._seconds:g} s and was given up; make it narrower"
                    raise SettingError(told) from None
                told = str(error).removeprefix("--where or --sort: ")
                if told == _OUR_BRACKET:
                    told = "Parser Error: the condition ends where more of it is expected"
                raise SettingError(told) from None
            finally:
                timer.cancel()

    def page(self, question: Question, offset: int, limit: int = PAGE) -> list[dict[str, Any]]:
        """Rows `offset` on, at most `limit`: NUMBER and what a page shows. All that a thumbnail needs is kept."""
        offset, limit = max(0, offset), max(1, min(limit, LARGEST_PAGE))
        if question.sort.strip() and offset:
            numbers = self._sorted(question)[offset : offset + limit].tolist()
        else:
            numbers = self._numbers(f"{self._ordered(question)} LIMIT {limit} OFFSET {offset}").tolist()
        rows = {row[NUMBER]: row for row in self._light(numbers)}
        return [rows[number] for number in numbers if number in rows]

    def _ordered(self, question: Question) -> str:
        order = f"{ordering(question.sort, self.columns)}, {NUMBER}" if question.sort.strip() else NUMBER
        first = f" QUALIFY row_number() OVER (PARTITION BY scene ORDER BY {NUMBER}) = 1" if question.per_scene else ""
        return f"SELECT {NUMBER} FROM {NUMBERED} AS tiles{self._condition(question)}{first} ORDER BY {order}"

    def _numbers(self, query: str) -> np.ndarray:
        column = self.ask(query).column(0)
        if not pa.types.is_integer(column.type):
            raise SettingError("expected one condition of SQL, found something that gives other rows")
        return column.drop_null().to_numpy()

    def _sorted(self, question: Question) -> np.ndarray:
        """Numbers of all rows in order: sorted once for all pages behind the first."""
        query = self._ordered(question)
        with self._lock:
            kept = self._order
        if kept is None or kept[0] != query:
            kept = query, self._numbers(query)
            with self._lock:
                self._order = kept
        return kept[1]

    def _light(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Rows with the columns of a page and of `read_tile`."""
        if not numbers:
            return []
        names = [name for name in dict.fromkeys([*_SHOWN, *NEEDED]) if name in self.types]
        rows = self._numbered(numbers, names)
        with self._lock:
            for row in rows:
                self._rows[row[NUMBER]] = row
            while len(self._rows) > _KEPT_ROWS:
                self._rows.popitem(last=False)
        return rows

    def _numbered(self, numbers: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        wanted = ", ".join([NUMBER, *map(_name, names)])
        listed = ", ".join(str(int(number)) for number in numbers)
        between = f"{NUMBER} BETWEEN {min(numbers)} AND {max(numbers)}"
        return self.ask(f"SELECT {wanted} FROM {NUMBERED} WHERE {between} AND {NUMBER} IN ({listed})").to_pylist()

    def light_row(self, number: int) -> dict[str, Any]:
        """What `read_tile` needs of a tile, from what is kept where it is. SettingError where there is none."""
        with self._lock:
            kept = self._rows.get(number)
        found = [kept] if kept is not None else self._light([number])
        if not found:
            raise SettingError(f"no tile has the number {number}; there are {self.total:,}")
        return found[0]

    def row(self, number: int) -> dict[str, Any]:
        """All columns of a tile, but a footprint that is no geometry. SettingError where there is none."""
        try:
            found = self._numbered([number], self.columns)
        except SettingError:
            found = self._numbered([number], [name for name in self.columns if name != "footprint"])
        if not found:
            raise SettingError(f"no tile has the number {number}; there are {self.total:,}")
        return found[0]

    def scene(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of scenes.parquet of a tile; None where nobody has it."""
        if self.source.corpus is None or row.get("scene") is None:
            return None
        same = f"scene = {text(row['scene'])}"
        found = self.ask(f"SELECT * FROM scenes WHERE {same} ORDER BY path = {text(row['source'] or '')} DESC LIMIT 1")
        return found.to_pylist()[0] if len(found) else None

    def count(self, question: Question) -> int:
        """Tiles of a question; of one per scene, scenes."""
        what = "count(DISTINCT coalesce(scene, ''))" if question.per_scene else "count(*)"
        query = f"SELECT {what} AS n FROM {NUMBERED} AS tiles{self._condition(question)}"
        with self._lock:
            if query in self._counts:
                return self._counts[query]
        found = self.ask(query).column(0).to_pylist()
        with self._lock:
            self._counts[query] = found[0] if found and isinstance(found[0], int) else 0
            while len(self._counts) > 256:
                self._counts.popitem(last=False)
            return self._counts[query]

    def facets(self, question: Question) -> dict[str, list[tuple[Any, int]]]:
        """Of each column of few values, those that tiles of the question have, with counts, whatever is chosen of that
        column itself."""
        found: dict[str, list[tuple[Any, int]]] = {}
        for name in FACETS:
            if self.types.get(name) not in ("VARCHAR", "BOOLEAN"):  # of an older format, or of other tars
                continue
            others = {key: values for key, values in question.facets.items() if key != name}
            asked = Question(question.where, facets=others, keys=question.keys)
            query = f"SELECT {_name(name)} AS v, count(*) AS n FROM {NUMBERED} AS tiles{self._condition(asked)}"
            rows = self.ask(f"{query} GROUP BY v ORDER BY n DESC, v LIMIT {_FACET_VALUES}").to_pylist()
            found[name] = [(row["v"], row["n"]) for row in rows]
        return found

    def places(self) -> list[tuple[float, float, int]]:
        """Where tiles lie, lon and lat to a tenth of a degree, with counts: the most frequent of them."""
        if not {"lon", "lat"} <= self.types.keys():
            return []
        rows = self.ask(
            f"SELECT round(lon, 1) AS x, round(lat, 1) AS y, count(*) AS n FROM {NUMBERED} "
            f"WHERE lon BETWEEN -180 AND 180 AND lat BETWEEN -90 AND 90 GROUP BY x, y ORDER BY n DESC LIMIT {_PLACES}"
        )
        return [(row["x"], row["y"], row["n"]) for row in rows.to_pylist()]

    def _condition(self, question: Question) -> str:
        parts = [condition(question.where).removeprefix(" WHERE ")]
        for name, values in question.facets.items():
            if name not in FACETS or name not in self.types:
                raise SettingError(f"{name}: no column to choose by; there are {', '.join(FACETS)}")
            if values:
                parts.append(f"({' OR '.join(_equal(name, value) for value in values)})")
        if question.keys is not None:
            listed = ", ".join(map(text, question.keys)) or "NULL"
            named = [name for name in ("key", "scene", "source") if name in self.types]
            parts.append(f"({' OR '.join(f'{name} IN ({listed})' for name in named)})")
        whole = " AND ".join(filter(None, parts))
        return f" WHERE {whole}" if whole else ""


def text(value: str) -> str:
    """A literal of SQL."""
    return "'" + value.replace("\0", "").replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _equal(name: str, value: Any) -> str:
    if value is None:
        return f"{_name(name)} IS NULL"
    if isinstance(value, bool):
        return f"{_name(name)} = {value}"
    return f"{_name(name)} = {text(str(value))}"
