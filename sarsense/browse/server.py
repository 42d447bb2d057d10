"""The server of the page: who may ask, and how much.

Loopback unless told otherwise. The address that is printed carries a token, drawn anew by each server, which becomes a
cookie that no script and no other site can use; without it nothing is answered. Only names that were meant are answered
(a name that somebody's DNS points here is not), only the page itself may post, and requests have sizes and times.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from sarsense.browse.answers import LONGEST_BODY, LONGEST_QUERY, Answer, Desk, Request, answer
from sarsense.errors import SettingError

_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_SECONDS = 30.0
"""that a connection may be silent"""
_MOST_FIELDS = 32
_log = logging.getLogger(__name__)


class BrowseServer(ThreadingHTTPServer):
    """Bound when it is made; `serve_forever` answers. SettingError where the address cannot be had."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, desk: Desk, host: str = "127.0.0.1", port: int = 0) -> None:
        self.desk, self.host = desk, host.strip("[]")
        self.token = secrets.token_urlsafe(24)
        self.address_family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            super().__init__((self.host, port), _Handler)
        except (OSError, OverflowError) as error:
            told = getattr(error, "strerror", None) or error
            raise SettingError(f"--host {host} --port {port}: cannot be had: {told}; choose others") from None
        self.port: int = self.server_address[1]
        self.cookie = f"sarsense-{self.port}"
        self._names = {self.host.lower(), "localhost", "127.0.0.1", "::1"}
        if self.everywhere:
            self._names.add(socket.gethostname().lower())

    @property
    def everywhere(self) -> bool:
        """Whether it listens on all addresses of this machine."""
        return self.host in ("0.0.0.0", "::", "")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        host = "127.0.0.1" if self.everywhere else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/?token={self.token}"

    def meant(self, host: str) -> bool:
        """Whether a Host header names this server. Of one that listens everywhere any address in figures does: a name
        is needed to lead a browser astray."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path or parts.query or parts.fragment:
            return False
        return name in self._names or (self.everywhere and _is_address(name))

    def handle_error(self, request: object, client_address: object) -> None:
        _log.debug("browse: connection ended", exc_info=True)  # a tab was closed


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Handler(BaseHTTPRequestHandler):
    server: BrowseServer  # type: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sarsense", ""
    timeout = _SECONDS
    disable_nagle_algorithm = True  # else a picture waits 40 ms for the word that its header has come
    wbufsize = 2**16

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the address has the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses before we see it: without an echo of it."""
        self.close_connection = True
        self._send(Answer(int(code), "text/plain; charset=utf-8", f"{HTTPStatus(code).phrase}\n".encode()))

    def _handle(self, method: str) -> None:
        refusal = self._refusal(method)
        if refusal is not None:
            self.close_connection = True  # a body may lie unread
            status, sentence = refusal
            self._send(Answer(status, "text/plain; charset=utf-8", f"{sentence}\n".encode()))
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) if method == "POST" else b""
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS))
        given = query.pop("token", None)
        self._send(answer(self.server.desk, Request(method, parts.path, query, body)), fresh=given is not None)

    def _refusal(self, method: str) -> tuple[int, str] | None:
        """Status and sentence for who may not ask, or asks for too much."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.meant(hosts[0]):
            return 421, "this server does not go by that name"
        try:
            parts = urlsplit(self.path)
            query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError:
            return 400, "no such address"
        if not self.path.startswith("/") or self.path.startswith("//"):
            return 400, "no such address"
        if len(parts.query) > LONGEST_QUERY:
            return 414, f"at most {LONGEST_QUERY:,} characters behind ? expected"
        given = dict(query).get("token") if parts.path == "/" and method == "GET" else None
        if not self._known(given):
            return 403, "open the address that the terminal printed: it carries the token that this page wants"
        if self.headers.get("Transfer-Encoding") is not None:
            return 411, "a Content-Length expected"
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit() or len(self.headers.get_all("Content-Length") or []) > 1:
            return 400, "a Content-Length expected"
        if len(length) > 12 or int(length) > (LONGEST_BODY if method == "POST" else 0):
            return 413, f"at most {LONGEST_BODY:,} bytes expected"
        if method == "POST":
            if self.headers.get("Origin") != f"http://{hosts[0]}":
                return 403, "only the page itself may change anything"
            if self.headers.get_content_type() != "application/json":
                return 415, "application/json expected"
        return None

    def _known(self, given: str | None) -> bool:
        """Whether the token is in the address or in the cookie."""
        if given is not None and _same(given, self.server.token):
            return True
        # by hand: those of other servers of this machine come too, and at a word without = Python's parser gives up
        cookies = [part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";")]
        return any(name == self.server.cookie and _same(value, self.server.token) for name, _, value in cookies)

    def _send(self, answered: Answer, fresh: bool = False) -> None:
        """fresh: a browser that came with the token in the address gets the cookie."""
        self.send_response(answered.status)
        for name, value in {**_HEADERS, **answered.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answered.kind)
        self.send_header("Content-Length", str(len(answered.body)))
        self.send_header("Cache-Control", "private, max-age=3600" if answered.lasting else "no-store")
        if fresh:
            kept = f"{self.server.cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
            self.send_header("Set-Cookie", kept)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answered.body)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())
