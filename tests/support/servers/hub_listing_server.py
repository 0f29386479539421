"""The tests' hub with its listings: an owner's models and datasets page by page, and collections.

As on the real hub, a page brings what `expand` names and has no sizes of files; the next page is named by a `Link`
header, an unknown owner has an empty listing, and `usedStorage` is what a repository takes in all.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.servers.hub_server import HubServer, Repository, _Handler, _information


class ListingHubServer(HubServer):
    """A hub that lists; `page` is how many entries it sends at most."""

    def __init__(self, page: int = 500) -> None:
        self.page = page
        self.collections: dict[str, list[dict[str, Any]]] = {}
        super().__init__()

    def collect(self, slug: str, items: list[tuple[str, str]]) -> None:
        """Make a collection of kinds and names, such as ("model", "owner/name")."""
        self.collections[slug] = [
            {"_id": f"{number:024x}", "id": repo_id, "type": kind, "position": number}
            for number, (kind, repo_id) in enumerate(items)
        ]

    def asked(self) -> int:
        """How many requests there were."""
        return sum(self.requests.values())

    def listings(self) -> int:
        """How many requests there were for listings."""
        return sum(
            count
            for request, count in self.requests.items()
            if request.split(" ")[1] in ("/api/models", "/api/datasets")
        )

    def _handler(self) -> type[_Handler]:
        return type("Handler", (_ListingHandler,), {"hub": self})


class _ListingHandler(_Handler):
    hub: ListingHubServer

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        listing = parts.path in ("/api/models", "/api/datasets")
        if not listing and not parts.path.startswith("/api/collections/"):
            super()._serve()
            return
        with self.hub._lock:
            self.hub.requests[f"{self.command} {parts.path}"] += 1
        self._failure = self.hub.failure(self.command, parts.path)
        if self._failure and self._failure.status:
            self._answer(self._failure.status, b"{}", self._failure.headers)
        elif listing:
            self._listing(parts.path.removeprefix("/api/").removesuffix("s"), parse_qs(parts.query))
        elif (items := self.hub.collections.get(parts.path.removeprefix("/api/collections/"))) is not None:
            self._json({"slug": parts.path.removeprefix("/api/collections/"), "title": "t", "items": items})
        else:
            self._answer(404, b'{"error":"Collection not found"}', {})

    def _listing(self, kind: str, query: dict[str, list[str]]) -> None:
        owner = query.get("author", [""])[0]
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        found = [
            (repo_id, repository)
            for (of, repo_id), repository in sorted(self.hub.repositories.items())
            if of == kind and repo_id.startswith(f"{owner}/") and repository.token in (None, token)
        ]
        start = int(query.get("cursor", ["0"])[0])
        size = min(self.hub.page, int(query.get("limit", ["1000"])[0]))
        headers = {"Content-Type": "application/json"}
        if start + size < len(found):
            following = urlencode({**query, "cursor": [str(start + size)]}, doseq=True)
            headers["Link"] = f'<{self.hub.endpoint}/api/{kind}s?{following}>; rel="next"'
        page = [
            _entry(repo_id, repository, query.get("expand", []))
            for repo_id, repository in found[start : start + size]
        ]
        self._answer(200, json.dumps(page).encode(), headers)


def _entry(repo_id: str, repository: Repository, expand: list[str]) -> dict[str, Any]:
    sha = repository.branches["main"]
    files = repository.commits[sha]
    card = _information(repo_id, sha, files)["cardData"]
    base = (card or {}).get("base_model")  # type: ignore[union-attr]
    names = [base] if isinstance(base, str) else base or []
    every: dict[str, Any] = {
        "sha": sha,
        "siblings": [{"rfilename": name} for name in sorted(files)],
        "cardData": card,
        "tags": [f"base_model:adapter:{name}" for name in names],
        "gated": "auto" if repository.gated else False,
        "usedStorage": sum(map(len, files.values())),
    }
    return {"_id": "0", "id": repo_id} | {name: every[name] for name in expand if name in every}
