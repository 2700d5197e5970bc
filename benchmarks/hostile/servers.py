"""Servers in the place of the Hub: they never answer, drip, stall, page for ever, lie, and send elsewhere."""

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.hostile.attempt import Attempt, Command, Limits
from benchmarks.hostile.home import OTHER_HOST_FILE
from benchmarks.hostile.originals import Originals, copied
from benchmarks.hostile.repositories import serving
from tap_hf.limits import HUB_SECONDS
from tests.hub_server import HubServer

PATIENCE = 10  # seconds that a command may wait for the Hub, by its own limit
OTHER_HOST = "127.0.0.2"

Answer = Callable[[BaseHTTPRequestHandler], None]
"""Answers one request, in place of the Hub."""


def _send(handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: Mapping[str, str] | None) -> None:
    """Send an answer, whose headers may lie."""
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(content))} | dict(headers or {})).items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)


def _other_host(folder: Path) -> str:
    """Start a server on another host, which writes down what it is told, and return its address."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with (folder / OTHER_HOST_FILE).open("a") as file:
                file.write(f"{self.requestline}\n{self.headers}\n")
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer((OTHER_HOST, 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{OTHER_HOST}:{server.server_address[1]}"


def _silent(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(3600)


def _dripping(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(10**6))
    handler.end_headers()
    for _ in range(10**6):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(1)


def _dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        handler.wfile.write(f"X-{number}: y\r\n".encode())
        handler.wfile.flush()
        time.sleep(1)


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"100000\r\n" + b" " * 2**20 + b"\r\n")


def _endless_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X: " + b"y" * 60_000 + b"\r\n")


def _stalled(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "org/x", ')
    handler.wfile.flush()
    _silent(handler)


def _cut(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True
    handler.connection.close()


def _status(status: int, headers: Mapping[str, str] | None = None, content: bytes = b"{}") -> Answer:
    return lambda handler: _send(handler, status, content, headers)


def _pages(here: bool) -> Answer:
    """Answer with pages of which each names a next one, here or on another host."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        page = next(_NUMBERS)
        entries = [{"type": "file", "path": f"f{page}-{n}", "size": 1, "oid": "0" * 40} for n in range(1000)]
        host = f"http://{handler.headers['Host']}" if here else _OTHER[0]
        link = f'<{host}{handler.path.partition("?")[0]}?page={page}>; rel="next"'
        _send(handler, 200, json.dumps(entries).encode(), {"Link": link})

    return answer


_NUMBERS = itertools.count()
_OTHER: list[str] = []
"""The address of the other host, in the process of the server."""


def _redirect(handler: BaseHTTPRequestHandler) -> None:
    _send(handler, 307, b"", {"Location": f"{_OTHER[0]}{handler.path}"})


def _redirect_in_circles(handler: BaseHTTPRequestHandler) -> None:
    _send(handler, 307, b"", {"Location": handler.path})


def _redirect_to(place: str) -> Answer:
    return lambda handler: _send(handler, 302, b"", {"Location": place})


def _json(value: object) -> Answer:
    return lambda handler: _send(handler, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _file(headers: Mapping[str, str], content: bytes = b"{}") -> Answer:
    known = {"ETag": '"abc"', "X-Repo-Commit": "0" * 40}
    return lambda handler: _send(handler, 200, content, known | dict(headers))


_INFO = r"GET /api/models/org/x(/revision/|$)"
_TREE = r"/tree/"
_FILES = r"/resolve/"
_ANY = ""  # every request
_ENTRY = {"type": "file", "path": "config.json", "size": 2, "oid": "0" * 40}

LIES: dict[str, tuple[str, Answer]] = {
    "never answers": (_ANY, _silent),
    "never answers for the tree": (_TREE, _silent),
    "never answers for files": (_FILES, _silent),
    "drips": (_ANY, _dripping),
    "drips files": (_FILES, _dripping),
    "drips headers": (_ANY, _dripping_headers),
    "stalls": (_ANY, _stalled),
    "stalls in files": (_FILES, _stalled),
    "sends for ever": (_ANY, _endless),
    "sends files for ever": ("GET .*" + _FILES, _endless),
    "sends headers for ever": (_ANY, _endless_headers),
    "cuts": (_ANY, _cut),
    "cuts files": (_FILES, _cut),
    "pages for ever": (_TREE, _pages(here=True)),
    "pages on another host": (_TREE, _pages(here=False)),
    "redirects to another host": (_ANY, _redirect),
    "redirects files to another host": (_FILES, _redirect),
    "redirects in circles": (_ANY, _redirect_in_circles),
    "redirects to a file": (_ANY, _redirect_to("file:///etc/passwd")),
    "redirects to nowhere": (_ANY, _redirect_to("http://")),
    "redirects to a port that is closed": (_ANY, _redirect_to("http://127.0.0.1:9/")),
    "asks to wait for an hour": (_ANY, _status(429, {"Retry-After": "3600"})),
    "asks to wait for 10**400 seconds": (_ANY, _status(503, {"Retry-After": "1" + "0" * 400})),
    "asks to wait until a date": (_ANY, _status(429, {"Retry-After": "Fri, 31 Dec 2999 23:59:59 GMT"})),
    "is broken": (_ANY, _status(500)),
    "says what a terminal would obey": (_ANY, _status(400, {"X-Error-Message": "\x1b]0;owned\x07\x1b[2J"})),
    "says 1 MB": (_ANY, _status(403, None, b'{"error": "' + b"x" * 10**6 + b'"}')),
    "has a status that there is not": (_ANY, _status(799)),
    "answers nothing": (_ANY, _status(204, None, b"")),
    "sends HTML": (_ANY, _status(200, {"Content-Type": "text/html"}, b"<html>hello</html>")),
    "sends null": (_ANY, _json(None)),
    "sends a list": (_ANY, _json([])),
    "sends a number": (_ANY, _json(7)),
    "sends deep JSON": (_ANY, _status(200, None, b"[" * 100_000)),
    "has an info of null": (_INFO, _json({"id": None, "sha": None, "private": None, "siblings": None})),
    "has an info of numbers": (_INFO, _json({"id": 1, "sha": 2, "private": 3, "siblings": 4, "tags": 5})),
    "has a commit that is a path": (_INFO, _json({"id": "org/x", "sha": "../../../outside", "siblings": []})),
    "has a commit of control characters": (_INFO, _json({"id": "org/x", "sha": "\x1b[2J", "siblings": []})),
    "has a tree of null": (_TREE, _json([None])),
    "has a tree of texts": (_TREE, _json(["config.json"])),
    "has a tree without sizes": (_TREE, _json([{"type": "file", "path": "config.json"}])),
    "has a tree of sizes that are texts": (_TREE, _json([_ENTRY | {"size": "2"}])),
    "has a tree of sizes below zero": (_TREE, _json([_ENTRY | {"size": -2}])),
    "has a tree of paths that are numbers": (_TREE, _json([_ENTRY | {"path": 3}])),
    "has a tree of paths that lead out": (_TREE, _json([_ENTRY | {"path": "../../../outside/new"}])),
    "has a tree of folders only": (_TREE, _json([{"type": "directory", "path": "config.json", "oid": "0" * 40}])),
    "has a tree of equal paths": (_TREE, _json([_ENTRY] * 1000)),
    "has a tree of 200,000 files": (_TREE, _json([_ENTRY | {"path": f"f{n}"} for n in range(200_000)])),
    "has files without an ETag": (_FILES, _file({"ETag": ""})),
    "has files without a commit": (_FILES, _file({"X-Repo-Commit": ""})),
    "has files of a commit that is a path": (_FILES, _file({"X-Repo-Commit": "../../../outside"})),
    "has an ETag that is a path": (_FILES, _file({"ETag": '"../../../../outside/new"'})),
    "has a linked ETag that is a path": (_FILES, _file({"X-Linked-ETag": '"/tmp/hostile-new"'})),
    "has files that are shorter than they say": (_FILES, _file({"Content-Length": "9999"})),
    "has files that are longer than they say": (_FILES, _file({"Content-Length": "1"}, b"{}" * 500)),
    "has files of a length that is a text": (_FILES, _file({"Content-Length": "abc"})),
    "has files of a length below zero": (_FILES, _file({"Content-Length": "-5"})),
    "has files of a linked size that is a text": (_FILES, _file({"X-Linked-Size": "abc"})),
    "has files that are gzip": (_FILES, _file({"Content-Encoding": "gzip"})),
    "has files of Xet": (_FILES, _file({"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": "/x"})),
}

_COMMANDS = (
    ("pull", "org/x", "--output-dir", "pulled"),
    ("predict", "--repo", "org/x", "--text", "urgent"),
    ("validate", "hub://org/x/recipe.yaml"),
)


@dataclass(frozen=True)
class _Server:
    lie: tuple[str, Answer]
    files: Mapping[str, bytes]

    def __call__(self, folder: Path) -> HubServer:
        _OTHER[:] = [_other_host(folder)]
        hub: HubServer = serving(self.files)(folder)
        pattern, answer = self.lie
        hub.answers = {pattern: answer}
        return hub


def server_attempts(draw: random.Random, originals: Originals) -> list[Attempt]:
    """Return attempts of each server, by a download of a repository, a prediction from it, or its recipe."""
    files = {**originals.publications["client"], "recipe.yaml": (originals.folder / "recipe.yaml").read_bytes()}

    def prepare(folder: Path) -> None:
        os.environ[HUB_SECONDS.variable] = str(PATIENCE)
        for other in ("notes.csv", "recipe.yaml"):
            copied(originals.folder / other, folder / other)

    commands = tuple(map(Command, _COMMANDS))
    honest = _Server(("no request is like this", _silent), files)
    found = [Attempt("a server", commands, prepare, honest, is_valid=True)]
    for what, lie in LIES.items():
        command = Command(draw.choice(_COMMANDS))
        limits = Limits(cpu=60, wall=12.0 * PATIENCE, memory=512)
        found.append(Attempt(f"a server that {what}", (command,), prepare, _Server(lie, files), limits=limits))
    return found
