"""The page of a corpus: what the data section of a paper tells, in numbers and pictures, as one HTML file.

Tables and words are those of the datasheet (`report.datasheet`), pictures those of `shards show`, `stats` and the
README. Of tars of another program it tells what can be counted, and what cannot be known.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from sarsense.errors import CorpusError
from sarsense.files import atomic_write
from sarsense.inspection.show import show
from sarsense.inspection.source import Source
from sarsense.inspection.statistics import statistics
from sarsense.inspection.text import plain
from sarsense.report.datasheet import sections
from sarsense.report.histograms import histogram_figure, statistics_figure
from sarsense.report.markdown import code, markdown_table
from sarsense.report.markdown import plain as cell
from sarsense.report.overview import overview_figure
from sarsense.report.page import page
from sarsense.report.world import world_figure

# names of others stand in the text: no HTML, no links, no pictures from elsewhere
_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink", "reference"])
)
_TITLES = {
    "load": "Loading",
    "composition": "Composition",
    "levels": "Decibels",
    "labels": "Labels",
    "sources": "Sources",
    "made": "How it was made",
    "licence": "Licence",
}
_ACROSS, _TILES = 8, 40


def write_report(source: Source, out: Path) -> Path:
    """Write the page. CorpusError where there are no tiles; ShardError where one that a picture looks into is not what
    it should be."""
    told = statistics(source)
    if not told["tiles"]:
        raise CorpusError(f"{source.name}: no tiles: nothing to report")
    with tempfile.TemporaryDirectory() as folder:
        text = _page(source, told, _Pictures(Path(folder)))
    with atomic_write(out) as file:
        file.write(text.encode("utf-8", "replace"))
    return out


class _Pictures:
    """Figures with their captions, numbered, as HTML."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def draw(self, caption: str, draw: Callable[[Path], object]) -> str:
        self._count += 1
        path = self._folder / f"{self._count}.png"
        draw(path)
        data = base64.b64encode(path.read_bytes()).decode()
        words = f"Figure {self._count}. {caption}"
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )


def _page(source: Source, told: dict[str, Any], pictures: _Pictures) -> str:
    corpus = source.corpus
    whole = corpus is not None and source.shards is None
    parts: dict[str, str] = {}
    sheet = pictures.draw(
        f"{min(_TILES, told['tiles'])} of {told['tiles']:,} tiles, spread over groups and scenes.",
        lambda path: show(source, path, _TILES, _ACROSS),
    )
    placed = any(row["region"] != "unknown" for row in told["by"].get("region", []))
    where = ""
    if placed:
        unplaced = sum(row["tiles"] for row in told["by"]["region"] if row["region"] == "unknown")
        more = f" {unplaced:,} tiles have no place." if unplaced else ""
        caption = (
            f"Where the tiles lie: a mark a cell of the map, larger for more tiles.{more} Coastline: Natural Earth."
        )
        where = pictures.draw(caption, lambda path: world_figure(source, path))
    parts["At a glance"] = sheet + where
    counted = pictures.draw(
        "Tiles by sensor and month; levels, looks, texture and valid shares of tiles, by sensor and polarisation.",
        lambda path: overview_figure(source, told, path, read=0),
    )
    if corpus is None or not whole:
        parts["Composition"] = counted + _counts(told)
        parts["What is not known"] = _markdown(_unknown(source, told))
    else:
        for name, text in sections(corpus).items():
            if name in _TITLES:
                parts[_TITLES[name]] = _section(text)
        composition = parts["Composition"].replace("<h3>", "</section><section><h3>").replace("</section>", "", 1)
        parts["Composition"] = f'{counted}<div class="tables">{composition}</section></div>'
        ranges = "Normalisation: the despeckled dB of the ground of each group, and the range that became the codes."
        codes = (
            "What came out: dB of the codes of each group, out of up to 400 tiles; what was clipped lies at the ends."
        )
        parts["Decibels"] += pictures.draw(ranges, lambda path: statistics_figure(corpus, path))
        parts["Decibels"] += pictures.draw(codes, lambda path: histogram_figure(corpus, path))
        order = ["At a glance", "Composition", "Decibels", "Labels", "Sources", "How it was made", "Loading", "Licence"]
        parts = {name: parts[name] for name in order if name in parts}
        parts["Citation"] = _citation(source)
    return page(f"{plain(source.name, 80)}: report", _body(source, told, parts), "report.css")


def _body(source: Source, told: dict[str, Any], parts: dict[str, str]) -> str:
    name, version = escape(plain(source.name, 120)), told["version"]
    small = f" <small>{escape(plain(str(version)))}</small>" if version else ""
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in parts)
    body = "\n".join(f'<h2 id="{_anchor(title)}">{escape(title)}</h2>\n{html}' for title, html in parts.items())
    digest = f"<p>Digest of the tiles: <code>{escape(told['digest'])}</code></p>" if told["digest"] else ""
    by = "made by <code>sarsense report</code>; everything on this page is in the tables and shards that it names."
    return (
        f"<h1>{name}{small}</h1>\n<p class='lead'>Synthetic-aperture radar tiles for training and testing image "
        f"encoders.</p>\n<ul class='facts'>{''.join(_facts(source, told))}</ul>\n{digest}<nav>{links}</nav>\n{body}\n"
        f"<footer>{name}: {by}</footer>"
    )


def _facts(source: Source, told: dict[str, Any]) -> list[str]:
    by = told["by"]
    known = {name: [row for row in rows if row[name] not in (None, "unknown")] for name, rows in by.items()}
    months = sorted(row["month"] for row in known.get("month", []))
    size = told["bytes"]
    shape = told["tile_shape"]
    facts = [
        (f"{told['tiles']:,}", "tiles" if shape is None else f"tiles of {shape[2]} x {shape[1]} pixels"),
        *((f"{number:,}", f"in {plain(str(name), 40)}") for name, number in told["splits"].items()),
        (f"{size / 2**30:.2f} GiB" if size > 2**30 else f"{size / 2**20:.1f} MiB", f"in {told['shards']:,} shards"),
        *([(f"{len(known['sensor']):,}", "sensors")] if known.get("sensor") else []),
        *([(f"{len(known['region']):,}", "grid zones (6° x 8°)")] if known.get("region") else []),
        *([(months[0] if len(months) == 1 else f"{months[0][:4]} to {months[-1][:4]}", "acquired")] if months else []),
        *([(f"{sum(told['duplicates'].values()):,}", "repeats left out")] if told["duplicates"] else []),
    ]
    return [f"<li><b>{escape(number)}</b><span>{escape(words)}</span></li>" for number, words in facts]


def _markdown(text: str) -> str:
    return _MARKDOWN.render(text)


def _section(text: str) -> str:
    """Without its own heading."""
    return _markdown(re.sub(r"\A## [^\n]*\n", "", text))


def _counts(told: dict[str, Any]) -> str:
    """Tables by column, of tiles that are no whole corpus."""
    blocks = []
    for name, rows in told["by"].items():
        lines = [
            (cell(plain(str(row[name] or "unknown"), 60)), f"{row['tiles']:,}", _number(row["median_enl"]))
            for row in rows
        ]
        table = markdown_table((name, "tiles", "median ENL"), lines[:20], numbers=True)
        blocks.append(f"<section><h3>{escape(name)}</h3>{_markdown(table)}</section>")
    return f'<div class="tables">{"".join(blocks)}</div>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _unknown(source: Source, told: dict[str, Any]) -> str:
    if source.corpus is not None:
        return (
            f"This is of {told['shards']:,} of {len(source.corpus.shards):,} shards of a corpus. Sources, settings and "
            "citation are those of the whole: name the corpus for its report."
        )
    names = ", ".join(code(name) for name in told["unknown"])
    return (
        "These tars are no corpus of sarsense, or were taken out of one: nothing says which sources they are of, how "
        f"they were made, or whether they are whole. No sample says {names or 'nothing: all columns are there'}."
    )


def _citation(source: Source) -> str:
    corpus = source.corpus
    assert corpus is not None
    name, version = plain(corpus.name, 120), plain(str(corpus.manifest["version"]), 60)
    safe = re.sub(r"[^A-Za-z0-9]+", "", name) or "corpus"
    braced = re.sub(r"[{}\\]", "", name)
    made = f"corpus of sarsense {corpus.manifest['sarsense']}, {sum(corpus.manifest['splits'].values()):,} tiles"
    entry = (
        f"@misc{{{safe}{re.sub('[^A-Za-z0-9]+', '', version)},\n"
        f"  title        = {{{{{braced}}}: synthetic-aperture radar tiles}},\n"
        "  author       = {AUTHORS},\n  year         = {YEAR},\n"
        f"  version      = {{{re.sub(r'[{}]', '', version)}}},\n"
        f"  howpublished = {{{made}}},\n"
        f"  note         = {{SHA-256 of the tiles: {corpus.digest}}}\n}}"
    )
    words = (
        "<p>The digest names the set of tiles, whatever shards they lie in: whoever has the same digest has the same "
        "pixels, keys and splits. Who made the corpus, and when, its tables do not say.</p>"
    )
    return f"{words}<pre><code>{escape(entry)}</code></pre>"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
