"""A model hub on loopback that speaks the part of the Hugging Face hub's protocol that we use.

It stores commits in memory. Weights go through Git LFS, not through the Xet storage.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api

TOKEN, OWNER = "hf_loopback", "owner"


class HubServer:
    """The hub; `commit` fills it, `fetched` lists the files that were downloaded."""

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repository -> sha -> files
        self.private: dict[str, bool] = {}
        self.lfs: dict[str, bytes] = {}  # sha256 -> content
        self.fetched: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def use(self, patch: pytest.MonkeyPatch, cache: Path, token: str | None = TOKEN):
        """Sends the clients of this process here; cache: folder of their downloads."""
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(hf_api.api, "endpoint", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.setenv("HF_TOKEN", token or "")

    def commit(self, repo_id: str, changes: dict[str, bytes]) -> str:
        """Adds a commit with changed files; returns its sha."""
        commits = self.commits.setdefault(repo_id, {})
        files = (list(commits.values())[-1] if commits else {}) | changes
        sha = hashlib.sha1(repr((len(commits), sorted(files))).encode()).hexdigest()
        commits[sha] = files
        return sha

    def commit_folder(self, repo_id: str, folder: Path) -> str:
        """Adds a commit with all files of a folder."""
        files = (path for path in folder.rglob("*") if path.is_file())
        return self.commit(
            repo_id, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        )

    def files(self, repo_id: str) -> dict[str, bytes]:
        """The files of a repository's last commit."""
        return list(self.commits[repo_id].values())[-1]

    def revision(self, repo_id: str, name: str) -> str | None:
        """The sha of a revision; only main and shas exist."""
        commits = self.commits[repo_id]
        if name == "main":
            return list(commits)[-1]
        return name if name in commits else None

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length, path = int(self.headers["Content-Length"]), urlsplit(self.path).path
                body = self.rfile.read(length)
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self.reply(401, {"error": "Invalid username or password."})
                elif path == "/api/repos/create":
                    self.create(json.loads(body))
                elif path == "/api/validate-yaml":
                    self.reply(200, {"errors": [], "warnings": []})
                elif path.endswith("/info/lfs/objects/batch"):
                    self.reply(200, {"transfer": "basic", "objects": lfs(json.loads(body))})
                elif "/preupload/" in path:
                    self.reply(200, {"files": [mode(file) for file in json.loads(body)["files"]]})
                elif match := re.fullmatch(r"/api/models/(.+?/.+?)/commit/main", path):
                    self.store(match[1], [json.loads(line) for line in body.splitlines()])
                else:
                    self.reply(404, {"error": f"no such endpoint: {path}"})

            def do_PUT(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.lfs[hashlib.sha256(body).hexdigest()] = body
                self.reply(200, {})

            def do_GET(self):
                path = unquote(urlsplit(self.path).path)
                if match := re.fullmatch(r"/(?!api/)([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    self.send_file(*match.groups())
                elif match := re.fullmatch(
                    r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path
                ):
                    self.describe(match[1], match[2], match[3] or "main")
                else:
                    self.reply(404, {"error": f"no such endpoint: {path}"})

            do_HEAD = do_GET

            def create(self, request):
                repo_id = f"{request['organization']}/{request['name']}"
                if request["organization"] != OWNER:
                    error = f'You don\'t have the rights to create a model under "{repo_id}"'
                    self.reply(403, {"error": error})
                    return
                exists = repo_id in hub.commits
                if not exists:
                    hub.commit(repo_id, {".gitattributes": b""})
                hub.private.setdefault(repo_id, request.get("visibility") == "private")
                self.reply(409 if exists else 200, {"url": f"{hub.url}/{repo_id}"})

            def store(self, repo_id, entries):
                changes = {}
                for entry in entries:
                    value = entry["value"]
                    if entry["key"] == "file":
                        changes[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        changes[value["path"]] = hub.lfs[value["oid"]]
                sha = hub.commit(repo_id, changes)
                url = f"{hub.url}/{repo_id}/commit/{sha}"
                self.reply(200, {"commitUrl": url, "commitOid": sha})

            def find(self, repo_id, revision):
                """(sha, files) of a revision, or None after a reply that it does not exist."""
                if repo_id not in hub.commits:
                    self.reply(404, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"})
                    return None
                sha = hub.revision(repo_id, revision)
                if sha is None:
                    missing = {"X-Error-Code": "RevisionNotFound"}
                    self.reply(404, {"error": f"Invalid rev id: {revision}"}, missing)
                    return None
                return sha, hub.commits[repo_id][sha]

            def describe(self, repo_id, kind, revision):
                if (commit := self.find(repo_id, revision)) is None:
                    return
                sha, files = commit
                if kind == "tree":
                    entries = [
                        {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                        for name, data in files.items()
                    ]
                    self.reply(200, entries)
                else:
                    siblings = [{"rfilename": name} for name in files]
                    self.reply(200, {"id": repo_id, "sha": sha, "siblings": siblings, "tags": []})

            def send_file(self, repo_id, revision, name):
                if (commit := self.find(repo_id, revision)) is None:
                    return
                sha, files = commit
                if name not in files:
                    self.reply(404, {"error": "no file"}, {"X-Error-Code": "EntryNotFound"})
                    return
                if self.command == "GET":
                    hub.fetched.append(name)
                self.reply(
                    200, files[name], {"ETag": f'"{etag(files[name])}"', "X-Repo-Commit": sha}
                )

            def reply(self, status, body, headers=()):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *args):
                pass

        def lfs(request):
            return [
                entry | {"actions": {"upload": {"href": f"{hub.url}/lfs/{entry['oid']}"}}}
                for entry in request["objects"]
            ]

        def mode(file):
            upload = "lfs" if file["path"].endswith(".safetensors") else "regular"
            return {"path": file["path"], "uploadMode": upload, "shouldIgnore": False}

        def etag(data):
            return hashlib.sha1(data).hexdigest()

        return Handler
