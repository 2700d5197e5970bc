"""A small server that speaks the Hub's protocol: repositories, commits, LFS, tokens, private repositories, faults.

It is what `HF_ENDPOINT` points to in the tests, so that the real client of `huggingface_hub` meets a real HTTP server.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pkl")
CUT = -1  # a fault: the connection ends in the middle of the request
LOST = -2  # a fault: the request is served, but its answer never arrives


@dataclass(frozen=True)
class Blob:
    """A file of a repository; `size` may be a lie."""

    content: bytes
    lfs: bool
    size: int

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()  # noqa: S324 - git's own

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def shown_oid(self) -> str:
        """By which the Hub says that a file has not changed."""
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repo:
    """A repository: its commits, oldest first."""

    private: bool = False
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)

    def commit(self, tree: Mapping[str, Blob]) -> str:
        names = json.dumps({path: blob.oid for path, blob in tree.items()})
        oid = hashlib.sha1(f"{len(self.commits)} {names}".encode()).hexdigest()  # noqa: S324
        self.commits.append((oid, dict(tree)))
        return oid

    def tree(self, revision: str) -> tuple[str, dict[str, Blob]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Fault:
    """The next requests of a kind go wrong.

    Attributes:
        request: a regular expression for `METHOD /path`.
        status: the answer, or `CUT`, or `LOST`.
        times: how often.
    """

    request: str
    status: int
    times: int = 1


class HubServer(ThreadingHTTPServer):
    """The Hub, in memory.

    Attributes:
        tokens: the namespaces that each may write to, and whose private repositories it may read.
        repos: by type and id, such as `model org/name`.
        requests: each `METHOD /path` so far.
        faults: to come.
        etags: lies about files, by path.
        answers: what answers requests in place of the Hub, by a regular expression for `METHOD /path`.
        given: the token of each request, by `METHOD /path`.
        any_token: whether it takes every token, which then may touch nothing.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.tokens: dict[str, set[str]] = {"hf_alice": {"alice", "org"}, "hf_bob": {"bob"}}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.uploaded = 0
        self.faults: list[Fault] = []
        self.etags: dict[str, str] = {}
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.given: dict[str, str] = {}
        self.any_token = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def put(self, key: str, files: Mapping[str, bytes], sizes: Mapping[str, int] | None = None) -> str:
        """Commit files without any of the checks that the Hub makes."""
        repo = self.repos.setdefault(key, Repo())
        tree = dict(repo.commits[-1][1]) if repo.commits else {}
        for path, content in files.items():
            size = (sizes or {}).get(path, len(content))
            tree[path] = Blob(content, path.endswith(LFS_SUFFIXES), size)
        return repo.commit(tree)

    def files(self, key: str) -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.repos[key].commits[-1][1].items()}

    def fault(self, request: str) -> int | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.request, request):
                    fault.times -= 1
                    return fault.status
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self) -> None:
        fault = self.server.fault(request := f"{self.command} {unquote(self.path)}")
        if fault == CUT:
            self.rfile.read(min(100, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        self.server.given[request] = self.headers.get("Authorization", "")
        for pattern, answer in self.server.answers.items():
            if re.search(pattern, request):
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client goes away
                    answer(self)
                return
        body = self._body()
        if fault is not None and fault > 0:
            self._answer(fault, {"error": "by a test"}, {"Retry-After": "0"} if fault == 429 else {})
            return
        self._lost = fault == LOST
        url = urlsplit(self.path)
        for pattern, serve in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {unquote(url.path)}"):
                with self.server.lock:
                    serve(self, body, parse_qs(url.query), **match.groupdict())
                return
        self._error(404, "no such endpoint")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        if getattr(self, "_lost", False):
            self.close_connection = True
            self.connection.close()
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, {"error": message}, headers)

    def _namespaces(self) -> set[str] | None:
        """Return what the request's token may touch; `None`, once answered, if there is no such token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens and not self.server.any_token:
            self._error(401, "Invalid credentials in Authorization header")
            return None
        return self.server.tokens.get(token, set())

    def _repo(self, kind: str, name: str, write: bool = False) -> Repo | None:
        """Return a repository that the request may touch; `None`, once answered, if there is none."""
        if (allowed := self._namespaces()) is None:
            return None
        repo, own = self.server.repos.get(f"{kind} {name}"), name.split("/")[0] in allowed
        if repo is None or (repo.private and not own):
            self._error(404 if allowed else 401, "Repository not found", "RepoNotFound")
            return None
        if write and not own:
            self._error(403, f"You have no right to write to {name}")
            return None
        return repo

    def whoami(self, body: bytes, query: Mapping[str, list[str]]) -> None:
        if (allowed := self._namespaces()) is not None:
            self._answer(200, {"type": "user", "name": min(allowed), "orgs": []})

    def validate_yaml(self, body: bytes, query: Mapping[str, list[str]]) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def create(self, body: bytes, query: Mapping[str, list[str]]) -> None:
        asked = json.loads(body)
        if (allowed := self._namespaces()) is None:
            return
        namespace = asked.get("organization")
        if namespace not in allowed:
            status = 403 if allowed else 401
            self._error(status, "You have no right to create a repository there")
            return
        name = f"{namespace}/{asked['name']}"
        key = f"{asked.get('type') or 'model'} {name}"
        if key in self.server.repos:
            self._answer(409, {"error": "You already created this repository", "url": f"{self.server.url}/{name}"})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repos[key] = repo = Repo(private=bool(private))
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False, 25)})
        self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def info(
        self, body: bytes, query: Mapping[str, list[str]], kind: str, name: str, revision: str | None = None
    ) -> None:
        if (repo := self._repo(kind, name)) is None:
            return
        if (found := repo.tree(revision or "main")) is None:
            self._error(404, "Invalid rev id", "RevisionNotFound")
            return
        oid, tree = found
        siblings = [{"rfilename": path} for path in sorted(tree)]
        self._answer(200, {"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})

    def list_tree(
        self,
        body: bytes,
        query: Mapping[str, list[str]],
        kind: str,
        name: str,
        revision: str,
        folder: str | None = None,
    ) -> None:
        if (repo := self._repo(kind, name)) is None:
            return
        if (found := repo.tree(revision)) is None:
            self._error(404, "Invalid rev id", "RevisionNotFound")
            return
        entries = []
        inside = {path: blob for path, blob in found[1].items() if folder is None or path.startswith(f"{folder}/")}
        if not inside:
            self._error(404, f"{folder} does not exist", "EntryNotFound")
            return
        for path, blob in sorted(inside.items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 130}
            entries.append(entry)
        self._answer(200, entries)

    def preupload(self, body: bytes, query: Mapping[str, list[str]], kind: str, name: str, revision: str) -> None:
        if (repo := self._repo(kind, name, write=True)) is None:
            return
        tree = repo.commits[-1][1]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": tree[file["path"]].shown_oid if file["path"] in tree else None,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer(200, {"files": files})

    def lfs_batch(self, body: bytes, query: Mapping[str, list[str]], name: str) -> None:
        if self._repo("model", name, write=True) is None:
            return
        objects: list[dict[str, Any]] = []
        for one in json.loads(body)["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.objects:
                href = f"{self.server.url}/lfs/{name}/{one['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(answer)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, query: Mapping[str, list[str]], name: str, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._error(400, "the content is not what its checksum says")
            return
        self.server.objects[oid] = body
        self.server.uploaded += 1
        self._answer(200, {})

    def lfs_verify(self, body: bytes, query: Mapping[str, list[str]], name: str, oid: str) -> None:
        self._answer(200 if oid in self.server.objects else 404, {})

    def commit(self, body: bytes, query: Mapping[str, list[str]], kind: str, name: str, revision: str) -> None:
        if (repo := self._repo(kind, name, write=True)) is None:
            return
        header, *operations = (json.loads(line) for line in body.splitlines())
        parent, head = header["value"].get("parentCommit"), repo.commits[-1]
        if parent is not None and parent != head[0]:
            self._error(412, "A commit has happened since. Please refresh and try again.")
            return
        tree = dict(head[1])
        for operation in operations:
            value, path = operation["value"], operation["value"]["path"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                tree[path] = Blob(content, False, len(content))
            elif operation["key"] == "lfsFile":
                if (content := self.server.objects.get(value["oid"])) is None:
                    self._error(422, f"{path} was never uploaded")
                    return
                tree[path] = Blob(content, True, len(content))
            elif operation["key"] == "deletedFile":
                del tree[path]
        oid = repo.commit(tree)
        self._answer(200, {"commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def resolve(
        self, body: bytes, query: Mapping[str, list[str]], name: str, revision: str, path: str, kind: str = "model"
    ) -> None:
        if (repo := self._repo(kind, name)) is None:
            return
        if (found := repo.tree(revision)) is None:
            self._error(404, "Invalid rev id", "RevisionNotFound")
            return
        if (blob := found[1].get(path)) is None:
            self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found[0]})
            return
        etag = self.server.etags.get(path) or (blob.sha256 if blob.lfs else blob.oid)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": found[0]}
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(blob.content))}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(part[1]), min(int(part[2] or len(blob.content)), len(blob.content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.content)}"
            self._answer(206, blob.content[first : last + 1], headers)
            return
        self._answer(200, blob.content, headers)


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_NAME}"
_ROUTES = [
    (r"GET /api/whoami-v2", _Handler.whoami),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (r"POST /api/repos/create", _Handler.create),
    (rf"GET {_API}", _Handler.info),
    (rf"GET {_API}/revision/(?P<revision>.+)", _Handler.info),
    (rf"GET {_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.list_tree),
    (rf"POST {_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST {_API}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (rf"PUT /lfs/{_NAME}/(?P<oid>\w+)", _Handler.lfs_put),
    (rf"POST /lfs/{_NAME}/(?P<oid>\w+)/verify", _Handler.lfs_verify),
    (rf"(GET|HEAD) /(?P<kind>dataset)s/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (rf"(GET|HEAD) /{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
