"""A stub of the Hugging Face hub on this machine: as much of its HTTP interface as publishing and fetching models call.

Repositories are lists of commits, a commit is its files. Faults are injected by request: see `Stub.fault`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Fault = Literal["cut", "500", "wrong", "lost", "403"]
"""cut: the connection breaks in the middle of the body, theirs or ours. 500: a server error. wrong: a byte of the
answer is another. lost: the request is carried out, the answer never sent. 403: refused."""

LARGE = (".pack", ".safetensors", ".model")
"""Files that are uploaded apart from the commit, as large ones."""


@dataclass
class Commit:
    sha: str
    files: dict[str, bytes]


@dataclass
class Repository:
    commits: list[Commit] = field(default_factory=lambda: [Commit("0" * 39 + "1", {".gitattributes": b""})])
    private: bool = False

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)


class Stub:
    """`repositories` by name; `objects` are uploaded large files by SHA-256; `log` has every request and its token."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str | None]] = []
        self.faults: list[tuple[str, str, Fault]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                stub.handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def fault(self, method: str, path: str, kind: Fault, times: int = 1) -> None:
        """Let the next `times` requests whose path matches the pattern `path` go wrong."""
        self.faults += [(method, path, kind)] * times

    def requests(self, method: str, path: str) -> int:
        """How many requests came whose path matches the pattern `path`."""
        return sum(m == method and re.search(path, p) is not None for m, p, _ in self.log)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request, or let it go wrong."""
        url = urlsplit(request.path)
        path, method = unquote(url.path), request.command
        self.log.append((method, path, request.headers.get("Authorization")))
        fault = next((f for f in self.faults if f[0] == method and re.search(f[1], path)), None)
        if fault:
            self.faults.remove(fault)
        kind = fault[2] if fault else None
        length = int(request.headers.get("Content-Length") or 0)
        if kind == "cut" and length:
            request.rfile.read(length // 2)
            request.close_connection = True
            request.connection.close()
            return
        body = request.rfile.read(length)
        if kind in ("500", "403"):
            self.send(request, int(kind), b"injected")
            return
        status, answer, headers = self.answer(method, path, parse_qs(url.query), body)
        if kind == "lost":
            request.close_connection = True
            request.connection.close()
        elif kind == "wrong":
            self.send(request, status, answer[:-1] + bytes([answer[-1] ^ 1]), headers)
        else:
            self.send(request, status, answer, headers, len(answer) // 2 if kind == "cut" else None)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        begin, total = 0, len(body)
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        if wanted and status == 200 and int(wanted[1]) < total:
            begin, status = int(wanted[1]), 206
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        if status == 206:
            request.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        request.send_header("Content-Length", str(total - begin))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[begin:cut])
        if cut is not None:
            request.close_connection = True

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers."""
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("POST", r"/api/repos/create", self.create),
            ("POST", r"/api/validate-yaml", lambda *_: {"errors": [], "warnings": []}),
            ("GET", r"/api/models", self.search),
            ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.info),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/main", self.preupload),
            ("POST", r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", self.paths),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/main", self.commit),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/objects/([0-9a-f]{64})", self.upload),
        ]
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*found.groups())
        for wanted, pattern, call in routes:
            if method == wanted and (found := re.fullmatch(pattern, path)):
                result = call(*found.groups(), body if method in ("POST", "PUT") else query)
                status, told = result if isinstance(result, tuple) else (200, result)
                code = {"X-Error-Code": "RepoNotFound"} if status == 404 else {}
                return status, json.dumps(told).encode(), code
        return 404, b"{}", {}

    def create(self, body: bytes) -> Any:
        told = json.loads(body)
        name = f"{told.get('organization') or 'owner'}/{told['name']}"
        if name in self.repositories:
            return 409, {"url": f"{self.endpoint}/{name}"}
        self.repositories[name] = Repository(private=bool(told.get("private")))
        return {"url": f"{self.endpoint}/{name}"}

    def search(self, query: dict[str, list[str]]) -> Any:
        owner = query.get("author", [""])[0]
        names = [name for name in self.repositories if name.startswith(owner)]
        tag = query["filter"][0].encode()
        heads = {name: self.repositories[name].commits[-1] for name in names}
        return [{"id": n, "sha": c.sha} for n, c in heads.items() if b"- " + tag in c.files.get("README.md", b"")]

    def info(self, name: str, revision: str | None, query: Any) -> Any:
        commit = self.repositories[name].at(revision or "main") if name in self.repositories else None
        if commit is None:
            return 404, {}
        return {"id": name, "sha": commit.sha, "siblings": [{"rfilename": path} for path in commit.files]}

    def paths(self, name: str, revision: str, body: bytes) -> Any:
        told = json.loads(body) if body.startswith(b"{") else parse_qs(body.decode())
        commit = self.repositories[name].at(revision)
        assert commit
        return [
            {"type": "file", "path": path, "size": len(commit.files[path]), "oid": "0" * 40}
            for path in told["paths"]
            if path in commit.files
        ]

    def preupload(self, name: str, body: bytes) -> Any:
        if name not in self.repositories:
            return 404, {}
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in files}
        return {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}

    def batch(self, name: str, body: bytes) -> Any:
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{self.endpoint}/objects/{wanted['oid']}"}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {}
        self.objects[oid] = body
        return {}

    def commit(self, name: str, body: bytes) -> Any:
        """All of a commit or nothing, as the hub does it."""
        lines = [json.loads(line) for line in body.splitlines()]
        head = self.repositories[name].commits[-1]
        files, header = dict(head.files), lines[0]["value"]
        if header.get("parentCommit", head.sha) != head.sha:
            return 412, {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {}
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        count = len(self.repositories[name].commits)
        sha = hashlib.sha1(f"{name} {count}".encode() + body).hexdigest()
        self.repositories[name].commits.append(Commit(sha, files))
        return {"commitUrl": f"{self.endpoint}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None}

    def resolve(self, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        commit = self.repositories[name].at(revision) if name in self.repositories else None
        if commit is None or path not in commit.files:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        data = commit.files[path]
        return 200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit.sha}
