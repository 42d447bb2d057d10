"""Requests of the page -> answers, without a socket. Routes are a table; nothing in a request names a file.

Who may ask is decided before (`server`). Texts of a corpus may be anything: they are cut, made one line, and sent as
JSON, which the page puts into text nodes alone.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib import resources
from typing import Any

import shapely

from sarsense.browse import near, pixels
from sarsense.browse.flags import FlagFile
from sarsense.browse.table import NUMBER, PAGE, Question, TileTable
from sarsense.errors import SarsenseError, SettingError
from sarsense.export.columns import describe
from sarsense.inspection.text import plain

JSON = "application/json; charset=utf-8"
LONGEST_QUERY, LONGEST_BODY = 16_000, 16_000
"""bytes of the part of an address behind ?, and of what is posted"""
_LONGEST_TEXT, _LONGEST_NAME, _LONGEST_LIST = 2000, 200, 64
_MOST_FLAGGED = 20_000
_RING_POINTS = 400
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    method: str
    """GET or POST"""
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    """media type"""
    body: bytes
    lasting: bool = False
    """whether a browser may keep it for the hour: of one tile, which does not change"""
    headers: Mapping[str, str] = field(default_factory=dict)


class Desk:
    """What all answers are made of."""

    def __init__(self, table: TileTable, flags: FlagFile) -> None:
        self.table, self.flags = table, flags
        self.source = table.source
        self.session = secrets.token_hex(4)
        """in the addresses of what a browser keeps: at the same port there may be another corpus in an hour"""


def answer(desk: Desk, request: Request) -> Answer:
    """Never raises: what a person can do something about is a sentence with status 422."""
    methods = _ROUTES.get(request.path)
    if methods is None:
        return _error(404, "nothing is here")
    if request.method not in methods:
        return _error(405, f"{', '.join(methods)} expected")
    try:
        return methods[request.method](desk, request)
    except (SarsenseError, OSError) as error:
        return _error(422, plain(str(error), _LONGEST_TEXT))
    except Exception as error:
        _log.exception("browse: %s", plain(request.path))
        return _error(500, f"unexpected {type(error).__name__}; the terminal tells more")


def _error(status: int, sentence: str) -> Answer:
    return Answer(status, JSON, _dumped({"error": sentence}))


def _json(value: Any) -> Answer:
    return Answer(200, JSON, _dumped(value))


def _dumped(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


# ------------------------------------------------------------------------------------------------------- what is asked


def _start(desk: Desk, request: Request) -> Answer:
    """What the corpus is, once."""
    table, source = desk.table, desk.source
    channels = [] if source.corpus is None else _channels(desk)
    return _json(
        {
            "name": plain(source.name),
            "corpus": source.corpus is not None,
            "total": table.total,
            "columns": [{"name": plain(n), "type": t, "what": describe(n)} for n, t in table.types.items()],
            "channels": channels,
            "unknown": [plain(name) for name in source.unknown],
            "flags": plain(str(desk.flags.path)),
            "session": desk.session,
            "places": table.places(),
        }
    )


def _channels(desk: Desk) -> list[str]:
    """Names of the channels of a tile, of the first one."""
    found = desk.table.page(Question(), 0, 1)
    said = (found[0].get("channels") if found else None) or []
    return [plain(f"{one.get('polarisation') or ''} {one.get('content') or ''}".strip()) for one in said]


def _tiles(desk: Desk, request: Request) -> Answer:
    """A page of a filter, and how many tiles there are in all of it."""
    flagged = _Flagged(desk)
    question = _question(request, flagged)
    offset, limit = _number(request, "offset", 0), _number(request, "limit", PAGE)
    rows = desk.table.page(question, offset, limit)
    return _json({"count": desk.table.count(question), "offset": offset, "rows": [_card(r, flagged) for r in rows]})


def _facets(desk: Desk, request: Request) -> Answer:
    found = desk.table.facets(_question(request, _Flagged(desk)))
    return _json({name: [[_plain(value), count] for value, count in values] for name, values in found.items()})


def _thumb(desk: Desk, request: Request) -> Answer:
    row = desk.table.light_row(_number(request, "n"))
    own = request.query.get("own") == "1"
    picture = pixels.thumbnail(desk.source, row, _number(request, "channel", 0), own)
    return Answer(200, "image/png", picture, lasting=True)


def _tile(desk: Desk, request: Request) -> Answer:
    """All that is known of a tile but its pixels; `broken` says why there are none."""
    row = desk.table.row(_number(request, "n"))
    flagged = _Flagged(desk)
    scene = desk.table.scene(row)
    told: dict[str, Any] = {
        **_card(row, flagged),
        "row": _shown(row),
        "scene_row": None if scene is None else _shown(scene),
        "searchable": _in_full(row.get("scene")),
        "ring": _ring(row),
        "planes": [],
        "broken": None,
    }
    try:
        planes = pixels.planes(desk.source, row)
    except SarsenseError as error:
        told["broken"] = plain(str(error), _LONGEST_TEXT)
        return _json(told)
    for plane in planes:
        values, step = pixels.sent(plane)
        told["planes"].append(
            {
                "name": plain(plane.name),
                "unit": plane.unit,
                "note": plane.note,
                "coded": _plain(plane.coded),
                "height": values.shape[0],
                "width": values.shape[1],
                "step": step,
                "histogram": _finite(pixels.histogram(plane)),
            }
        )
    return _json(told)


def _values(desk: Desk, request: Request) -> Answer:
    """float32, little-endian, row by row: height and width are those that `_tile` told of the plane."""
    planes = pixels.planes(desk.source, desk.table.light_row(_number(request, "n")))
    number = _number(request, "plane", 0)
    if number >= len(planes):
        raise SettingError(f"no plane {number}; the tile has {len(planes)}")
    values, _ = pixels.sent(planes[number])
    return Answer(200, "application/octet-stream", values.tobytes(), lasting=True)


def _near(desk: Desk, request: Request) -> Answer:
    row = desk.table.row(_number(request, "n"))
    groups = {
        "left_out": near.left_out(desk.table, row),
        "look_alikes": near.look_alikes(desk.table, row),
        "same_place": near.same_place(desk.table, row),
    }
    told: dict[str, Any] = {name: [_shown_values(one) for one in rows] for name, rows in groups.items()}
    return _json({**told, "hashed": bool(row.get("perceptual_hash")), "duplicates": desk.source.corpus is not None})


def _flags(desk: Desk, request: Request) -> Answer:
    return _json({"flags": [_shown_flag(vars(flag)) for flag in desk.flags.read()]})


def _flag(desk: Desk, request: Request) -> Answer:
    """Flag a tile, or its whole scene; answers with what it is flagged as now."""
    asked = _posted(request, {"n": int, "reason": str, "whole": bool})
    row = desk.table.light_row(asked["n"])
    desk.flags.add(row, asked["reason"], asked["whole"])
    return _json({"flag": _Flagged(desk).of(row)})


def _unflag(desk: Desk, request: Request) -> Answer:
    """Take a flag of a tile back, or that of its scene."""
    asked = _posted(request, {"n": int, "whole": bool})
    row = desk.table.light_row(asked["n"])
    names = ("scene", "source") if asked["whole"] else ("key",)
    for name in names:
        if row.get(name):
            desk.flags.remove(str(row[name]))
    return _json({"flag": _Flagged(desk).of(row)})


# -------------------------------------------------------------------------------------------------------- what is read


class _Flagged:
    """The list as it is now."""

    def __init__(self, desk: Desk) -> None:
        self._reasons = {flag.name: flag.reason for flag in desk.flags.read()}

    @property
    def names(self) -> list[str]:
        return list(self._reasons)[:_MOST_FLAGGED]

    def of(self, row: Mapping[str, Any]) -> dict[str, str] | None:
        """How a tile is flagged: by itself (`tile`), or with its scene (`scene`), and why."""
        for what, name in (("tile", "key"), ("scene", "scene"), ("scene", "source")):
            if row.get(name) and (reason := self._reasons.get(str(row[name]))) is not None:
                return {"what": what, "reason": plain(reason, _LONGEST_TEXT)}
        return None


def _question(request: Request, flagged: _Flagged) -> Question:
    query = request.query
    try:
        facets = json.loads(query.get("facets") or "{}")
    except (ValueError, RecursionError):
        facets = None
    values = list(facets.values()) if isinstance(facets, dict) else [None]
    scalars = all(isinstance(v, list) and all(isinstance(x, str | bool | None) for x in v) for v in values)
    if not isinstance(facets, dict) or not scalars:
        raise SettingError("facets: an object of lists of texts expected")
    return Question(
        where=query.get("where", ""),
        sort=query.get("sort", ""),
        facets=facets,
        per_scene=query.get("per_scene") == "1",
        keys=flagged.names if query.get("flagged") == "1" else None,
    )


def _number(request: Request, name: str, default: int | None = None) -> int:
    given = request.query.get(name)
    if given is None and default is not None:
        return default
    if given is None or not given.isascii() or not given.isdigit() or len(given) > 12:
        raise SettingError(f"{name}: a number expected")
    return int(given)


def _posted(request: Request, expected: Mapping[str, type]) -> dict[str, Any]:
    try:
        found = json.loads(request.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise SettingError(f"a JSON object of {', '.join(expected)} expected")
    for name, kind in expected.items():
        if type(found[name]) is not kind:
            raise SettingError(f"{name}: {kind.__name__} expected")
    return found


# ------------------------------------------------------------------------------------------------------- what is shown


def _card(row: Mapping[str, Any], flagged: _Flagged) -> dict[str, Any]:
    names = "key scene split sensor polarisation datetime lon lat mean_db enl valid_fraction".split()
    return {
        "n": row[NUMBER],
        **{name: _plain(row.get(name), _LONGEST_NAME) for name in names},
        "flag": flagged.of(row),
    }


def _shown(row: Mapping[str, Any]) -> list[list[Any]]:
    """Name, value, description of every column but the geometry and the number."""
    rest = [(name, value) for name, value in row.items() if name not in (NUMBER, "footprint")]
    return [[plain(name), _plain(value), describe(name)] for name, value in rest]


def _shown_values(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value, _LONGEST_NAME) for name, value in row.items()}


def _shown_flag(flag: Mapping[str, str]) -> dict[str, str]:
    return {name: plain(value, _LONGEST_NAME) for name, value in flag.items()}


def _plain(value: Any, longest: int = _LONGEST_TEXT) -> Any:
    """As JSON has it: numbers that are none are null, texts are one line, long ones and long lists are cut."""
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value):,} bytes"
    if isinstance(value, Mapping):
        return {plain(str(key)): _plain(one, longest) for key, one in list(value.items())[:_LONGEST_LIST]}
    if isinstance(value, list | tuple):
        return [_plain(one, longest) for one in value[:_LONGEST_LIST]]
    return plain(value.isoformat() if isinstance(value, date) else str(value), longest)


def _in_full(value: Any) -> bool:
    """Whether a text is shown as it is, so that it may be asked for by what is shown."""
    return isinstance(value, str) and plain(value, _LONGEST_NAME) == value


def _finite(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, list) else _plain(value) for name, value in told.items()}


def _ring(row: Mapping[str, Any]) -> list[list[float]]:
    """Outline of the tile, lon and lat; empty where nobody knows it."""
    if not row.get("footprint"):
        return []
    try:
        shape = shapely.from_wkb(bytes(row["footprint"]))
        points = shapely.get_coordinates(shape)[:_RING_POINTS].tolist()
    except (shapely.errors.ShapelyError, TypeError, ValueError):
        return []
    return [[x, y] for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _static(name: str, kind: str, package: str = "sarsense.browse") -> Callable[[Desk, Request], Answer]:
    body = resources.files(package).joinpath(name).read_bytes()
    return lambda desk, request: Answer(200, kind, body)


_ROUTES: dict[str, dict[str, Callable[[Desk, Request], Answer]]] = {
    "/": {"GET": _static("page.html", "text/html; charset=utf-8")},
    "/page.css": {"GET": _static("page.css", "text/css; charset=utf-8")},
    "/page.js": {"GET": _static("page.js", "text/javascript; charset=utf-8")},
    "/view.js": {"GET": _static("view.js", "text/javascript; charset=utf-8")},
    "/map.js": {"GET": _static("map.js", "text/javascript; charset=utf-8")},
    "/icon.svg": {"GET": _static("icon.svg", "image/svg+xml")},
    "/coastline.json": {"GET": _static("coastline.json", JSON, "sarsense.report")},
    "/api/start": {"GET": _start},
    "/api/tiles": {"GET": _tiles},
    "/api/facets": {"GET": _facets},
    "/api/thumb": {"GET": _thumb},
    "/api/tile": {"GET": _tile},
    "/api/values": {"GET": _values},
    "/api/near": {"GET": _near},
    "/api/flags": {"GET": _flags},
    "/api/flag": {"POST": _flag},
    "/api/unflag": {"POST": _unflag},
}
