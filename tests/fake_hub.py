"""A loopback server that speaks as much of the Hub's API as pushing and loading a model takes, and can fail on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_right"


@dataclass
class Repo:
    """Branches of files, each with its commit."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})

    def sha(self, revision: str) -> str:
        files = self.branches[revision]
        return hashlib.sha1(
            json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(files.items())}).encode()
        ).hexdigest()

    def branch(self, revision: str) -> str | None:
        if revision in self.branches:
            return revision
        return next((name for name in self.branches if self.sha(name) == revision), None)


class FakeHub:
    """Use as a context manager.

    Attributes:
        repos: by id.
        requests: "METHOD path" of everything asked, in order.
        fail: given method and path, the HTTP status to answer with instead, "drop" to close the connection, or None.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail: Callable[[str, str], int | str | None] = lambda _method, _path: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request; the server knows the hub."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, data: object = None, headers: dict[str, str] | None = None, head: bool = False) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data if data is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def handle_any(self, method: str) -> None:
        path = unquote(self.path.split("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{method} {path}")
        failure = self.hub.fail(method, path)
        if failure == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(failure, int):
            self.answer(failure, {"error": f"failing with {failure}"})
            return
        if (
            self.headers.get("Authorization") != f"Bearer {TOKEN}"
            and method in ("POST", "PUT")
            and not path.startswith("/lfs/")
        ):
            self.answer(401, {"error": "Invalid credentials"})
            return
        self.route(method, path, body)

    def route(self, method: str, path: str, body: bytes) -> None:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/whoami-v2":
            self.answer(200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        elif parts[:2] == ["api", "models"]:
            self.models("/".join(parts[2:4]), parts[4:], method, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        elif parts[0] == "lfs":
            if method == "PUT":
                self.hub.stored[parts[1]] = body
            self.answer(200)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), method)
        else:
            self.answer(404, {"error": f"no {method} {path}"})

    def create(self, wanted: dict) -> None:
        name = "/".join([wanted.get("organization") or "me", wanted["name"]])
        if name in self.hub.repos:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
            return
        self.hub.repos[name] = Repo(bool(wanted.get("private")) or wanted.get("visibility") == "private")
        self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def models(self, name: str, rest: list[str], method: str, body: bytes) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            modes = ["lfs" if own["path"].endswith(".safetensors") else "regular" for own in files]
            answers = [
                {"path": own["path"], "uploadMode": mode, "shouldIgnore": False} for own, mode in zip(files, modes, strict=True)
            ]
            self.answer(200, {"files": answers})
        elif rest[:1] == ["commit"]:
            self.commit(name, repo, rest[1], body)
        elif rest[:1] == ["branch"]:
            known = rest[1] in repo.branches
            repo.branches.setdefault(rest[1], dict(repo.branches["main"]))
            self.answer(409 if known else 200, {"error": "Reference already exists"} if known else {})
        elif rest[:1] == ["tree"]:
            self.tree(repo, rest[1], "/".join(rest[2:]))
        else:
            self.info(name, repo, rest[1] if rest[:1] == ["revision"] else "main")

    def tree(self, repo: Repo, revision: str, folder: str) -> None:
        files = repo.branches.get(repo.branch(revision) or "", {})
        own = {name: data for name, data in files.items() if name.startswith(folder)}
        if not own:
            self.answer(404, {"error": "EntryNotFound"}, {"X-Error-Code": "EntryNotFound"})
            return
        entries = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in own.items()]
        self.answer(200, entries)

    def info(self, name: str, repo: Repo, revision: str) -> None:
        branch = repo.branch(revision)
        if branch is None:
            self.answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": file} for file in repo.branches[branch]]
        self.answer(
            200,
            {
                "id": name,
                "modelId": name,
                "sha": repo.sha(branch),
                "siblings": siblings,
                "private": repo.private,
                "tags": [],
            },
        )

    def commit(self, name: str, repo: Repo, revision: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for line in filter(None, body.decode().splitlines()):
            own = json.loads(line)
            if own["key"] == "file":
                files[own["value"]["path"]] = base64.b64decode(own["value"]["content"])
            elif own["key"] == "lfsFile":
                files[own["value"]["path"]] = self.hub.stored[own["value"]["oid"]]
        repo.branches[revision].update(files)
        sha = repo.sha(revision)
        self.answer(
            200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "pullRequestUrl": None}
        )

    def batch(self, wanted: dict) -> None:
        objects = [
            {
                **own,
                "actions": {
                    "upload": {"href": f"{self.hub.url}/lfs/{own['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/{own['oid']}"},
                },
            }
            for own in wanted["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def resolve(self, name: str, revision: str, file: str, method: str) -> None:
        repo = self.hub.repos.get(name)
        branch = None if repo is None else repo.branch(revision)
        if repo is None or branch is None or file not in repo.branches[branch]:
            code = "RepoNotFound" if repo is None else "RevisionNotFound" if branch is None else "EntryNotFound"
            headers = {"X-Error-Code": code} | ({"X-Repo-Commit": repo.sha(branch)} if repo and branch else {})
            self.answer(404, {"error": code}, headers, head=method == "HEAD")
            return
        data = repo.branches[branch][file]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": repo.sha(branch)}
        self.answer(200, data, headers, head=method == "HEAD")

    def do_GET(self) -> None:
        self.handle_any("GET")

    def do_HEAD(self) -> None:
        self.handle_any("HEAD")

    def do_POST(self) -> None:
        self.handle_any("POST")

    def do_PUT(self) -> None:
        self.handle_any("PUT")
