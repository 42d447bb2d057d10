"""The page of `shards browse` in a real browser: what a person does with it, and what a hostile corpus cannot do."""

from __future__ import annotations

import csv
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build import build
from sarsense.browse.server import BrowseServer
from sarsense.browse.session import browse
from tests.pipelines.small import CONFIG

playwright = pytest.importorskip("playwright.sync_api", reason="playwright (extra dev) drives the browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def corpus(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "corpus"
    build([str(scenes)], out, replace(CONFIG, content="both", val_share=0.1), 0)
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class _Tab:
    """A tab, what its console said, and what it asked for."""

    def __init__(self, browser: Any, server: BrowseServer, context: Any = None) -> None:
        self.context = context or browser.new_context(viewport={"width": 1280, "height": 800})
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(server.url)
        self.page.wait_for_selector("#grid .tile")
        self.page.wait_for_load_state("networkidle")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def names(self) -> list[str]:
        return [tile.get_attribute("data-n") for tile in self.page.query_selector_all("#grid .tile")]

    def flagged(self) -> list[str]:
        return [tile.get_attribute("data-n") for tile in self.page.query_selector_all("#grid .tile.flagged")]

    def until(self, holds: str) -> None:
        """Wait until an expression is true: the page's policy forbids `wait_for_function`, which evaluates text."""
        deadline = time.monotonic() + 20
        while not self.page.evaluate(holds):
            assert time.monotonic() < deadline, holds
            self.page.wait_for_timeout(30)

    def open(self, number: int) -> None:
        self.page.click(f"#grid .tile >> nth={number}")
        self.page.wait_for_selector("#detail[aria-busy=false] canvas")
        self.page.wait_for_load_state("networkidle")


@pytest.fixture
def server(corpus: Path, tmp_path: Path) -> Iterator[BrowseServer]:
    with _served(corpus, tmp_path) as server:
        yield server


@contextmanager
def _served(named: Path, tmp_path: Path) -> Iterator[BrowseServer]:
    with browse(str(named), "127.0.0.1", 0, tmp_path / "flags.csv") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def tab(chromium: Any, server: BrowseServer) -> Iterator[_Tab]:
    tab = _Tab(chromium, server)
    yield tab
    tab.context.close()


def test_the_grid_pages_filters_and_says_what_sql_says(tab: _Tab, server: BrowseServer):
    page = tab.page
    total = server.desk.table.total
    assert "token" not in page.url and f"{total} tiles" in tab.text("#count")
    assert all(
        page.eval_on_selector_all("#grid img", "all => all.map(one => one.complete && one.naturalWidth > 0)")[:20]
    )
    first = tab.names()
    page.keyboard.press("PageDown")
    tab.until("document.querySelector('#range').textContent.startsWith('61')")
    assert not set(first) & set(tab.names())
    page.go_back()
    tab.until("document.querySelector('#range').textContent.startsWith('1 ')")
    page.click(".facet button:has-text('VH')")
    tab.until("document.querySelector('#count').textContent.includes(' of ')")
    assert all("VH" in text for text in page.locator("#grid .facts").all_inner_texts())
    page.fill("#where", "mean_db <")
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not(.hidden)")
    assert "ends where more of it is expected" in tab.text("#error")
    page.fill("#where", "mean_db < -1000")
    page.keyboard.press("Enter")
    page.wait_for_selector(".nothing")
    assert page.is_hidden("#error")
    page.reload()
    page.wait_for_selector(".nothing")
    assert page.input_value("#where") == "mean_db < -1000"
    assert [line for line in tab.said if "422" not in line] == []


def test_a_tile_shows_its_decibels_histogram_place_and_provenance(tab: _Tab, server: BrowseServer):
    page = tab.page
    page.focus("#grid .tile >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail canvas")
    page.wait_for_load_state("networkidle")
    row = server.desk.table.row(1)
    assert tab.text("#detail-key") == row["key"]
    box = page.locator("#detail canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 10.5 / 64, box["y"] + box["height"] * 20.5 / 64)
    from sarsense.browse import pixels

    value = float(pixels.planes(server.desk.source, row)[0].values[20, 10])
    assert tab.text(".under b") == f"{value:.2f} dB" and "row 20, column 10" in tab.text(".under")
    assert page.locator(".histogram rect").count() > 20
    assert page.locator(".map polygon").count() == 1 and page.locator(".map circle.here").count() == 1
    side = tab.text(".facts-side")
    assert row["content_hash"] in side and row["source"] in side and "enl by cv" in side
    shown = "document.querySelector('#detail canvas').toDataURL()"
    before = page.evaluate(shown)
    page.keyboard.press("2")
    page.wait_for_selector(".tabs .on:has-text('despeckled')")
    page.wait_for_load_state("networkidle")
    tab.until(f"{shown} !== {before!r}")
    page.keyboard.press("3")
    tab.until("document.querySelectorAll('#detail canvas').length === 2")
    page.keyboard.press("c")
    page.wait_for_selector(".tabs .on:has-text('as coded')")
    page.keyboard.press("ArrowRight")
    tab.until(f"document.querySelector('#detail-key').textContent !== {row['key']!r}")
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert tab.said == []


def test_flags_are_set_taken_back_and_seen_in_another_tab(tab: _Tab, chromium: Any, server: BrowseServer):
    page, other = tab.page, _Tab(chromium, server, tab.context)
    flags = server.desk.flags.path
    tab.open(2)
    page.click(".chips button:has-text('stripes')")
    page.click("#flag-tile")
    page.wait_for_selector(".is-flagged")
    other.page.wait_for_selector("#grid .tile.flagged")
    assert other.flagged() == ["2"]
    with flags.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["key"] == server.desk.table.row(2)["key"] and row["reason"] == "stripes"
    other.page.focus("#grid .tile >> nth=4")
    other.page.keyboard.press("f")
    other.until("document.querySelectorAll('#grid .tile.flagged').length === 2")
    page.keyboard.press("f")
    page.wait_for_selector("#flag-tile")
    page.keyboard.press("Escape")
    tab.until("document.querySelectorAll('#grid .tile.flagged').length === 1")
    assert [flag.key for flag in server.desk.flags.read()] == [server.desk.table.row(4)["key"]]
    page.check("#flagged")
    tab.until("document.querySelectorAll('#grid .tile').length === 1")
    tab.open(0)
    page.wait_for_selector(".is-flagged")
    page.keyboard.press("f")
    page.wait_for_selector("#flag-scene")
    page.click("#flag-scene")
    page.wait_for_selector(".is-flagged h2:has-text('Scene flagged')")
    page.reload()
    page.wait_for_selector(".is-flagged h2:has-text('Scene flagged')")
    assert tab.said == other.said == []


def test_the_page_asks_nobody_else_and_keeps_no_token_in_sight(tab: _Tab, server: BrowseServer):
    tab.open(0)
    tab.page.wait_for_timeout(300)
    assert len(tab.asked) > 20
    assert all(address.startswith(f"http://127.0.0.1:{server.port}/") for address in tab.asked)
    assert [address for address in tab.asked if server.token in address] == [server.url]
    assert tab.page.evaluate("document.cookie") == "" and server.token not in tab.page.content()
    assert tab.page.evaluate("fetch('https://example.com').then(() => 'sent', () => 'refused')") == "refused"


def test_a_damaged_shard_is_a_message_and_no_dead_page(chromium: Any, corpus: Path, tmp_path: Path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    for shard in (copy / "train").iterdir():
        shard.unlink()
    with _served(copy, tmp_path) as server:
        tab = _Tab(chromium, server)
        tab.page.wait_for_selector("#grid .broken")
        assert "cannot be read" in tab.text("#grid .broken")
        tab.page.click("#grid .tile >> nth=0")
        tab.page.wait_for_selector("#detail .broken")
        assert "enl by cv" in tab.text(".facts-side")
        tab.context.close()


def test_hostile_names_do_nothing(chromium: Any, corpus: Path, tmp_path: Path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    bad = "</title></button><img src=x onerror=alert(1)><script>alert(2)</script>'\"javascript:alert(3)\u202e"
    for name, columns in (("tiles", ("scene", "source", "sensor", "mode", "polarisation", "datetime", "crs", "place")),
                          ("scenes", ("scene", "path", "product", "reason"))):  # fmt: skip
        table = pq.read_table(copy / f"{name}.parquet")
        for column in columns:
            table = table.set_column(table.schema.get_field_index(column), column, pa.array([bad] * len(table)))
        if name == "tiles":
            table = table.set_column(0, "key", pa.array([f"{bad}{number}" for number in range(len(table))]))
        pq.write_table(table, copy / f"{name}.parquet")
    schema = pq.read_schema(copy / "duplicates.parquet")
    row = {"kind": bad, "dropped": bad * 2, "kept": bad, "distance": 0.5}
    pq.write_table(pa.Table.from_pylist([row], schema), copy / "duplicates.parquet")
    with _served(copy, tmp_path) as server:
        tab = _Tab(chromium, server)
        tab.open(0)
        tab.page.wait_for_selector(".list")
        assert tab.page.locator(".row button:has-text('all tiles of its scene')").count() == 0
        tab.page.keyboard.press("Escape")
        assert tab.said == []
        assert tab.page.locator("script").count() == 1 and tab.page.locator("img[src='x']").count() == 0
        assert "<img src=x" in tab.text("#grid .name") or "onerror" in tab.text("#grid .name")
        tab.context.close()
