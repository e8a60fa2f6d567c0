"""A Hub on loopback: enough of its protocol for the real client to create, commit, list and download."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the server holds: for each repository whether it is private, and its files."""

    def __init__(self):
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.num_commits = 0
        self.refuse_commits = False

    @property
    def revision(self):
        return hashlib.sha1(str(self.num_commits).encode()).hexdigest()

    def commit(self, repo, lines):
        """Apply an NDJSON commit as a whole."""
        files = dict(self.files[repo])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                del files[value["path"]]
        self.files[repo] = files
        self.num_commits += 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

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

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            request = json.loads(body)
            repo = f"{request['type']}s/{request['organization']}/{request['name']}"
            self.hub.private.setdefault(repo, request.get("visibility") == "private")
            self.hub.files.setdefault(repo, {})
            return self.reply({"url": f"http://{self.headers['Host']}/{repo}"})
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        repo, action = re.fullmatch(
            r"/api/(datasets/[^/]+/[^/]+)/(preupload|commit)/[^/]+", self.path.partition("?")[0]
        ).groups()
        if action == "preupload":
            files = json.loads(body)["files"]
            return self.reply({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        if self.hub.refuse_commits:
            return self.reply({"error": "try later"}, status=403)
        self.hub.commit(repo, [json.loads(line) for line in body.splitlines()])
        return self.reply(
            {
                "commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{self.hub.revision}",
                "commitOid": self.hub.revision,
            }
        )

    def do_GET(self):
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)(/revision/[^/]+)?", path):
            repo = match.group(1)
            if repo not in self.hub.files:
                return self.missing("RepoNotFound")
            siblings = [{"rfilename": name} for name in sorted(self.hub.files[repo])]
            return self.reply(
                {
                    "id": repo.partition("/")[2],
                    "sha": self.hub.revision,
                    "private": self.hub.private[repo],
                    "siblings": siblings,
                    "tags": [],
                }
            )
        if match := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)/tree/[^/]+", path):
            files = self.hub.files[match.group(1)]
            return self.reply(
                [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in sorted(files.items())
                ]
            )
        if match := re.fullmatch(r"/(datasets/[^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.hub.files.get(match.group(1), {}).get(match.group(2))
            if content is None:
                return self.missing("EntryNotFound")
            etag = hashlib.sha1(content).hexdigest()
            return self.reply(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.revision})
        return self.missing("EntryNotFound")

    do_HEAD = do_GET  # noqa: N815


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
