"""An S3-speaking server on loopback that can be told to misbehave, for tests of what is remote.

moto's server holds the objects; in front of it stands a proxy that injects faults, drawn from a seeded generator: 503
before anything is done, connections reset before or in the middle of a body, bodies that stop in the middle for longer
than a client waits; and, while it is told so, 403 ExpiredToken. Both run in a process of their own, since GDAL may hold
the interpreter's lock while it waits for an answer.

Run by hand: `python -m tests.object_store` prints the address and serves until its standard input ends.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "right-key"
CONTROL = "/-control"
"""no bucket may have this name"""
FAULTS = ("busy", "reset", "reset_body", "stall")
_SIGNED = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
_STALL_SECONDS = 3.0
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}


class Behaviour:
    """What the proxy does with requests, and what it saw."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.set({})

    def set(self, wanted: dict[str, Any]) -> None:
        """share: of requests that fail, drawn by seed; at_most: so many of them; kinds: of faults; stall_seconds: for
        which a body stands still; latency: seconds before each answer; expired: whether all are answered 403
        ExpiredToken; expires_after: GETs of rasters until that begins."""
        with self.lock:
            self.share: float = wanted.get("share", 0.0)
            self.at_most: int = wanted.get("at_most", -1)
            self.kinds: list[str] = wanted.get("kinds", list(FAULTS))
            self.expired: bool = wanted.get("expired", False)
            self.expires_after: int | None = wanted.get("expires_after")
            self.stall_seconds: float = wanted.get("stall_seconds", _STALL_SECONDS)
            self.latency: float = wanted.get("latency", 0.0)
            self.random = random.Random(wanted.get("seed", 0))
            self.log: list[tuple[str, str, int, int, str]] = []

    def fault(self, method: str, path: str) -> str | None:
        with self.lock:
            if self.expires_after is not None and method == "GET" and ".tif" in path and "list-type" not in path:
                self.expires_after -= 1
                self.expired |= self.expires_after < 0
            if self.expired:
                return "expired"
            if self.random.random() >= self.share or self.at_most == 0:
                return None
            self.at_most -= 1
            return self.random.choice(self.kinds)

    def note(self, method: str, path: str, status: int, sent: int, fault: str | None) -> None:
        with self.lock:
            self.log.append((method, path, status, sent, fault or ""))


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour: Behaviour
    upstream: tuple[str, int]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _any(self) -> None:
        body = self._body()
        if self.path == CONTROL:
            self._control(body)
            return
        time.sleep(self.behaviour.latency)
        fault = self.behaviour.fault(self.command, self.path)
        if fault is None and self._key() not in (None, KEY):
            fault = "wrong key"
        if fault in ("busy", "expired", "wrong key"):
            self._refuse(fault)
        elif fault == "reset":
            self._reset(self.command, 0, fault)
        else:
            self._relay(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # the base class has answered
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _key(self) -> str | None:
        _, found, rest = self.headers.get("Authorization", "").partition("Credential=")
        return rest.partition("/")[0] if found else None

    def _refuse(self, fault: str) -> None:
        status, code, text = {
            "busy": (503, "SlowDown", "Please reduce your request rate."),
            "expired": (403, "ExpiredToken", "The provided token has expired."),
            "wrong key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."),
        }[fault]
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'.encode()
        self.behaviour.note(self.command, self.path, status, len(body), fault)
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self, method: str, sent: int, fault: str) -> None:
        self.behaviour.note(method, self.path, 0, sent, fault)
        self.wfile.flush()
        # no FIN but RST: the peer reads "connection reset"
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _relay(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(*self.upstream, timeout=60)
        try:
            headers = {n: v for n, v in self.headers.items() if n.lower() not in ("transfer-encoding", "expect")}
            headers["Content-Length"] = str(len(body))
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if length is not None and answer.status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD" or answer.status == 204:
            content = b""
        if fault in ("reset_body", "stall") and content:
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(self.behaviour.stall_seconds)
            self._reset(self.command, half, fault)
            return
        self.behaviour.note(self.command, self.path, answer.status, len(content), None)
        self.wfile.write(content)

    def _control(self, body: bytes) -> None:
        if self.command == "POST":
            self.behaviour.set(json.loads(body))
        with self.behaviour.lock:
            answer = json.dumps(self.behaviour.log).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None: ...


def serve() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    Proxy.behaviour = Behaviour()
    Proxy.upstream = moto.get_host_and_port()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()  # until whoever started this is gone
    os._exit(0)


class ObjectStore:
    """A running server. `behave` changes what it does, `log` tells what was asked of it since."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def environment(self) -> dict[str, str]:
        """What a user of MinIO sets."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def behave(self, **wanted: Any) -> None:
        self._ask(f"{self.address}{CONTROL}", "POST", json.dumps(wanted).encode())

    def log(self) -> list[tuple[str, str, int, int, str]]:
        """(method, path, status or 0 where it was cut off, bytes of body sent, fault or empty), in order."""
        return [tuple(row) for row in json.loads(self._ask(f"{self.address}{CONTROL}", "GET"))]

    def faults(self) -> Counter[str]:
        return Counter(row[4] for row in self.log() if row[4])

    def put(self, key: str, content: bytes) -> None:
        """key: bucket/name; made where it is not there. Behaves while it does."""
        bucket = key.partition("/")[0]
        self._ask(f"{self.address}/{bucket}", "PUT")
        if key != bucket:
            self._ask(f"{self.address}/{key}", "PUT", content)

    def put_folder(self, folder: Path, key: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def publish(self, bucket: str) -> None:
        """Let anybody read what is in a bucket."""
        for key in self.keys(bucket):
            self._ask(f"{self.address}/{bucket}/{key}?acl", "PUT", b"", {"x-amz-acl": "public-read"})

    def get(self, key: str) -> bytes:
        return self._ask(f"{self.address}/{key}", "GET")

    def keys(self, bucket: str) -> list[str]:
        import xml.etree.ElementTree as ET

        listed = ET.fromstring(self._ask(f"{self.address}/{bucket}?list-type=2", "GET"))
        return sorted(e.text or "" for e in listed.iter() if e.tag.endswith("}Key"))

    @staticmethod
    def _ask(url: str, method: str, body: bytes | None = None, more: dict[str, str] | None = None) -> bytes:
        # urllib would say that a body is a form, and moto read one; what nobody signed may not replace an object
        headers = {"Content-Type": "application/octet-stream", "Authorization": _SIGNED, **(more or {})}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as answer:
            return answer.read()


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server of its own, on a free port, for as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.object_store"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the object store did not start; run `python -m tests.object_store` to see why")
        yield ObjectStore(address)
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


if __name__ == "__main__":
    serve()
