"""A Hub on loopback: enough of its protocol for the real client to create, upload, commit, list and download.

The client must be told not to use Xet (HF_HUB_DISABLE_XET=1): large files travel by LFS, which is what the server speaks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".safetensors", ".parquet", ".png")  # what the Hub's own .gitattributes send by LFS
REPO = r"(datasets/[^/]+/[^/]+|models/[^/]+/[^/]+)"


class Hub:
    """What the server holds, and what it was asked to refuse."""

    def __init__(self):
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}  # of each repository, as it is now
        self.heads: dict[str, str] = {}
        self.history: dict[tuple[str, str], dict[str, bytes]] = {}  # of each repository at each revision
        self.blobs: dict[str, bytes] = {}  # large files, by their SHA-256
        self.uploads: list[str] = []  # the blobs that were received, again and again
        self.requests: list[tuple[str, str]] = []
        self.name = uuid.uuid4().hex  # no two Hubs have a revision in common: clients cache what they were told of one
        self.num_commits = 0
        self.refuse_commits = False
        self.max_uploads: int | None = None  # after so many large files the server fails

    @property
    def revision(self):
        """The newest commit, of whichever repository."""
        return hashlib.sha1(f"{self.name} {self.num_commits}".encode()).hexdigest()

    def create(self, repo, *, private):
        self.private.setdefault(repo, private)
        self.files.setdefault(repo, {})
        self.heads.setdefault(repo, self.revision)
        self.history.setdefault((repo, self.revision), {})

    def commit(self, repo, lines):
        """Apply an NDJSON commit as a whole."""
        files = dict(self.files[repo])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.files[repo] = files
        self.num_commits += 1
        self.heads[repo] = self.revision
        self.history[repo, self.revision] = files

    def at(self, repo, revision):
        """Return the files of a repository at a revision; None if there is no such thing."""
        return self.files.get(repo) if revision == "main" else self.history.get((repo, revision))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    @property
    def address(self):
        return f"http://{self.headers['Host']}"

    def reply(self, content, *, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code):
        self.reply({"error": code}, status=404, headers={"X-Error-Code": code})

    def read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def readable(self, repo):
        """Say whether there is such a repository for whoever asks; to a stranger a private one does not exist."""
        known = repo in self.hub.files
        return known and (not self.hub.private[repo] or self.headers.get("Authorization") == "Bearer hf_secret")

    def do_POST(self):
        path, body = self.path.partition("?")[0], self.read_body()
        self.hub.requests.append(("POST", path))
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if re.fullmatch(r"/.+\.git/info/lfs/objects/batch", path):
            return self.reply({"objects": [self.lfs_object(entry) for entry in json.loads(body)["objects"]]})
        repo, action = re.fullmatch(rf"/api/{REPO}/(preupload|commit)/[^/]+", path).groups()
        if action == "preupload":
            return self.preupload(json.loads(body)["files"])
        if self.hub.refuse_commits:
            return self.reply({"error": "try later"}, status=403)
        self.hub.commit(repo, [json.loads(line) for line in body.splitlines()])
        url = f"{self.address}/{repo.removeprefix('models/')}/commit/{self.hub.revision}"
        return self.reply({"commitUrl": url, "commitOid": self.hub.revision})

    def create(self, request):
        kind = request.get("type") or "model"
        repo = f"{kind}s/{request['organization']}/{request['name']}"
        if repo in self.hub.files:
            return self.reply({"error": "exists", "url": f"{self.address}/{repo}"}, status=409)
        self.hub.create(repo, private=request.get("visibility") == "private")
        return self.reply({"url": f"{self.address}/{repo.removeprefix('models/')}"})

    def preupload(self, files):
        modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
        return self.reply({"files": [{**f, "uploadMode": modes[f["path"]], "shouldIgnore": False} for f in files]})

    def lfs_object(self, entry):
        if entry["oid"] in self.hub.blobs:
            return entry
        return entry | {"actions": {"upload": {"href": f"{self.address}/lfs/{entry['oid']}"}}}

    def do_PUT(self):
        oid, content = self.path.rpartition("/")[2], self.read_body()
        if self.hub.max_uploads is not None and len(self.hub.uploads) >= self.hub.max_uploads:
            return self.reply({"error": "the line is cut"}, status=403)
        if hashlib.sha256(content).hexdigest() != oid:
            return self.reply({"error": "not what was announced"}, status=400)
        self.hub.uploads.append(oid)
        self.hub.blobs[oid] = content
        return self.reply(b"")

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        if match := re.fullmatch(rf"/api/{REPO}(?:/revision/([^/]+))?", path):
            return self.info(match.group(1), match.group(2) or "main")
        if match := re.fullmatch(rf"/api/{REPO}/tree/([^/]+)(/.*)?", path):
            return self.tree(match.group(1), match.group(2))
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = match.groups()
            return self.resolve(name if name.startswith("datasets/") else f"models/{name}", revision, file)
        return self.missing("EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def info(self, repo, revision):
        if not self.readable(repo):
            return self.missing("RepoNotFound")
        files = self.hub.at(repo, revision)
        if files is None:
            return self.missing("RevisionNotFound")
        return self.reply(
            {
                "id": repo.partition("/")[2],
                "sha": self.hub.heads[repo] if revision == "main" else revision,
                "private": self.hub.private[repo],
                "siblings": [{"rfilename": name} for name in sorted(files)],
                "tags": [],
            }
        )

    def tree(self, repo, revision):
        files = self.hub.at(repo, revision) if self.readable(repo) else None
        if files is None:
            return self.missing("RepoNotFound")
        rows = [("file", name, content) for name, content in sorted(files.items())]
        return self.reply(
            [{"type": kind, "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for kind, n, c in rows]
        )

    def resolve(self, repo, revision, file):
        if not self.readable(repo):
            return self.missing("RepoNotFound")
        files = self.hub.at(repo, revision)
        if files is None:
            return self.missing("RevisionNotFound")
        if file not in files:
            return self.missing("EntryNotFound")
        etag = hashlib.sha256(files[file]).hexdigest()
        commit = self.hub.heads[repo] if revision == "main" else revision
        return self.reply(files[file], headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit})


@contextmanager
def serving():
    """Yield a Hub and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
