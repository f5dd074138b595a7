"""A small server that speaks the part of the Hugging Face hub's protocol that its client uses for models."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_secretsecret"


class Hub:
    """What the hub has, by repository: the commit of each branch, and the files of each commit.

    Attributes:
      branches: Repository -> branch -> commit.
      commits: Commit -> name -> bytes.
      private: Repositories that only the token opens.
      read_only: Repositories that take no commit.
      asked: The method and path of each request, in order.
      failing: A status that every request is answered with; 0: none.
    """

    def __init__(self) -> None:
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.read_only: set[str] = set()
        self.asked: list[str] = []
        self.failing = 0

    def commit(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Returns the new commit of a branch that has these files and those before."""
        branches = self.branches.setdefault(repository, {})
        files = {**self.commits.get(branches.get(branch, ""), {}), **files}
        text = repr((repository, sorted(files.items())))
        branches[branch] = commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        return commit


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Writes no log."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.failing:
            return self.answer(self.hub.failing)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] != "api":
            return self.in_repository("/".join(parts[:2]), parts[2:], body)
        if parts[1:3] == ["repos", "create"]:
            return self.create(json.loads(body))
        if parts[1] == "validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        return self.in_repository("/".join(parts[2:4]), parts[4:], body)

    do_GET = do_HEAD = do_POST = do

    @property
    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, asked: dict[str, Any]) -> None:
        if not self.has_token:
            return self.answer(401)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.branches:
            return self.answer(409, json.dumps({"url": self.page(name)}).encode())
        self.hub.commit(name, {})
        return self.reply({"url": self.page(name), "name": name})

    def in_repository(self, repository: str, rest: list[str], body: bytes) -> None:
        hub = self.hub
        if repository not in hub.branches or (repository in hub.private and not self.has_token):
            return self.answer(401, X_Error_Code="RepoNotFound")
        what, revision, *name = rest or ["revision", "main"]
        commit = hub.branches[repository].get(revision, revision)
        if commit not in hub.commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = hub.commits[commit]
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.reply({"id": repository, "sha": commit, "siblings": siblings})
        if what == "tree":
            return self.reply([_listed(name, data) for name, data in files.items()])
        if what == "resolve":
            data = files["/".join(name)]
            return self.answer(200, data, ETag=f'"{_oid(data)}"', X_Repo_Commit=commit)
        if not self.has_token or repository in hub.read_only:
            return self.answer(403)
        if what == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": k, "uploadMode": "regular", "shouldIgnore": False} for k in names]
            return self.reply({"files": modes})
        assert what == "commit", what
        values = [
            line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"
        ]
        new = hub.commit(
            repository, {v["path"]: base64.b64decode(v["content"]) for v in values}, revision
        )
        url = self.page(f"{repository}/commit/{new}")
        return self.reply({"commitUrl": url, "commitOid": new})

    def page(self, path: str) -> str:
        return f"http://{self.headers['Host']}/{path}"


def _listed(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Yields the address of a server of a hub."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
