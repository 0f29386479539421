"""The tests' hub with its writing side: repositories are made, files uploaded as LFS objects, and commits taken.

As `huggingface_hub` asks for it: `repos/create`, `validate-yaml`, `preupload`, the LFS batch, and `commit`. Who may
write is told by tokens; uploads can be told to fail, or to be broken off, as downloads can.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.support.servers.hub_server import LARGE, HubServer, _git_hash, _Handler

TOKEN = "hf_writer"
_ID = r"(?P<kind>model|dataset)s/(?P<id>[^/]+/[^/]+)"
_PREUPLOAD = re.compile(rf"/api/{_ID}/preupload/(?P<revision>[^/]+)")
_COMMIT = re.compile(rf"/api/{_ID}/commit/(?P<revision>[^/]+)")
_BATCH = re.compile(r"/(?P<datasets>datasets/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})")


class UploadHub(HubServer):
    """A hub that may be written to by whoever has a token of `writers`, by owner."""

    def __init__(self, *owners: str) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        """How often each object came whole, by its SHA-256."""
        self.writers = dict.fromkeys(owners or ("ada",), TOKEN)
        self.visibility: dict[tuple[str, str], str] = {}
        super().__init__()

    def environment(self, home: Path) -> dict[str, str]:
        """See `HubServer`; with the token, and without the storage that this hub has not."""
        return super().environment(home) | {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

    def files(self, kind: str, repo_id: str) -> dict[str, bytes]:
        """The files of a repository's main branch."""
        repository = self.repositories[(kind, repo_id)]
        return repository.commits[repository.branches["main"]]

    def _handler(self) -> type[_Handler]:
        return type("Handler", (_UploadHandler,), {"hub": self})


class _UploadHandler(_Handler):
    hub: UploadHub

    def do_POST(self) -> None:
        path = self._begun()
        body = self._body_of_request()
        if self._failed():
            return
        if path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/lfs-verify":
            self._json({})
        else:
            self._of_repository(path, body)

    def _of_repository(self, path: str, body: bytes) -> None:
        if match := _BATCH.fullmatch(path):
            if self._written("dataset" if match["datasets"] else "model", match["id"]):
                self._batch(json.loads(body))
            return
        match = _PREUPLOAD.fullmatch(path) or _COMMIT.fullmatch(path)
        assert match is not None, path
        if files := self._written(match["kind"], match["id"]):
            if "/preupload/" in path:
                self._preupload(files, json.loads(body))
            else:
                self._commit(match["kind"], match["id"], files, body)

    def do_PUT(self) -> None:
        path = self._begun()
        failure = self._failure
        if failure is not None and failure.cut is not None:
            self.rfile.read(failure.cut)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self._body_of_request()
        if self._failed():
            return
        match = _OBJECT.fullmatch(path)
        assert match is not None
        assert hashlib.sha256(body).hexdigest() == match["oid"]
        with self.hub._lock:
            self.hub.objects[match["oid"]] = body
            self.hub.uploads[match["oid"]] += 1
        self._answer(200, b"", {})

    def _begun(self) -> str:
        path = unquote(urlsplit(self.path).path)
        with self.hub._lock:
            self.hub.requests[f"{self.command} {path}"] += 1
        self._failure = self.hub.failure(self.command, path)
        return path

    def _failed(self) -> bool:
        failure = self._failure
        if failure is None or failure.status is None:
            return False
        self._answer(failure.status, b"{}", failure.headers)
        return True

    def _body_of_request(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _may_write(self, owner: str) -> bool:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.writers.values():
            self._refuse(
                401, "InvalidToken", {"X-Error-Message": "Invalid credentials in Authorization header"}
            )
        elif self.hub.writers.get(owner) != token:
            self._refuse(403, "Forbidden")
        else:
            return True
        return False

    def _written(self, kind: str, repo_id: str) -> dict[str, bytes] | None:
        """The files of a repository that may be written, or None after the refusal was sent."""
        if not self._may_write(repo_id.split("/")[0]):
            return None
        if (kind, repo_id) not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
            return None
        return self.hub.files(kind, repo_id)

    def _validate(self, asked: dict[str, str]) -> None:
        parts = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        card = yaml.safe_load(parts[1]) if parts else None
        licences = (card or {}).get("license", [])
        licences = [licences] if isinstance(licences, str) else licences
        errors = (
            [] if isinstance(card, dict) and all(map(_known_licence, licences)) else [{"message": "no card"}]
        )
        self._answer(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode(), {})

    def _create(self, asked: dict[str, Any]) -> None:
        kind, repo_id = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        if not self._may_write(asked["organization"]):
            return
        place = f"{self.hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        there = (kind, repo_id) in self.hub.repositories
        if not there:
            self.hub.visibility[kind, repo_id] = str(asked.get("visibility") or asked.get("private"))
            self.hub.publish(kind, repo_id, {".gitattributes": "*.safetensors filter=lfs\n"})
        self._answer(409 if there else 200, json.dumps({"url": place, "name": repo_id}).encode(), {})

    def _preupload(self, files: dict[str, bytes], asked: dict[str, Any]) -> None:
        found = []
        for file in asked["files"]:
            large, there = file["path"].endswith(LARGE), files.get(file["path"])
            oid = None
            if there is not None:
                oid = hashlib.sha256(there).hexdigest() if large else _git_hash(there)
            found.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": oid,
                }
            )
        self._json({"files": found})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/lfs-verify"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, kind: str, repo_id: str, files: dict[str, bytes], body: bytes) -> None:
        new = dict(files)
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                new[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del new[value["path"]]
        sha = self.hub.publish(kind, repo_id, new)
        address = f"{self.hub.endpoint}/{repo_id}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": address})


def _known_licence(name: str) -> bool:
    return name in {
        "mit",
        "apache-2.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc0-1.0",
        "gpl-3.0",
        "other",
    }
