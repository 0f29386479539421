"""A small Hugging Face hub on localhost, for the real `huggingface_hub` client to talk to.

It serves what the client asks for: a repository's information at a branch or commit, its tree, and its
files with the headers of the real hub (commit, ETag, and a redirect to another host for large files).
It counts requests, and can be told to fail.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".parquet", ".bin")

_INFORMATION = re.compile(
    r"/api/(?P<kind>model|dataset)s/(?P<id>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?"
)
_TREE = re.compile(r"/api/(?P<kind>model|dataset)s/(?P<id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
_FILE = re.compile(r"/(?P<datasets>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_BLOB = re.compile(r"/blobs/(?P<sha256>[0-9a-f]{64})")


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None


@dataclass
class Failure:
    """What goes wrong with requests whose path matches, so many times."""

    pattern: re.Pattern[str]
    method: str
    status: int | None
    headers: dict[str, str]
    cut: int | None
    short: int | None
    body: bytes | None
    times: int


class HubServer:
    """Use as a context manager; `publish` repositories before or while it runs.

    `environment(home)` is what a process needs to use this hub and an own, empty cache.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: Counter[str] = Counter()
        self.authorised: set[str] = set()
        self.failures: list[Failure] = []
        self.latency = 0.0
        """Seconds before each answer."""
        self.at_once = self.most_at_once = 0
        """Requests that are being answered, now and at most."""
        self.blobs: dict[str, bytes] = {}
        self.ranges: list[int] = []
        """Where answers began that were not asked for from the first byte."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients are killed here
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables for a process that is to use this hub, with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def publish(
        self,
        kind: str,
        repo_id: str,
        files: Mapping[str, bytes | str] | Path,
        *,
        branch: str = "main",
        gated: bool = False,
        token: str | None = None,
    ) -> str:
        """Commit files (or all files of a folder) to a branch; return the commit's full hash."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        content = {
            name: data.encode("utf-8") if isinstance(data, str) else data for name, data in files.items()
        }
        with self._lock:
            repository = self.repositories.setdefault((kind, repo_id), Repository())
            repository.gated, repository.token = gated, token
            digest = hashlib.sha1(f"{kind} {repo_id} {len(repository.commits)}".encode())
            for name in sorted(content):
                digest.update(name.encode() + hashlib.sha256(content[name]).digest())
            sha = digest.hexdigest()
            repository.commits[sha] = content
            large = [data for name, data in content.items() if name.endswith(LARGE)]
            self.blobs |= {_sha256(data): data for data in large}
            repository.branches[branch] = sha
        return sha

    def fail(
        self,
        pattern: str,
        *,
        method: str = "",
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
        short: int | None = None,
        body: bytes | None = None,
        times: int = 1_000_000,
    ) -> None:
        """Let requests fail whose path matches the pattern, so many times.

        `status` answers with that status; `cut` breaks the connection after so many bytes of a body whose
        full length was announced; `short` sends so many bytes as if they were all; `body` sends another one.
        """
        self.failures.append(
            Failure(re.compile(pattern), method, status, dict(headers or {}), cut, short, body, times)
        )

    def downloads(self) -> list[str]:
        """Paths of all files of which the content was asked for, as often as it was."""
        return sorted(
            path.partition(" ")[2]
            for path in self.requests.elements()
            if path.startswith("GET ") and not path.startswith("GET /api/")
        )

    def asked_of(self, repo_id: str) -> int:
        """How many requests there were for a repository; what large files are sent from is another host."""
        return sum(count for path, count in self.requests.items() if f"{repo_id}/" in f"{path}/")

    def failure(self, method: str, path: str) -> Failure | None:
        with self._lock:
            for failure in self.failures:
                if failure.times and failure.method in ("", method) and failure.pattern.search(path):
                    failure.times -= 1
                    return failure
        return None

    def _handler(self) -> type[_Handler]:
        return type("Handler", (_Handler,), {"hub": self})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    # Else a body waits until the client has acknowledged the headers, 40 ms later.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        with self.hub._lock:
            self.hub.at_once += 1
            self.hub.most_at_once = max(self.hub.most_at_once, self.hub.at_once)
        try:
            time.sleep(self.hub.latency)
            self._serve_path(path)
        finally:
            with self.hub._lock:
                self.hub.at_once -= 1

    def _serve_path(self, path: str) -> None:
        with self.hub._lock:
            self.hub.requests[f"{self.command} {unquote(path)}"] += 1
            if self.headers.get("authorization"):
                self.hub.authorised.add(f"{self.headers.get('host')} {self.headers['authorization']}")
        self._failure = self.hub.failure(self.command, unquote(path))
        if self._failure and self._failure.status:
            self._answer(self._failure.status, b"{}", self._failure.headers)
        elif match := _BLOB.fullmatch(path):
            self._blob(match["sha256"])
        elif match := _FILE.fullmatch(path):
            kind = "dataset" if match["datasets"] else "model"
            if found := self._at(kind, match["id"], match["revision"]):
                self._file(*found, unquote(match["path"]))
        elif match := _TREE.fullmatch(path):
            if found := self._at(match["kind"], match["id"], match["revision"]):
                self._json([_tree_entry(name, data) for name, data in sorted(found[1].items())])
        elif match := _INFORMATION.fullmatch(path):
            if found := self._at(match["kind"], match["id"], match["revision"] or "main"):
                self._json(_information(match["id"], *found))
        else:
            self._refuse(404, "RepoNotFound")

    def _at(self, kind: str, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a repository at a revision, or None after the refusal was sent."""
        repository = self.hub.repositories.get((kind, repo_id))
        revision = unquote(revision)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if repository is None or (repository.token and token != repository.token):
            self._refuse(401, "RepoNotFound")
        elif repository.gated:
            self._refuse(403, "GatedRepo")
        else:
            sha = repository.branches.get(revision, revision)
            if sha in repository.commits:
                return sha, repository.commits[sha]
            self._refuse(404, "RevisionNotFound")
        return None

    def _file(self, sha: str, files: dict[str, bytes], name: str) -> None:
        if name not in files:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": sha})
            return
        data = files[name]
        if name.endswith(LARGE):
            digest = _sha256(data)
            headers = {
                "X-Repo-Commit": sha,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{digest}"',
                # Another host than the endpoint's, as on the real hub.
                "Location": f"http://localhost:{self.hub.port}/blobs/{digest}",
            }
            self._answer(302, b"", headers)
        else:
            self._body(data, {"X-Repo-Commit": sha, "ETag": f'"{_git_hash(data)}"'})

    def _blob(self, sha256: str) -> None:
        data = self.hub.blobs.get(sha256)
        if data is None:
            self._refuse(404, "EntryNotFound")
        else:
            # Not the hash of the content: the real hub's other host has its own.
            self._body(data, {"ETag": f'"{hashlib.sha256(sha256.encode()).hexdigest()}"'})

    def _body(self, data: bytes, headers: dict[str, str]) -> None:
        status = 200
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match:
            start = int(match[1])
            self.hub.ranges.append(start)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        self._answer(status, data, headers)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        lines = {"X-Error-Code": code, "X-Error-Message": f"{code} said the hub", **(headers or {})}
        self._answer(status, json.dumps({"error": code}).encode(), lines)

    def _answer(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        failure = self._failure
        if self.command == "GET" and failure and failure.body is not None:
            data = failure.body
        if self.command == "GET" and failure and failure.short is not None:
            data = data[: failure.short]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if failure and failure.cut is not None:
            data = data[: failure.cut]
            self.close_connection = True
        self.wfile.write(data)


def _information(repo_id: str, sha: str, files: dict[str, bytes]) -> dict[str, object]:
    card = _card(files.get("README.md", b"").decode("utf-8"))
    licences = card.get("license", [])
    licences = [licences] if isinstance(licences, str) else licences
    return {
        "id": repo_id,
        "sha": sha,
        "private": False,
        "gated": False,
        "tags": [f"license:{licence}" for licence in licences],
        "cardData": card or None,
        "siblings": [_sibling(name, data) for name, data in sorted(files.items())],
    }


def _card(text: str) -> dict[str, Any]:
    parts = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return dict(yaml.safe_load(parts[1]) or {}) if parts else {}


def _sibling(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": _git_hash(data)}
    if name.endswith(LARGE):
        digest = _sha256(data)
        entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
    return entry


def _tree_entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _git_hash(data)}
    if name.endswith(LARGE):
        digest = _sha256(data)
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


@functools.cache
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.cache
def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
