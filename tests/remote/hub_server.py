"""A Hub on loopback: one data set with its commits, as huggingface_hub asks for it.

It can fail as asked.
"""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from urllib.parse import unquote, urlsplit

from tests.loopback_server import LoopbackServer, QuietHandler
from tests.waiting import HANG_S

# What is to be done with a request, by its method and path: a status, `gated` (403), `silence`,
# `cut` (half of the answer arrives), `stall` (the same, and the connection stays open), `drip` (a
# byte from time to time), `short` (half of the file, and that is said to be all), `elsewhere` (of a
# file: it is on another host, at a URL with a signature), or null.
Rule = Callable[[str, str], int | str | None]
SIGNATURE = "a-signature-of-a-url"


class Hub:
    """Each commit is its files by their paths; `branches` says what names stand for."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.rule: Rule = lambda _method, _path: None
        self.tokens: set[str | None] = set()  # of all requests
        self.commits: dict[str, Mapping[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.asked: list[str] = []  # methods and paths
        hub = self

        class Handler(QuietHandler):
            def _serve(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if "/datasets/" in path:  # the library asks for more
                    hub.asked.append(f"{self.command} {self.path}")
                if path.startswith(("/api/datasets/", "/datasets/")):
                    hub.tokens.add(self.headers.get("Authorization"))
                what = hub.rule(self.command, path)
                if what == "silence":
                    hub.closing.wait(HANG_S)
                    self.close_connection = True
                    return
                status, headers, body = hub.answer(path)
                if isinstance(what, int):
                    said = f"not for {self.headers.get('Authorization')}"
                    status, headers, body = what, {}, json.dumps({"error": said}).encode()
                elif what == "gated":
                    status, headers, body = 403, {"X-Error-Code": "GatedRepo"}, b"{}"
                elif what == "short":
                    body = body[: len(body) // 2]
                elif what == "elsewhere":
                    mark = headers["ETag"]
                    place = (
                        f"http://localhost:{hub.port}/elsewhere{path}?X-Amz-Signature={SIGNATURE}"
                    )
                    headers |= {"X-Linked-Size": str(len(body)), "X-Linked-ETag": mark}
                    status, headers, body = 302, {**headers, "Location": place}, b""
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                is_whole = what not in ("cut", "stall")
                with suppress(OSError):
                    for at in range(len(body) if what == "drip" else 0):
                        self.wfile.write(body[at : at + 1])
                        if hub.closing.wait(0.3):
                            return
                    self.wfile.write(body if is_whole else body[: len(body) // 2])
                    if what == "stall":
                        hub.closing.wait(HANG_S)
                    if not is_whole:
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_HEAD = _serve  # noqa: N815 - http.server's

        self.closing = threading.Event()
        self._server = LoopbackServer(Handler)
        self.port = self._server.port
        self.address = self._server.address

    def close(self) -> None:
        self.closing.set()
        self._server.close()

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """The branch stands for these files from now on; the commit."""
        name = sha256(repr(sorted(files.items())).encode()).hexdigest()[:40]
        self.commits[name], self.branches[branch] = files, name
        return name

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        path = path.removeprefix("/elsewhere")
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
