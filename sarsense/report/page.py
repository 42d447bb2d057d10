"""A page that is one file: HTML with its style, its script and its data inside, that asks nothing of any network.

What others wrote (names, keys, paths) is in the page as JSON and base64 alone, in which no tag can end or begin; the
script puts it there as text. A policy in the page forbids all that it does not carry itself.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(title: str, body: str, style: str, script: str = "", data: str = "") -> str:
    """The whole page. `title`: text; `body`: HTML that holds nothing that others wrote, but escaped; `style`, `script`:
    files of this package; `data`: of `json_block` and `packed`."""
    code = f"<script>\n{_asset(script)}</script>\n" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset(style)}</style>\n</head>\n"
        f"<body>\n{body}\n{data}{code}</body>\n</html>\n"
    )


def json_block(name: str, value: Any) -> str:
    """A value for the page's script, under an id."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text
    return f'<script type="application/json" id="{name}">{_safe(text)}</script>\n'


def packed(name: str, arrays: dict[str, np.ndarray]) -> str:
    """Arrays (n, ...) for the page's script: `NAME-index` says of each its type, its number and how many values a row
    has; its bytes lie in `NAME-number`, packed by zlib: of each value of a row and each of its bytes in turn, those of
    all rows, for what is alike lies together then. Two arrays at a time: zlib holds no lock."""
    rows = [one.reshape(len(one), math.prod(one.shape[1:])) for one in arrays.values()]
    index = {
        key: {"type": one.dtype.name, "number": number, "width": one.shape[1]}
        for number, (key, one) in enumerate(zip(arrays, rows, strict=True))
    }
    with ThreadPoolExecutor(2) as pool:
        contents = list(pool.map(_packed, rows))
    blocks = [f'<script type="text/plain" id="{name}-{n}">{content}</script>\n' for n, content in enumerate(contents)]
    return json_block(f"{name}-index", index) + "".join(blocks)


def _packed(rows: np.ndarray) -> str:
    count, width = rows.shape
    raw = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<"), copy=False))
    planes = raw.view(np.uint8).reshape(count, width * rows.dtype.itemsize).T
    how = zlib.Z_DEFAULT_STRATEGY if rows.dtype.itemsize == 1 else zlib.Z_RLE
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, how)
    return base64.b64encode(packer.compress(np.ascontiguousarray(planes).data) + packer.flush()).decode()


def coastline() -> dict[str, Any]:
    """Of Natural Earth (docs/coastline.py): `source`, `unit` in degrees, `rings`: first point, then steps."""
    return json.loads(_asset("coastline.json"))


def _asset(name: str) -> str:
    return (files("sarsense.report") / name).read_text(encoding="utf-8")


def _safe(text: str) -> str:
    """JSON that holds no end of a script, whatever its texts say."""
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text
