"""From what a person names to a server that answers: opened in this order, closed in the other."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sarsense.browse.answers import Desk
from sarsense.browse.flags import FlagFile
from sarsense.browse.pixels import warm_up
from sarsense.browse.server import BrowseServer
from sarsense.browse.table import TileTable
from sarsense.inspection.source import open_source

_LAST_SECONDS = 10.0
"""that the end waits for what is being loaded"""


@contextmanager
def browse(named: str, host: str, port: int, flags: Path) -> Iterator[BrowseServer]:
    """A server of what is named, bound; who calls lets it serve. SettingError, CorpusError, ShardError."""
    table = TileTable(open_source(named))
    try:
        server = BrowseServer(Desk(table, FlagFile(flags)), host, port)
        ready = threading.Thread(target=warm_up, args=(table.source,), daemon=True)
        ready.start()
        try:
            yield server
        finally:
            server.server_close()
            ready.join(_LAST_SECONDS)
    finally:
        table.close()


def open_page(server: BrowseServer) -> None:
    """Show the page in the browser of whoever sits at this machine; nothing where nobody does."""
    seen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if seen:
        threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
