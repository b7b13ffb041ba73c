"""A Hub on loopback: one data set with its commits, as huggingface_hub asks for it."""

import json
import threading
from collections.abc import Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Each commit is its files by their paths; `branches` says what names stand for."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.commits: dict[str, Mapping[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.asked: list[str] = []  # methods and paths
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(unquote(urlsplit(self.path).path))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - http.server's

            def log_message(self, *_words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """The branch stands for these files from now on; the commit."""
        name = sha256(repr(sorted(files.items())).encode()).hexdigest()[:40]
        self.commits[name], self.branches[branch] = files, name
        return name

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        api, files = f"/api/datasets/{self.dataset}", f"/datasets/{self.dataset}/resolve/"
        if not path.startswith((api, files)):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        kind, _, rest = path.removeprefix(api).lstrip("/").partition("/")
        if path.startswith(files):
            kind, rest = "resolve", path.removeprefix(files)
        name, _, rest = rest.partition("/")
        name = self.branches.get(name or "main", name)
        if name not in self.commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        commit = self.commits[name]
        if kind == "resolve":
            if rest not in commit:
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
            mark = sha256(commit[rest]).hexdigest()
            return 200, {"ETag": f'"{mark}"', "X-Repo-Commit": name}, commit[rest]
        if kind == "tree":
            found = [
                {"type": "file", "path": path, "size": len(data), "oid": "0"}
                for path, data in commit.items()
                if path.startswith(f"{rest}/" if rest else "")
            ]
            return (200 if found else 404), {}, json.dumps(found).encode()
        about = {"id": self.dataset, "sha": name, "siblings": [], "tags": []}
        return 200, {}, json.dumps(about).encode()
