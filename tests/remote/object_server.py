"""An object store on loopback (moto's S3), and a proxy before it that fails as asked."""

import http.client
import io
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from html import unescape
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import quote

from tests.loopback_server import LoopbackServer, QuietHandler
from tests.waiting import HANG_S

# moto looks at whose request it is, not at the signature.
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"}


class Bucket:
    """A bucket, looked at as its owner does, past the proxy."""

    def __init__(self, address: str, name: str) -> None:
        self.name, self._host = name, address.removeprefix("http://")
        self._ask("PUT", "")

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes | str, *, is_public: bool = False) -> None:
        more = {"x-amz-acl": "public-read"} if is_public else {}
        self._ask("PUT", f"/{quote(key)}", data.encode() if isinstance(data, str) else data, more)

    def get(self, key: str) -> bytes | None:
        return self._ask("GET", f"/{quote(key)}")

    def delete(self, key: str) -> None:
        self._ask("DELETE", f"/{quote(key)}")

    def names(self, prefix: str = "") -> list[str]:
        """Those that stand for folders are left out: pyarrow leaves some when it deletes."""
        found: list[str] = []
        more = ""
        while True:
            page = self._ask("GET", f"?list-type=2&prefix={quote(prefix)}{more}") or b""
            found += [key for key in _values(page, "Key") if not key.endswith("/")]
            tokens = _values(page, "NextContinuationToken")
            if not tokens:
                return sorted(found)
            more = f"&continuation-token={quote(tokens[0], safe='')}"

    def open_uploads(self) -> list[str]:
        """Keys of uploads that were begun and not ended."""
        return _values(self._ask("GET", "?uploads") or b"", "Key")

    def _ask(
        self, method: str, rest: str, data: bytes | None = None, more: Mapping[str, str] = {}
    ) -> bytes | None:
        """The body of the answer; null where there is no such object."""
        connection = http.client.HTTPConnection(self._host, timeout=HANG_S)
        connection.request(method, f"/{self.name}{rest}", data, {**_SIGNED, **more})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status < 300 or answer.status == 404, body
        return body if answer.status < 300 else None


class Clock:
    """What a store takes for the time when an object is written."""

    ahead_s = 0.0


def _values(page: bytes, tag: str) -> list[str]:
    return [unescape(text) for text in re.findall(f"<{tag}>(.*?)</{tag}>", page.decode())]


class Call(NamedTuple):
    """A request that the proxy has got."""

    number: int  # of all, from 1
    method: str
    path: str  # with its query
    headers: Mapping[str, str] = {}  # names in lower case

    @property
    def signed_for(self) -> str:
        """By whose key, and for which region; empty for a request that nobody signed."""
        found = re.search(
            "Credential=([^/]*)/[^/]*/([^/]*)/", self.headers.get("authorization", "")
        )
        return " ".join(found.groups()) if found else ""


# What is to be done with a request: `fail` (503), `deny` (403), `silence`, `cut` (half of the
# answer arrives), `stall` (the same, and the connection stays open), `drip` (a byte from time to
# time), `half` (of the request, and the server takes it for the whole), or null.
Rule = Callable[[Call], str | None]


class AtRandom:
    """A rule: of the requests that it `counts`, about a `share` meet one of `faults`.

    Which ones depends on the seed alone, not on who is faster: on a request's name and on how often
    it came before.
    """

    def __init__(
        self,
        seed: int,
        share: float,
        faults: Sequence[str],
        counts: Callable[[Call], bool] = lambda call: call.method not in ("GET", "HEAD"),
    ) -> None:
        self.met: list[tuple[str, Call]] = []
        self._seed, self._share, self._faults, self._counts = seed, share, faults, counts
        self._seen = Counter[str]()
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> str | None:
        if not self._counts(call):
            return None
        # Some are named at random.
        name = f"{call.method} {re.sub('[0-9a-f]{16}|upload_id=[^&]*', '', call.path)}"
        with self._lock:
            self._seen[name] += 1
            chance = random.Random(f"{self._seed} {name} {self._seen[name]}")
            if chance.random() >= self._share:
                return None
            fault = chance.choice(self._faults)
            self.met.append((fault, call))
        return fault


class Proxy:
    """Passes requests on to a server, but for what `rule` says; `after` is told of each answer.

    The server believes to be asked itself, and what it says of its own address is ours.
    """

    def __init__(self, upstream: str) -> None:
        self.rule: Rule = lambda _call: None
        self.after: Callable[[Call], None] = lambda _call: None
        self.calls: list[Call] = []
        self._upstream = upstream.removeprefix("http://")
        self._lock = threading.Lock()
        self._closing = threading.Event()
        proxy = self

        class Handler(QuietHandler):
            def _serve(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - http.server's

        self._server = LoopbackServer(Handler)
        self.address = self._server.address

    def close(self) -> None:
        self._closing.set()
        self._server.close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            call = Call(len(self.calls) + 1, handler.command, handler.path, dict(headers))
            self.calls.append(call)
        what = self.rule(call)
        if what == "silence":
            self._closing.wait(HANG_S)
            handler.close_connection = True
            return
        if what in ("fail", "deny"):
            handler.send_response(503 if what == "fail" else 403)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        upstream = http.client.HTTPConnection(self._upstream, timeout=HANG_S)
        headers["host"] = self._upstream
        if what == "half":
            body = _half(headers, body)
        if headers.pop("transfer-encoding", None) or what == "half":
            headers["content-length"] = str(len(body))
        upstream.request(handler.command, handler.path, body or None, headers)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        self.after(call)
        own = self.address.removeprefix("http://")
        with suppress(OSError):
            handler.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                    handler.send_header(name, value.replace(self._upstream, own))
            if "Content-Length" not in answer.headers:
                handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            if handler.command != "HEAD":
                is_whole = what not in ("cut", "stall")
                for at in range(len(data) if what == "drip" else 0):
                    handler.wfile.write(data[at : at + 1])
                    if self._closing.wait(0.3):
                        return
                handler.wfile.write(data if is_whole else data[: len(data) // 2])
            if what == "stall":
                self._closing.wait(HANG_S)
            if what in ("cut", "stall"):
                handler.close_connection = True
                handler.connection.shutdown(socket.SHUT_RDWR)


def _half(headers: dict[str, str], body: bytes) -> bytes:
    """The first half, without what would show that there was more."""
    if "aws-chunked" in headers.get("content-encoding", ""):
        del headers["content-encoding"]
        body = b"".join(_pieces(io.BytesIO(body)))
    for name in [name for name in headers if name.startswith(("x-amz-", "content-md5"))]:
        if name != "x-amz-date":
            del headers[name]
    return body[: len(body) // 2]


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in handler.headers.get("Transfer-Encoding", ""):
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = b"".join(_pieces(handler.rfile))
    handler.rfile.readline()
    return body


def _pieces(file: io.BufferedIOBase) -> Iterator[bytes]:
    while size := int(file.readline().partition(b";")[0], 16):
        yield file.read(size)
        file.readline()
